//! The few questions to the kernel that aya does not ask.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr,
};

use aya::programs::loaded_programs;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp, XdpAttached},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};

/// Commands of bpf(2).
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_DETACH: libc::c_int = 34;

/// A network interface of this network namespace.
#[derive(Clone, Debug)]
pub(super) struct Interface {
    pub ifindex: u32,
    pub loopback: bool,
    pub mtu: u32,
    /// The XDP program on it, if there is one.
    pub xdp: Option<OnInterface>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OnInterface {
    pub program: u32,
    /// Run by the network stack, not by the driver.
    pub generic: bool,
}

/// Asks for the interface of this name.
pub(super) fn interface(name: &str) -> io::Result<Interface> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(link));
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(describe(&link)),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn describe(link: &LinkMessage) -> Interface {
    let mut interface = Interface {
        ifindex: link.header.index,
        loopback: link.header.flags.contains(LinkFlags::Loopback),
        mtu: 0,
        xdp: None,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::Xdp(xdp) => interface.xdp = on_interface(xdp),
            _ => {}
        }
    }
    interface
}

fn on_interface(xdp: &[LinkXdp]) -> Option<OnInterface> {
    let generic = xdp.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
    xdp.iter().find_map(|attribute| match *attribute {
        LinkXdp::ProgId(program)
        | LinkXdp::DrvProgId(program)
        | LinkXdp::SkbProgId(program)
        | LinkXdp::HwProgId(program)
            if program != 0 =>
        {
            Some(OnInterface { program, generic })
        }
        _ => None,
    })
}

/// The name of a loaded program, as far as the kernel keeps it.
pub(super) fn program_name(id: u32) -> Option<String> {
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id)?;
    program.name_as_str().map(str::to_owned)
}

/// A pinned XDP link.
pub(super) struct Link(OwnedFd);

/// What a link joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    pub program: u32,
    /// In whichever network namespace it is; 0 if the interface is gone.
    pub ifindex: u32,
}

impl Link {
    /// Opens the link that is pinned at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        #[repr(C)]
        struct Attr {
            pathname: u64,
            bpf_fd: u32,
            file_flags: u32,
        }
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut attr = Attr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
        let fd = bpf(BPF_OBJ_GET, &mut attr)?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// What it joins; an error if it is not a link.
    pub(super) fn info(&self) -> io::Result<LinkInfo> {
        /// The beginning of `bpf_link_info`, with `xdp` of its union.
        #[repr(C)]
        #[derive(Default)]
        struct Info {
            kind: u32,
            id: u32,
            program: u32,
            pad: u32,
            ifindex: u32,
            rest: [u32; 3],
        }
        #[repr(C)]
        struct Attr {
            bpf_fd: u32,
            info_len: u32,
            info: u64,
        }
        const BPF_LINK_TYPE_XDP: u32 = 6;

        let mut info = Info::default();
        let mut attr = Attr {
            bpf_fd: self.0.as_raw_fd() as u32,
            info_len: size_of::<Info>() as u32,
            info: (&raw mut info) as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
        if info.kind != BPF_LINK_TYPE_XDP {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(LinkInfo { program: info.program, ifindex: info.ifindex })
    }

    /// Takes the program off the interface at once, whoever else holds the link.
    pub(super) fn detach(&self) -> io::Result<()> {
        #[repr(C)]
        struct Attr {
            link_fd: u32,
        }
        bpf(BPF_LINK_DETACH, &mut Attr { link_fd: self.0.as_raw_fd() as u32 }).map(drop)
    }
}

/// bpf(2) with as much of `union bpf_attr` as `command` reads.
fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i32> {
    let size = size_of::<T>();
    // SAFETY: `attr` is `size` bytes, and the pointers in it are valid for what `command` does.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
