//! A virtual machine as its people describe it, and the bounds of what they may say.

use config::Accel;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Longest kernel command line, bytes (`COMMAND_LINE_SIZE` of Linux on x86, 2048 with its end).
const APPEND_BYTES_MAX: usize = 2047;
/// Longest name of a machine, bytes (chosen: QEMU's longest is half of it).
const MACHINE_BYTES_MAX: usize = 64;
/// Most disks (chosen: far over use, far under the slots of a PCI bus).
const DISKS_MAX: usize = 8;
/// Least memory, MiB (chosen: less boots no current kernel).
const MEMORY_MIB_MIN: u32 = 32;
/// Most memory, MiB (chosen: 1 TiB, a slip of the hand beyond it).
const MEMORY_MIB_MAX: u32 = 1 << 20;
/// Most processors (chosen; QEMU's q35 goes to 288).
const CPUS_MAX: u32 = 64;
/// First port that needs no privilege, and what listens there is QEMU, which should have none.
const PORT_MIN: u16 = 1024;

/// A virtual machine. It boots a kernel, or its first disk when there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuSpec {
    /// The kernel's image, an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Its first root file system, an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Its command line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub append: String,
    /// Disks, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Memory, MiB.
    #[serde(default = "default_memory")]
    pub memory_mib: u32,
    /// Processors.
    #[serde(default = "default_cpus")]
    pub cpus: u32,
    /// Where its HTTP server listens, inside.
    #[serde(default = "default_port")]
    pub port: u16,
    /// QEMU's machine, with properties if any.
    #[serde(default = "default_machine")]
    pub machine: String,
    /// What executes it; the host's `drivers.qemu.accel` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accel: Option<Accel>,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its image or block device, an absolute path. A disk that is written belongs to one sprite.
    pub path: PathBuf,
    /// What the image is. Never guessed: a guest could write another format's head into a raw one
    /// and have any file of the host opened.
    pub format: DiskFormat,
    /// The guest cannot write it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// Format of a disk's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Byte for byte.
    Raw,
    /// QEMU's own.
    Qcow2,
}

const fn default_memory() -> u32 {
    256
}

const fn default_cpus() -> u32 {
    1
}

const fn default_port() -> u16 {
    80
}

fn default_machine() -> String {
    "q35".into()
}

impl QemuSpec {
    /// Checks every bound, and that the files are there. `ports` are those declared for it.
    ///
    /// # Errors
    /// The field that is wrong and what would be right.
    pub fn check(&self, ports: &[u16]) -> Result<(), (&'static str, &'static str)> {
        if self.kernel.is_none() && self.disks.is_empty() {
            return Err(("qemu.kernel", "a machine boots a kernel or a disk: give one of them"));
        }
        if self.kernel.is_none() && (self.initrd.is_some() || !self.append.is_empty()) {
            return Err(("qemu.kernel", "initrd and append belong to a kernel: give one"));
        }
        if self.kernel.as_deref().is_some_and(|path| !is_file(path)) {
            return Err(("qemu.kernel", "an absolute path of a file on this host"));
        }
        if self.initrd.as_deref().is_some_and(|path| !is_file(path)) {
            return Err(("qemu.initrd", "an absolute path of a file on this host"));
        }
        if self.append.len() > APPEND_BYTES_MAX || self.append.chars().any(char::is_control) {
            return Err(("qemu.append", "one line of at most 2047 bytes"));
        }
        if self.disks.len() > DISKS_MAX {
            return Err(("qemu.disks", "at most 8"));
        }
        // JSON carries their paths to QEMU, and that is text.
        let readable = |path: &Path| path.is_absolute() && path.to_str().is_some() && path.exists() && !path.is_dir();
        if self.disks.iter().any(|disk| !readable(&disk.path)) {
            return Err(("qemu.disks", "path: an absolute path of an image or block device on this host"));
        }
        if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&self.memory_mib) {
            return Err(("qemu.memory_mib", "32 to 1048576"));
        }
        if !(1..=CPUS_MAX).contains(&self.cpus) {
            return Err(("qemu.cpus", "1 to 64"));
        }
        if self.port == 0 {
            return Err(("qemu.port", "1 to 65535"));
        }
        if self.machine.is_empty() || self.machine.len() > MACHINE_BYTES_MAX || !self.machine.bytes().all(is_plain) {
            return Err(("qemu.machine", "a machine of QEMU such as \"q35\", 1 to 64 letters, digits and -._,="));
        }
        if ports.iter().any(|&port| port < PORT_MIN) {
            return Err(("ports", "from 1024 up with the driver qemu"));
        }
        Ok(())
    }
}

fn is_file(path: &Path) -> bool {
    path.is_absolute() && path.is_file()
}

const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b',' | b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> QemuSpec {
        serde_json::from_value(serde_json::json!({ "kernel": "/proc/self/exe" })).unwrap()
    }

    #[test]
    fn a_kernel_is_enough_and_the_rest_has_defaults() {
        let spec = spec();
        assert_eq!((spec.memory_mib, spec.cpus, spec.port, spec.machine.as_str()), (256, 1, 80, "q35"));
        assert_eq!(spec.check(&[8080]), Ok(()));
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<QemuSpec>(&text).unwrap(), spec);
    }

    #[test]
    fn each_field_out_of_its_bounds_is_named() {
        let disk = |path: &str| Disk { path: path.into(), format: DiskFormat::Raw, read_only: false };
        let exe = PathBuf::from("/proc/self/exe");
        for (wrong, field) in [
            (QemuSpec { kernel: None, ..spec() }, "qemu.kernel"),
            (
                QemuSpec { kernel: None, append: "quiet".into(), disks: vec![disk("/dev/null")], ..spec() },
                "qemu.kernel",
            ),
            (QemuSpec { kernel: Some("vmlinuz".into()), ..spec() }, "qemu.kernel"),
            (QemuSpec { kernel: Some("/no/such/file".into()), ..spec() }, "qemu.kernel"),
            (QemuSpec { initrd: Some("/proc".into()), kernel: Some(exe), ..spec() }, "qemu.initrd"),
            (QemuSpec { append: "a".repeat(2048), ..spec() }, "qemu.append"),
            (QemuSpec { append: "quiet\nroot=/dev/vda".into(), ..spec() }, "qemu.append"),
            (QemuSpec { disks: vec![disk("/dev/null"); 9], ..spec() }, "qemu.disks"),
            (QemuSpec { disks: vec![disk("/proc")], ..spec() }, "qemu.disks"),
            (QemuSpec { memory_mib: 31, ..spec() }, "qemu.memory_mib"),
            (QemuSpec { cpus: 0, ..spec() }, "qemu.cpus"),
            (QemuSpec { cpus: 65, ..spec() }, "qemu.cpus"),
            (QemuSpec { port: 0, ..spec() }, "qemu.port"),
            (QemuSpec { machine: String::new(), ..spec() }, "qemu.machine"),
            (QemuSpec { machine: "q35 -device x".into(), ..spec() }, "qemu.machine"),
        ] {
            assert_eq!(wrong.check(&[]).unwrap_err().0, field, "{wrong:?}");
        }
        assert_eq!(spec().check(&[80]).unwrap_err().0, "ports");
        assert_eq!(QemuSpec { kernel: None, disks: vec![disk("/dev/null")], ..spec() }.check(&[]), Ok(()));
    }
}
