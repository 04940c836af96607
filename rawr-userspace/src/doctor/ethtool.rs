//! The driver, offloads and queues of an interface, by the ethtool ioctl.

use std::collections::BTreeMap;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

const SIOCETHTOOL: libc::Ioctl = 0x8946;

const GDRVINFO: u32 = 0x03;
const GSTRINGS: u32 = 0x1b;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const GCHANNELS: u32 = 0x3c;

/// String set of the features' names.
const SS_FEATURES: u32 = 4;

/// Bytes of one string in a set.
const STRING: usize = 32;

/// Name of the driver.
pub(super) fn driver(interface: &str) -> io::Result<String> {
    // struct ethtool_drvinfo: the name follows the command.
    let mut info = [0; 49];
    info[0] = GDRVINFO;
    ethtool(interface, &mut info)?;
    Ok(string(&bytes(&info[1..9])))
}

/// Every feature by name, and whether it is on.
pub(super) fn features(interface: &str) -> io::Result<BTreeMap<String, bool>> {
    // struct ethtool_sset_info: the mask (64 bits) in front of the length.
    let mut sizes = [GSSET_INFO, 0, 1 << SS_FEATURES, 0, 0];
    ethtool(interface, &mut sizes)?;
    let count = sizes[4] as usize;

    let mut names = vec![0; 3 + count * STRING / 4];
    names[..3].copy_from_slice(&[GSTRINGS, SS_FEATURES, sizes[4]]);
    ethtool(interface, &mut names)?;

    // struct ethtool_gfeatures: blocks of 32 features; available, requested, active, never changed.
    let blocks = count.div_ceil(32);
    let mut states = vec![0; 2 + blocks * 4];
    states[..2].copy_from_slice(&[GFEATURES, blocks as u32]);
    ethtool(interface, &mut states)?;

    let names = bytes(&names[3..]);
    let active = |n: usize| states[2 + n / 32 * 4 + 2] >> (n % 32) & 1 == 1;
    let named = names.chunks_exact(STRING).map(string).enumerate();
    Ok(named.filter(|(_, name)| !name.is_empty()).map(|(n, name)| (name, active(n))).collect())
}

/// Receive queues in use.
pub(super) fn receive_queues(interface: &str) -> io::Result<u32> {
    // struct ethtool_channels: four maxima, then rx, tx, other, combined.
    let mut channels = [0; 9];
    channels[0] = GCHANNELS;
    ethtool(interface, &mut channels)?;
    Ok(channels[5] + channels[8])
}

fn ethtool(interface: &str, request: &mut [u32]) -> io::Result<()> {
    // SAFETY: an all-zero ifreq is a valid one.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= ifreq.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in ifreq.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    ifreq.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
    // Any socket does; its namespace is the calling thread's.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: `ifreq` and the request live until the call returns, and every request above has room
    // for what its command writes: the structure, and as many items as its length field says.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut ifreq) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_features_but_no_queues() {
        let features = features("lo").unwrap();
        assert_eq!(features.get("loopback"), Some(&true), "{features:?}");
        assert!(features.len() > 20);
        assert!(receive_queues("lo").is_err());
    }

    #[test]
    fn names_that_cannot_be_are_errors() {
        assert!(driver("no-such-device").is_err());
        assert!(features("a-name-that-is-longer-than-any-interfaces").is_err());
    }
}
