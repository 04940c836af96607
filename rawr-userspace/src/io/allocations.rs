//! What the daemon tells of TURN: the answer to `rawr allocations`, and its part of `rawr status`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::driver::{Driver, now};
use super::report::read_counters;
use crate::admin::{AllocationCounts, AllocationInfo, Carried, Response, UserInfo};
use crate::control::{AllocationView, Over};
use crate::dataplane::{Counters, FlowKey};

/// Users that the status names.
const MOST_USERS: usize = 10;

/// Every allocation, with what has been carried by whichever way.
pub(super) fn allocations(driver: &mut Driver) -> Response {
    read_counters(driver);
    Response::Allocations(driver.server.allocations(now()).map(|it| info(driver, &it)).collect())
}

pub(super) fn counts(driver: &Driver) -> AllocationCounts {
    let mut users: BTreeMap<Arc<str>, u64> = BTreeMap::new();
    for view in driver.server.allocations(now()) {
        *users.entry(view.user).or_default() += 1;
    }
    let mut most: Vec<_> = users
        .iter()
        .map(|(name, count)| UserInfo { name: name.to_string(), allocations: *count })
        .collect();
    most.sort_by(|a, b| b.allocations.cmp(&a.allocations).then_with(|| a.name.cmp(&b.name)));
    most.truncate(MOST_USERS);
    AllocationCounts {
        total: driver.server.allocation_count() as u64,
        reserved_ports: driver.server.reservation_count() as u64,
        users: users.len() as u64,
        most,
    }
}

fn info(driver: &Driver, view: &AllocationView) -> AllocationInfo {
    let transport = match view.client.over {
        Over::Udp => "udp",
        Over::Dtls(_) => "dtls",
        Over::Tcp(_) => "tcp",
        Over::Tls(_) => "tls",
    };
    let kernel = |keys: &mut dyn Iterator<Item = FlowKey>| {
        let flows = keys.filter_map(|key| driver.flows.get(key));
        flows.fold(Counters::default(), |sum, flow| sum + flow.counters)
    };
    let to_peers = kernel(&mut view.flows.iter().map(|flow| flow.from_client));
    let to_client = kernel(&mut view.flows.iter().map(|flow| flow.from_peer));
    AllocationInfo {
        client: view.client.remote,
        server: view.client.local,
        transport: transport.to_owned(),
        user: view.user.to_string(),
        relayed: view.relayed.clone(),
        peers_over: if view.is_tcp { "tcp" } else { "udp" }.to_owned(),
        mobile: view.is_mobile,
        expires_seconds: view.expires_in.as_secs(),
        permissions: view.permissions as u64,
        channels: view.channels as u64,
        forwarded_channels: view.flows.len() as u64,
        connections: view.connections as u64,
        to_peers: carried(to_peers, view.to_peers),
        to_client: carried(to_client, view.to_client),
    }
}

fn carried(kernel: Counters, userspace: Counters) -> Carried {
    Carried {
        kernel_packets: kernel.packets,
        kernel_bytes: kernel.bytes,
        userspace_packets: userspace.packets,
        userspace_bytes: userspace.bytes,
    }
}
