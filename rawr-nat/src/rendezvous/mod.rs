//! Sockets that are reached through NATs, in four calls: map a socket, tell the other side where it is,
//! be told the same, punch.
//!
//! The names are those of the RFC *nat_traversal*, a proposal of 2015 for a Rust library of NAT traversal
//! techniques. Its example is this one; `async`, `.await` and `?` are what time has added. (Where the RFC writes
//! `???`, the application's own exchange stands, and a misspelt name and a missing semicolon are mended.)
//!
//! ```no_run
//! # // Not run: it would have the router of whoever tests this map a port. The scenarios do the same with routers of
//! # // their own.
//! # use rawr_nat::rendezvous::{
//! #     HolePunchServerAddr, MappedUdpSocket, MappingContext, PubRendezvousInfo, PunchedUdpSocket,
//! #     SimpleUdpHolePunchServer, gen_rendezvous_info,
//! # };
//! # use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
//! # type Error = Box<dyn std::error::Error>;
//! # struct OutOfBand(UnboundedSender<PubRendezvousInfo>, UnboundedReceiver<PubRendezvousInfo>);
//! # impl OutOfBand {
//! #     async fn exchange(&mut self, ours: PubRendezvousInfo) -> Result<PubRendezvousInfo, Error> {
//! #         self.0.send(ours)?;
//! #         Ok(self.1.recv().await.ok_or("the other side is gone")?)
//! #     }
//! # }
//! # async fn peer(
//! #     some_well_known_server: HolePunchServerAddr,
//! #     mut out_of_band: OutOfBand,
//! # ) -> Result<(), Error> {
//! // First, one needs a `MappingContext` to do the port mapping with.
//! let mut mc = MappingContext::new().await?;
//!
//! // Optionally, they can inform the context about any external port-mapping
//! // servers they know about.
//! mc.add_servers([some_well_known_server]);
//!
//! // Now they create a mapped udp socket to use for the connection.
//! let mapped_socket = MappedUdpSocket::new(&mc).await?;
//!
//! // A mapped socket consists of a socket and a list of endpoints.
//! let MappedUdpSocket { socket, endpoints } = mapped_socket;
//!
//! // Next, they create a `PrivRendezvousInfo`, `PubRendezvousInfo` pair from the socket's endpoints.
//! let (our_priv_rendezvous_info, our_pub_rendezvous_info) = gen_rendezvous_info(endpoints);
//!
//! // Now, the peers share their public rendezvous info out-of-band somehow.
//! let their_pub_rendezvous_info = out_of_band.exchange(our_pub_rendezvous_info).await?;
//!
//! // Now they do the hole-punching.
//! let punched_udp_socket = PunchedUdpSocket::punch_hole(socket,
//!                                                       our_priv_rendezvous_info,
//!                                                       their_pub_rendezvous_info).await?;
//!
//! // Extract the socket and peer address
//! let PunchedUdpSocket { socket, peer_addr } = punched_udp_socket;
//!
//! // Congratulations! If everything succeeded then `socket` is a `UdpSocket` that
//! // can be used to talk to `peer_addr` through NATs and firewalls.
//! # socket.send_to(b"hello", peer_addr).await?;
//! # let mut buffer = [0; 100];
//! # let (length, from) = socket.recv_from(&mut buffer).await?;
//! # assert_eq!((&buffer[..length], from), (&b"hello"[..], peer_addr));
//! # Ok(())
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! #     let mc = MappingContext::without_gateways();
//! #     let socket = tokio::net::UdpSocket::bind("[::]:0").await?;
//! #     let port = socket.local_addr()?.port();
//! #     let server = SimpleUdpHolePunchServer::on(socket, &mc).await?.value;
//! #     let at = HolePunchServerAddr::Simple(([127, 0, 0, 1], port).into());
//! #     let ((to_b, from_a), (to_a, from_b)) = (unbounded_channel(), unbounded_channel());
//! #     let (a, b) = (OutOfBand(to_b, from_b), OutOfBand(to_a, from_a));
//! #     let (a, b) = tokio::join!(peer(at.clone(), a), peer(at, b));
//! #     drop(server);
//! #     a.and(b)
//! # }
//! ```
//!
//! # What happens
//!
//! Whenever a socket is mapped, all means are tried: routers are asked for a port mapping by PCP, NAT-PMP
//! and UPnP-IGD (with the feature `portmap`), external servers are asked where they see the socket (all of
//! them, as each may see another endpoint), STUN servers find out what the NATs do
//! ([`classify`](crate::classify)). A means that fails costs the others nothing; the functions
//! `…_with_warnings` say which have. The result is the list of endpoints, and goes to the other side with
//! a key that is made for this rendezvous.
//!
//! To punch, both sides send to all endpoints, for so long that they need not begin at the same moment.
//! Where the NATs are harder, the strategies of [`punch`](crate::punch) that need no messages come on top.
//! Both prove to each other that they have the key before either calls it a path. That takes no more of
//! the out-of-band exchange than one message in each direction. [`agent`](crate::agent) does more with
//! more: it has a relay at once, and agrees on rounds of punching over it.
//!
//! What differs from the RFC, and why:
//!
//! * Functions are `async` and return `Result`, addresses are of both families.
//! * The `secret` of 32 bits is an X25519 key of 256 bits. Its public half is all that is told: who reads
//!   the exchange cannot take part, which a shared secret would let it do.
//! * [`MappedSocketAddr`] says what the NAT does, where that is known, and [`PubRendezvousInfo`] has a
//!   form in bytes and in text, as it is there to be sent.
//! * `IgdGateway` takes any [`PortMapping`]: PCP and NAT-PMP, too, not UPnP-IGD alone.
//! * [`MappedTcpSocket`] holds tokio's `TcpSocket`, the `net2` of the RFC is no longer kept.
//!
//! # The RFC's open questions
//!
//! **What other existing techniques are there for NAT traversal?** STUN (RFC 8489) finds endpoints, and is
//! spoken here beside the simple protocol. ICE (RFC 8445) tries pairs of endpoints in order, and is what
//! [`agent`](crate::agent) does. TURN (RFC 8656) and RAWR relay where nothing else works. PCP (RFC 6887)
//! and NAT-PMP (RFC 6886) map ports as UPnP-IGD does. Behaviour discovery (RFC 5780) tells which NAT it
//! is; port prediction and birthday attacks ([`punch::plan`](crate::punch::plan)) get through those that
//! change the endpoint with each destination. TCP is punched by simultaneous open (RFC 5382 REQ-2). IPv6
//! needs no mapping, and still has firewalls that are punched, or opened by PCP. Between an IPv6-only
//! network and IPv4 there is NAT64 (RFC 6146). Not done: transport over HTTP proxies, and tunnels such as
//! Teredo (RFC 4380), which was given up by those who ran it.
//!
//! **Is this API actually forward-compatible if we wish to add these techniques in the future?** For what
//! finds endpoints or opens them, it is: STUN, PCP, NAT-PMP and behaviour discovery were added without any
//! change to the example. They are further kinds of [`HolePunchServerAddr`] (which therefore is
//! `#[non_exhaustive]`, as are [`MappedSocketAddr`] and all errors), and [`PubRendezvousInfo`] passes over
//! what a later version adds. For what needs a *conversation*, it is not: the peers exchange one message
//! each, so nothing that is learnt later gets across (ICE's late candidates, rounds of port prediction),
//! and a socket with an address cannot be a relayed path, or one that moves to a better one. That is
//! another API, [`agent::Connection`](crate::agent::Connection), and both are offered.
//!
//! **Should the simple protocol be deprecated, and replaced with STUN?** It should not be anybody's first
//! choice, and need not be: STUN servers are everywhere, serve TCP too, and those with two addresses tell
//! what a NAT does. What the simple protocol has to offer is a server in one line, in any program that has
//! a public address ([`SimpleUdpHolePunchServer`]). So both are spoken, side by side.
//!
//! **Drawbacks?** The RFC sees none; there are some. Two sides behind NATs that both choose ports at random
//! are not connected by punching, and this API has no relay to fall back on: it returns an error there.
//! An endpoint list tells the other side the host's addresses within its own network. Port mappings
//! outlive a crash, until their lease ends. And a socket that is punched belongs to its path: when the host
//! moves to another network, the rendezvous begins anew.
//!
//! # The simple protocol
//!
//! A request is 64 bytes: `where?`, 0, 1, a nonce of 16 random bytes, 40 zeros. The answer is 60 bytes:
//! `there!`, 0, 1, the nonce, the address family (4 or 6), 0, port (2 bytes), address (16 bytes, of IPv4 the
//! first four), tag (16 bytes). Port and address, in network order, are combined by exclusive or with the
//! beginning of HMAC-SHA-256(nonce, `pad`); the tag is the beginning of HMAC-SHA-256(nonce, all that stands
//! before the tag). So an answer is shorter than its request and multiplies nobody's traffic, NATs that
//! rewrite addresses in payloads find none, and whoever has not seen the request cannot forge an answer.

mod address;
mod ask;
mod context;
mod echo;
mod error;
#[cfg(feature = "portmap")]
mod gateway;
mod info;
mod meeting;
#[cfg(test)]
mod meeting_tests;
mod server;
mod simple;
mod socket;
mod tcp;
mod udp;
mod wire;

pub use self::address::MappedSocketAddr;
pub use self::context::{
    HolePunchServerAddr, MapFuture, MappingContext, PortLease, PortMapping, ReleaseFuture,
    Transport,
};
pub use self::error::{MapWarning, PunchError, Warned};
#[cfg(feature = "portmap")]
pub use self::gateway::Gateway;
pub use self::info::{InfoError, PrivRendezvousInfo, PubRendezvousInfo, gen_rendezvous_info};
pub use self::server::SimpleUdpHolePunchServer;
pub use self::tcp::{MappedTcpSocket, tcp_punch_hole};
pub use self::udp::{MappedUdpSocket, PUNCH_TIME, PunchedUdpSocket};
