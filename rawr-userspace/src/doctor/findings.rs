//! From facts to findings. Pure.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use rawr_common::flow::{self, Flow4, Flow6};

use super::facts::{Facts, Interface, Kind, capability};
use super::{Finding, Options, Severity};
use crate::dataplane::bpf::features;

/// The first kernel with everything that the program needs, and what that is.
const KERNEL_NEEDED: (u32, u32) = (5, 11);
const KERNEL_NEEDS: [((u32, u32), &str); 4] = [
    ((5, 5), "BPF arrays in shared memory (flow tables)"),
    ((5, 8), "CAP_BPF (running without full root)"),
    ((5, 9), "BPF links for XDP (upgrades without a gap)"),
    ((5, 11), "the coarse clock in BPF (rate limits), and memory that is not counted as locked"),
];

/// Largest MTU in native mode where a packet must fit one page beside its headroom and trailer.
const PAGE_MTU: u32 = 3506;

/// File descriptors besides the sessions' sockets.
const OTHER_FILES: u64 = 256;

/// A receive buffer that holds some milliseconds of a busy slow path, in bytes.
const RECEIVE_BUFFER: u64 = 1 << 20;

/// Judges everything.
pub fn judge(facts: &Facts, options: &Options) -> Vec<Finding> {
    let mut findings = vec![
        kernel(facts),
        capabilities(facts),
        bpffs(facts),
        open_files(facts, options),
        capacity(facts, options),
        tables(facts, options),
        ports(facts, options),
        firewall(facts, options),
    ];
    findings.extend([jit(facts), receive_buffer(facts), neighbours(facts), conntrack(facts)]);
    for interface in &facts.interfaces {
        findings.extend(judge_interface(interface, facts.cpus));
    }
    findings.retain(|finding| !finding.what.is_empty());
    findings
}

/// Judges one interface. At least one finding.
fn judge_interface(interface: &Interface, cpus: usize) -> Vec<Finding> {
    let about = About(&interface.name);
    if let Some(impossible) = impossible(interface) {
        return vec![impossible];
    }
    let checks = [
        link_state(interface),
        mode(interface),
        other_program(interface),
        mtu(interface),
        veth_checksums(interface),
        redirect_target(interface),
        vlan_stripping(interface),
        aggregation(interface, "rx-lro", "large receive offload"),
        aggregation(interface, "rx-gro-hw", "hardware GRO"),
        queues(interface, cpus),
    ];
    let mut findings: Vec<_> = checks.into_iter().flatten().collect();
    if findings.is_empty() {
        let driver = interface.driver.as_deref().unwrap_or("unknown driver");
        findings.push(about.ok(format!("{driver}, MTU {}: fit for native XDP", interface.mtu)));
    }
    findings
}

/// Makes findings about one subject.
struct About<'a>(&'a str);

impl About<'_> {
    fn ok(&self, what: impl Into<String>) -> Finding {
        self.finding(Severity::Ok, what, "", "")
    }

    fn finding(
        &self,
        severity: Severity,
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Finding {
        let (what, why, fix) = (what.into(), why.into(), fix.into());
        Finding { severity, subject: self.0.to_owned(), what, why, fix }
    }

    /// Stands for a fact that could not be read, and that nothing is said about.
    fn silence(&self) -> Finding {
        self.ok("")
    }
}

fn kernel(facts: &Facts) -> Finding {
    let about = About("kernel");
    let Some(version) = version(&facts.kernel_release) else {
        let what = format!("unknown version {:?}", facts.kernel_release);
        return about.finding(Severity::Warn, what, "the fast path needs Linux 5.11", "uname -r");
    };
    if version >= KERNEL_NEEDED {
        return about.ok(format!("{} has all that the fast path needs", facts.kernel_release));
    }
    let lacks: Vec<_> = KERNEL_NEEDS
        .iter()
        .filter(|(since, _)| version < *since)
        .map(|((major, minor), what)| format!("{what}: {major}.{minor}"))
        .collect();
    about.finding(
        Severity::Fail,
        format!("{} is too old", facts.kernel_release),
        format!("it lacks {}", lacks.join("; ")),
        "install a kernel ≥ 5.11, or run with --datapath userspace",
    )
}

