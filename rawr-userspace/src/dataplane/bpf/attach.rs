//! Puts the program on interfaces, by links that outlive the process.

use std::{fmt, io, path::Path};

use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};
use log::warn;
use rawr_common::flow::names;

use super::{
    Bpf, os_error,
    pin::{PinError, remove_link},
    sys::{self, Interface, Link, OnInterface},
};

/// Who runs the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The driver, before it makes a socket buffer of a frame.
    Native,
    /// The network stack: works with every driver, but slower.
    Generic,
}

/// Who shall run it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WantedMode {
    /// The driver if it can, else the network stack.
    #[default]
    Auto,
    Native,
    Generic,
}

/// The program on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub interface: String,
    pub ifindex: u32,
    pub mode: Mode,
    /// A predecessor's link goes on; no packet has met the interface without a program.
    pub taken_over: bool,
    /// Why the driver does not run the program, where it was asked to.
    pub fallback: Option<String>,
}

/// Why the program is not on an interface.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(
        "{0} is a loopback interface: peers are not reached by it, and XDP there would only slow \
         this host; name the interfaces that face the network"
    )]
    Loopback(String),
    #[error("no interface {interface} in this network namespace: {source}; see `ip link`")]
    NoInterface { interface: String, source: io::Error },
    #[error(
        "{interface} has another XDP program, number {program} ({name}); take it off with \
         `ip link set dev {interface} xdp off` or by stopping what attached it, or leave this \
         interface to rawr's userspace data path"
    )]
    Foreign { interface: String, program: u32, name: String },
    #[error("{interface} takes no XDP program in {mode} mode: {source}{}", hint(source, *mtu))]
    Refused { interface: String, mode: Mode, mtu: u32, source: io::Error },
    #[error("this kernel has no XDP links, which take Linux 5.9 or newer")]
    NoLinks,
    #[error("the program is not loaded: {0}")]
    NotLoaded(ProgramError),
    #[error(transparent)]
    Pin(#[from] PinError),
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

impl Bpf {
    /// Puts the program on `interface`. Where a predecessor's link is pinned, the program in it is
    /// replaced, in an instant and without a gap. So desired flows should stand already.
    pub fn attach(
        &mut self,
        interface: &str,
        wanted: WantedMode,
    ) -> Result<&Attachment, AttachError> {
        let found = find(interface)?;
        let attachment = match self.take_over_link(interface, wanted, &found)? {
            Some(mode) => attachment(interface, &found, mode, true, None),
            None => {
                refuse_foreign(interface, &find(interface)?)?;
                self.attach_anew(interface, wanted, &found)?
            }
        };
        self.attached.retain(|other| other.interface != interface);
        self.attached.push(attachment);
        Ok(&self.attached[self.attached.len() - 1])
    }

    /// Takes the program off `interface`.
    pub fn detach(&mut self, interface: &str) -> Result<(), AttachError> {
        self.attached.retain(|attachment| attachment.interface != interface);
        Ok(remove_link(&self.pins.link(interface))?)
    }

    /// Once all interfaces are attached: removes the pins of other versions, and takes the program
    /// off interfaces that are not attached any more. Returns the names of those.
    pub fn remove_leftovers(&mut self) -> Result<Vec<String>, AttachError> {
        let keep: Vec<_> = self.attached.iter().map(|a| a.interface.as_str()).collect();
        Ok(self.pins.remove_leftovers(&keep)?)
    }

    /// Replaces the program in a pinned link to `interface`, if there is one that may go on.
    fn take_over_link(
        &mut self,
        interface: &str,
        wanted: WantedMode,
        found: &Interface,
    ) -> Result<Option<Mode>, AttachError> {
        let links = self.pins.links();
        let own = self.pins.link(interface);
        let mut mode = None;
        for (_, path) in links.iter().filter(|(name, _)| name == interface) {
            let usable = found
                .xdp
                .filter(|on| mode.is_none() && joins(path, found.ifindex, on) && suits(wanted, on));
            let Some(on) = usable else {
                remove_link(path)?;
                continue;
            };
            let link = PinnedLink::from_pin(path).map_err(|error| PinError::File {
                what: "open",
                path: path.clone(),
                source: os_error(&error),
            })?;
            self.replace_program(interface, on, found, link)?;
            if *path != own {
                self.pin_again(path, &own)?;
            }
            mode = Some(mode_of(on));
        }
        Ok(mode)
    }

    fn replace_program(
        &mut self,
        interface: &str,
        on: OnInterface,
        found: &Interface,
        link: PinnedLink,
    ) -> Result<(), AttachError> {
        let link = XdpLink::try_from(FdLink::from(link)).map_err(|_| AttachError::NoLinks)?;
        let program = self.program()?;
        let id = program.attach_to_link(link).map_err(|error| AttachError::Refused {
            interface: interface.to_owned(),
            mode: mode_of(on),
            mtu: found.mtu,
            source: os_error(&error),
        })?;
        // The pin keeps the link; our descriptor would keep it even after the pin has gone.
        program.take_link(id).map(drop).map_err(AttachError::NotLoaded)
    }

    /// Moves a pin from another version's directory to ours.
    fn pin_again(&self, from: &Path, to: &Path) -> Result<(), AttachError> {
        std::fs::rename(from, to).map_err(|source| {
            PinError::File { what: "rename", path: from.to_owned(), source }.into()
        })
    }

    fn attach_anew(
        &mut self,
        interface: &str,
        wanted: WantedMode,
        found: &Interface,
    ) -> Result<Attachment, AttachError> {
        let mode = match wanted {
            WantedMode::Auto | WantedMode::Native => Mode::Native,
            WantedMode::Generic => Mode::Generic,
        };
        match self.attach_in(interface, mode, found) {
            Ok(()) => Ok(attachment(interface, found, mode, false, None)),
            Err(error @ AttachError::Refused { .. }) if wanted == WantedMode::Auto => {
                warn!("{error}; it gets generic mode instead, which is slower");
                self.attach_in(interface, Mode::Generic, found)?;
                let why = Some(error.to_string());
                Ok(attachment(interface, found, Mode::Generic, false, why))
            }
            Err(error) => Err(error),
        }
    }

    fn attach_in(
        &mut self,
        interface: &str,
        mode: Mode,
        found: &Interface,
    ) -> Result<(), AttachError> {
        let path = self.pins.link(interface);
        let program = self.program()?;
        let aya_mode = match mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        };
        let id = program.attach_to_if_index(found.ifindex, aya_mode).map_err(|error| {
            let interface = interface.to_owned();
            AttachError::Refused { interface, mode, mtu: found.mtu, source: os_error(&error) }
        })?;
        let link = program.take_link(id).map_err(AttachError::NotLoaded)?;
        let link = FdLink::try_from(link).map_err(|_| AttachError::NoLinks)?;
        link.pin(&path).map_err(|error| {
            let source = os_error(&error);
            PinError::File { what: "pin the link to", path, source }
        })?;
        Ok(())
    }

    fn program(&mut self) -> Result<&mut Xdp, AttachError> {
        let program = self.ebpf.program_mut(names::PROGRAM).expect("found when it was loaded");
        program.try_into().map_err(AttachError::NotLoaded)
    }
}

