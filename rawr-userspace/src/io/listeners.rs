//! STUN ports at which the kernel answers Binding requests by itself.

use std::net::{IpAddr, SocketAddr};

use super::driver::Driver;
use crate::dataplane::bpf::Listener;

/// That the kernel is to answer.
#[derive(Clone, Copy, Debug)]
pub struct BindingAnswers {
    /// Most bytes (of layer 3) of answers per second at each port; `None` for no limit.
    pub bytes_per_second: Option<u64>,
}

impl Driver {
    /// Has the kernel answer Binding requests at our STUN ports, from now on.
    pub fn answer_binding(&mut self, answers: BindingAnswers) {
        self.binding = Some(answers);
        self.update_listeners();
    }

    /// Links or addresses have changed.
    pub(super) fn update_listeners(&mut self) {
        let (Some(answers), Some(kernel)) = (self.binding, &mut self.kernel) else { return };
        let topology = self.network.topology();
        let own: Vec<IpAddr> = topology.addresses().map(|it| it.address.addr()).collect();
        let bound = self.sockets.iter().filter(|socket| socket.takes_requests());
        let listener = |local: SocketAddr| {
            let exit = topology.exit_of(local.ip())?;
            Some(Listener { local, exit, bytes_per_second: answers.bytes_per_second })
        };
        let listeners: Vec<_> =
            bound.flat_map(|socket| ports_of(socket.bound(), &own)).filter_map(listener).collect();
        for (local, why) in kernel.bpf.answer_binding(&listeners) {
            log::warn!("userspace answers Binding requests at {local}: {why}");
        }
    }
}

/// The addresses and ports that a socket takes datagrams at; link-local ones would need a scope.
fn ports_of(bound: SocketAddr, own: &[IpAddr]) -> Vec<SocketAddr> {
    let is_served = |ip: &&IpAddr| {
        let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        ip.is_ipv4() == bound.is_ipv4() && !link_local
    };
    match bound.ip().is_unspecified() {
        true => own.iter().filter(is_served).map(|ip| SocketAddr::new(*ip, bound.port())).collect(),
        false => vec![bound],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_stands_for_all_own_addresses_of_its_family() {
        let own =
            ["192.0.2.1", "2001:db8::1", "fe80::1", "192.0.2.2"].map(|ip| ip.parse().unwrap());
        let of = |bound: &str| {
            let ports = ports_of(bound.parse().unwrap(), &own);
            ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of("0.0.0.0:3478"), "192.0.2.1:3478 192.0.2.2:3478");
        assert_eq!(of("[::]:3478"), "[2001:db8::1]:3478");
        assert_eq!(of("192.0.2.2:3479"), "192.0.2.2:3479");
    }
}
