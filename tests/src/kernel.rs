//! The XDP program in this machine's kernel, run on single packets (`BPF_PROG_TEST_RUN`).

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, DevMap, Map, MapData, PerCpuArray};
use aya::programs::{ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader};
use rawr_common::flow::{Exit, Flow4, Flow6, Place, Rate, names};
use rawr_common::reason::Reason;
use rawr_common::shared::{Entry, publish};
use rawr_common::sharing::Bit;
use rawr_userspace::dataplane::object::object;
use rawr_userspace::dataplane::table::Table;

use crate::world::{SEED, bit4, bit6};

/// The interface that packets of a test run seem to come in by: `lo`, of whatever namespace.
pub const INGRESS: u32 = 1;

/// `XDP_*`, as the kernel numbers them.
pub mod action {
    pub const DROP: u32 = 1;
    pub const PASS: u32 = 2;
    pub const TX: u32 = 3;
    pub const REDIRECT: u32 = 4;
}

/// The program with its maps, attached to nothing.
pub struct Kernel {
    ebpf: Ebpf,
}

/// An exit in its map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct ExitValue(Exit);

// SAFETY: integers and byte arrays without padding.
unsafe impl aya::Pod for ExitValue {}

/// A rate limit in its map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct RateValue(Rate);

// SAFETY: integers without padding.
unsafe impl aya::Pod for RateValue {}

/// What the program made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// See [`action`].
    pub action: u32,
    pub frame: Vec<u8>,
    /// Nanoseconds per run, rounded down, as the kernel measured.
    pub ns: u32,
}

impl Kernel {
    /// Loads the program with port tables of `entries`, as many rate limits, and channel tables of
    /// `channels`, which are hashed with [`SEED`]. Both are powers of two. It answers Binding requests.
    pub fn load(entries: u32, channels: u32) -> Result<Self> {
        Self::load_with(entries, channels, true)
    }

    /// The same, and `answers` says whether the program answers Binding requests.
    pub fn load_with(entries: u32, channels: u32, answers: bool) -> Result<Self> {
        ensure!(!object().is_empty(), "built with RAWR_SKIP_EBPF=1: there is no program to load");
        let (mask, channel_mask) = (entries - 1, channels - 1);
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(names::FLOWS4, entries)
            .map_max_entries(names::FLOWS6, entries)
            .map_max_entries(names::CHANNELS4, channels)
            .map_max_entries(names::CHANNELS6, channels)
            .map_max_entries(names::RATES, entries)
            .override_global(names::TABLE_MASK, &mask, true)
            .override_global(names::CHANNEL_MASK, &channel_mask, true)
            .override_global(names::ANSWERS, &u32::from(answers), true)
            .override_global(names::HASH_SEED, &SEED, true)
            .load(object())
            .context("cannot load the maps")?;
        program(&mut ebpf)?.load().context("the kernel refuses the program")?;
        Ok(Self { ebpf })
    }

    /// Size of the program in the kernel's own instructions, in bytes.
    pub fn translated_size(&mut self) -> Result<u32> {
        let info = program(&mut self.ebpf)?.info()?;
        info.size_translated().context("the kernel does not tell the program's size")
    }

    /// The instructions as the kernel has translated them.
    pub fn instructions(&mut self) -> Result<Vec<u64>> {
        let size = self.translated_size()?;
        let program = self.program()?;
        let mut instructions = vec![0; size as usize / size_of::<u64>()];
        let mut info = ProgramInfo {
            translated_len: size,
            translated: instructions.as_mut_ptr() as u64,
            ..ProgramInfo::default()
        };
        let mut attributes = GetInfo {
            program: program.as_raw_fd() as u32,
            info_len: size_of::<ProgramInfo>() as u32,
            info: std::ptr::from_mut(&mut info) as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes).context("cannot read the program back")?;
        Ok(instructions)
    }

    /// Names of all maps.
    pub fn map_names(&self) -> Vec<String> {
        self.ebpf.maps().map(|(name, _)| name.to_owned()).collect()
    }

    /// Sets an entry, whose counters start at zero. The port of one in a channel table is marked from then
    /// on.
    pub fn set_flow4(&mut self, place: Place, flow: &Flow4) -> Result<()> {
        let (name, index) = match place {
            Place::Port(index) => (names::FLOWS4, index),
            Place::Channel(index) => {
                self.mark_port(bit4(flow), true)?;
                (names::CHANNELS4, index)
            }
        };
        self.array::<[u8; size_of::<Flow4>()]>(name)?.set(index, bytes(flow), 0)?;
        Ok(())
    }

    /// As [`Self::set_flow4`].
    pub fn set_flow6(&mut self, place: Place, flow: &Flow6) -> Result<()> {
        let (name, index) = match place {
            Place::Port(index) => (names::FLOWS6, index),
            Place::Channel(index) => {
                self.mark_port(bit6(flow), true)?;
                (names::CHANNELS6, index)
            }
        };
        self.array::<[u8; size_of::<Flow6>()]>(name)?.set(index, bytes(flow), 0)?;
        Ok(())
    }

    /// Sets or clears what says that a channel table holds flows of one port.
    pub fn mark_port(&mut self, bit: Bit, is_held: bool) -> Result<()> {
        let mut words = self.array::<u64>(names::SHARED_PORTS)?;
        let word = words.get(&bit.word(), 0)? & !bit.mask();
        words.set(bit.word(), if is_held { word | bit.mask() } else { word }, 0)?;
        Ok(())
    }

