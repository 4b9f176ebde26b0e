//! What the drivers of this host are told, one section each.

mod qemu;

pub use qemu::{Accel, Qemu};

use serde::{Deserialize, Serialize};

/// Sections `[drivers.NAME]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drivers {
    /// Virtual machines.
    pub qemu: Qemu,
}

impl Drivers {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        self.qemu.check()
    }
}
