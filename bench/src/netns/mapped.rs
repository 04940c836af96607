//! Array maps as memory.

use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{NonNull, null_mut};
use std::{io, marker::PhantomData};

use anyhow::{Context, Result, bail, ensure};
use aya::Ebpf;
use aya::maps::Map;

/// An array map of `BPF_F_MMAPABLE`. The kernel's programs read and write it meanwhile; so elements
/// are copied in and out, each as it is at some moment.
pub(super) struct Mapped<T> {
    start: NonNull<T>,
    len: usize,
    _elements: PhantomData<T>,
}

// SAFETY: elements are plain data, shared with the kernel anyway, and copied by volatile accesses.
unsafe impl<T: Copy + Send> Sync for Mapped<T> {}

impl<T: Copy> Mapped<T> {
    /// Takes a map with `len` elements, whose type has to be `T`, out of a loaded object.
    ///
    /// # Errors
    ///
    /// If there is no such map, or it cannot be mapped.
    pub(super) fn new(ebpf: &mut Ebpf, name: &str, len: u32) -> Result<Self> {
        const {
            assert!(
                size_of::<T>().is_multiple_of(8),
                "the kernel rounds elements up to eight bytes"
            )
        };
        let map = ebpf.take_map(name).with_context(|| format!("no map {name}"))?;
        let Map::Array(data) = map else { bail!("map {name} is no array") };
        let info = data.info()?;
        ensure!(info.value_size() as usize == size_of::<T>(), "map {name} holds something else");
        let len = len as usize;
        let (protection, bytes) = (libc::PROT_READ | libc::PROT_WRITE, len * size_of::<T>());
        let fd = data.fd().as_fd().as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice; it outlives the descriptor.
        let start = unsafe { libc::mmap(null_mut(), bytes, protection, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context(format!("cannot map {name}"));
        }
        let start = NonNull::new(start.cast()).context("mapped at address zero")?;
        Ok(Self { start, len, _elements: PhantomData })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = T> {
        // SAFETY: within the mapping.
        (0..self.len).map(|index| unsafe { self.start.add(index).read_volatile() })
    }

    pub(super) fn write(&self, index: usize, element: T) {
        assert!(index < self.len, "element {index} of {}", self.len);
        // SAFETY: within the mapping.
        unsafe { self.start.add(index).write_volatile(element) };
    }

    pub(super) fn fill(&self, element: T) {
        for index in 0..self.len {
            self.write(index, element);
        }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this length, and no reference to it is ever given out.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len * size_of::<T>()) };
    }
}
