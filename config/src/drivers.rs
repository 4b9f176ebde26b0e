//! What the wake drivers must know of this machine; what they must know of one sprite is
//! in the sprite's own definition.
//!
//! One section per driver. A driver nobody uses needs none of its settings to be right.

mod process;
mod qemu;

pub use process::{Cgroup, ProcessDriver};
pub use qemu::{Accel, Qemu};

use crate::text::all_positive;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Longest `drivers.http.wake_timeout`: the owner ends a start that takes longer.
const WAKE_TIMEOUT_MAX: Duration = Duration::from_secs(20);

/// Section `[drivers]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drivers {
    /// Containers of an engine on this machine.
    pub docker: DockerDriver,
    /// Micro-VMs of Firecracker.
    pub firecracker: FirecrackerDriver,
    /// Machines of an orchestrator.
    pub http: HttpDriver,
    /// Commands of this machine.
    pub process: ProcessDriver,
    /// Virtual machines of QEMU.
    pub qemu: Qemu,
}

/// Section `[drivers.docker]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DockerDriver {
    /// Unix socket of the engine: Docker's, or Podman's in its place.
    pub socket: PathBuf,
    /// One call of the engine, besides what `stop_timeout` adds to a stop.
    #[serde(with = "crate::text")]
    pub timeout: Duration,
    /// From a container's stop signal to its kill, in whole seconds.
    #[serde(with = "crate::text")]
    pub stop_timeout: Duration,
}

/// Section `[drivers.firecracker]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FirecrackerDriver {
    /// The VMM, by path or found on `PATH`.
    pub program: PathBuf,
    /// One call of its API, and how long it may take to open its socket.
    #[serde(with = "crate::text")]
    pub timeout: Duration,
    /// Writing or loading the memory of one machine.
    #[serde(with = "crate::text")]
    pub snapshot_timeout: Duration,
}

/// Section `[drivers.http]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpDriver {
    /// File of mode 0600 with the secret that requests are signed with; empty for none, and then no
    /// sprite of this driver wakes.
    pub secret_file: PathBuf,
    /// Roots an orchestrator's certificate is checked against (PEM); empty for the system's.
    pub ca_file: PathBuf,
    /// A whole wake, all tries together.
    #[serde(with = "crate::text")]
    pub wake_timeout: Duration,
    /// A whole sleep, all tries together.
    #[serde(with = "crate::text")]
    pub sleep_timeout: Duration,
}

impl Default for DockerDriver {
    fn default() -> Self {
        Self {
            socket: "/var/run/docker.sock".into(),
            timeout: Duration::from_secs(10),
            stop_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for FirecrackerDriver {
    fn default() -> Self {
        Self {
            program: "firecracker".into(),
            timeout: Duration::from_secs(5),
            snapshot_timeout: Duration::from_secs(60),
        }
    }
}

impl Default for HttpDriver {
    fn default() -> Self {
        Self {
            secret_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            wake_timeout: WAKE_TIMEOUT_MAX,
            sleep_timeout: Duration::from_secs(60),
        }
    }
}

impl Drivers {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        let Self { docker, firecracker, http, process: _, qemu } = self;
        qemu.check()?;
        all_positive(&[
            ("drivers.docker.timeout", docker.timeout),
            ("drivers.firecracker.timeout", firecracker.timeout),
            ("drivers.firecracker.snapshot_timeout", firecracker.snapshot_timeout),
            ("drivers.http.wake_timeout", http.wake_timeout),
            ("drivers.http.sleep_timeout", http.sleep_timeout),
        ])?;
        if docker.socket.as_os_str().is_empty() {
            return Err(("drivers.docker.socket", "the path of a unix socket".into()));
        }
        if firecracker.program.as_os_str().is_empty() {
            return Err(("drivers.firecracker.program", "the path of a program".into()));
        }
        if http.wake_timeout > WAKE_TIMEOUT_MAX {
            return Err(("drivers.http.wake_timeout", "at most 20s".into()));
        }
        Ok(())
    }
}
