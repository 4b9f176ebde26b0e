//! The VMM's process: started, found again, watched, ended.
//!
//! It outlives us, so it prints into a file of its own instead of a pipe of ours, and it is
//! recorded by process id and start time.

use super::super::process::{describe, end_group, recorded_leader, remove_record, system, write_record};
use super::super::{DriverError, log};
use super::files::Files;
use router::names::SpriteName;
use rustix::process::Pid;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// Between two looks at the size of the VMM's output (chosen).
const LOG_LOOK: Duration = Duration::from_secs(10);
/// Between two looks whether a VMM that is no child of ours still runs (chosen: its end is
/// noticed by its visitors first).
const STRANGER_LOOK: Duration = Duration::from_millis(100);
/// How long the end of a killed VMM is waited for (chosen: the kernel frees its memory first).
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A VMM that runs, or has ended and was not yet forgotten. Dropped, it is left alone.
pub(super) struct Vmm {
    leader: Pid,
    /// True once it has ended.
    gone: watch::Receiver<bool>,
    watch: JoinHandle<()>,
}

/// How its end is noticed.
enum Process {
    /// Ours to wait for.
    Child(Child),
    /// A child of an owner before us, by its record.
    Stranger(String),
}

impl Vmm {
    /// Starts one for this machine. Its end is told to the receiver.
    pub(super) fn spawn(
        program: &Path,
        name: &SpriteName,
        files: &Files,
        log_bytes: u64,
    ) -> Result<(Self, oneshot::Receiver<String>), DriverError> {
        // A VMM does not begin where a socket lies already.
        remove_record(&files.socket());
        let output = open_log(&files.log()).map_err(system("cannot open its log"))?;
        let errors = output.try_clone().map_err(system("cannot open its log"))?;
        let mut command = Command::new(program);
        command.arg("--api-sock").arg(files.socket()).arg("--id").arg(name.as_str());
        command.current_dir(files.own()).env_clear().process_group(0);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()));
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().map_err(system("cannot start the VMM, which drivers.firecracker.program names"))?;
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let leader = leader.ok_or(DriverError::NoGuest)?;
        if let Err(error) = write_record(&files.record(), leader) {
            tracing::warn!(sprite = %name, %error, "the VMM would not be found after a crash");
        }
        Ok(Self::watched(leader, Process::Child(child), files, log_bytes))
    }

    /// The one an owner before us started, if it still runs.
    pub(super) fn found(files: &Files, log_bytes: u64) -> Option<(Self, oneshot::Receiver<String>)> {
        let text = std::fs::read_to_string(files.record()).ok()?;
        let Some(leader) = recorded_leader(&text) else {
            remove_record(&files.record());
            return None;
        };
        Some(Self::watched(leader, Process::Stranger(text), files, log_bytes))
    }

    fn watched(leader: Pid, process: Process, files: &Files, log_bytes: u64) -> (Self, oneshot::Receiver<String>) {
        let (gone_sender, gone) = watch::channel(false);
        let (exited_sender, exited) = oneshot::channel();
        let (record, log) = (files.record(), files.log());
        let watch = tokio::spawn(async move {
            let detail = tokio::select! {
                detail = process.ended() => detail,
                never = bounded(log, log_bytes) => match never {},
            };
            remove_record(&record);
            gone_sender.send_replace(true);
            // Nobody listens any more when the owner itself ended it.
            let _ = exited_sender.send(detail);
        });
        (Self { leader, gone, watch }, exited)
    }

    pub(super) fn is_gone(&self) -> bool {
        *self.gone.borrow()
    }

    /// Kills it; returns when it is gone. Its guest's memory goes with it.
    pub(super) async fn end(&self) {
        let mut gone = self.gone.clone();
        if !*gone.borrow() {
            end_group(self.leader, Duration::ZERO).await;
        }
        // A zombie until its own task has waited for it.
        let _ = tokio::time::timeout(END_TIMEOUT, gone.wait_for(|gone| *gone)).await;
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Process {
    async fn ended(self) -> String {
        match self {
            Self::Child(mut child) => match child.wait().await {
                Ok(status) => describe(status),
                Err(error) => format!("it cannot be waited for: {error}"),
            },
            Self::Stranger(record) => {
                while recorded_leader(&record).is_some() {
                    tokio::time::sleep(STRANGER_LOOK).await;
                }
                "the VMM ended".into()
            }
        }
    }
}

/// For appending: whoever shortens it is not overwritten.
fn open_log(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Keeps what the VMM prints within its bound, give or take what it prints between two looks.
async fn bounded(path: PathBuf, bytes_max: u64) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(LOG_LOOK).await;
        if let Err(error) = log::begin_anew_over(&path, bytes_max) {
            tracing::warn!(path = %path.display(), %error, "the VMM's output cannot be bounded");
        }
    }
}
