//! Loads the program, against the maps of a predecessor where they fit.

use std::{error::Error, fs, io, os::fd::AsFd, path::PathBuf};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapError},
    programs::{ProgramError, Xdp},
};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use rawr_common::{
    channel,
    flow::{self, Exit, Flow4, Flow6, Rate, names},
    reason::Reason,
    shared::Entry,
    sharing,
};

use super::{
    super::{backend::BackendError, place::Places, table::Table},
    Bpf, Flows,
    entries::{Entries, Known},
    exits::Exits,
    os_error,
    pin::{BPFFS, PinError, Pins},
    ports::SharedPorts,
    rates::Rates,
    tables::Tables,
};

/// What to load, and how large.
#[derive(Clone, Debug)]
pub struct Config {
    /// Tells apart several daemons on one host.
    pub instance: String,
    /// Where the BPF file system is, or is to be mounted.
    pub bpffs: PathBuf,
    /// Length of each of the two port tables, a power of two. They take 192 bytes per place.
    pub table_len: u32,
    /// Length of each of the two channel tables, a power of two. They take as much.
    pub channel_len: u32,
    /// Most flows at once, of both families.
    pub flows: u32,
    /// Whether the program can answer Binding requests; what would is left out of it otherwise.
    pub answers: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            instance: "default".to_owned(),
            bpffs: BPFFS.into(),
            table_len: 1 << 18,
            channel_len: 1 << 18,
            flows: 1 << 16,
            answers: false,
        }
    }
}

