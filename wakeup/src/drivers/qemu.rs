//! Driver `qemu`: a sprite is a virtual machine.
//!
//! Warm sleep stops its processors; cold sleep writes its memory to disk and ends QEMU, and the
//! next start goes on from there. QEMU runs in a process group of its own and outlives its
//! owner: the next one finds it by what was written down (`machine.json`) and takes it.
//!
//! The guest is reached through QEMU's user networking, at a loopback address of its own: no
//! privilege, and no way from guest to guest. What is deliberately not here: making disks,
//! giving out addresses, anything inside of the guest.

mod command;
mod memory;
mod process;
mod qmp;
mod ready;

use self::command::{CONSOLE, address_of, arguments};
use self::memory::{Label, Memory, system};
use self::process::{Process, Record};
use self::qmp::{Qmp, QmpError, Status, connect};
use super::log::Log;
use super::ports::{Ports, reserve};
use super::{Adopted, DriverError, Started, WakeDriver, sprites_in};
use crate::spec::{Depth, DriverSpec, QemuSpec, SpriteSpec};
use backhaul::owner::BoxFuture;
use config::Accel;
use router::names::SpriteName;
use std::collections::{BTreeSet, HashMap};
use std::net::{SocketAddr, SocketAddrV4};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::sync::oneshot;

/// From the start of QEMU until it answers its control socket (chosen: 0.2 s on a busy machine).
const GREETING_WAIT: Duration = Duration::from_secs(8);
/// Pause between two tries to connect to it.
const LOOK: Duration = Duration::from_millis(2);
/// From `quit` to SIGKILL (chosen: what had to be written is written by then).
const QUIT_WAIT: Duration = Duration::from_secs(1);

/// What this driver is told at its start.
#[derive(Clone, Debug)]
pub struct QemuSettings {
    /// Each sprite has a directory in it.
    pub directory: PathBuf,
    /// First port given out.
    pub first_port: u16,
    /// Last port given out.
    pub last_port: u16,
    /// Log of a guest's console, bytes.
    pub log_bytes: u64,
    /// Section `[drivers.qemu]`.
    pub qemu: config::Qemu,
}

/// The driver.
#[derive(Clone)]
pub struct QemuDriver(Arc<Inner>);

struct Inner {
    settings: QemuSettings,
    ports: Ports,
    machines: Mutex<HashMap<SpriteName, Machine>>,
}

#[derive(Clone)]
struct Machine {
    sprite: Arc<SpriteSpec>,
    process: Arc<Process>,
    address: SocketAddrV4,
    proof: Arc<Proof>,
    /// Keeps the port from other owners on this machine; none when another has it.
    _reserved: Option<Arc<UnixListener>>,
}

/// What is known of the guest's server.
#[derive(Default)]
struct Proof {
    /// It has answered in this life.
    answered: AtomicBool,
    /// It is known to answer at this moment; good for one question.
    answers: AtomicBool,
}

/// A machine that was begun, and the connection it was asked over.
struct Begun {
    machine: Machine,
    exited: oneshot::Receiver<String>,
    qmp: Qmp,
}

