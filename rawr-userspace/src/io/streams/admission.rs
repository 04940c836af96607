//! How many streams there may be: altogether, and of one source prefix.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;

/// Counts streams. A stream counts while its [`Ticket`] lives.
#[derive(Debug)]
pub(super) struct Admission {
    most: u32,
    most_per_prefix: u32,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: u32,
    prefixes: HashMap<IpNet, u32>,
}

/// The right to one stream.
#[derive(Debug)]
pub(super) struct Ticket {
    admission: Arc<Admission>,
    prefix: IpNet,
}

impl Admission {
    pub(super) fn new(most: u32, most_per_prefix: u32) -> Arc<Self> {
        Arc::new(Self { most, most_per_prefix, counts: Mutex::default() })
    }

    /// Admits a stream from `source`; `None` if there are too many.
    pub(super) fn admit(self: &Arc<Self>, source: IpAddr) -> Option<Ticket> {
        let prefix = prefix(source);
        let mut counts = self.counts();
        let of_prefix = counts.prefixes.get(&prefix).copied().unwrap_or_default();
        if counts.all >= self.most || of_prefix >= self.most_per_prefix {
            return None;
        }
        counts.all += 1;
        counts.prefixes.insert(prefix, of_prefix + 1);
        Some(Ticket { admission: Arc::clone(self), prefix })
    }

    /// Streams that are admitted now.
    pub(super) fn count(&self) -> u32 {
        self.counts().all
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut counts = self.admission.counts();
        counts.all = counts.all.saturating_sub(1);
        if let Some(count) = counts.prefixes.get_mut(&self.prefix) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.prefixes.remove(&self.prefix);
            }
        }
    }
}

/// What one customer usually has, as the limits of the control plane have it: an IPv4 /24 or an
/// IPv6 /56.
fn prefix(source: IpAddr) -> IpNet {
    let source = source.to_canonical();
    let length = if source.is_ipv4() { 24 } else { 56 };
    IpNet::new_assert(source, length).trunc()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold_and_a_closed_stream_makes_room() {
        let admission = Admission::new(3, 2);
        let admit = |text: &str| admission.admit(text.parse().unwrap());
        let one = admit("192.0.2.1").unwrap();
        let _two = admit("::ffff:192.0.2.200").unwrap();
        assert!(admit("192.0.2.3").is_none(), "two of one prefix");
        let _three = admit("2001:db8::1").unwrap();
        assert!(admit("198.51.100.1").is_none(), "three altogether");
        drop(one);
        assert!(admit("192.0.2.3").is_some());
        assert_eq!(admission.count(), 2);
    }

    #[test]
    fn nothing_is_kept_of_prefixes_without_streams() {
        let admission = Admission::new(10, 10);
        drop(admission.admit("192.0.2.1".parse().unwrap()));
        assert!(admission.counts().prefixes.is_empty());
    }
}