/// "6.1.0-18-amd64" is (6, 1).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn capabilities(facts: &Facts) -> Finding {
    let about = About("privilege");
    let Some(held) = facts.capabilities else { return about.silence() };
    let has = |bits| held & bits == bits;
    let may_load = has(capability::SYS_ADMIN) || has(capability::BPF | capability::PERFMON);
    if !may_load || !has(capability::NET_ADMIN) {
        return about.finding(
            Severity::Fail,
            "may not load and attach XDP programs",
            "that takes CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, or root; without, only \
             --datapath userspace works",
            "run as root, or set AmbientCapabilities=CAP_BPF CAP_PERFMON CAP_NET_ADMIN CAP_NET_RAW \
             in the unit (systemctl edit rawr)",
        );
    }
    if !has(capability::NET_RAW) {
        return about.finding(
            Severity::Warn,
            "may not open raw sockets",
            "silent IPv6 hosts are found by ICMPv6 echo to ff02::1, which takes CAP_NET_RAW",
            "add CAP_NET_RAW to AmbientCapabilities in the unit (systemctl edit rawr)",
        );
    }
    about.ok("may load and attach XDP programs")
}

fn bpffs(facts: &Facts) -> Finding {
    let about = About("bpffs");
    if facts.bpffs {
        return about.ok("mounted on /sys/fs/bpf");
    }
    about.finding(
        Severity::Warn,
        "no BPF file system on /sys/fs/bpf",
        "without it links and maps cannot be pinned, and forwarding stops while the daemon restarts",
        "mount -t bpf bpf /sys/fs/bpf",
    )
}

