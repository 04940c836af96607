//! What agents say to each other, inside [`super::seal`].

use super::wire::Reader;

/// One control datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// Whoever gets this says [`Control::Pong`] by the way that it came.
    Ping(u64),
    /// The answer.
    Pong(u64),
    /// From the controlling agent: data shall take the way that this came by. Numbers rise.
    Select(u32),
    /// The answer, by the same way: data takes it.
    Selected(u32),
    /// From the controlled agent: the way agreed under this number is dead.
    Lost(u32),
    /// No more data comes by this way after as many handovers.
    Marker(u32),
    /// One signal, in order.
    Signal {
        /// Counts from 0.
        sequence: u32,
        /// A [`super::signal::Signal`].
        body: Vec<u8>,
    },
    /// All signals before this one have come.
    Ack(u32),
    /// Between the two sides of one time that a path is punched. It may be lost, repeated and overtaken.
    Punching {
        /// The time.
        attempt: u32,
        /// What the one side says to the other.
        message: Vec<u8>,
    },
}

impl Control {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ping(id) => number(1, &id.to_be_bytes()),
            Self::Pong(id) => number(2, &id.to_be_bytes()),
            Self::Select(generation) => number(3, &generation.to_be_bytes()),
            Self::Selected(generation) => number(4, &generation.to_be_bytes()),
            Self::Lost(generation) => number(5, &generation.to_be_bytes()),
            Self::Marker(handover) => number(6, &handover.to_be_bytes()),
            Self::Signal { sequence, body } => {
                [&[7], sequence.to_be_bytes().as_slice(), body].concat()
            }
            Self::Ack(sequence) => number(8, &sequence.to_be_bytes()),
            Self::Punching { attempt, message } => {
                [&[9], attempt.to_be_bytes().as_slice(), message].concat()
            }
        }
    }

    /// `None` where a later version's agent says more than this one understands.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let control = match reader.u8()? {
            1 => Self::Ping(reader.u64()?),
            2 => Self::Pong(reader.u64()?),
            3 => Self::Select(reader.u32()?),
            4 => Self::Selected(reader.u32()?),
            5 => Self::Lost(reader.u32()?),
            6 => Self::Marker(reader.u32()?),
            7 => Self::Signal { sequence: reader.u32()?, body: reader.rest() },
            8 => Self::Ack(reader.u32()?),
            9 => Self::Punching { attempt: reader.u32()?, message: reader.rest() },
            _ => return None,
        };
        reader.end(control)
    }
}

fn number(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind], value].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let all = [
            Control::Ping(u64::MAX - 1),
            Control::Pong(7),
            Control::Select(1),
            Control::Selected(2),
            Control::Lost(3),
            Control::Marker(u32::MAX),
            Control::Signal { sequence: 9, body: b"signal".to_vec() },
            Control::Ack(10),
            Control::Punching { attempt: 3, message: vec![1, 2, 3] },
        ];
        for control in all {
            let bytes = control.encode();
            assert_eq!(Control::decode(&bytes), Some(control.clone()));
            let cut = Control::decode(&bytes[..4]);
            assert!(cut.is_none(), "{control:?} cut short is {cut:?}");
        }
        assert_eq!(Control::decode(&[10, 0, 0, 0, 0]), None);
        assert_eq!(Control::decode(&[3, 0, 0, 0, 0, 0]), None);
    }
}
