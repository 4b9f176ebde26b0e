//! The memory of a machine that sleeps cold: written to disk once, loaded at most once.
//!
//! A label beside it says what it belongs to. While there is a label, its guest has not run
//! since the memory was written: it is written last, and removed before the guest runs again.
//! Loaded a second time, a memory would meet a disk that went on without it.
//!
//! A mark (`memory.lost`) says that there was to be a memory: it is there from the begin of a
//! save until the label is, and from then on that it could not be loaded.

use super::super::DriverError;
use super::qmp::{Qmp, QmpError, Status};
use crate::spec::{QemuSpec, SpriteSpec};
use config::Accel;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Longest save (chosen, as of the driver `command`: some gigabytes).
const SAVE_WAIT: Duration = Duration::from_secs(60);
/// Pause between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(2);
/// What a machine has besides its memory, bytes (chosen: devices take some hundred KiB, and
/// each page of memory eight bytes more than itself).
const BESIDES_BYTES: u64 = 64 << 20;
/// Bytes per second that QEMU may write, in other words no bound: its own of 128 MiB is for networks.
const BANDWIDTH: u64 = 1 << 40;
/// How QEMU calls the descriptor that is handed to it.
const DESCRIPTOR: &str = "memory";

/// What a memory belongs to; it is loaded only where all of it is the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Label {
    /// The placement. What a deleted sprite left behind is nothing of one that has its name now.
    generation: u64,
    /// The machine.
    spec: QemuSpec,
    accel: Accel,
    ports: Vec<u16>,
    /// QEMU's version, with that of its package: it loads what it wrote itself.
    qemu: String,
    /// The kernel, the initrd and the disks, as they were when it was written.
    files: Vec<Seen>,
}

/// The state of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    path: PathBuf,
    bytes: u64,
    inode: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl Label {
    /// Of a machine as it is now.
    pub(super) fn now(sprite: &SpriteSpec, spec: &QemuSpec, accel: Accel, qemu: &str) -> io::Result<Self> {
        let disks = spec.disks.iter().map(|disk| &disk.path);
        let files = spec.kernel.iter().chain(&spec.initrd).chain(disks).map(|path| Seen::now(path));
        Ok(Self {
            generation: sprite.generation,
            spec: spec.clone(),
            accel,
            ports: sprite.ports.clone(),
            qemu: qemu.into(),
            files: files.collect::<io::Result<_>>()?,
        })
    }

    /// What of it differs from `other`, in words.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        if (&self.spec, self.accel, &self.ports) != (&other.spec, other.accel, &other.ports) {
            Some("the machine was described otherwise")
        } else if self.files != other.files {
            Some("its kernel, initrd or a disk was changed in its sleep")
        } else {
            (self.qemu != other.qemu).then_some("another QEMU wrote it")
        }
    }
}

impl Seen {
    fn now(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            path: path.into(),
            bytes: metadata.len(),
            inode: metadata.ino(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        })
    }
}

/// Where a sprite's memory is kept.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    directory: PathBuf,
}

impl Memory {
    pub(super) const fn within(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Whether there is one of this placement; a label that cannot be read is taken for its.
    pub(super) fn exists(&self, generation: u64) -> bool {
        /// All of a label that counts here.
        #[derive(Deserialize)]
        struct Of {
            generation: u64,
        }
        let Ok(label) = std::fs::read(self.path("memory.json")) else { return false };
        serde_json::from_slice(&label).map_or(true, |of: Of| of.generation == generation)
    }

    /// Whether there was to be one of this placement and there is none.
    pub(super) fn is_lost(&self, generation: u64) -> bool {
        let marked = std::fs::read_to_string(self.path("memory.lost"));
        !self.exists(generation) && marked.is_ok_and(|of| of == generation.to_string())
    }

    /// Gives it up, and keeps in mind that there was to be one.
    ///
    /// # Errors
    /// It may still be there: the guest must not run.
    pub(super) fn lose(&self, generation: u64) -> io::Result<()> {
        self.mark(generation)?;
        self.remove_it()
    }

    fn mark(&self, generation: u64) -> io::Result<()> {
        // What a guest had in memory is nobody else's business.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        std::fs::write(self.path("memory.lost"), generation.to_string())
    }

    /// Removes it, label first and for good, and then the mark.
    ///
    /// # Errors
    /// It may still be there: the guest must not run.
    pub(super) fn remove(&self) -> io::Result<()> {
        self.remove_it()?;
        gone(&self.path("memory.lost")).map(drop)
    }

    fn remove_it(&self) -> io::Result<()> {
        if gone(&self.path("memory.json"))? {
            // A power cut could bring the label back otherwise.
            File::open(&self.directory)?.sync_all()?;
        }
        gone(&self.path("memory"))?;
        gone(&self.path("memory.next")).map(drop)
    }

    /// Writes the memory of a stopped machine, for `label`; its size in bytes. When this
    /// returns it is on disk. On an error there is none that would be loaded: the caller gives it up.
    pub(super) async fn save(&self, qmp: &mut Qmp, label: &Label) -> Result<u64, DriverError> {
        let bytes_max = (u64::from(label.spec.memory_mib) << 20) + BESIDES_BYTES;
        let saved = tokio::time::timeout(SAVE_WAIT, self.write(qmp, label, bytes_max)).await;
        saved.unwrap_or_else(|_| Err(failed(format!("its memory was not written in {SAVE_WAIT:?}"))))
    }

    async fn write(&self, qmp: &mut Qmp, label: &Label, bytes_max: u64) -> Result<u64, DriverError> {
        self.mark(label.generation).map_err(system("cannot make a folder for its memory"))?;
        let next = self.path("memory.next");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next);
        let mut file = file.map_err(system("cannot open a file for its memory"))?;
        let (reader, writer) = io::pipe().map_err(system("cannot make a pipe"))?;
        // Ends with the pipe: QEMU has its only other end, and whoever gives up ends QEMU.
        let copied = beside(move || {
            let bytes = io::copy(&mut reader.take(bytes_max), &mut file)?;
            file.sync_all()?;
            Ok(bytes)
        })?;
        qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": BANDWIDTH })).await?;
        qmp.give(DESCRIPTOR, writer.as_fd()).await?;
        drop(writer);
        qmp.execute("migrate", json!({ "uri": format!("fd:{DESCRIPTOR}") })).await?;
        settled(qmp).await?;
        let bytes = copied.await.map_err(|_| failed("its memory's writer ended".into()))?;
        let bytes = bytes.map_err(system("cannot write its memory"))?;
        if bytes == bytes_max {
            return Err(failed(format!("its memory takes more than {bytes_max} bytes")));
        }
        std::fs::rename(&next, self.path("memory")).map_err(system("cannot keep its memory"))?;
        self.write_label(label).map_err(system("cannot write its memory's label"))?;
        Ok(bytes)
    }

