//! Driver `firecracker`: a sprite is a micro-VM with a kernel, a disk and a TAP device that
//! are there already; a VMM process of its own runs it.
//!
//! Warm sleep pauses the machine; cold sleep writes its memory beside its disk and ends the
//! VMM, and the next start goes on from there. That memory is good for one start: before
//! the guest runs again it is put out of reach, since its disk goes on. The VMM outlives the
//! owner, which finds it again. No network is made, no jail is built and no disk is copied
//! here. Tested against the published API, not against a VMM.

mod api;
mod files;
mod vmm;

use self::api::Api;
use self::files::Files;
use self::vmm::Vmm;
use super::process::system;
use super::{Adopted, DriverError, Started, WakeDriver, sprites_in};
use crate::spec::{Depth, DriverSpec, FirecrackerSpec, SpriteSpec};
use backhaul::owner::BoxFuture;
use config::FirecrackerDriver as Settings;
use router::names::SpriteName;
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The driver.
#[derive(Clone)]
pub struct FirecrackerDriver(Arc<Inner>);

struct Inner {
    settings: Settings,
    /// Each sprite has a directory in it.
    directory: PathBuf,
    /// What the VMM of a sprite may print before its file begins anew, bytes.
    log_bytes: u64,
    machines: Mutex<HashMap<SpriteName, Machine>>,
    turns: AtomicU64,
}

#[derive(Clone)]
struct Machine {
    /// Which start it is of: one that was given up must not go on in the next one's place.
    turn: u64,
    address: SocketAddr,
    generation: u64,
    /// None while it sleeps cold.
    vmm: Option<Arc<Vmm>>,
}

impl FirecrackerDriver {
    /// With section `[drivers.firecracker]`, for the sprites whose directories are in `directory`.
    #[must_use]
    pub fn new(settings: Settings, directory: PathBuf, log_bytes: u64) -> Self {
        // The VMM works in another directory.
        let directory = std::path::absolute(&directory).unwrap_or(directory);
        Self(Arc::new(Inner { settings, directory, log_bytes, machines: Mutex::default(), turns: AtomicU64::new(0) }))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<SpriteName, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine(&self, spec: &SpriteSpec, machine: &FirecrackerSpec) -> Machine {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        Machine { turn, address: machine.address(), generation: spec.generation, vmm: None }
    }

    fn files(&self, name: &SpriteName) -> Files {
        Files::new(&self.directory, name)
    }

    fn api(&self, files: &Files) -> Api {
        Api::new(files.socket(), &self.settings)
    }

    fn vmm(&self, name: &SpriteName) -> Option<Arc<Vmm>> {
        self.lock().get(name)?.vmm.clone()
    }

    async fn start(self: Arc<Self>, spec: SpriteSpec) -> Result<Started, DriverError> {
        let DriverSpec::Firecracker(machine) = &spec.driver else { return Err(DriverError::NoGuest) };
        let files = self.files(&spec.name);
        files.make().map_err(system("cannot make the sprite's directory"))?;
        let claimed = files.claim_snapshot(spec.generation).map_err(system("cannot claim its memory"))?;
        let known = self.machine(&spec, machine);
        let turn = known.turn;
        let before = self.lock().insert(spec.name.clone(), known).and_then(|known| known.vmm);
        if let Some(vmm) = before {
            // Of a start that was given up. Two machines on one disk would ruin it.
            vmm.end().await;
        }
        if claimed {
            let loaded = self.run(&spec, machine, turn, &files, true).await;
            let ended = self.lock().get(&spec.name).is_none_or(|known| known.turn != turn);
            return match loaded {
                // It was ended meanwhile, and that is why it did not load.
                Err(_) if ended => Err(DriverError::NoGuest),
                // Whether it ran for a moment or not, it is ended, and its disk is what is left.
                Err(error) => {
                    files.lose_snapshot(spec.generation).map_err(system("cannot give up its memory"))?;
                    Err(DriverError::MemoryLost { reason: error.to_string() })
                }
                loaded => loaded,
            };
        }
        if files.has_lost_snapshot(spec.generation) {
            return Err(DriverError::MemoryLost { reason: "it was not whole on disk".into() });
        }
        self.run(&spec, machine, turn, &files, false).await
    }

    /// A new VMM, with the claimed memory or booting from the disk.
    async fn run(
        &self,
        spec: &SpriteSpec,
        machine: &FirecrackerSpec,
        turn: u64,
        files: &Files,
        restore: bool,
    ) -> Result<Started, DriverError> {
        let (vmm, exited) = {
            let mut machines = self.lock();
            // Ended while it was being started.
            let known = machines.get_mut(&spec.name).filter(|known| known.turn == turn).ok_or(DriverError::NoGuest)?;
            let (vmm, exited) = Vmm::spawn(&self.settings.program, &spec.name, files, self.log_bytes)?;
            let vmm = Arc::new(vmm);
            // From here on an end finds it.
            known.vmm = Some(Arc::clone(&vmm));
            (vmm, exited)
        };
        let api = self.api(files);
        let begun = async {
            api.up(&vmm).await?;
            match restore {
                true => api.load(&files.claimed()).await,
                false => api.boot(machine).await,
            }
        };
        let begun = begun.await;
        // Mapped by the VMM if it was loaded; worth nothing if it was not.
        files.remove_claimed();
        if let Err(error) = begun {
            vmm.end().await;
            return Err(error);
        }
        Ok(Started { address: machine.address(), at: Instant::now(), exited })
    }

    async fn resume(self: Arc<Self>, name: SpriteName) -> Result<Instant, DriverError> {
        self.vmm(&name).ok_or(DriverError::NoGuest)?;
        let at = Instant::now();
        self.api(&self.files(&name)).resume().await?;
        Ok(at)
    }

    async fn freeze(self: Arc<Self>, name: SpriteName) -> Result<(), DriverError> {
        self.vmm(&name).ok_or(DriverError::NoGuest)?;
        self.api(&self.files(&name)).pause().await
    }

    /// Writes its memory, ends the VMM. A memory that cannot be written is lost.
    async fn suspend(self: Arc<Self>, name: SpriteName) {
        let Some(Machine { generation, vmm: Some(vmm), .. }) = self.lock().get(&name).cloned() else { return };
        let files = self.files(&name);
        let written = self.write_snapshot(&files, generation).await;
        vmm.end().await;
        if let Some(machine) = self.lock().get_mut(&name) {
            machine.vmm = None;
        }
        let kept = match written {
            // Only now does the guest's disk change no more.
            Ok(()) => files.keep_snapshot().await.map_err(system("cannot keep its memory")),
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::warn!(sprite = %name, %error, "it sleeps without its memory");
            // Ended meanwhile, it is to leave nothing behind.
            let still_there = self.lock().contains_key(&name);
            if still_there && let Err(error) = files.lose_snapshot(generation) {
                tracing::error!(sprite = %name, %error, "nobody will be told that its memory is lost");
            }
        }
    }

    async fn write_snapshot(&self, files: &Files, generation: u64) -> Result<(), DriverError> {
        files.begin_snapshot(generation).map_err(system("cannot make room for its memory"))?;
        let api = self.api(files);
        api.pause().await?;
        api.snapshot(&files.next()).await
    }

    async fn end(self: Arc<Self>, name: SpriteName) {
        let vmm = self.lock().remove(&name).and_then(|machine| machine.vmm);
        if let Some(vmm) = vmm {
            vmm.end().await;
        }
        self.files(&name).remove_snapshots();
    }

    async fn adopt(self: Arc<Self>, spec: SpriteSpec) -> Option<Adopted> {
        let DriverSpec::Firecracker(machine) = &spec.driver else { return None };
        let (files, address) = (self.files(&spec.name), machine.address());
        let known = |vmm| Machine { vmm, ..self.machine(&spec, machine) };
        if let Some((vmm, exited)) = Vmm::found(&files, self.log_bytes) {
            let depth = match self.api(&files).state().await.as_deref() {
                Ok("Running") => None,
                Ok("Paused") => Some(Depth::Warm),
                // It never began, or does not speak to us: nothing can be done with it.
                _ => {
                    tracing::warn!(sprite = %spec.name, "ending a VMM that is no use");
                    vmm.end().await;
                    return None;
                }
            };
            // It runs, or may: whatever was written of it is worth nothing.
            files.remove_snapshots();
            self.lock().insert(spec.name.clone(), known(Some(Arc::new(vmm))));
            return Some(Adopted { depth, guest: Some(Started { address, at: Instant::now(), exited }) });
        }
        if !files.has_snapshot(spec.generation) {
            return None;
        }
        // Known, so that its memory goes with it.
        self.lock().insert(spec.name.clone(), known(None));
        Some(Adopted { depth: Some(Depth::Cold), guest: None })
    }

    async fn end_unowned(self: Arc<Self>, own: BTreeSet<SpriteName>) -> Vec<SpriteName> {
        let mut ended = Vec::new();
        for name in sprites_in(&self.directory) {
            // One that was begun meanwhile is its sprite's.
            if own.contains(&name) || self.lock().contains_key(&name) {
                continue;
            }
            let Some((vmm, _)) = Vmm::found(&self.files(&name), self.log_bytes) else { continue };
            tracing::warn!(sprite = %name, "ending a VMM that belongs to no sprite");
            vmm.end().await;
            ended.push(name);
        }
        ended
    }
}

impl WakeDriver for FirecrackerDriver {
    fn start(&self, spec: &SpriteSpec) -> BoxFuture<Result<Started, DriverError>> {
        Box::pin(Arc::clone(&self.0).start(spec.clone()))
    }

