//! Names of sockets, which only a driver has.

/// A socket of the driver's; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u32);

impl SocketId {
    /// The socket that was mapped, and whose external endpoint the other side was told.
    pub const MAPPED: Self = Self(0);
}
