//! What makes a guest run: start, freeze, continue, end, and where it listens.
//!
//! A driver acts and reports; it decides nothing. To add one: a file here that implements
//! [`WakeDriver`], a variant in `spec.rs`, an arm in [`Drivers::of`].

mod command;
mod docker;
mod doors;
mod firecracker;
mod fixed;
mod http;
mod http_client;
mod log;
mod ports;
mod probe;
mod process;
mod qemu;
mod remote;
mod stat;
#[cfg(test)]
mod stub;

pub use command::CommandDriver;
pub use docker::DockerDriver;
pub use doors::{DoorKeeper, Doors};
pub use firecracker::FirecrackerDriver;
pub use fixed::FixedDriver;
pub use http::HttpDriver;
pub use probe::probe;
pub use process::{ProcessDriver, ProcessSettings};
pub use qemu::{QemuDriver, QemuSettings};

use crate::spec::{Depth, DriverSpec, SpriteSpec};
use backhaul::owner::BoxFuture;
use router::names::SpriteName;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Pause before another look while a stranger listens on a guest's port (chosen).
const STRANGER: Duration = Duration::from_millis(25);

/// A guest that was started.
pub struct Started {
    /// Where its HTTP port will answer.
    pub address: SocketAddr,
    /// When the driver acted.
    pub at: Instant,
    /// Resolves with a short sentence when the guest has ended, whoever ended it.
    pub exited: oneshot::Receiver<String>,
}

/// A guest from before this owner began.
pub struct Adopted {
    /// How deep it sleeps; none when it runs.
    pub depth: Option<Depth>,
    /// The guest, for one that runs or is frozen; none for one whose memory is on disk.
    pub guest: Option<Started>,
}

/// A driver could not do it; the text is for the operator.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// No port of the configured range is free.
    #[error("no free port between {first} and {last}")]
    NoPort {
        /// First of the range.
        first: u16,
        /// Last of the range.
        last: u16,
    },
    /// There is no guest to act on.
    #[error("there is no such guest")]
    NoGuest,
    /// The operating system refused.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A command of the sprite's people failed.
    #[error("its {what} command failed: {reason}")]
    Command {
        /// Which.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// A virtual machine could not be begun, ended too soon or did not do what it was told.
    #[error("its machine: {reason}")]
    Machine {
        /// Why.
        reason: String,
    },
    /// Who runs the machine refused, or could not be asked.
    #[error("{who} did not {what}: {reason}")]
    Refused {
        /// Who: "the container engine".
        who: &'static str,
        /// What was asked: "start it".
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// What it slept with cannot be had back; what is left is its disk.
    #[error("its memory is lost: {reason}")]
    MemoryLost {
        /// Why.
        reason: String,
    },
    /// It has a limit of memory, and this host cannot keep it.
    #[error("memory_mib: memory cannot be limited on this host: {reason}")]
    NoMemoryLimit {
        /// Why.
        reason: String,
    },
    /// Some process of the guest could not be stopped in time.
    #[error("the guest did not stop in time")]
    NotStopped,
}

/// Acts on guests. Calls for one sprite never overlap; calls for different ones do.
pub trait WakeDriver: Send + Sync + 'static {
    /// Starts the guest: with the memory that [`suspend`] wrote, or from its disk when it wrote
    /// none.
    ///
    /// # Errors
    /// [`DriverError::MemoryLost`] when there should be a memory and it cannot be had back: the
    /// caller decides whether the guest may begin without, and says so by [`end`] before the next
    /// start. Until then each start says the same, whichever owner asks.
    ///
    /// [`suspend`]: WakeDriver::suspend
    /// [`end`]: WakeDriver::end
    fn start(&self, spec: &SpriteSpec) -> BoxFuture<Result<Started, DriverError>>;
    /// Continues a frozen guest; when it was done. Returns once the guest is really running:
    /// a frozen listener accepts connections too, so a port says nothing before that.
    fn resume(&self, name: &SpriteName) -> BoxFuture<Result<Instant, DriverError>>;
    /// Freezes the guest; nothing of it runs when this returns.
    fn freeze(&self, name: &SpriteName) -> BoxFuture<Result<(), DriverError>>;
    /// Ends the guest; nothing of it is left when this returns, not even what [`suspend`]
    /// wrote. Without one it does nothing.
    ///
    /// [`suspend`]: WakeDriver::suspend
    fn end(&self, name: &SpriteName) -> BoxFuture<()>;
    /// The sprite is no more: ends its guest, and removes what the driver made for it. By
    /// default nothing was made.
    fn destroy(&self, name: &SpriteName) -> BoxFuture<()> {
        self.end(name)
    }
    /// Puts a running or frozen guest to sleep so that nothing of it is in memory. A driver
    /// that can writes its memory to disk, and the next [`WakeDriver::start`] goes on from
    /// there, or says that it was lost; by default the guest ends, which loses nothing anybody
    /// counted on.
    fn suspend(&self, name: &SpriteName) -> BoxFuture<()> {
        self.end(name)
    }
    /// The owner goes away. A driver whose guests another owner can find again leaves them as
    /// they are; by default they end.
    fn leave(&self, name: &SpriteName) -> BoxFuture<()> {
        self.end(name)
    }
    /// Whether guests run on after [`WakeDriver::leave`]: then the ledger leaves their runs
    /// open for the next owner. A driver with a `leave` of its own says so here too.
    fn leaves_running(&self) -> bool {
        false
    }
    /// What there is of a guest that an owner before this one had: asked once, before
    /// anything else about this sprite. A driver that finds one takes it as its own.
    fn adopt(&self, spec: &SpriteSpec) -> BoxFuture<Option<Adopted>> {
        let _ = spec;
        Box::pin(async { None })
    }
    /// Ends the guests of this host's sprites, as they are told apart by its directory, that run
    /// and belong to none of `own` (all sprites with this driver): an owner before this one was
    /// killed while it destroyed theirs. Whose were ended. Asked once, when every sprite is
    /// known. By default there are none: guests end with their owner, or are somebody else's.
    fn end_unowned(&self, own: BTreeSet<SpriteName>) -> BoxFuture<Vec<SpriteName>> {
        let _ = own;
        Box::pin(async { Vec::new() })
    }
    /// Resolves when the guest that was started is ready at `address`; where it is then.
    /// Never ends by itself: the caller bounds it. `fresh` after a start, not after a
    /// continue: then its sockets are those it had.
    ///
    /// By default it is ready when it accepts a connection and the listener is its own.
    ///
    /// # Cancel safety
    /// Holds no state.
    fn ready(self: Arc<Self>, name: SpriteName, address: SocketAddr, fresh: bool) -> BoxFuture<SocketAddr> {
        Box::pin(async move {
            let mut open = probe(address).await;
            while fresh && !self.owns_listener(&name, open) {
                tokio::time::sleep(STRANGER).await;
                open = probe(address).await;
            }
            open
        })
    }
    /// Whether what listens at `address` is this guest. Asked once when its port first
    /// answers after a start.
    fn owns_listener(&self, name: &SpriteName, address: SocketAddr) -> bool;
    /// Where the guest's HTTP port is, if it was started.
    fn address(&self, name: &SpriteName) -> Option<SocketAddr>;
}