    fn write_label(&self, label: &Label) -> io::Result<()> {
        let next = self.path("memory.json.next");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(&serde_json::to_vec(label)?)?;
        file.sync_all()?;
        std::fs::rename(next, self.path("memory.json"))?;
        File::open(&self.directory)?.sync_all()?;
        gone(&self.path("memory.lost")).map(drop)
    }

    /// Loads it into a machine that waits for it; what does not fit is refused. The caller
    /// removes it before the guest runs.
    pub(super) async fn load(&self, qmp: &mut Qmp, machine: &Label, until: Instant) -> Result<(), DriverError> {
        let label = std::fs::read(self.path("memory.json")).map_err(system("cannot read its memory's label"))?;
        let label: Label = serde_json::from_slice(&label).map_err(|_| failed("its memory's label is broken".into()))?;
        if let Some(difference) = label.difference(machine) {
            return Err(failed(format!("its memory does not fit: {difference}")));
        }
        let mut file = File::open(self.path("memory")).map_err(system("cannot read its memory"))?;
        let (reader, mut writer) = io::pipe().map_err(system("cannot make a pipe"))?;
        // Ends at the latest with QEMU, which has the pipe's other end. QEMU says whether the
        // memory was whole; that it stops reading at its end is no error.
        drop(beside(move || io::copy(&mut file, &mut writer))?);
        qmp.give(DESCRIPTOR, reader.as_fd()).await?;
        drop(reader);
        qmp.execute("migrate-incoming", json!({ "uri": format!("fd:{DESCRIPTOR}") })).await?;
        let loaded = async {
            loop {
                match qmp.status().await? {
                    Status::Paused => return Ok(()),
                    Status::Loading => tokio::time::sleep(LOOK).await,
                    Status::Running | Status::Other => return Err(QmpError::NotQmp),
                }
            }
        };
        let loaded = tokio::time::timeout_at(until.into(), loaded).await;
        Ok(loaded.map_err(|_| failed("its memory was not loaded in time".into()))??)
    }
}

/// Waits for the end of an outgoing migration. Bounded by the caller.
async fn settled(qmp: &mut Qmp) -> Result<(), DriverError> {
    loop {
        let answer = qmp.execute("query-migrate", Value::Null).await?;
        match answer["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled" | "cancelling") => {
                let reason = answer["error-desc"].as_str().unwrap_or("without a reason").chars().take(200);
                return Err(failed(format!("its memory was not written: {}", reason.collect::<String>())));
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Copies on a thread of its own. Not one of the runtime's: that would wait for it at its end,
/// and a machine that hangs never ends a pipe.
fn beside(
    copy: impl FnOnce() -> io::Result<u64> + Send + 'static,
) -> Result<oneshot::Receiver<io::Result<u64>>, DriverError> {
    let (sender, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name("memory".into());
    let begun = thread.spawn(move || drop(sender.send(copy())));
    begun.map(|_| receiver).map_err(system("cannot begin a thread"))
}

/// Removes a file; whether there was one.
fn gone(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

const fn failed(reason: String) -> DriverError {
    DriverError::Machine { reason }
}

pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> DriverError {
    move |source| DriverError::System { what, source }
}
