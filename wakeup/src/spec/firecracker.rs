//! A sprite that is a micro-VM of Firecracker.

use super::Wrong;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Longest kernel command line, bytes (x86's `COMMAND_LINE_SIZE`, which is the larger).
const BOOT_ARGS_BYTES_MAX: usize = 2048;
/// Longest name of a network device, bytes (`IFNAMSIZ` without its zero).
const TAP_BYTES_MAX: usize = 15;
/// Most vCPUs (the VMM's own limit).
const VCPUS_MAX: u8 = 32;

/// Kernel, disk and network are there before the sprite is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirecrackerSpec {
    /// Uncompressed kernel on this host.
    pub kernel: PathBuf,
    /// Its command line; the VMM adds the root device.
    #[serde(default = "boot_args")]
    pub boot_args: String,
    /// An initial RAM disk, if the kernel needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The machine's own disk on this host: nobody else may use it.
    pub rootfs: PathBuf,
    /// Processors.
    #[serde(default = "one")]
    pub vcpus: u8,
    /// Memory, MiB.
    #[serde(default = "memory_mib")]
    pub memory_mib: u32,
    /// A TAP device of this host, which nobody else uses.
    pub tap: String,
    /// Hardware address of its network card; the VMM chooses when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The address the guest gives itself on that device.
    pub guest_address: IpAddr,
    /// Where it listens.
    pub port: u16,
}

/// Without a console: what the VMM would print is bounded, and a serial port slows a boot.
fn boot_args() -> String {
    "reboot=k panic=1 8250.nr_uarts=0".into()
}

const fn one() -> u8 {
    1
}

/// The VMM's own default.
const fn memory_mib() -> u32 {
    128
}

impl FirecrackerSpec {
    /// Where it answers.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        SocketAddr::new(self.guest_address, self.port)
    }

    /// Checks what the types alone cannot say.
    ///
    /// # Errors
    /// The first field that is wrong, and what would be right.
    pub fn check(&self) -> Result<(), Wrong> {
        let absolute = "an absolute path, in UTF-8";
        let paths = [("firecracker.kernel", Some(&self.kernel)), ("firecracker.rootfs", Some(&self.rootfs))];
        for (field, path) in paths.into_iter().chain([("firecracker.initrd", self.initrd.as_ref())]) {
            if path.is_some_and(|path| !path.is_absolute() || path.to_str().is_none()) {
                return Err((field, absolute));
            }
        }
        if self.boot_args.len() > BOOT_ARGS_BYTES_MAX {
            return Err(("firecracker.boot_args", "at most 2048 bytes"));
        }
        if !(1..=VCPUS_MAX).contains(&self.vcpus) {
            return Err(("firecracker.vcpus", "1 to 32"));
        }
        if self.memory_mib == 0 {
            return Err(("firecracker.memory_mib", "at least 1"));
        }
        let tap = &self.tap;
        if tap.is_empty()
            || tap.len() > TAP_BYTES_MAX
            || tap.contains(|char: char| char == '/' || !char.is_ascii_graphic())
        {
            return Err(("firecracker.tap", "the name of a network device, 1 to 15 bytes"));
        }
        if self.mac.as_ref().is_some_and(|mac| !is_mac(mac)) {
            return Err(("firecracker.mac", "six pairs of hexadecimal digits with ':' between them"));
        }
        if self.guest_address.is_unspecified() || self.guest_address.is_multicast() {
            return Err(("firecracker.guest_address", "the address of one machine"));
        }
        if self.port == 0 {
            return Err(("firecracker.port", "not 0"));
        }
        Ok(())
    }
}

fn is_mac(text: &str) -> bool {
    let pairs: Vec<_> = text.split(':').collect();
    pairs.len() == 6 && pairs.iter().all(|pair| pair.len() == 2 && pair.chars().all(|char| char.is_ascii_hexdigit()))
}
