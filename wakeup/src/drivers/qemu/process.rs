//! The process of a machine: begun here, or found again after another owner left it.
//!
//! It is known by its id and start time, watched and signalled by a descriptor of its own
//! (pidfd), so that nothing here can touch a stranger that got its number.

use super::super::log::Log;
use super::super::process::describe;
use super::super::stat::Stat;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr};
use tokio::sync::{oneshot, watch};

/// How long after SIGKILL it may still be there (chosen: the memory of a large guest takes a
/// while to give back).
const KILL_WAIT: Duration = Duration::from_secs(10);
/// Stack of a thread that only waits, bytes.
const WATCH_STACK_BYTES: usize = 64 * 1024;
/// What is kept of its last words, bytes (chosen).
const WORDS_BYTES_MAX: usize = 1024;
/// What of them goes into the reason, characters (chosen: as of the driver `command`).
const REASON_CHARS_MAX: usize = 200;

/// What is written down of a running machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) pid: i32,
    /// See [`Stat`].
    pub(super) started: u64,
    /// The placement it runs for.
    pub(super) generation: u64,
    pub(super) address: SocketAddrV4,
}

impl Record {
    fn path(directory: &Path) -> PathBuf {
        directory.join("machine.json")
    }

    /// What is written down in `directory`; none when nothing is that can be read.
    pub(super) fn read(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(Self::path(directory)).ok()?).ok()
    }

    fn write(&self, directory: &Path) -> io::Result<()> {
        let path = Self::path(directory);
        let next = path.with_extension("next");
        std::fs::write(&next, serde_json::to_vec(self)?)?;
        std::fs::rename(next, path)
    }

    /// Removes it, unless another machine has been written down since.
    pub(super) fn remove(&self, directory: &Path) {
        if Self::read(directory).is_some_and(|present| present != *self) {
            return;
        }
        let path = Self::path(directory);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot be removed");
        }
    }
}

/// One process of QEMU.
pub(super) struct Process {
    pid: i32,
    descriptor: OwnedFd,
    /// Why it ended, once it has.
    gone: watch::Receiver<Option<String>>,
}

impl Process {
    /// Takes a child that was just spawned and writes it down. The receiver hears when it has
    /// ended, and nothing of it is written down any more then.
    pub(super) fn begun(
        mut child: Child,
        directory: &Path,
        generation: u64,
        address: SocketAddrV4,
        log: &Log,
    ) -> io::Result<(Arc<Self>, oneshot::Receiver<String>)> {
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).ok_or(io::ErrorKind::NotFound)?;
        // Not waited for yet, so it is still there and the number is its own.
        let opened = Pid::from_raw(pid).ok_or(Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let started = Stat::read(pid).map_or(0, |stat| stat.started);
        let record = Record { pid, started, generation, address };
        let written = record.write(directory);
        let descriptor = match (opened, written) {
            (Ok(descriptor), Ok(())) => descriptor,
            (opened, written) => {
                // One that could not be found again must not run.
                let _ = child.start_kill();
                tokio::spawn(async move { child.wait().await });
                opened?;
                return Err(written.err().unwrap_or_else(|| io::ErrorKind::Other.into()));
            }
        };
        let words = child.stderr.take().map(|stderr| tokio::spawn(last_words(stderr, log.clone())));
        let (sender, gone) = watch::channel(None);
        let (exited_sender, exited) = oneshot::channel();
        let directory = directory.to_owned();
        tokio::spawn(async move {
            let ended = match child.wait().await {
                Ok(status) => describe(status),
                Err(error) => format!("it cannot be waited for: {error}"),
            };
            let words = match words {
                Some(words) => words.await.unwrap_or_default(),
                None => String::new(),
            };
            let detail = if words.is_empty() { ended } else { format!("{ended}: {words}") };
            record.remove(&directory);
            sender.send_replace(Some(detail.clone()));
            // Nobody listens any more when the owner itself ended it.
            let _ = exited_sender.send(detail);
        });
        Ok((Arc::new(Self { pid, descriptor, gone }), exited))
    }

    /// The very process that was written down, if it still runs.
    pub(super) fn found(
        record: &Record,
        directory: &Path,
    ) -> io::Result<Option<(Arc<Self>, oneshot::Receiver<String>)>> {
        let Some(pid) = Pid::from_raw(record.pid) else { return Ok(None) };
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => descriptor,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // After the descriptor was had: from here on the number cannot become another's unseen.
        let same = |stat: Stat| stat.started == record.started && !matches!(stat.state, 'Z' | 'X');
        if !Stat::read(record.pid).is_some_and(same) {
            return Ok(None);
        }
        let watched = descriptor.try_clone()?;
        let (sender, gone) = watch::channel(None);
        let (exited_sender, exited) = oneshot::channel();
        let (gone_record, directory) = (record.clone(), directory.to_owned());
        // It is nobody's child here, so the kernel tells whoever waits on its descriptor.
        std::thread::Builder::new().name("machine".into()).stack_size(WATCH_STACK_BYTES).spawn(move || {
            wait_for_end(&watched);
            gone_record.remove(&directory);
            sender.send_replace(Some("it ended".into()));
            let _ = exited_sender.send("it ended".into());
        })?;
        Ok(Some((Arc::new(Self { pid: record.pid, descriptor, gone }), exited)))
    }

    /// Its number, for logs and to tell it from another.
    pub(super) const fn pid(&self) -> i32 {
        self.pid
    }

    /// Resolves with the reason when it has ended.
    pub(super) async fn ended(&self) -> String {
        let mut gone = self.gone.clone();
        match gone.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The runtime ends, and its watch with it.
            Err(_) => "its owner ends".into(),
        }
    }

    /// SIGKILL; returns when it is gone.
    pub(super) async fn kill(&self) {
        // One that is gone already is what we want.
        let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
        if tokio::time::timeout(KILL_WAIT, self.ended()).await.is_err() {
            tracing::error!(pid = self.pid, "a sprite's machine does not die");
        }
    }
}

/// Readable is what a process's descriptor is when it has ended (pidfd_open(2)).
fn wait_for_end(descriptor: &OwnedFd) {
    while poll(&mut [PollFd::new(descriptor, PollFlags::IN)], None) == Err(Errno::INTR) {}
}

/// Copies what it says on standard error into the log; its last line.
async fn last_words(mut stderr: ChildStderr, log: Log) -> String {
    let (mut buffer, mut tail) = (vec![0; 4096], Vec::new());
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        if let Err(error) = log.write(&buffer[..count]) {
            tracing::warn!(%error, "a sprite's log cannot be written");
        }
        tail.extend_from_slice(&buffer[..count]);
        tail.drain(..tail.len().saturating_sub(WORDS_BYTES_MAX));
    }
    let text = String::from_utf8_lossy(&tail);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    last.chars().take(REASON_CHARS_MAX).collect()
}