fn jit(facts: &Facts) -> Finding {
    let about = About("jit");
    match facts.jit {
        Some(0) => about.finding(
            Severity::Warn,
            "the BPF compiler is off",
            "the program is interpreted, several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => about.ok("the BPF compiler is on"),
        None => about.silence(),
    }
}

fn open_files(facts: &Facts, options: &Options) -> Finding {
    let about = About("open files");
    let needed = options.sessions * 2 + OTHER_FILES;
    let (_, hard) = facts.open_files;
    let may_raise = facts.capabilities.is_some_and(|held| held & capability::SYS_RESOURCE != 0);
    let limit = if may_raise { hard.max(facts.open_files_ever.unwrap_or(hard)) } else { hard };
    if limit >= needed {
        return about.ok(format!("{limit} suffice for {} sessions", options.sessions));
    }
    about.finding(
        Severity::Fail,
        format!("at most {limit}, but {} sessions need {needed}", options.sessions),
        "each session has two UDP sockets; beyond the limit new sessions are refused",
        format!(
            "set LimitNOFILE={needed} in the unit (systemctl edit rawr), or ulimit -n {needed}"
        ),
    )
}

fn capacity(facts: &Facts, options: &Options) -> Finding {
    let about = About("capacity");
    let (v4, v6): (Vec<_>, Vec<_>) = facts.addresses.iter().partition(|ip| ip.is_ipv4());
    let legs4 = legs(&v4, &options.data_ports, options.table_length);
    let legs6 = legs(&v6, &options.data_ports, options.table_length);
    let (most4, most6) = (legs4 / 2, legs6 / 2);
    let what = format!(
        "{most4} sessions over IPv4 and {most6} over IPv6 ({} and {} own addresses, {} ports, \
         tables of {})",
        v4.len(),
        v6.len(),
        options.data_ports.len(),
        options.table_length,
    );
    if most4 + most6 == 0 {
        let why = "no own address but loopback and link-local ones: nobody can send to a data port";
        return about.finding(
            Severity::Fail,
            what,
            why,
            "ip addr add ADDRESS/PREFIX dev INTERFACE",
        );
    }
    if most4.max(most6) >= options.sessions {
        return about.ok(what);
    }
    about.finding(
        Severity::Warn,
        what,
        format!(
            "{} are configured, and every leg needs a data port whose place in the table is free",
            options.sessions
        ),
        "add own addresses that differ in their last byte (ip addr add), widen the range of data \
         ports, or lengthen the tables (65,536 entries per address)",
    )
}

/// The memory of the kernel's tables, which it never gives back while the server runs.
fn tables(facts: &Facts, options: &Options) -> Finding {
    let about = About("tables");
    let Options { table_length, channel_table_length, .. } = options;
    let places = u64::from(*table_length) + u64::from(*channel_table_length);
    let bytes = places * (size_of::<Flow4>() + size_of::<Flow6>()) as u64;
    let what = format!(
        "{} MB of the kernel's memory for {table_length} ports and {channel_table_length} channels of \
         each family",
        bytes.div_ceil(1_000_000),
    );
    match facts.memory {
        Some(memory) if bytes > memory / 2 => about.finding(
            Severity::Warn,
            what,
            format!("that is more than half of this machine's {} MB", memory / 1_000_000),
            "set table_length and channel_table_length to less",
        ),
        _ => about.ok(what),
    }
}

/// How many legs find a place of their own: distinct table indices of all (address, port).
fn legs(addresses: &[&IpAddr], ports: &RangeInclusive<u16>, table_length: u32) -> u64 {
    let length = table_length.next_power_of_two();
    let mut taken = vec![false; length as usize];
    for address in addresses {
        let last = match address {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        for port in ports.clone() {
            taken[flow::index(last, port, length - 1) as usize] = true;
        }
    }
    taken.into_iter().filter(|taken| *taken).count() as u64
}

fn ports(facts: &Facts, options: &Options) -> Finding {
    let about = About("ports");
    let Some((low, high)) = facts.ephemeral_ports else { return about.silence() };
    let reserved = |port: &u16| facts.reserved_ports.iter().any(|(a, b)| (a..=b).contains(&port));
    let data = &options.data_ports;
    let overlap = data.clone().filter(|port| (low..=high).contains(port) && !reserved(port));
    let (first, last) = (data.start(), data.end());
    match overlap.count() {
        0 => about.ok(format!("data ports {first}-{last} are nobody else's")),
        shared => about.finding(
            Severity::Warn,
            format!("{shared} of the data ports {first}-{last} are ephemeral ports too"),
            "the kernel may give them to other programs' sockets, and the relay must then skip them",
            format!("sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last}"),
        ),
    }
}

fn firewall(facts: &Facts, options: &Options) -> Finding {
    let about = About("firewall");
    let Some(chains) = &facts.dropping_chains else { return about.silence() };
    let Some(chain) = chains.first() else { return about.ok("no input chain drops by default") };
    let (control, data) = (options.control_port, &options.data_ports);
    let ports = format!("{{ {control}, {}-{} }}", data.start(), data.end());
    about.finding(
        Severity::Warn,
        format!("input is dropped by default in {}", chains.join(", ")),
        "forwarded packets never get there, but requests and the first packets of each flow do",
        format!("unless there is such a rule: nft insert rule {chain} udp dport {ports} accept"),
    )
}

fn receive_buffer(facts: &Facts) -> Finding {
    let about = About("buffers");
    match facts.receive_buffer {
        Some(bytes) if bytes < RECEIVE_BUFFER => about.finding(
            Severity::Warn,
            format!("sockets may buffer only {bytes} bytes"),
            "bursts of packets that the kernel does not forward are lost before they are read",
            "sysctl -w net.core.rmem_max=4194304",
        ),
        Some(bytes) => about.ok(format!("sockets may buffer {bytes} bytes")),
        None => about.silence(),
    }
}

fn neighbours(facts: &Facts) -> Finding {
    let about = About("neighbours");
    match facts.neighbours {
        Some((count, most)) if count * 4 > most * 3 || most < 1024 => about.finding(
            Severity::Warn,
            format!("{count} of at most {most} neighbours"),
            "when the table is full hosts cannot be resolved, and probing for silent hosts adds to it",
            "sysctl -w net.ipv4.neigh.default.gc_thresh3=8192 net.ipv4.neigh.default.gc_thresh2=4096",
        ),
        Some((count, most)) => about.ok(format!("{count} of at most {most}")),
        None => about.silence(),
    }
}

fn conntrack(facts: &Facts) -> Finding {
    let about = About("conntrack");
    match facts.conntrack {
        Some((count, most)) if count * 5 > most * 4 => about.finding(
            Severity::Warn,
            format!("{count} of at most {most} connections are tracked"),
            "forwarded packets bypass it, but requests do not, and are dropped when it is full",
            format!("sysctl -w net.netfilter.nf_conntrack_max={}", most * 4),
        ),
        Some((count, most)) => about.ok(format!("{count} of at most {most} connections")),
        None => about.silence(),
    }
}

/// Interfaces that no program may or can be attached to.
fn impossible(interface: &Interface) -> Option<Finding> {
    let about = About(&interface.name);
    let fail = |what, why, fix: &str| Some(about.finding(Severity::Fail, what, why, fix));
    if !interface.exists {
        let why = "nothing can be attached to it; names are those of this network namespace";
        return fail("no such interface", why, "ip -brief link");
    }
    match interface.kind {
        Kind::Loopback => fail(
            "the loopback interface",
            "XDP there slows everything local and gains nothing, so rawr refuses it",
            "name the interface that peers are reached by: ip -brief link",
        ),
        Kind::NotEthernet => fail(
            "carries no Ethernet frames",
            "the program reads Ethernet headers; relaying through it works in userspace only",
            "name the Ethernet interface below it, or run with --datapath userspace",
        ),
        Kind::Vlan => fail(
            "a VLAN interface",
            "the program handles tags itself and belongs on the interface below, where frames arrive",
            "name the interface below it: ip -details link show (after the @)",
        ),
        Kind::Ethernet | Kind::Veth | Kind::Bridge => None,
    }
}

fn link_state(interface: &Interface) -> Option<Finding> {
    let fix = format!("ip link set dev {} up", interface.name);
    let why = "nothing is received or sent by it";
    let about = About(&interface.name);
    (!interface.up).then(|| about.finding(Severity::Warn, "down or without carrier", why, fix))
}

fn mode(interface: &Interface) -> Option<Finding> {
    let about = About(&interface.name);
    let driver = interface.driver.as_deref().unwrap_or("its driver");
    let generic = "the program runs in generic mode, after the kernel has made a buffer for each \
                   packet: about a third of the speed";
    if interface.kind == Kind::Bridge {
        let fix = "attach to the bridge's ports if peers are reached through one of them only";
        return Some(about.finding(Severity::Warn, "a bridge has no native XDP", generic, fix));
    }
    match interface.xdp_features {
        Some(bits) if bits & features::BASIC == 0 => Some(about.finding(
            Severity::Warn,
            format!("{driver} has no native XDP"),
            generic,
            "use a card whose driver has it, or live with it (--datapath generic)",
        )),
        Some(_) => None,
        None => Some(about.ok(format!(
            "{driver}: this kernel does not tell whether it has native XDP; it will be tried"
        ))),
    }
}

fn other_program(interface: &Interface) -> Option<Finding> {
    let about = About(&interface.name);
    let attached = interface.attached.as_ref()?;
    let (id, name) = (attached.id, attached.name.as_deref().unwrap_or("unknown name"));
    if name == flow::names::PROGRAM {
        return Some(about.ok(format!("rawr's own program is attached (id {id})")));
    }
    Some(about.finding(
        Severity::Fail,
        format!("another XDP program is attached: {name} (id {id})"),
        "an interface takes one program",
        format!(
            "bpftool prog show id {id}, stop what loaded it, then ip link set dev {} xdp off",
            about.0
        ),
    ))
}

fn mtu(interface: &Interface) -> Option<Finding> {
    if interface.mtu <= PAGE_MTU || interface.kind == Kind::Bridge {
        return None;
    }
    Some(About(&interface.name).finding(
        Severity::Warn,
        format!("MTU {} is above what native XDP takes", interface.mtu),
        format!(
            "packets must fit one page ({PAGE_MTU} bytes on veth and virtio, less on some cards), \
             else the driver refuses the program and generic mode is used"
        ),
        format!("ip link set dev {} mtu 1500", interface.name),
    ))
}

/// See [`super::veth_checksum_warning`].
pub(super) fn veth_checksums(interface: &Interface) -> Option<Finding> {
    if interface.kind != Kind::Veth || !interface.exists {
        return None;
    }
    let is_on = |features: &std::collections::BTreeMap<String, bool>| {
        features.get("tx-checksum-ip-generic").copied().unwrap_or_default()
    };
    let (on, fix) = match &interface.peer {
        Some(peer) => (is_on(&peer.features), format!("ethtool -K {} tx off", peer.name)),
        // The pair's ends start alike, so this end tells of the one that is out of sight.
        None => (
            is_on(&interface.features),
            format!(
                "at its other end: ethtool -K DEVICE tx off; then here: ethtool -K {} tx off",
                interface.name
            ),
        ),
    };
    let what = "a veth whose other end leaves checksums to the hardware";
    let why = "packets that the other end's own stack sends carry half a checksum, which no \
               forwarding below the stack can finish: receivers drop them";
    on.then(|| About(&interface.name).finding(Severity::Warn, what, why, fix))
}

fn redirect_target(interface: &Interface) -> Option<Finding> {
    let about = About(&interface.name);
    let what = match interface.xdp_features {
        Some(bits) if bits & features::BASIC == 0 || bits & features::NDO_XMIT != 0 => return None,
        Some(_) => "frames cannot be redirected to it now",
        None if interface.kind == Kind::Veth && !peer_has_gro(interface) => {
            "this kernel (before 6.3) does not tell whether frames can be redirected to it; where \
             they cannot, they are lost"
        }
        None => return None,
    };
    if interface.kind != Kind::Veth {
        let why = "packets from other interfaces that leave by it take the slower path";
        let fix = "update the driver, or keep both sides of the relay on one interface";
        return Some(about.finding(Severity::Warn, what, why, fix));
    }
    let fix = match &interface.peer {
        Some(peer) => format!("ethtool -K {} gro on", peer.name),
        None => "at its other end: ethtool -K DEVICE gro on".to_owned(),
    };
    let why = "a veth takes redirected frames once its other end has GRO on or an XDP program";
    Some(about.finding(Severity::Warn, what, why, fix))
}

fn peer_has_gro(interface: &Interface) -> bool {
    let peer = interface.peer.as_ref();
    peer.and_then(|peer| peer.features.get("rx-gro").copied()).unwrap_or_default()
}

fn vlan_stripping(interface: &Interface) -> Option<Finding> {
    let strips = interface.features.get("rx-vlan-hw-parse").copied().unwrap_or_default();
    if !strips || interface.vlans.is_empty() || interface.kind == Kind::Veth {
        return None;
    }
    Some(About(&interface.name).finding(
        Severity::Warn,
        format!("strips VLAN tags in hardware, and carries {}", interface.vlans.join(", ")),
        "the program does not see the tags, so it cannot tell the VLANs apart",
        format!("ethtool -K {} rxvlan off", interface.name),
    ))
}

fn aggregation(interface: &Interface, feature: &str, name: &str) -> Option<Finding> {
    let on = interface.features.get(feature).copied().unwrap_or_default();
    on.then(|| {
        About(&interface.name).finding(
            Severity::Warn,
            format!("{name} is on"),
            "it merges packets before the program sees them; most drivers refuse native XDP with it",
            format!("ethtool -K {} {feature} off", interface.name),
        )
    })
}

fn queues(interface: &Interface, cpus: usize) -> Option<Finding> {
    let queues = interface.queues? as usize;
    if queues >= cpus || interface.kind == Kind::Bridge {
        return None;
    }
    let fix = match interface.kind {
        Kind::Veth => {
            format!("create the pair with numrxqueues {cpus} numtxqueues {cpus} (ip link add)")
        }
        _ => format!("ethtool -L {} combined {cpus}", interface.name),
    };
    let what = format!("{queues} receive queues for {cpus} CPUs");
    let why = "each queue is served by one CPU; the others do not help";
    Some(About(&interface.name).finding(Severity::Warn, what, why, fix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::{Attached, Peer};

    /// A host where all is well.
    fn healthy() -> Facts {
        Facts {
            kernel_release: "6.18.1-amd64".to_owned(),
            capabilities: Some(u64::MAX),
            bpffs: true,
            jit: Some(1),
            open_files: (1024, 1 << 20),
            open_files_ever: None,
            receive_buffer: Some(4 << 20),
            memory: Some(1 << 30),
            ephemeral_ports: Some((32_768, 49_151)),
            reserved_ports: Vec::new(),
            conntrack: Some((10, 65_536)),
            neighbours: Some((10, 1024)),
            cpus: 2,
            addresses: vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()],
            dropping_chains: Some(Vec::new()),
            interfaces: vec![card()],
        }
    }

    fn card() -> Interface {
        Interface {
            name: "eth0".to_owned(),
            exists: true,
            up: true,
            mtu: 1500,
            driver: Some("ice".to_owned()),
            queues: Some(2),
            xdp_features: Some(features::BASIC | features::NDO_XMIT),
            ..Interface::default()
        }
    }

    fn on(feature: &str) -> std::collections::BTreeMap<String, bool> {
        [(feature.to_owned(), true)].into()
    }

    fn options() -> Options {
        Options { sessions: 8_000, ..Options::default() }
    }

    /// The only finding that is not `Ok`, once `spoil` has been at the host.
    fn trouble(spoil: impl FnOnce(&mut Facts)) -> Finding {
        let mut facts = healthy();
        spoil(&mut facts);
        let findings = judge(&facts, &options());
        let mut bad: Vec<_> =
            findings.into_iter().filter(|it| it.severity > Severity::Ok).collect();
        assert_eq!(bad.len(), 1, "{bad:#?}");
        let finding = bad.remove(0);
        assert!(!finding.why.is_empty() && !finding.fix.is_empty(), "{finding:#?}");
        finding
    }

    fn trouble_with_card(spoil: impl FnOnce(&mut Interface)) -> Finding {
        let finding = trouble(|facts| spoil(&mut facts.interfaces[0]));
        assert_eq!(finding.subject, "eth0");
        finding
    }

    #[test]
    fn a_healthy_host_is_all_well() {
        let findings = judge(&healthy(), &options());
        assert!(findings.iter().all(|it| it.severity == Severity::Ok), "{findings:#?}");
        assert!(findings.iter().any(|it| it.subject == "eth0"));
    }

    #[test]
    fn an_old_kernel_is_told_what_it_lacks() {
        let finding = trouble(|facts| facts.kernel_release = "5.8.0-1".to_owned());
        assert_eq!(finding.severity, Severity::Fail);
        assert!(finding.why.contains("5.9") && finding.why.contains("5.11"));
        assert!(!finding.why.contains("CAP_BPF"), "5.8 has that");
        assert_eq!(trouble(|facts| facts.kernel_release.clear()).severity, Severity::Warn);
    }

    #[test]
    fn capabilities_short_of_root_can_do() {
        use capability::{BPF, NET_ADMIN, NET_RAW, PERFMON, SYS_ADMIN};
        let judged = |held| {
            let facts = Facts { capabilities: Some(held), ..healthy() };
            capabilities(&facts).severity
        };
        assert_eq!(judged(BPF | PERFMON | NET_ADMIN | NET_RAW), Severity::Ok);
        assert_eq!(judged(SYS_ADMIN | NET_ADMIN | NET_RAW), Severity::Ok);
        assert_eq!(judged(BPF | PERFMON | NET_ADMIN), Severity::Warn);
        assert_eq!(judged(BPF | NET_ADMIN | NET_RAW), Severity::Fail);
        assert_eq!(judged(BPF | PERFMON | NET_RAW), Severity::Fail);
        assert_eq!(judged(0), Severity::Fail);
    }

    #[test]
    fn host_settings_that_slow_or_break() {
        assert!(trouble(|facts| facts.bpffs = false).fix.starts_with("mount"));
        assert_eq!(trouble(|facts| facts.jit = Some(0)).subject, "jit");
        assert_eq!(trouble(|facts| facts.receive_buffer = Some(212_992)).subject, "buffers");
        assert_eq!(trouble(|facts| facts.memory = Some(32 << 20)).subject, "tables");
        assert_eq!(trouble(|facts| facts.neighbours = Some((900, 1024))).subject, "neighbours");
        assert_eq!(trouble(|facts| facts.conntrack = Some((60_000, 65_536))).subject, "conntrack");
        let files = trouble(|facts| facts.open_files = (1024, 4096));
        assert_eq!(files.severity, Severity::Fail);
        assert!(files.fix.contains("LimitNOFILE=16256"));
        let open_files_ever = Some(1 << 20);
        let root = Facts { open_files: (1024, 4096), open_files_ever, ..healthy() };
        assert_eq!(
            open_files(&root, &options()).severity,
            Severity::Ok,
            "root may raise its limit"
        );
    }

    #[test]
    fn ephemeral_ports_may_overlap_if_reserved() {
        let finding = trouble(|facts| facts.ephemeral_ports = Some((32_768, 60_999)));
        assert!(finding.what.starts_with("11848 of"), "{}", finding.what);
        assert!(finding.fix.ends_with("49152-65535"));
        let mut facts = healthy();
        facts.ephemeral_ports = Some((32_768, 60_999));
        facts.reserved_ports = vec![(49_152, 65_535)];
        assert_eq!(ports(&facts, &options()).severity, Severity::Ok);
    }

    #[test]
    fn a_dropping_chain_gets_its_rule() {
        let chains = vec!["inet filter input".to_owned()];
        let finding = trouble(|facts| facts.dropping_chains = Some(chains));
        let rule = "nft insert rule inet filter input udp dport { 3478, 49152-65535 } accept";
        assert!(finding.fix.ends_with(rule), "{}", finding.fix);
    }

    #[test]
    fn addresses_with_the_same_place_in_the_table_share_it() {
        let [a, b, same]: [IpAddr; 3] =
            ["192.0.2.1", "192.0.2.2", "198.51.100.1"].map(|ip| ip.parse().unwrap());
        let ports = 49_152..=65_535;
        assert_eq!(legs(&[&a], &ports, 1 << 16), 16_384);
        assert_eq!(legs(&[&a, &b], &ports, 1 << 16), 16_384, "a table of one address' length");
        assert_eq!(legs(&[&a, &b], &ports, 1 << 18), 32_768);
        assert_eq!(legs(&[&a, &same], &ports, 1 << 18), 16_384);
        assert_eq!(legs(&[], &ports, 1 << 16), 0);
    }

    #[test]
    fn too_few_places_for_the_sessions_is_a_warning_and_none_a_failure() {
        let mut facts = healthy();
        let many = Options { sessions: 8_193, ..options() };
        assert_eq!(capacity(&facts, &many).severity, Severity::Warn);
        assert_eq!(capacity(&facts, &Options { sessions: 8_192, ..many }).severity, Severity::Ok);
        facts.addresses.clear();
        assert_eq!(capacity(&facts, &options()).severity, Severity::Fail);
    }

    #[test]
    fn interfaces_that_no_program_belongs_on() {
        for kind in [Kind::Loopback, Kind::NotEthernet, Kind::Vlan] {
            assert_eq!(trouble_with_card(|card| card.kind = kind).severity, Severity::Fail);
        }
        assert_eq!(trouble_with_card(|card| card.exists = false).severity, Severity::Fail);
    }

    #[test]
    fn another_program_fails_and_our_own_does_not() {
        let attached = |name: &str| Some(Attached { id: 7, name: Some(name.to_owned()) });
        let finding = trouble_with_card(|card| card.attached = attached("xdp_filter"));
        assert_eq!(finding.severity, Severity::Fail);
        assert!(finding.what.contains("xdp_filter (id 7)"));
        let own = Interface { attached: attached(flow::names::PROGRAM), ..card() };
        assert_eq!(other_program(&own).unwrap().severity, Severity::Ok);
    }

    #[test]
    fn what_slows_an_interface() {
        assert!(trouble_with_card(|card| card.up = false).fix.ends_with("eth0 up"));
        assert!(trouble_with_card(|card| card.mtu = 9000).fix.contains("mtu 1500"));
        assert!(trouble_with_card(|card| card.xdp_features = Some(0)).what.contains("native XDP"));
        assert!(trouble_with_card(|card| card.queues = Some(1)).fix.starts_with("ethtool -L"));
        assert!(trouble_with_card(|card| card.features = on("rx-lro")).fix.contains("rx-lro off"));
        trouble_with_card(|card| card.features = on("rx-gro-hw"));
        trouble_with_card(|card| card.kind = Kind::Bridge);
        trouble_with_card(|card| card.xdp_features = Some(features::BASIC));
        let vlans = trouble_with_card(|card| {
            card.features = on("rx-vlan-hw-parse");
            card.vlans = vec!["eth0.7".to_owned()];
        });
        assert_eq!(vlans.fix, "ethtool -K eth0 rxvlan off");
    }

    #[test]
    fn stripping_tags_matters_only_with_vlans() {
        let interface = Interface { features: on("rx-vlan-hw-parse"), ..card() };
        assert_eq!(vlan_stripping(&interface), None);
    }

    #[test]
    fn a_veths_other_end_is_what_matters_where_it_is_in_sight() {
        let veth = |own: bool, peer: Option<bool>| {
            let tx = |on: bool| [("tx-checksum-ip-generic".to_owned(), on)].into();
            let peer = peer.map(|on| Peer { name: "peer0".to_owned(), features: tx(on) });
            veth_checksums(&Interface { kind: Kind::Veth, features: tx(own), peer, ..card() })
        };
        assert_eq!(veth(true, Some(true)).unwrap().fix, "ethtool -K peer0 tx off");
        assert_eq!(veth(true, Some(false)), None);
        assert!(veth(true, None).is_some());
        assert_eq!(veth(false, None), None);
        assert_eq!(
            veth_checksums(&Interface { features: on("tx-checksum-ip-generic"), ..card() }),
            None
        );
    }

    #[test]
    fn a_kernel_that_does_not_tell_is_tried() {
        let interface = Interface { xdp_features: None, ..card() };
        assert_eq!(mode(&interface).unwrap().severity, Severity::Ok);
        assert_eq!(redirect_target(&interface), None);
    }

    #[test]
    fn a_veth_on_a_kernel_that_does_not_tell_needs_gro_at_its_other_end() {
        let veth = |features| {
            let peer = Some(Peer { name: "peer0".to_owned(), features });
            let kind = Kind::Veth;
            redirect_target(&Interface { kind, peer, xdp_features: None, ..card() })
        };
        assert_eq!(veth(on("tx-gso")).unwrap().fix, "ethtool -K peer0 gro on");
        assert_eq!(veth(on("rx-gro")), None);
    }
}
