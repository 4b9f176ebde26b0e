//! What an owner knows about a sprite, and what it tells about it.

mod qemu;

pub use qemu::{Disk, DiskFormat, QemuSpec};
mod docker;
mod firecracker;
mod http;

pub use docker::DockerSpec;
pub use firecracker::FirecrackerSpec;
pub use http::HttpSpec;

use backhaul::wire::WakeKind;
use router::names::SpriteName;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

/// A sprite as its host defines it. Stored on the host, never replicated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpriteSpec {
    /// Its name.
    pub name: SpriteName,
    /// The placement this host has.
    pub generation: u64,
    /// Whose it is; tenants take turns when many sprites start at once.
    #[serde(default = "local", skip_serializing_if = "is_local")]
    pub tenant: String,
    /// What it is.
    pub driver: DriverSpec,
    /// Declared ports, besides `$PORT`.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Its own idle timeout; the host's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// Its people have stopped it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
    /// What its people have set besides.
    #[serde(default, skip_serializing_if = "SpriteLimits::is_default")]
    pub limits: SpriteLimits,
    /// When it wants to be woken, milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wake_at: Vec<u64>,
}

/// The tenant of sprites that name none.
pub const LOCAL_TENANT: &str = "local";

fn local() -> String {
    LOCAL_TENANT.into()
}

fn is_local(tenant: &String) -> bool {
    tenant == LOCAL_TENANT
}

impl SpriteSpec {
    /// A sprite nobody has set anything for.
    #[must_use]
    pub fn new(name: SpriteName, generation: u64, driver: DriverSpec) -> Self {
        Self {
            name,
            generation,
            tenant: local(),
            driver,
            ports: Vec::new(),
            idle_timeout: None,
            stopped: false,
            limits: SpriteLimits::default(),
            wake_at: Vec::new(),
        }
    }
}

/// What the people of a sprite may set for it, over the figures of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpriteLimits {
    /// Anonymous wakes an hour before it stays awake longer; 0 is no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wakes_per_hour: Option<u32>,
    /// How long it may be awake in a day; over it no request wakes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub awake_per_day: Option<Duration>,
    /// Open sockets without data keep it awake for so long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silent_sockets: Option<Duration>,
    /// How long a closed port of it is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_wait: Option<Duration>,
    /// When what it had in memory was lost in its sleep, only its people wake it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refuse_lossy: bool,
}

impl SpriteLimits {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Which driver makes it run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum DriverSpec {
    /// A command on this host (`drivers/process.rs`).
    Process {
        /// Given to `sh -c`.
        command: String,
        /// The most memory all its processes together may have, MiB; no bound when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory_mib: Option<u32>,
    },
    /// A machine somebody else runs, woken and put to sleep by commands (`drivers/command.rs`).
    Command {
        /// Wakes it.
        wake: String,
        /// Puts it to sleep.
        sleep: String,
    },
    /// A virtual machine under QEMU (`drivers/qemu.rs`).
    Qemu(QemuSpec),
    /// A service somebody else runs; it is always awake (`drivers/fixed.rs`).
    Fixed {
        /// Where it listens.
        address: SocketAddr,
    },
    /// A container (`drivers/docker.rs`).
    Docker(DockerSpec),
    /// A micro-VM (`drivers/firecracker.rs`).
    Firecracker(FirecrackerSpec),
    /// A machine of an orchestrator, asked over HTTP (`drivers/http.rs`).
    Http(HttpSpec),
}

impl DriverSpec {
    /// Checks what the types alone cannot say of a command on this host.
    ///
    /// # Errors
    /// The field that is wrong, and what would be right.
    pub fn check_memory(&self) -> Result<(), Wrong> {
        match self {
            Self::Process { memory_mib: Some(mib), .. } if !config::MEMORY_MIB.contains(mib) => {
                Err(("memory_mib", "4 to 1048576"))
            }
            _ => Ok(()),
        }
    }
}

/// A field that is wrong, and what would be right.
pub type Wrong = (&'static str, &'static str);

/// How deep a sprite sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// Memory stays, nothing runs.
    Warm,
    /// Nothing in memory.
    Cold,
}

