//! Which places of the kernel's flow tables the open data ports take.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// The places taken, by family and index.
#[derive(Debug)]
pub struct Ports {
    mask: u32,
    taken: HashMap<(bool, u32), SocketAddr>,
}

impl Ports {
    /// For flow tables of `table_length` places, a power of two.
    pub fn new(table_length: u32) -> Self {
        Self { mask: table_length.saturating_sub(1), taken: HashMap::new() }
    }

    /// Whether a data port at `local` would have a place of its own.
    pub fn is_free(&self, local: SocketAddr) -> bool {
        !self.taken.contains_key(&self.place(local))
    }

    /// `local` is open now.
    pub fn reserve(&mut self, local: SocketAddr) {
        self.taken.insert(self.place(local), local);
    }

    /// `local` is closed.
    pub fn release(&mut self, local: SocketAddr) {
        if self.taken.get(&self.place(local)) == Some(&local) {
            self.taken.remove(&self.place(local));
        }
    }

    fn place(&self, local: SocketAddr) -> (bool, u32) {
        let last_byte = match local.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        (local.is_ipv6(), rawr_common::flow::index(last_byte, local.port(), self.mask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_the_same_last_byte_share_places() {
        let mut ports = Ports::new(1 << 20);
        let (one, two) = ("10.1.0.1:50000".parse().unwrap(), "10.2.0.1:50000".parse().unwrap());
        ports.reserve(one);
        assert!(!ports.is_free(two));
        assert!(ports.is_free("10.2.0.2:50000".parse().unwrap()));
        assert!(ports.is_free("[2001:db8::1]:50000".parse().unwrap()));
        ports.release(two);
        assert!(!ports.is_free(two), "only its holder releases a place");
        ports.release(one);
        assert!(ports.is_free(two));
    }
}