/// Sprites that have, or had, a directory in `directory`.
fn sprites_in(directory: &Path) -> impl Iterator<Item = SpriteName> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| SpriteName::parse(entry.file_name().to_str()?).ok())
}

/// All drivers of a host.
#[derive(Clone)]
pub struct Drivers {
    process: Arc<ProcessDriver>,
    command: Arc<CommandDriver>,
    docker: Arc<DockerDriver>,
    firecracker: Arc<FirecrackerDriver>,
    http: Arc<HttpDriver>,
    qemu: Arc<QemuDriver>,
}

impl Drivers {
    /// With these settings of the `process` driver and those of the sections `[drivers.NAME]`.
    #[must_use]
    pub fn new(process: ProcessSettings, settings: config::Drivers) -> Self {
        let config::Drivers { docker, firecracker, http, process: _, qemu } = settings;
        let qemu = QemuSettings {
            directory: process.directory.clone(),
            first_port: process.first_port,
            last_port: process.last_port,
            log_bytes: process.log_bytes,
            qemu,
        };
        Self {
            command: Arc::new(CommandDriver::new(process.directory.clone())),
            docker: Arc::new(DockerDriver::new(docker, &process.directory)),
            firecracker: Arc::new(FirecrackerDriver::new(firecracker, process.directory.clone(), process.log_bytes)),
            http: Arc::new(HttpDriver::new(http)),
            qemu: Arc::new(QemuDriver::new(qemu)),
            process: Arc::new(ProcessDriver::new(process)),
        }
    }

    /// The driver of a sprite.
    #[must_use]
    pub fn of(&self, spec: &DriverSpec) -> Arc<dyn WakeDriver> {
        match spec {
            DriverSpec::Process { .. } => Arc::clone(&self.process) as Arc<dyn WakeDriver>,
            DriverSpec::Command { .. } => Arc::clone(&self.command) as Arc<dyn WakeDriver>,
            DriverSpec::Qemu(_) => Arc::clone(&self.qemu) as Arc<dyn WakeDriver>,
            DriverSpec::Http(_) => Arc::clone(&self.http) as Arc<dyn WakeDriver>,
            DriverSpec::Docker(_) => Arc::clone(&self.docker) as Arc<dyn WakeDriver>,
            DriverSpec::Firecracker(_) => Arc::clone(&self.firecracker) as Arc<dyn WakeDriver>,
            DriverSpec::Fixed { address } => Arc::new(FixedDriver::new(*address)),
        }
    }

    /// Whether this host can do what `spec` says, as far as that is known before it is done.
    ///
    /// # Errors
    /// [`DriverError::NoMemoryLimit`].
    pub fn check(&self, spec: &DriverSpec) -> Result<(), DriverError> {
        match spec {
            DriverSpec::Process { memory_mib: Some(_), .. } => self.process.check_memory_limit(),
            _ => Ok(()),
        }
    }

    /// Ends what an owner that died left behind; whose guests were found alive.
    pub async fn reap_orphans(&self) -> Vec<SpriteName> {
        self.process.reap_orphans().await
    }

    /// Ends what runs and belongs to none of `sprites`, which are all of this host; whose guests
    /// were ended.
    pub async fn end_unowned(&self, sprites: &[SpriteSpec]) -> Vec<SpriteName> {
        let of = |is: fn(&DriverSpec) -> bool| -> BTreeSet<SpriteName> {
            sprites.iter().filter(|spec| is(&spec.driver)).map(|spec| spec.name.clone()).collect()
        };
        let qemu = self.qemu.end_unowned(of(|driver| matches!(driver, DriverSpec::Qemu(_))));
        let docker = self.docker.end_unowned(of(|driver| matches!(driver, DriverSpec::Docker(_))));
        let firecracker = self.firecracker.end_unowned(of(|driver| matches!(driver, DriverSpec::Firecracker(_))));
        let (qemu, docker, firecracker) = tokio::join!(qemu, docker, firecracker);
        [qemu, docker, firecracker].concat()
    }
}
