//! Attributes that `stun-types` and `turn-types` lack: those of NAT behaviour discovery (RFC 5780 §7),
//! mobility (RFC 8016 §4) and third-party authorization (RFC 7635 §6).

use std::borrow::Cow;
use std::net::SocketAddr;

use stun_types::attribute::{
    Attribute, AttributeFromRaw, AttributeStaticType, AttributeType, AttributeWrite,
    AttributeWriteExt, MappedSocketAddr, RawAttribute,
};
use stun_types::message::StunParseError;

/// CHANGE-REQUEST (RFC 5780 §7.2): from where else the client wants the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChangeRequest {
    /// From the other address.
    pub ip: bool,
    /// From the other port.
    pub port: bool,
}

impl ChangeRequest {
    fn value(&self) -> Cow<'_, [u8]> {
        let flags = u8::from(self.ip) << 2 | u8::from(self.port) << 1;
        vec![0, 0, 0, flags].into()
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let [_, _, _, flags] = *value else { return None };
        Some(Self { ip: flags & 4 != 0, port: flags & 2 != 0 })
    }
}

/// RESPONSE-PORT (RFC 5780 §7.5): to which port of its own the client wants the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponsePort(pub u16);

impl ResponsePort {
    fn value(&self) -> Cow<'_, [u8]> {
        let [high, low] = self.0.to_be_bytes();
        vec![high, low, 0, 0].into()
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let [high, low, _, _] = *value else { return None };
        Some(Self(u16::from_be_bytes([high, low])))
    }
}

/// PADDING (RFC 5780 §7.6): bytes that make a message long enough to be fragmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    /// Bytes.
    pub length: u16,
}

impl Padding {
    fn value(&self) -> Cow<'_, [u8]> {
        vec![0; usize::from(self.length)].into()
    }

    fn parse(value: &[u8]) -> Option<Self> {
        Some(Self { length: u16::try_from(value.len()).ok()? })
    }
}

/// RESPONSE-ORIGIN (RFC 5780 §7.3): where the answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseOrigin(pub SocketAddr);

impl ResponseOrigin {
    fn value(&self) -> Cow<'_, [u8]> {
        address_value(self.0)
    }

    fn parse(value: &[u8]) -> Option<Self> {
        parse_address(value).map(Self)
    }
}

/// OTHER-ADDRESS (RFC 5780 §7.4): from where the answer would come if both were changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherAddress(pub SocketAddr);

impl OtherAddress {
    fn value(&self) -> Cow<'_, [u8]> {
        address_value(self.0)
    }

    fn parse(value: &[u8]) -> Option<Self> {
        parse_address(value).map(Self)
    }
}

/// MOBILITY-TICKET (RFC 8016 §4): empty where a client asks for one, else opaque to clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MobilityTicket(pub Vec<u8>);

impl MobilityTicket {
    fn value(&self) -> Cow<'_, [u8]> {
        self.0.as_slice().into()
    }

    fn parse(value: &[u8]) -> Option<Self> {
        Some(Self(value.to_vec()))
    }
}

/// ACCESS-TOKEN (RFC 7635 §6.2): what an authorization server gave to the client for this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessToken(pub Vec<u8>);

impl AccessToken {
    fn value(&self) -> Cow<'_, [u8]> {
        self.0.as_slice().into()
    }

    fn parse(value: &[u8]) -> Option<Self> {
        Some(Self(value.to_vec()))
    }
}

/// THIRD-PARTY-AUTHORIZATION (RFC 7635 §6.1): this server's name at its authorization server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThirdPartyAuthorization(pub String);

impl ThirdPartyAuthorization {
    fn value(&self) -> Cow<'_, [u8]> {
        self.0.as_bytes().into()
    }

    fn parse(value: &[u8]) -> Option<Self> {
        Some(Self(std::str::from_utf8(value).ok()?.to_owned()))
    }
}

macro_rules! attributes {
    ($($name:ident = $number:literal;)*) => {$(
        impl AttributeStaticType for $name {
            const TYPE: AttributeType = AttributeType::new($number);
        }

        impl Attribute for $name {
            fn get_type(&self) -> AttributeType {
                Self::TYPE
            }

            fn length(&self) -> u16 {
                self.value().len() as u16
            }
        }

        impl AttributeWrite for $name {
            fn to_raw(&self) -> RawAttribute<'_> {
                let value = self.value().into_owned();
                RawAttribute::new_owned(Self::TYPE, value.into_boxed_slice())
            }

            fn write_into_unchecked(&self, dest: &mut [u8]) {
                self.write_header_unchecked(dest);
                let value = self.value();
                let (head, padding) = dest[4..].split_at_mut(value.len());
                head.copy_from_slice(&value);
                padding.iter_mut().take(value.len().wrapping_neg() % 4).for_each(|byte| *byte = 0);
            }
        }

        impl AttributeFromRaw<'_> for $name {
            fn from_raw_ref(raw: &RawAttribute<'_>) -> Result<Self, StunParseError> {
                raw.check_type_and_len(Self::TYPE, ..)?;
                Self::parse(&raw.value).ok_or(StunParseError::InvalidAttributeData)
            }
        }
    )*};
}