/// Why the program could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("this rawr was built without the XDP program; build it without RAWR_SKIP_EBPF")]
    NoObject,
    #[error("flow table length {0}: must be a power of two, at most 2^24")]
    TableLength(u32),
    #[error("channel table length {0}: must be a power of two from 8 to 2^24")]
    ChannelTableLength(u32),
    #[error("no random numbers for the channel table: {0}")]
    NoRandom(getrandom::Error),
    #[error(
        "not allowed to load the XDP program ({0}); rawr needs CAP_BPF, CAP_NET_ADMIN and \
             CAP_PERFMON, or root"
    )]
    Privilege(#[source] Box<dyn Error + Send + Sync>),
    #[error("the kernel refuses the XDP program: {0}")]
    Program(#[from] ProgramError),
    #[error("cannot load the XDP program: {0}")]
    Object(#[from] aya::EbpfError),
    #[error("map {name} of the XDP program is not as expected: {source}")]
    Map { name: &'static str, source: MapError },
    #[error("the XDP program has no {0}; was it built from the same sources?")]
    Missing(&'static str),
    #[error("cannot map {name} into memory: {source}")]
    Mmap { name: &'static str, source: io::Error },
    #[error("cannot take over what a predecessor left: {0}")]
    Adopt(#[source] BackendError),
    #[error(transparent)]
    Pin(#[from] PinError),
}

impl Bpf {
    /// Loads `object`, the compiled program. Where maps of the same version and size are pinned,
    /// it works on those, with all flows in them; else on new ones. Nothing is attached yet, and
    /// what a predecessor attached goes on.
    pub fn open(config: &Config, object: &[u8]) -> Result<Self, LoadError> {
        if object.is_empty() {
            return Err(LoadError::NoObject);
        }
        if !config.table_len.is_power_of_two() || config.table_len > 1 << 24 {
            return Err(LoadError::TableLength(config.table_len));
        }
        let channels = config.channel_len;
        if !channels.is_power_of_two() || !(channel::GROUP..=1 << 24).contains(&channels) {
            return Err(LoadError::ChannelTableLength(channels));
        }
        // Before Linux 5.11 maps count as locked memory; later this changes nothing.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let (pins, lock) = Pins::prepare(&config.bpffs, &config.instance)?;
        let kept = pins.seed().filter(|_| maps_fit(&pins, config));
        let seed = match kept {
            Some(seed) => seed,
            None => begin_anew(&pins)?,
        };
        let mut ebpf = load(&pins, config, seed, object).map_err(classify)?;
        let program: &mut Xdp = ebpf
            .program_mut(names::PROGRAM)
            .ok_or(LoadError::Missing(names::PROGRAM))?
            .try_into()?;
        verify(program).map_err(|error| classify(error.into()))?;
        pin_program(program, &pins)?;
        let places = Places::new(config.table_len, channels, seed);
        let flows = take_over(&mut ebpf, config, places)?;
        let reasons = take(&mut ebpf, names::REASONS)?;
        let attached = Vec::new();
        let (capacity, taken_over) = (config.flows, kept.is_some());
        Ok(Self { ebpf, pins, _lock: lock, flows, reasons, capacity, taken_over, attached })
    }
}

/// The flow tables and what flows build on, with what a predecessor left in them.
fn take_over(ebpf: &mut Ebpf, config: &Config, places: Places) -> Result<Flows, LoadError> {
    let v4 = map_tables::<Flow4>(ebpf, config, names::FLOWS4, names::CHANNELS4)?;
    let v6 = map_tables::<Flow6>(ebpf, config, names::FLOWS6, names::CHANNELS6)?;
    let ports = map_ports(ebpf)?;
    let mut exits = Exits::adopt(take(ebpf, names::EXITS)?, take(ebpf, names::EGRESS)?)
        .map_err(LoadError::Adopt)?;
    let mut rates = Rates::adopt(take(ebpf, names::RATES)?);
    let mut known = Known {
        flows: config.flows,
        limit: &mut |index| rates.take_over(index),
        exit: &|slot| exits.get(slot).is_some(),
    };
    let entries = Entries::adopt(v4, v6, places, ports, &mut known);
    rates.open();
    for held in entries.held() {
        exits.hold(held.exit);
    }
    Ok(Flows { entries, exits, rates })
}

/// Puts away maps that do not fit, and makes up the seed of those that come in their place.
fn begin_anew(pins: &Pins) -> Result<u64, LoadError> {
    pins.set_maps_aside()?;
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(LoadError::NoRandom)?;
    let seed = u64::from_ne_bytes(seed);
    pins.set_seed(seed)?;
    Ok(seed)
}

/// Name, size of a value, and length of each map.
fn maps(config: &Config) -> [(&'static str, usize, u32); 9] {
    [
        (names::FLOWS4, size_of::<Flow4>(), config.table_len),
        (names::FLOWS6, size_of::<Flow6>(), config.table_len),
        (names::CHANNELS4, size_of::<Flow4>(), config.channel_len),
        (names::CHANNELS6, size_of::<Flow6>(), config.channel_len),
        (names::SHARED_PORTS, size_of::<u64>(), sharing::WORDS),
        (names::EXITS, size_of::<Exit>(), flow::EXITS),
        (names::RATES, size_of::<Rate>(), config.flows),
        (names::REASONS, size_of::<u64>(), Reason::ALL.len() as u32),
        (names::EGRESS, size_of::<[u32; 2]>(), flow::EXITS),
    ]
}

/// Whether all maps are pinned and as long as they should be.
fn maps_fit(pins: &Pins, config: &Config) -> bool {
    maps(config).iter().all(|&(name, value_size, len)| {
        let info = MapData::from_pin(pins.map(name)).and_then(|map| map.info());
        info.is_ok_and(|info| info.value_size() as usize == value_size && info.max_entries() == len)
    })
}

fn load(pins: &Pins, config: &Config, seed: u64, object: &[u8]) -> Result<Ebpf, LoadError> {
    let (table_mask, channel_mask) = (config.table_len - 1, config.channel_len - 1);
    let answers = u32::from(config.answers);
    let mut loader = EbpfLoader::new();
    loader
        .override_global(names::TABLE_MASK, &table_mask, true)
        .override_global(names::CHANNEL_MASK, &channel_mask, true)
        .override_global(names::ANSWERS, &answers, true)
        .override_global(names::HASH_SEED, &seed, true);
    for (name, _, len) in maps(config) {
        loader.map_max_entries(name, len).map_pin_path(name, pins.map(name));
    }
    Ok(loader.load(object)?)
}

/// Has the kernel verify the program. A signal that arrives meanwhile makes it give up with `EAGAIN`, which
/// says nothing about the program.
fn verify(program: &mut Xdp) -> Result<(), ProgramError> {
    const TRIES: u32 = 5;
    for _ in 1..TRIES {
        match program.load() {
            Err(error) if os_error(&error).kind() == io::ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
    }
    program.load()
}

/// Pins the program in place of its predecessor. Nothing but people and tools look at this pin.
fn pin_program(program: &mut Xdp, pins: &Pins) -> Result<(), LoadError> {
    let path = pins.program();
    // It is missing at the first start.
    let _ = fs::remove_file(&path);
    program.pin(&path).map_err(|error| {
        PinError::File { what: "pin the program to", path, source: os_error(&error) }.into()
    })
}

fn map_tables<E: Entry>(
    ebpf: &mut Ebpf,
    config: &Config,
    ports: &'static str,
    channels: &'static str,
) -> Result<Tables<E>, LoadError> {
    let ports = map_table(ebpf, ports, config.table_len)?;
    let channels = map_table(ebpf, channels, config.channel_len)?;
    Ok(Tables { ports, channels })
}

fn map_table<E: Entry>(
    ebpf: &mut Ebpf,
    name: &'static str,
    len: u32,
) -> Result<Table<E>, LoadError> {
    let map = ebpf.take_map(name).ok_or(LoadError::Missing(name))?;
    let Map::Array(array) = map else { return Err(LoadError::Missing(name)) };
    Table::map(array.fd().as_fd(), len).map_err(|source| LoadError::Mmap { name, source })
}

fn map_ports(ebpf: &mut Ebpf) -> Result<SharedPorts, LoadError> {
    let name = names::SHARED_PORTS;
    let map = ebpf.take_map(name).ok_or(LoadError::Missing(name))?;
    let Map::Array(array) = map else { return Err(LoadError::Missing(name)) };
    SharedPorts::map(array.fd().as_fd()).map_err(|source| LoadError::Mmap { name, source })
}

fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, LoadError> {
    let map = ebpf.take_map(name).ok_or(LoadError::Missing(name))?;
    T::try_from(map).map_err(|source| LoadError::Map { name, source })
}

fn classify(error: LoadError) -> LoadError {
    match os_error(&error).kind() {
        io::ErrorKind::PermissionDenied => LoadError::Privilege(Box::new(error)),
        _ => error,
    }
}
