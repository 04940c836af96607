//! Resident memory of a process, with the maps that it shares with the kernel told apart.

use std::fs;

use anyhow::{Context, Result};

/// Mappings of BPF maps are named so in `/proc/PID/smaps`.
const MAP: &str = "bpf-map";

/// Resident memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// The process's own: heap, stacks, written data.
    pub(super) anonymous: u64,
    /// BPF maps. They are the kernel's and only shown here.
    pub(super) maps: u64,
}

impl Memory {
    /// Of this process.
    pub(super) fn own() -> Result<Self> {
        Self::of(std::process::id())
    }

    pub(super) fn of(pid: u32) -> Result<Self> {
        let file = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
        parse(&text).with_context(|| format!("{file} is not as expected"))
    }

    /// What has been added since `earlier`, for each of `count`.
    pub(super) fn each_since(self, earlier: Self, count: u32) -> f64 {
        self.anonymous.saturating_sub(earlier.anonymous) as f64 / f64::from(count)
    }
}

fn parse(smaps: &str) -> Option<Memory> {
    let mut memory = Memory::default();
    let mut is_map = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        let mut value = || words.next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024);
        match name {
            "Rss:" if is_map => memory.maps += value()?,
            "Anonymous:" if !is_map => memory.anonymous += value()?,
            // Only the line that begins a mapping has its addresses there.
            _ if !name.ends_with(':') => is_map = line.contains(MAP),
            _ => {}
        }
    }
    Some(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_told_apart() {
        let smaps = "\
7f00-7f10 rw-p 00000000 00:00 0                          [heap]
Rss:                  24 kB
Anonymous:            20 kB
VmFlags: rd wr
7f20-7f30 rw-s 00000000 00:0e 9                          anon_inode:bpf-map
Rss:                 512 kB
Anonymous:             0 kB
7f40-7f50 r-xp 00000000 08:01 7                          /usr/lib/libc.so
Rss:                 100 kB
Anonymous:             4 kB
";
        let expected = Memory { anonymous: 24 * 1024, maps: 512 * 1024 };
        assert_eq!(parse(smaps), Some(expected));
        let idle = Memory { anonymous: 4 * 1024, maps: 0 };
        assert_eq!(expected.each_since(idle, 10), 2048.0);
    }

    #[test]
    fn the_own_memory_can_be_read() {
        assert!(Memory::own().unwrap().anonymous > 0);
    }
}