    fn resume(&self, name: &SpriteName) -> BoxFuture<Result<Instant, DriverError>> {
        Box::pin(Arc::clone(&self.0).resume(name.clone()))
    }

    fn freeze(&self, name: &SpriteName) -> BoxFuture<Result<(), DriverError>> {
        Box::pin(Arc::clone(&self.0).freeze(name.clone()))
    }

    fn suspend(&self, name: &SpriteName) -> BoxFuture<()> {
        Box::pin(Arc::clone(&self.0).suspend(name.clone()))
    }

    fn end(&self, name: &SpriteName) -> BoxFuture<()> {
        Box::pin(Arc::clone(&self.0).end(name.clone()))
    }

    fn leaves_running(&self) -> bool {
        true
    }

    fn leave(&self, name: &SpriteName) -> BoxFuture<()> {
        // It goes on; only our watch over it ends.
        self.0.lock().remove(name);
        Box::pin(async {})
    }

    fn adopt(&self, spec: &SpriteSpec) -> BoxFuture<Option<Adopted>> {
        Box::pin(Arc::clone(&self.0).adopt(spec.clone()))
    }

    fn end_unowned(&self, own: BTreeSet<SpriteName>) -> BoxFuture<Vec<SpriteName>> {
        Box::pin(Arc::clone(&self.0).end_unowned(own))
    }

    /// The address is the guest's alone; nobody here can know better.
    fn owns_listener(&self, _name: &SpriteName, _address: SocketAddr) -> bool {
        true
    }

    fn address(&self, name: &SpriteName) -> Option<SocketAddr> {
        self.0.lock().get(name).map(|machine| machine.address)
    }
}

#[cfg(test)]
mod tests;
