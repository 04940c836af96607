//! Arrays in memory that the kernel and this process share.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr::{self, NonNull},
};

/// An array of `T` in shared memory, of which any bits are a valid value. It is nobody else's in this
/// process.
#[derive(Debug)]
pub(super) struct Mapping<T> {
    base: NonNull<T>,
    len: u32,
}

// SAFETY: the mapping belongs to its owner and is only reached through it.
unsafe impl<T> Send for Mapping<T> {}

impl<T> Mapping<T> {
    /// The `len` elements of a `BPF_F_MMAPABLE` array map.
    pub(super) fn of(array: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        Self::new(len, libc::MAP_SHARED, array.as_raw_fd())
    }

    /// `len` elements, all zeros, that nobody else reads.
    pub(super) fn anonymous(len: u32) -> io::Result<Self> {
        Self::new(len, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)
    }

    /// How many elements there are.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Where an element lies, for as long as `self` lives.
    ///
    /// # Panics
    ///
    /// If there is no such index.
    pub(super) fn at(&self, index: u32) -> NonNull<T> {
        assert!(index < self.len, "entry {index} of a table of {}", self.len);
        // SAFETY: the mapping holds `len` elements and lives as long as `self`.
        unsafe { self.base.add(index as usize) }
    }

    fn new(len: u32, flags: i32, fd: RawFd) -> io::Result<Self> {
        let bytes = len as usize * size_of::<T>();
        // SAFETY: a new mapping, at an address of the kernel's choice, of what the caller gave.
        let base = unsafe {
            libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { base, len })
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        let bytes = self.len as usize * size_of::<T>();
        // SAFETY: made by `new` with this length, and no reference to it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), bytes) };
    }
}
