//! Virtual machines under QEMU.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Longest boot wait: the owner gives up a start after 20 s, and what is started twice because
/// its memory did not load must fit in there too.
const BOOT_WAIT_MAX: Duration = Duration::from_secs(18);

/// Section `[drivers.qemu]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Qemu {
    /// The program, by path or by its name on `PATH`.
    pub program: PathBuf,
    /// What executes guests that do not say themselves.
    pub accel: Accel,
    /// Where the memory of guests that sleep cold is kept, a folder for each. Empty: in each
    /// sprite's own directory.
    pub memory_dir: PathBuf,
    /// How long a start waits for the guest's first answer before its port counts as closed
    /// and `host.port_wait` begins.
    #[serde(with = "crate::text")]
    pub boot_wait: Duration,
    /// Guests reach whatever this machine reaches, its loopback services too.
    pub outbound: bool,
}

/// What executes a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// QEMU itself: slow, works everywhere.
    Tcg,
    /// The processor, by `/dev/kvm`.
    Kvm,
}

impl Accel {
    /// As QEMU and the config file call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        }
    }
}

impl Default for Qemu {
    fn default() -> Self {
        Self {
            program: "qemu-system-x86_64".into(),
            accel: Accel::Tcg,
            memory_dir: PathBuf::new(),
            boot_wait: Duration::from_secs(15),
            outbound: false,
        }
    }
}

impl Qemu {
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.program.as_os_str().is_empty() {
            return Err(("drivers.qemu.program", "a path, or a name that is looked for on PATH".into()));
        }
        if !self.memory_dir.as_os_str().is_empty() && !self.memory_dir.is_absolute() {
            return Err(("drivers.qemu.memory_dir", "an absolute path, or empty".into()));
        }
        if self.boot_wait.is_zero() || self.boot_wait > BOOT_WAIT_MAX {
            let most = humantime::format_duration(BOOT_WAIT_MAX);
            return Err(("drivers.qemu.boot_wait", format!("more than 0 and at most {most}")));
        }
        Ok(())
    }
}