/// A sprite's state in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateName {
    /// See [`Depth`].
    Asleep,
    /// On its way to running.
    Waking,
    /// Serving.
    Running,
    /// On its way to sleep.
    Stopping,
    /// The last wake failed; a back-off runs.
    Failed,
    /// Its people have stopped it: no request wakes it.
    Stopped,
}

/// What `sprite list` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpriteStatus {
    /// Its name.
    pub name: SpriteName,
    /// The placement this host has.
    pub generation: u64,
    /// Its current or last life.
    pub run: u64,
    /// Its state.
    pub state: StateName,
    /// While asleep: how deep.
    pub warmth: Option<Depth>,
    /// While failed: why. While asleep: how its last run ended, if its guest died.
    pub cause: Option<String>,
    /// Milliseconds in this state.
    pub since_ms: u64,
    /// Requests and sockets open at this moment.
    pub open: u32,
    /// Requests waiting for it at this host.
    pub waiting: usize,
    /// New requests wait, by order.
    pub held: bool,
}

/// What keeps a sprite awake, at this moment (`sprite show --why`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// Its state.
    pub state: StateName,
    /// In one sentence.
    pub because: String,
    /// Requests and sockets open here.
    pub open: u32,
    /// What edges claim to have open: each with its end, if it is not renewed.
    pub leases: Vec<LeaseWhy>,
    /// What its guest is busy with.
    pub tasks: Vec<TaskWhy>,
    /// Requests that wait for it here.
    pub waiting: usize,
    /// Milliseconds since the last byte or request.
    pub quiet_ms: u64,
    /// Milliseconds until it falls asleep if nothing more happens; absent while something is open.
    pub sleeps_in_ms: Option<u64>,
    /// Strangers woke it too often: it is slow to sleep.
    pub over_budget: bool,
}

/// One claim in [`Why`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseWhy {
    /// The edge's session.
    pub edge: u64,
    /// Requests and sockets it has open.
    pub open: u32,
    /// Sockets that are quiet, of those.
    pub sockets: u32,
    /// Milliseconds since the last data on one of its sockets.
    pub quiet_ms: u64,
    /// Milliseconds until the claim is void.
    pub ends_in_ms: u64,
}

/// One task in [`Why`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskWhy {
    /// Its id.
    pub id: u64,
    /// Milliseconds until it ends by itself.
    pub ends_in_ms: u64,
}

/// The record of one wake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The sprite.
    pub sprite: SpriteName,
    /// The life it began, or tried to.
    pub run: u64,
    /// `warm`, `cold` or `interrupted`.
    pub kind: String,
    /// It had slept warm and its memory was lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost_memory: bool,
    /// Who asked: "http GET", "admin".
    pub reason: String,
    /// `ready`, or the cause of the failure.
    pub result: String,
    /// Requests and edges that had joined by the end.
    pub waiters: usize,
    /// Milliseconds spent waiting for a start slot.
    pub queued_ms: u64,
    /// Milliseconds the driver needed to start or continue it.
    pub starting_ms: u64,
    /// Milliseconds until its port answered.
    pub port_wait_ms: u64,
    /// When it was asked for, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// `CLOCK_MONOTONIC` when the driver acted, nanoseconds; 0 when it never did.
    pub started_monotonic_ns: u64,
    /// `CLOCK_MONOTONIC` when the owner saw the port answer, nanoseconds; 0 when it never did.
    pub ready_monotonic_ns: u64,
}

impl Depth {
    /// The kind of the wake that ends a sleep of this depth.
    #[must_use]
    pub const fn wake_kind(self) -> WakeKind {
        match self {
            Self::Warm => WakeKind::Warm,
            Self::Cold => WakeKind::Cold,
        }
    }
}

#[cfg(test)]
mod tests;
