//! What a machine keeps in its sprite's directory, and when a snapshot counts.
//!
//! | path | what it is |
//! | --- | --- |
//! | `firecracker/api.sock` | the VMM's API |
//! | `firecracker/vmm` | which process it is |
//! | `firecracker/next/` | a snapshot that is being written, or was lost; never loaded |
//! | `firecracker/snapshot/` | a whole one, on disk with everything in it |
//! | `firecracker/claimed/` | one that a VMM was told to load; never loaded again |
//! | `output.log` | what the VMM printed |
//!
//! A snapshot moves down that list by renames and never back, so whatever ends us in
//! between, none is loaded twice: its disk has gone on since.

use router::names::SpriteName;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Paths of one machine.
#[derive(Clone)]
pub(super) struct Files {
    sprite: PathBuf,
    own: PathBuf,
}

/// The two files of a snapshot.
pub(super) struct Snapshot {
    pub(super) state: PathBuf,
    pub(super) memory: PathBuf,
}

impl Files {
    pub(super) fn new(directory: &Path, name: &SpriteName) -> Self {
        let sprite = directory.join(name.as_str());
        Self { own: sprite.join("firecracker"), sprite }
    }

    pub(super) fn make(&self) -> io::Result<()> {
        fs::create_dir_all(&self.own)
    }

    pub(super) fn own(&self) -> &Path {
        &self.own
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.own.join("api.sock")
    }

    pub(super) fn record(&self) -> PathBuf {
        self.own.join("vmm")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.sprite.join("output.log")
    }

    fn whole(&self) -> PathBuf {
        self.own.join("snapshot")
    }

    pub(super) fn next(&self) -> Snapshot {
        Snapshot::inside(&self.own.join("next"))
    }

    pub(super) fn claimed(&self) -> Snapshot {
        Snapshot::inside(&self.own.join("claimed"))
    }

    /// An empty place for a snapshot to be written to.
    pub(super) fn begin_snapshot(&self, generation: u64) -> io::Result<()> {
        let next = self.own.join("next");
        remove(&next)?;
        fs::create_dir(&next)?;
        fs::write(next.join("generation"), generation.to_string())
    }

    /// Makes what was written count, once it would survive the loss of power.
    pub(super) async fn keep_snapshot(&self) -> io::Result<()> {
        let files = self.clone();
        // Gigabytes may have to reach the disk.
        tokio::task::spawn_blocking(move || {
            let next = files.own.join("next");
            let Snapshot { state, memory } = files.next();
            for file in [state, memory, next.join("generation"), next.clone()] {
                File::open(file)?.sync_all()?;
            }
            remove(&files.whole())?;
            fs::rename(&next, files.whole())?;
            File::open(&files.own)?.sync_all()
        })
        .await
        .map_err(io::Error::other)?
    }

    /// Whether there is a whole snapshot of this placement.
    pub(super) fn has_snapshot(&self, generation: u64) -> bool {
        is_of(&self.whole(), generation)
    }

    /// Takes the snapshot, if there is one, for the one time it may be loaded.
    pub(super) fn claim_snapshot(&self, generation: u64) -> io::Result<bool> {
        self.remove_claimed();
        if !self.has_snapshot(generation) {
            // One of an earlier placement, or none.
            remove(&self.whole())?;
            return Ok(false);
        }
        fs::rename(self.whole(), self.own.join("claimed"))?;
        // On disk before the guest runs, or a loss of power would bring it back.
        File::open(&self.own)?.sync_all()?;
        Ok(true)
    }

    /// Gives the memory up, and keeps in mind that there was to be one.
    pub(super) fn lose_snapshot(&self, generation: u64) -> io::Result<()> {
        self.remove_all(&["snapshot", "claimed"]);
        self.begin_snapshot(generation)
    }

    /// Whether there was to be a memory of this placement and it is not whole.
    pub(super) fn has_lost_snapshot(&self, generation: u64) -> bool {
        is_of(&self.own.join("next"), generation)
    }

    pub(super) fn remove_claimed(&self) {
        self.remove_all(&["claimed"]);
    }

    pub(super) fn remove_snapshots(&self) {
        self.remove_all(&["next", "snapshot", "claimed"]);
    }

    fn remove_all(&self, folders: &[&str]) {
        for folder in folders {
            let path = self.own.join(folder);
            if let Err(error) = remove(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot be removed");
            }
        }
    }
}

impl Snapshot {
    fn inside(folder: &Path) -> Self {
        Self { state: folder.join("state"), memory: folder.join("memory") }
    }
}

fn is_of(folder: &Path, generation: u64) -> bool {
    fs::read_to_string(folder.join("generation")).is_ok_and(|of| of == generation.to_string())
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