fn find(interface: &str) -> Result<Interface, AttachError> {
    let found = sys::interface(interface)
        .map_err(|source| AttachError::NoInterface { interface: interface.to_owned(), source })?;
    if found.loopback {
        return Err(AttachError::Loopback(interface.to_owned()));
    }
    Ok(found)
}

fn refuse_foreign(interface: &str, found: &Interface) -> Result<(), AttachError> {
    let Some(OnInterface { program, .. }) = found.xdp else { return Ok(()) };
    let name = sys::program_name(program).unwrap_or_else(|| "of unknown name".to_owned());
    Err(AttachError::Foreign { interface: interface.to_owned(), program, name })
}

/// Whether the link at `path` is what keeps the program on this interface. An interface of another
/// network namespace may have the same number, but not the same program by the same link.
fn joins(path: &Path, ifindex: u32, on: &OnInterface) -> bool {
    let info = Link::open(path).and_then(|link| link.info());
    info.is_ok_and(|info| info.ifindex == ifindex && info.program == on.program)
}

fn suits(wanted: WantedMode, on: &OnInterface) -> bool {
    match wanted {
        WantedMode::Auto => true,
        WantedMode::Native => !on.generic,
        WantedMode::Generic => on.generic,
    }
}

fn mode_of(on: OnInterface) -> Mode {
    if on.generic { Mode::Generic } else { Mode::Native }
}

fn attachment(
    interface: &str,
    found: &Interface,
    mode: Mode,
    taken_over: bool,
    fallback: Option<String>,
) -> Attachment {
    let interface = interface.to_owned();
    Attachment { interface, ifindex: found.ifindex, mode, taken_over, fallback }
}

/// What an error of attaching usually comes from.
fn hint(error: &io::Error, mtu: u32) -> String {
    match error.raw_os_error() {
        Some(libc::ERANGE | libc::EINVAL) if mtu > 1500 => {
            format!("; an MTU of {mtu} may be too large for it, 3498 fits most drivers")
        }
        Some(libc::EOPNOTSUPP) => "; its driver does not support that".to_owned(),
        Some(libc::ENOSPC) => {
            "; it has too few receive queues, give it as many as its peer sends by".to_owned()
        }
        Some(libc::EBUSY | libc::EEXIST) => "; another XDP program is in the way".to_owned(),
        Some(libc::EPERM | libc::EACCES) => "; rawr needs CAP_NET_ADMIN, or root".to_owned(),
        _ => String::new(),
    }
}
