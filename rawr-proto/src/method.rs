//! What messages are about.

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// STUN's own: what address do I come from, and are you there?
    Binding,
    /// Peer to root: here are my MAC address and candidates, give me the other peer's.
    Exchange,
    /// Client to server: make a leg of this session.
    Connect,
    /// Client to server: keep the leg.
    Refresh,
    /// Client to server: drop the leg.
    Release,
    /// On the data path: learn the leg's address, keep it open, prove that the other end answers.
    Probe,
    /// Server to client, on the data path: the leg's state changed.
    Status,
    /// Client to server: I hold this name.
    Register,
    /// Client to server: who holds this name?
    Lookup,
    /// Client to server, and on to the holder of a name, and back: here is what I have to say to you.
    Introduce,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Binding,
        Self::Exchange,
        Self::Connect,
        Self::Refresh,
        Self::Release,
        Self::Probe,
        Self::Status,
        Self::Register,
        Self::Lookup,
        Self::Introduce,
    ];

    /// The number in the message type.
    pub const fn number(self) -> u16 {
        match self {
            Self::Binding => 0x001,
            Self::Exchange => 0x0e0,
            Self::Connect => 0x0e1,
            Self::Refresh => 0x0e2,
            Self::Release => 0x0e3,
            Self::Probe => 0x0e4,
            Self::Status => 0x0e5,
            Self::Register => 0x0e6,
            Self::Lookup => 0x0e7,
            Self::Introduce => 0x0e8,
        }
    }

    /// The method with this number, if RAWR uses it.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.number() == number)
    }

    /// Whether it belongs to Bridge, the rendezvous by name.
    pub const fn is_bridge(self) -> bool {
        matches!(self, Self::Register | Self::Lookup | Self::Introduce)
    }
}