attributes! {
    ChangeRequest = 0x0003;
    AccessToken = 0x001b;
    Padding = 0x0026;
    ResponsePort = 0x0027;
    ResponseOrigin = 0x802b;
    OtherAddress = 0x802c;
    ThirdPartyAuthorization = 0x802e;
    MobilityTicket = 0x8030;
}

fn address_value(address: SocketAddr) -> Cow<'static, [u8]> {
    let mapped = MappedSocketAddr::new(address);
    let mut value = vec![0; usize::from(mapped.length())];
    mapped.write_into_unchecked(&mut value);
    value.into()
}

fn parse_address(value: &[u8]) -> Option<SocketAddr> {
    let raw = RawAttribute::new(AttributeType::new(0), value);
    Some(MappedSocketAddr::from_raw(&raw).ok()?.addr())
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use stun_types::message::{BINDING, Message, MessageWrite, MessageWriteVec};

    use super::*;

    /// The value in a message, and that it is read from there.
    fn on_the_wire<A>(attribute: &A) -> Vec<u8>
    where
        A: AttributeWrite + AttributeStaticType + Debug + PartialEq,
        A: for<'a> AttributeFromRaw<'a>,
    {
        let mut out = Message::builder_request(BINDING, MessageWriteVec::new());
        out.push_attribute_unchecked(attribute);
        let bytes = out.finish();
        let message = Message::from_bytes(&bytes).unwrap();
        assert_eq!(message.attribute::<A>().unwrap(), *attribute);
        assert_eq!(attribute.to_raw().to_bytes(), bytes[20..]);
        bytes[20..].to_vec()
    }

    #[test]
    fn values_are_those_of_the_rfcs() {
        let both = ChangeRequest { ip: true, port: true };
        assert_eq!(on_the_wire(&both), [0, 3, 0, 4, 0, 0, 0, 6]);
        let port = ChangeRequest { port: true, ..ChangeRequest::default() };
        assert_eq!(on_the_wire(&port), [0, 3, 0, 4, 0, 0, 0, 2]);
        assert_eq!(on_the_wire(&ResponsePort(0x1234)), [0, 0x27, 0, 4, 0x12, 0x34, 0, 0]);
        assert_eq!(on_the_wire(&Padding { length: 3 }), [0, 0x26, 0, 3, 0, 0, 0, 0]);
        let v4 = "192.0.2.1:3478".parse().unwrap();
        let value = [0x80, 0x2b, 0, 8, 0, 1, 0x0d, 0x96, 192, 0, 2, 1];
        assert_eq!(on_the_wire(&ResponseOrigin(v4)), value);
        let v6 = "[2001:db8::1]:3479".parse().unwrap();
        let value = on_the_wire(&OtherAddress(v6));
        assert_eq!(value[..8], [0x80, 0x2c, 0, 20, 0, 2, 0x0d, 0x97]);
        assert_eq!(on_the_wire(&MobilityTicket::default()), [0x80, 0x30, 0, 0]);
        assert_eq!(on_the_wire(&MobilityTicket(vec![7])), [0x80, 0x30, 0, 1, 7, 0, 0, 0]);
        assert_eq!(on_the_wire(&AccessToken(vec![1, 2])), [0, 0x1b, 0, 2, 1, 2, 0, 0]);
        let name = ThirdPartyAuthorization("a.example".to_owned());
        assert_eq!(on_the_wire(&name)[..8], [0x80, 0x2e, 0, 9, b'a', b'.', b'e', b'x']);
    }

    #[test]
    fn wrong_values_are_refused() {
        let refused = |number: u16, value: &[u8]| {
            let raw = RawAttribute::new(number.into(), value);
            match number {
                0x0003 => ChangeRequest::from_raw_ref(&raw).is_err(),
                0x0027 => ResponsePort::from_raw_ref(&raw).is_err(),
                0x802b => ResponseOrigin::from_raw_ref(&raw).is_err(),
                _ => ThirdPartyAuthorization::from_raw_ref(&raw).is_err(),
            }
        };
        assert!(refused(0x0003, &[0, 0, 0]) && refused(0x0003, &[0; 5]));
        assert!(refused(0x0027, &[0, 1]));
        assert!(refused(0x802b, &[0, 3, 0, 1, 1, 2, 3, 4]) && refused(0x802b, &[0, 1, 0, 1]));
        assert!(refused(0x802e, &[0xff]));
        let other = RawAttribute::new(0x0024.into(), &[0, 0, 0, 6]);
        assert!(ChangeRequest::from_raw_ref(&other).is_err());
    }
}
