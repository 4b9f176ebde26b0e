//! The cgroup (v2) of one guest: whatever a guest begins is in it, and nothing leaves it.
//!
//! Files and their meaning: the kernel's `admin-guide/cgroup-v2.rst`. Nothing here blocks for
//! longer than a look into a file of the kernel's.

use super::super::DriverError;
use super::{FREEZE_TIMEOUT, KILL_TIMEOUT, LOOK, system};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One guest's cgroup, which stays until it is removed.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    memory_mib: Option<u32>,
}

impl Cgroup {
    /// One that is there already.
    pub(super) const fn found(path: PathBuf) -> Self {
        Self { path, memory_mib: None }
    }

    /// A new one, for at most so much memory.
    pub(super) fn make(path: PathBuf, memory_mib: Option<u32>) -> io::Result<Self> {
        let cgroup = Self { path, memory_mib };
        match std::fs::create_dir(&cgroup.path) {
            // Of a guest before this one, which did not die in time; it may have by now.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                cgroup.kill();
                cgroup.remove()?;
                std::fs::create_dir(&cgroup.path)?;
            }
            made => made?,
        }
        match cgroup.limit_memory() {
            Ok(()) => Ok(cgroup),
            Err(error) => {
                let _ = cgroup.remove();
                Err(error)
            }
        }
    }

    fn limit_memory(&self) -> io::Result<()> {
        let Some(mib) = self.memory_mib else { return Ok(()) };
        self.write("memory.max", &(u64::from(mib) << 20).to_string())?;
        // Or a guest over its limit would fill the swap first; a kernel may have none.
        let _ = self.write("memory.swap.max", "0");
        // Half a guest is worse than none: its leader could wait for the other half for ever.
        self.write("memory.oom.group", "1")
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Freezes all of it; returns when nothing of it runs.
    pub(super) async fn freeze(&self) -> Result<(), DriverError> {
        self.write("cgroup.freeze", "1").map_err(system("cannot freeze it"))?;
        self.becomes("frozen 1").await
    }

    /// Continues all of it.
    pub(super) async fn thaw(&self) -> Result<(), DriverError> {
        self.write("cgroup.freeze", "0").map_err(system("cannot continue it"))?;
        self.becomes("frozen 0").await
    }

    async fn becomes(&self, wanted: &str) -> Result<(), DriverError> {
        let began = Instant::now();
        loop {
            let events = self.read("cgroup.events").map_err(system("cannot look at its cgroup"))?;
            if events.lines().any(|line| line == wanted) {
                return Ok(());
            }
            match began.elapsed() {
                // The kernel needs microseconds for what is not in the middle of something.
                young if young < LOOK => tokio::task::yield_now().await,
                old if old < FREEZE_TIMEOUT => tokio::time::sleep(LOOK).await,
                _ => return Err(DriverError::NotStopped),
            }
        }
    }

    /// SIGTERM to each process, `grace`, then all of it is killed; returns when nothing of it is
    /// left, or after [`KILL_TIMEOUT`].
    pub(super) async fn end(&self, grace: Duration) {
        if !grace.is_zero() {
            for pid in self.processes() {
                // One that is gone already is what we want.
                let _ = kill_process(pid, Signal::TERM);
            }
            // Frozen, it could not act on it.
            let _ = self.write("cgroup.freeze", "0");
            let end = Instant::now() + grace;
            while !self.is_empty() && Instant::now() < end {
                tokio::time::sleep(LOOK).await;
            }
        }
        let end = Instant::now() + KILL_TIMEOUT;
        while !self.is_empty() {
            self.kill();
            if Instant::now() >= end {
                tracing::error!(cgroup = %self.path.display(), "a sprite's processes do not die");
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Kills all of it, frozen or not, at once or not quite: kernels before 5.14 have to be asked
    /// for each process, and again for what was forked meanwhile.
    fn kill(&self) {
        if self.write("cgroup.kill", "1").is_err() {
            for pid in self.processes() {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Whether no process is in it, or below it.
    pub(super) fn is_empty(&self) -> bool {
        // Removed, it is empty.
        self.read("cgroup.events").map_or(true, |events| events.lines().any(|line| line == "populated 0"))
    }

    /// Its processes, those below it too.
    pub(super) fn processes(&self) -> Vec<Pid> {
        let lists =
            folders(&self.path).into_iter().filter_map(|at| std::fs::read_to_string(at.join("cgroup.procs")).ok());
        let pids = lists.flat_map(|list| list.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>());
        pids.filter_map(Pid::from_raw).collect()
    }

    /// Why it ended, if its memory did not suffice.
    pub(super) fn ran_out_of_memory(&self) -> Option<String> {
        let mib = self.memory_mib?;
        let events = self.read("memory.events").ok()?;
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill ")).unwrap_or("0");
        (kills != "0").then(|| format!("out of memory: it wanted more than its {mib} MiB (memory_mib)"))
    }

    /// Removes it and what its guest made in it.
    ///
    /// # Errors
    /// Something is in it.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove(&self.path)
    }

    fn read(&self, file: &str) -> io::Result<String> {
        std::fs::read_to_string(self.path.join(file))
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        write(&self.path.join(file), text)
    }
}

/// Writes to a file of the kernel's; makes none.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// Removes a cgroup and those below it. That it is gone is no failure.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    for folder in folders(path) {
        match std::fs::remove_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// It and all below it, the deepest first. As deep as guests made them, which the kernel bounds
/// (`cgroup.max.depth`).
fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut all: Vec<_> = below.flat_map(|entry| folders(&entry.path())).collect();
    all.push(path.into());
    all
}