impl QemuDriver {
    /// With these settings.
    #[must_use]
    pub fn new(settings: QemuSettings) -> Self {
        let ports = Ports::new(settings.first_port, settings.last_port);
        Self(Arc::new(Inner { settings, ports, machines: Mutex::default() }))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<SpriteName, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine(&self, name: &SpriteName) -> Option<Machine> {
        self.lock().get(name).cloned()
    }

    fn directory(&self, name: &SpriteName) -> PathBuf {
        self.settings.directory.join(name.as_str())
    }

    fn memory(&self, name: &SpriteName) -> Memory {
        let of_all = &self.settings.qemu.memory_dir;
        Memory::within(if of_all.as_os_str().is_empty() { self.directory(name) } else { of_all.join(name.as_str()) })
    }

    fn accel(&self, spec: &QemuSpec) -> Accel {
        spec.accel.unwrap_or(self.settings.qemu.accel)
    }

    async fn qmp(&self, name: &SpriteName) -> Result<Qmp, QmpError> {
        Qmp::connect(&self.directory(name)).await
    }

    async fn start(self: Arc<Self>, sprite: SpriteSpec) -> Result<Started, DriverError> {
        let until = Instant::now() + self.settings.qemu.boot_wait;
        let sprite = Arc::new(sprite);
        let memory = self.memory(&sprite.name);
        let begun = if memory.exists(sprite.generation) {
            self.restored(&sprite, &memory, until).await?
        } else if memory.is_lost(sprite.generation) {
            return Err(DriverError::MemoryLost { reason: "it was not whole on disk".into() });
        } else {
            // One of a sprite that had this name before.
            memory.remove().map_err(system("cannot remove a memory that is not its own"))?;
            self.begin(&sprite, false).await?
        };
        let Begun { machine, exited, qmp } = begun;
        // QEMU serves one connection at a time.
        drop(qmp);
        let address = machine.address.into();
        tokio::select! {
            // Not in time is no failure: the owner goes on looking.
            answered = tokio::time::timeout_at(until.into(), ready::answers(&sprite.name, address)) => {
                machine.proof.answered.store(answered.is_ok(), Ordering::Relaxed);
                machine.proof.answers.store(answered.is_ok(), Ordering::Relaxed);
            }
            reason = machine.process.ended() => return Err(DriverError::Machine { reason }),
        }
        Ok(Started { address, at: Instant::now(), exited })
    }

    /// Begins it with the memory it had. One that cannot be loaded is lost.
    async fn restored(&self, sprite: &Arc<SpriteSpec>, memory: &Memory, until: Instant) -> Result<Begun, DriverError> {
        let mut begun = self.begin(sprite, true).await?;
        let loaded = async {
            let label = self.label(sprite, begun.qmp.version())?;
            memory.load(&mut begun.qmp, &label, until).await
        };
        let lost = tokio::select! {
            loaded = loaded => loaded.err().map(|error| error.to_string()),
            reason = begun.machine.process.ended() => Some(reason),
        };
        match lost {
            None => {
                memory.remove().map_err(system("cannot remove the memory it was continued from"))?;
                begun.qmp.cont().await?;
                Ok(begun)
            }
            Some(reason) => {
                if !self.forget(&begun.machine) {
                    // It was ended meanwhile, and that is why it did not load.
                    return Err(DriverError::NoGuest);
                }
                tracing::warn!(sprite = %sprite.name, reason, "its memory is lost");
                begun.machine.process.kill().await;
                memory.lose(sprite.generation).map_err(system("cannot remove a memory that cannot be loaded"))?;
                Err(DriverError::MemoryLost { reason })
            }
        }
    }

    fn label(&self, sprite: &SpriteSpec, version: &str) -> Result<Label, DriverError> {
        let spec = spec_of(sprite)?;
        Label::now(sprite, spec, self.accel(spec), version).map_err(system("cannot look at its kernel and disks"))
    }

    /// Begins QEMU and waits until it can be asked.
    async fn begin(&self, sprite: &Arc<SpriteSpec>, waits_for_memory: bool) -> Result<Begun, DriverError> {
        let spec = spec_of(sprite)?;
        let directory = self.directory(&sprite.name);
        std::fs::create_dir_all(&directory).map_err(system("cannot make the sprite's directory"))?;
        let log =
            Log::open(&directory.join("output.log"), self.settings.log_bytes).map_err(system("cannot open its log"))?;
        let (port, reserved) = self.ports.pick(&sprite.ports)?;
        let address = address_of(port);
        let qemu = &self.settings.qemu;
        let mut child = Command::new(&qemu.program);
        child.args(arguments(sprite, spec, self.accel(spec), qemu.outbound, address, waits_for_memory));
        child.current_dir(&directory).env_clear().process_group(0);
        child.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()));
        child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = child.spawn().map_err(system("cannot start QEMU (drivers.qemu.program)"))?;
        let begun = Process::begun(child, &directory, sprite.generation, address, &log);
        let (process, exited) = begun.map_err(system("cannot keep hold of QEMU"))?;
        let machine = Machine {
            sprite: Arc::clone(sprite),
            process: Arc::clone(&process),
            address,
            proof: Arc::default(),
            _reserved: Some(Arc::new(reserved)),
        };
        self.lock().insert(sprite.name.clone(), machine.clone());
        let greeted = tokio::select! {
            greeted = tokio::time::timeout(GREETING_WAIT, self.greeting(&sprite.name)) => greeted,
            reason = process.ended() => return Err(DriverError::Machine { reason }),
        };
        match greeted {
            Ok(qmp) => {
                self.follow_console(&sprite.name, &log).await;
                Ok(Begun { machine, exited, qmp })
            }
            Err(_) => {
                process.kill().await;
                Err(DriverError::Machine { reason: format!("QEMU did not answer within {GREETING_WAIT:?}") })
            }
        }
    }

    /// It is the sprite's machine no more; `false` when it was not: it may have been ended, and
    /// another begun.
    fn forget(&self, machine: &Machine) -> bool {
        let mut machines = self.lock();
        let name = &machine.sprite.name;
        let present = machines.get(name).is_some_and(|present| present.process.pid() == machine.process.pid());
        present && machines.remove(name).is_some()
    }

    /// Its control socket appears a little after QEMU began. Bounded by the caller.
    async fn greeting(&self, name: &SpriteName) -> Qmp {
        loop {
            match self.qmp(name).await {
                Ok(qmp) => return qmp,
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Without an owner nobody reads the console, and what the guest writes there is lost.
    async fn follow_console(&self, name: &SpriteName, log: &Log) {
        match connect(&self.directory(name), CONSOLE).await {
            Ok(console) => log.follow(console),
            Err(error) => tracing::warn!(sprite = %name, %error, "its console cannot be read"),
        }
    }

    async fn resume(self: Arc<Self>, name: SpriteName) -> Result<Instant, DriverError> {
        let machine = self.machine(&name).ok_or(DriverError::NoGuest)?;
        let at = Instant::now();
        self.qmp(&name).await?.cont().await?;
        // A server that answered before its sleep is there after it.
        let answered = machine.proof.answered.load(Ordering::Relaxed);
        machine.proof.answers.store(answered, Ordering::Relaxed);
        Ok(at)
    }

    async fn freeze(self: Arc<Self>, name: SpriteName) -> Result<(), DriverError> {
        let machine = self.machine(&name).ok_or(DriverError::NoGuest)?;
        machine.proof.answers.store(false, Ordering::Relaxed);
        Ok(self.qmp(&name).await?.stop().await?)
    }

    async fn end(self: Arc<Self>, name: SpriteName) {
        let machine = self.lock().remove(&name);
        if let Some(machine) = machine {
            machine.process.kill().await;
        }
        if let Err(error) = self.memory(&name).remove() {
            tracing::error!(sprite = %name, %error, "the memory it slept with cannot be removed");
        }
    }

    async fn suspend(self: Arc<Self>, name: SpriteName) {
        let Some(machine) = self.machine(&name) else { return };
        let began = Instant::now();
        let saved = tokio::select! {
            saved = self.save(&machine) => saved,
            reason = machine.process.ended() => Err(DriverError::Machine { reason }),
        };
        match saved {
            Ok((bytes, mut qmp)) => {
                // It may be gone before it has answered.
                let _ = qmp.execute("quit", serde_json::Value::Null).await;
                let _ = tokio::time::timeout(QUIT_WAIT, machine.process.ended()).await;
                let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(sprite = %name, bytes, took_ms, "its memory is on disk");
            }
            Err(error) => {
                tracing::warn!(sprite = %name, %error, "its memory is lost");
                // Ended meanwhile, it is to leave nothing behind.
                if self.machine(&name).is_some_and(|present| present.process.pid() == machine.process.pid())
                    && let Err(error) = self.memory(&name).lose(machine.sprite.generation)
                {
                    tracing::error!(sprite = %name, %error, "nobody will be told that its memory is lost");
                }
            }
        }
        self.forget(&machine);
        machine.process.kill().await;
    }

    /// Writes its memory: how many bytes, and the connection QEMU was asked over.
    async fn save(&self, machine: &Machine) -> Result<(u64, Qmp), DriverError> {
        let name = &machine.sprite.name;
        let mut qmp = self.qmp(name).await?;
        qmp.stop().await?;
        let label = self.label(&machine.sprite, qmp.version())?;
        let bytes = self.memory(name).save(&mut qmp, &label).await?;
        Ok((bytes, qmp))
    }

    async fn adopt(self: Arc<Self>, sprite: SpriteSpec) -> Option<Adopted> {
        let name = sprite.name.clone();
        let directory = self.directory(&name);
        let asleep = |there: bool| there.then_some(Adopted { depth: Some(Depth::Cold), guest: None });
        let memory = self.memory(&name);
        let Some(record) = Record::read(&directory) else { return asleep(memory.exists(sprite.generation)) };
        let (process, exited) = match Process::found(&record, &directory) {
            Ok(Some(found)) => found,
            Ok(None) => {
                record.remove(&directory);
                return asleep(memory.exists(sprite.generation));
            }
            Err(error) => {
                tracing::error!(sprite = %name, pid = record.pid, %error, "a machine that may run cannot be watched");
                return None;
            }
        };
        let status = match self.qmp(&name).await {
            Ok(mut qmp) => qmp.status().await,
            Err(error) => Err(error),
        };
        // While there is a memory its guest has not run, so the process has nothing to lose.
        let depth = match status {
            Ok(Status::Running) if !memory.exists(sprite.generation) && record.generation == sprite.generation => None,
            Ok(Status::Paused) if !memory.exists(sprite.generation) && record.generation == sprite.generation => {
                Some(Depth::Warm)
            }
            status => {
                tracing::info!(sprite = %name, pid = record.pid, ?status, "a machine of no use is ended");
                process.kill().await;
                return asleep(memory.exists(sprite.generation));
            }
        };
        let log = Log::open(&directory.join("output.log"), self.settings.log_bytes);
        match log {
            Ok(log) => self.follow_console(&name, &log).await,
            Err(error) => tracing::warn!(sprite = %name, %error, "its log cannot be opened"),
        }
        let machine = Machine {
            sprite: Arc::new(sprite),
            process,
            address: record.address,
            proof: Arc::default(),
            // Whoever has it by now found the port itself in use and passed on.
            _reserved: reserve(record.address.port()).ok().map(Arc::new),
        };
        // What is left of a memory that was loaded, if an owner died before it was removed.
        if let Err(error) = memory.remove() {
            tracing::warn!(sprite = %name, %error, "what is left of its last memory cannot be removed");
        }
        self.lock().insert(name, machine);
        let guest = Started { address: record.address.into(), at: Instant::now(), exited };
        Some(Adopted { depth, guest: Some(guest) })
    }

    async fn end_unowned(self: Arc<Self>, own: BTreeSet<SpriteName>) -> Vec<SpriteName> {
        let mut ended = Vec::new();
        for name in sprites_in(&self.settings.directory) {
            // One that was begun meanwhile is its sprite's.
            if own.contains(&name) || self.machine(&name).is_some() {
                continue;
            }
            let directory = self.directory(&name);
            let Some(record) = Record::read(&directory) else { continue };
            match Process::found(&record, &directory) {
                Ok(Some((process, _))) => {
                    tracing::warn!(sprite = %name, pid = record.pid, "ending a machine that belongs to no sprite");
                    process.kill().await;
                    ended.push(name);
                }
                Ok(None) => record.remove(&directory),
                Err(error) => {
                    tracing::error!(sprite = %name, pid = record.pid, %error, "a machine of no sprite may run");
                }
            }
        }
        ended
    }

    async fn ready(self: Arc<Self>, name: SpriteName, address: SocketAddr) -> SocketAddr {
        let machine = self.machine(&name).filter(|machine| SocketAddr::from(machine.address) == address);
        let known = machine.as_ref().is_some_and(|machine| machine.proof.answers.swap(false, Ordering::Relaxed));
        if !known {
            ready::answers(&name, address).await;
        }
        if let Some(machine) = machine {
            machine.proof.answered.store(true, Ordering::Relaxed);
        }
        address
    }
}

const fn spec_of(sprite: &SpriteSpec) -> Result<&QemuSpec, DriverError> {
    match &sprite.driver {
        DriverSpec::Qemu(spec) => Ok(spec),
        _ => Err(DriverError::NoGuest),
    }
}

impl WakeDriver for QemuDriver {
    fn start(&self, spec: &SpriteSpec) -> BoxFuture<Result<Started, DriverError>> {
        Box::pin(Arc::clone(&self.0).start(spec.clone()))
    }

    fn resume(&self, name: &SpriteName) -> BoxFuture<Result<Instant, DriverError>> {
        Box::pin(Arc::clone(&self.0).resume(name.clone()))
    }

    fn freeze(&self, name: &SpriteName) -> BoxFuture<Result<(), DriverError>> {
        Box::pin(Arc::clone(&self.0).freeze(name.clone()))
    }

    fn end(&self, name: &SpriteName) -> BoxFuture<()> {
        Box::pin(Arc::clone(&self.0).end(name.clone()))
    }

    fn suspend(&self, name: &SpriteName) -> BoxFuture<()> {
        Box::pin(Arc::clone(&self.0).suspend(name.clone()))
    }

    fn leaves_running(&self) -> bool {
        true
    }

    fn leave(&self, name: &SpriteName) -> BoxFuture<()> {
        self.0.lock().remove(name);
        Box::pin(async {})
    }

    fn adopt(&self, spec: &SpriteSpec) -> BoxFuture<Option<Adopted>> {
        Box::pin(Arc::clone(&self.0).adopt(spec.clone()))
    }

    fn end_unowned(&self, own: BTreeSet<SpriteName>) -> BoxFuture<Vec<SpriteName>> {
        Box::pin(Arc::clone(&self.0).end_unowned(own))
    }

    /// After a start and after a continue alike, for its own port and those it declares: the
    /// guest answers. It is known already when the start has waited for that, or when it
    /// answered before it was frozen and QEMU says that it runs.
    fn ready(self: Arc<Self>, name: SpriteName, address: SocketAddr, _fresh: bool) -> BoxFuture<SocketAddr> {
        Box::pin(Arc::clone(&self.0).ready(name, address))
    }

    /// QEMU has bound it, or would not have begun.
    fn owns_listener(&self, name: &SpriteName, address: SocketAddr) -> bool {
        self.address(name) == Some(address)
    }

    fn address(&self, name: &SpriteName) -> Option<SocketAddr> {
        self.0.machine(name).map(|machine| machine.address.into())
    }
}

#[cfg(test)]
mod tests;