    /// The `entries` flows of a table, in memory that the program reads.
    pub fn table<E: Entry>(&self, name: &str, entries: u32) -> Result<Table<E>> {
        let Some(Map::Array(array)) = self.ebpf.map(name) else { bail!("no array {name}") };
        Table::map(array.fd().as_fd(), entries).with_context(|| format!("cannot map {name}"))
    }

    /// Sets the exit in a slot, without its interface.
    pub fn set_exit(&mut self, slot: u8, exit: &Exit) -> Result<()> {
        self.array::<ExitValue>(names::EXITS)?.set(slot.into(), ExitValue(*exit), 0)?;
        Ok(())
    }

    pub fn set_rate(&mut self, index: u32, rate: Rate) -> Result<()> {
        self.array::<RateValue>(names::RATES)?.set(index, RateValue(rate), 0)?;
        Ok(())
    }

    /// Puts an interface of the caller's network namespace into a slot of the device map.
    pub fn set_egress(&mut self, slot: u32, ifindex: u32) -> Result<()> {
        let map = self.ebpf.map_mut(names::EGRESS).context("no device map")?;
        DevMap::try_from(map)?.set(slot, ifindex, None, 0)?;
        Ok(())
    }

    /// All reasons that have been counted.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>> {
        let map = self.per_cpu::<u64>(names::REASONS)?;
        let mut counted = Vec::new();
        for reason in Reason::ALL {
            let count: u64 = map.get(&(reason as u32), 0)?.iter().sum();
            if count > 0 {
                counted.push((reason, count));
            }
        }
        Ok(counted)
    }

    /// Runs the program on a frame, and on its result again as often as `repeat` says.
    pub fn run(&mut self, frame: &[u8], repeat: u32) -> Result<Outcome> {
        let program = program(&mut self.ebpf)?.fd()?.as_fd().try_clone_to_owned()?;
        test_run(program.as_fd(), frame, repeat)
    }

    /// The loaded program.
    pub fn program(&mut self) -> Result<OwnedFd> {
        Ok(program(&mut self.ebpf)?.fd()?.as_fd().try_clone_to_owned()?)
    }

    /// The loaded program, as aya puts it into maps of programs.
    pub fn program_fd(&mut self) -> Result<&ProgramFd> {
        Ok(program(&mut self.ebpf)?.fd()?)
    }

    fn array<T: aya::Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))?;
        Ok(Array::try_from(map)?)
    }

    fn per_cpu<T: aya::Pod>(&self, name: &str) -> Result<PerCpuArray<&MapData, T>> {
        let map = self.ebpf.map(name).with_context(|| format!("no map {name}"))?;
        Ok(PerCpuArray::try_from(map)?)
    }
}

/// Runs a loaded XDP program on a frame, and on its result again as often as `repeat` says.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> Result<Outcome> {
    let mut out = vec![0; frame.len() + 256];
    let mut attributes = TestRun {
        program: program.as_raw_fd() as u32,
        size_in: frame.len() as u32,
        size_out: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat,
        ..TestRun::default()
    };
    bpf(BPF_PROG_TEST_RUN, &mut attributes).context("BPF_PROG_TEST_RUN failed")?;
    out.truncate(attributes.size_out as usize);
    Ok(Outcome { action: attributes.action, frame: out, ns: attributes.ns })
}

/// Attaches a loaded XDP program to an interface's driver for as long as the result lives.
pub fn attach(program: BorrowedFd<'_>, ifindex: u32) -> Result<OwnedFd> {
    let mut attributes = LinkCreate {
        program: program.as_raw_fd() as u32,
        ifindex,
        kind: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    let fd = bpf(BPF_LINK_CREATE, &mut attributes).context("cannot attach the program")?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An XDP program that does nothing but return `action`: what a program cannot cost less than.
pub fn bare_program(action: u32) -> Result<OwnedFd> {
    let instructions: [u64; 2] = [0xb4 | u64::from(action) << 32, 0x95];
    let license = c"MIT";
    let mut attributes = ProgramLoad {
        kind: BPF_PROG_TYPE_XDP,
        instructions: instructions.len() as u32,
        code: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..ProgramLoad::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &mut attributes).context("cannot load the bare program")?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const BPF_PROG_LOAD: i64 = 5;
const BPF_PROG_TEST_RUN: i64 = 10;
const BPF_OBJ_GET_INFO_BY_FD: i64 = 15;
const BPF_LINK_CREATE: i64 = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[derive(Default)]
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u64; 3],
}

/// The beginning of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[derive(Default)]
#[repr(C)]
struct TestRun {
    program: u32,
    action: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    ns: u32,
}

/// The beginning of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    kind: u32,
    flags: u32,
}

/// The beginning of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct GetInfo {
    program: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`.
#[derive(Default)]
#[repr(C)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    translated_len: u32,
    jited: u64,
    translated: u64,
}

fn bpf<T>(command: i64, attributes: &mut T) -> io::Result<i32> {
    let pointer: *mut c_void = std::ptr::from_mut(attributes).cast();
    // SAFETY: `attributes` begins as the command wants it; the buffers that it points to outlive the
    // call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp> {
    let program = ebpf.program_mut(names::PROGRAM).context("the object has no relay program")?;
    Ok(program.try_into()?)
}

/// The bytes of an entry, padding as zeros.
fn bytes<E: Entry, const SIZE: usize>(entry: &E) -> [u8; SIZE] {
    #[repr(align(64))]
    struct Aligned<const SIZE: usize>([u8; SIZE]);
    assert_eq!(SIZE, size_of::<E>());
    let mut bytes = Aligned([0; SIZE]);
    // SAFETY: as large and as aligned as an entry, and ours alone.
    unsafe { publish(bytes.0.as_mut_ptr().cast::<E>(), entry) };
    bytes.0
}
