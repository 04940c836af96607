//! What has happened, counted by name.

macro_rules! counts {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Something that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Count {
            $($(#[$doc])* $variant,)*
        }

        impl Count {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in metrics and in `rawr status`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

counts! {
    /// Binding requests answered.
    Binding = "binding",
    /// Exchange requests granted.
    Exchange = "exchange",
    /// Connect requests granted, retransmissions included.
    Connect = "connect",
    /// Refresh requests granted.
    Refresh = "refresh",
    /// Release requests granted.
    Release = "release",
    /// Probes on data ports granted.
    Probe = "probe",
    /// Allocate requests granted, retransmissions left out.
    Allocate = "allocate",
    /// Refresh requests about allocations granted.
    RefreshAllocation = "refresh_allocation",
    /// CreatePermission requests granted.
    CreatePermission = "create_permission",
    /// ChannelBind requests granted.
    ChannelBind = "channel_bind",
    /// ConnectionBind requests granted.
    ConnectionBind = "connection_bind",
    /// TCP connections with peers made.
    Connected = "connected",
    /// TCP connections to peers that could not be made.
    NotConnected = "not_connected",
    /// Allocations that moved with their client.
    MovedAllocation = "moved_allocation",
    /// Channels that the data plane was asked to forward.
    PairedChannel = "paired_channel",
    /// Datagrams that userspace relayed to peers.
    RelayedToPeer = "relayed_to_peer",
    /// Datagrams that userspace relayed to clients.
    RelayedToClient = "relayed_to_client",
    /// ICMP errors that clients were told of.
    Icmp = "icmp",
    /// Register requests granted.
    Register = "register",
    /// Lookup requests granted.
    Lookup = "lookup",
    /// Introductions passed on to a name's holder, repetitions left out.
    Introduce = "introduce",
    /// Introductions that the holder has answered.
    Introduced = "introduced",
    /// Requests answered with a nonce to come back with.
    Challenged = "challenged",
    /// Allocations refused because this server sends its clients elsewhere.
    SentElsewhere = "sent_elsewhere",
    /// Legs whose client probed from another address than before.
    Rebound = "rebound",
    /// Pairs made: both peers here.
    PairedPeers = "paired_peers",
    /// Pairs made: a peer here and a target found by its MAC.
    PairedTarget = "paired_target",
    /// Pairs made: a peer here and an upstream leg.
    PairedUpstream = "paired_upstream",
    /// Upstream legs begun.
    Escalated = "escalated",
    /// Upstream legs replaced by another hop's.
    Moved = "moved",
    /// Parents found dead.
    ParentDown = "parent_down",
    /// Legs that expired before their client's first Probe.
    ExpiredHalfOpen = "expired_half_open",
    /// Legs that expired for want of a refresh.
    ExpiredLeg = "expired_leg",
    /// Relayed transport addresses whose lifetime ended.
    ExpiredAllocation = "expired_allocation",
    /// Allocations that went with their client's stream.
    LostAllocation = "lost_allocation",
    /// Reserved ports that nobody asked for.
    ExpiredReservation = "expired_reservation",
    /// TCP connections with peers that took too long to make or to bind.
    ExpiredConnection = "expired_connection",
    /// Targets given up, or lost.
    ExpiredTarget = "expired_target",
    /// Exchanges that expired.
    ExpiredExchange = "expired_exchange",
    /// Names whose lifetime ended.
    ExpiredName = "expired_name",
    /// Introductions that are a minute old.
    ExpiredIntroduction = "expired_introduction",
    /// Datagrams on the STUN port that are no STUN message.
    NotStun = "not_stun",
    /// STUN messages that could not be read.
    Malformed = "malformed",
    /// Requests with an unknown attribute that must be understood.
    UnknownAttribute = "unknown_attribute",
    /// Responses and indications that nobody waits for.
    Unexpected = "unexpected",
    /// Requests without a nonce.
    NoNonce = "no_nonce",
    /// Requests with an old nonce, or with somebody else's.
    StaleNonce = "stale_nonce",
    /// Requests with a wrong or no integrity, or a wrong user.
    WrongIntegrity = "wrong_integrity",
    /// Requests from outside the trusted subnets without credentials.
    Untrusted = "untrusted",
    /// Requests that lack an attribute or contradict themselves.
    BadRequest = "bad_request",
    /// Requests that are understood but not allowed.
    Forbidden = "forbidden",
    /// Requests about a leg that is not here.
    UnknownSession = "unknown_session",
    /// Connects that have been here before.
    Loop = "loop",
    /// Connects without a hop left.
    TooManyHops = "too_many_hops",
    /// Requests over a quota.
    Quota = "quota",
    /// Requests about a name that nobody holds.
    UnknownName = "unknown_name",
    /// Register requests for a name that somebody else holds.
    NameTaken = "name_taken",
    /// Introductions to a holder that has not been heard of lately.
    HolderUnreachable = "holder_unreachable",
    /// Requests of Bridge over the rate of their prefix.
    BridgeRate = "bridge_rate",
    /// Requests about an allocation that is not here, or for one where one is.
    TurnMismatch = "turn_mismatch",
    /// Requests about another user's allocation.
    WrongUser = "wrong_user",
    /// Address families that are not served, or not by this allocation.
    TurnFamily = "turn_family",
    /// Allocate requests for a transport that is not served.
    TurnTransport = "turn_transport",
    /// Allocate requests over the quota of their user.
    TurnQuota = "turn_quota",
    /// Requests beyond what one allocation, or this server, can hold.
    TurnCapacity = "turn_capacity",
    /// Tokens of reserved ports that are not good, or not any more.
    TurnToken = "turn_token",
    /// Tickets of moving clients that are not good, or not any more.
    WrongTicket = "wrong_ticket",
    /// Requests about an allocation whose ports are being opened; not answered.
    NotReady = "not_ready",
    /// Peers that clients may not reach.
    PeerDenied = "peer_denied",
    /// Datagrams of clients that have no allocation.
    NoAllocation = "no_allocation",
    /// Datagrams and connections of peers, and to peers, without a permission.
    NoPermission = "no_permission",
    /// ChannelData on a channel that is not bound.
    NoChannel = "no_channel",
    /// Datagrams over the rate of an allocation or a user; not relayed.
    TurnRate = "turn_rate",
    /// Connects of a role that has a leg already, and names that a newer run of their holder has.
    RoleTaken = "role_taken",
    /// Connects for which no port was left.
    NoPorts = "no_ports",
    /// Requests over the rate of their prefix; not answered.
    RequestRate = "request_rate",
    /// Requests without a valid nonce over the rate of their prefix; not answered.
    UnverifiedRate = "unverified_rate",
    /// Answers left out because they would have been longer than an unverified request.
    TooLong = "too_long",
    /// Datagrams to a data port that no leg has.
    UnknownPort = "unknown_port",
    /// Datagrams on a leg that is not paired, or from a stranger.
    Stray = "stray",
    /// Probes from an address of ours, which would make a loop, and data to what is no allocation there.
    OwnAddress = "own_address",
    /// Application datagrams carried by userspace while a leg was moving.
    Carried = "carried",
    /// Upstream legs refused by the hop.
    UpstreamRefused = "upstream_refused",
    /// Upstream legs that the hop stopped answering for.
    UpstreamLost = "upstream_lost",
}

/// How often each thing happened since start.
#[derive(Clone, Debug)]
pub struct Counters([u64; Count::ALL.len()]);

impl Counters {
    /// How often `count` happened.
    pub fn get(&self, count: Count) -> u64 {
        self.0[count as usize]
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Count::ALL.iter().map(|count| (count.as_str(), self.get(*count)))
    }

    pub(super) fn add(&mut self, count: Count) {
        self.0[count as usize] += 1;
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self([0; Count::ALL.len()])
    }
}
