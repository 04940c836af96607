//! How long a loaded program takes for one packet.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader};
use rawr_tests::kernel::{Kernel, attach, test_run};

use crate::object::object;

/// Runs per call. A packet may be forwarded in each, and each takes one off its TTL of 255.
pub(super) const REPEAT: u32 = 250;
/// The least number of calls for one value.
pub(super) const CALLS: usize = 400;

/// What has to come of the last run.
#[derive(Clone, Copy)]
pub(super) struct Expected {
    /// `XDP_*`.
    pub(super) action: u32,
    /// Of the frame, in bytes.
    pub(super) length: usize,
}

/// Nanoseconds per packet: a mean over one call for each frame, without the slowest quarter of them,
/// which something interrupted.
pub(super) fn cost(
    program: BorrowedFd<'_>,
    frames: impl Iterator<Item = Vec<u8>>,
    expected: Expected,
    ifindex: u32,
) -> Result<f64> {
    // If it were attached nowhere, the kernel would make each call wait for an RCU grace period, and
    // what follows would find cold caches.
    let _attached = attach(program, ifindex)?;
    let mut costs = Vec::new();
    for frame in frames {
        let outcome = test_run(program, &frame, REPEAT)?;
        let (action, length) = (outcome.action, outcome.frame.len());
        ensure!(
            (action, length) == (expected.action, expected.length),
            "the program returned action {action} and {length} bytes, not action {} and {} bytes",
            expected.action,
            expected.length
        );
        // The kernel rounds down.
        costs.push(f64::from(outcome.ns) + 0.5);
    }
    costs.sort_by(f64::total_cmp);
    let kept = &costs[..costs.len() - costs.len() / 4];
    Ok(kept.iter().sum::<f64>() / kept.len() as f64)
}

/// A program that restores the frame, then runs another one on it.
pub(super) struct Rewinder {
    ebpf: Ebpf,
    program: OwnedFd,
}

impl Rewinder {
    pub(super) fn load() -> Result<Self> {
        ensure!(!object().is_empty(), "built with RAWR_SKIP_EBPF=1: there is no program to load");
        let mut ebpf =
            EbpfLoader::new().load(object()).context("cannot load the benchmark's maps")?;
        xdp(&mut ebpf, "bare_transmit")?.load()?;
        let rewind = xdp(&mut ebpf, "rewind")?;
        rewind.load().context("the kernel refuses the program that restores frames")?;
        let program = rewind.fd()?.as_fd().try_clone_to_owned()?;
        Ok(Self { ebpf, program })
    }

    /// What the relay costs for a frame that it changes into another one, and what a bare `XDP_TX`
    /// costs, both with the time that restoring takes.
    pub(super) fn costs(
        &mut self,
        kernel: &mut Kernel,
        frame: &[u8],
        expected: Expected,
        ifindex: u32,
    ) -> Result<[f64; 2]> {
        self.restore(frame)?;
        let frames = || std::iter::repeat_n(frame.to_vec(), CALLS);
        let bare = xdp(&mut self.ebpf, "bare_transmit")?.fd()?.try_clone()?;
        self.put_behind(&bare)?;
        let unchanged = Expected { length: frame.len(), ..expected };
        let bare = cost(self.program.as_fd(), frames(), unchanged, ifindex)?;
        self.put_behind(kernel.program_fd()?)?;
        Ok([cost(self.program.as_fd(), frames(), expected, ifindex)?, bare])
    }

    fn restore(&mut self, frame: &[u8]) -> Result<()> {
        let mut beginning = [0; 9];
        for (word, bytes) in beginning.iter_mut().zip(frame.chunks(size_of::<u64>())) {
            let mut whole = [0; size_of::<u64>()];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        let map = self.ebpf.map_mut("REWIND_BEGINNING").context("no map of beginnings")?;
        Array::<_, [u64; 9]>::try_from(map)?.set(0, beginning, 0)?;
        let map = self.ebpf.map_mut("REWIND_LENGTH").context("no map of lengths")?;
        Array::<_, u32>::try_from(map)?.set(0, u32::try_from(frame.len())?, 0)?;
        Ok(())
    }

    fn put_behind(&mut self, program: &ProgramFd) -> Result<()> {
        let map = self.ebpf.map_mut("REWIND_NEXT").context("no map of programs")?;
        Ok(ProgramArray::try_from(map)?.set(0, program, 0)?)
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}
