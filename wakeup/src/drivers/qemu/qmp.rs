//! A client of QEMU's machine protocol: one command at a time over the machine's own socket.
//!
//! A connection serves one act and is dropped; QEMU then takes the next. Events are skipped:
//! every state that counts here can be asked for, and an event that was missed could not. What
//! is not here: any knowledge of what a command means.

use super::super::DriverError;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Name of the socket in a machine's directory.
pub(super) const SOCKET: &str = "qmp.sock";
/// Longest line that is read, bytes (chosen: the longest answer to what is asked here is some
/// hundred, and an event can carry a guest's words).
const LINE_BYTES_MAX: usize = 256 * 1024;
/// One command, answer included (chosen: QEMU answers in milliseconds unless it hangs).
const COMMAND_WAIT: Duration = Duration::from_secs(5);
/// A stop flushes the guest's disks first (chosen: a slow disk with a full cache).
const STOP_WAIT: Duration = Duration::from_secs(15);

/// What went wrong between QEMU and us.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    /// The socket broke.
    #[error("its control socket: {0}")]
    Socket(#[from] io::Error),
    /// QEMU ended.
    #[error("it closed its control socket")]
    Closed,
    /// A line over the bound, or one that is no message.
    #[error("what came from its control socket is no QMP")]
    NotQmp,
    /// It said no.
    #[error("it refused {command}: {reason}")]
    Refused { command: &'static str, reason: String },
    /// No answer in time.
    #[error("no answer to {command} in {within:?}")]
    Silent { command: &'static str, within: Duration },
}

impl From<QmpError> for DriverError {
    fn from(error: QmpError) -> Self {
        Self::Machine { reason: error.to_string() }
    }
}

/// What a machine is at, as far as it makes a difference here (`RunState` of QMP).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Running,
    /// By a stop, or because a loaded machine waits to be continued.
    Paused,
    /// Its memory is being loaded.
    Loading,
    /// It cannot go on: saved, shut down, broken.
    Other,
}

/// A connection.
///
/// # Cancel safety
/// Calls that are dropped may have sent half a command: drop the connection too.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Number of the last command; answers to others are not ours.
    last: u64,
    version: String,
}

impl Qmp {
    /// Connects to the machine whose socket is in `directory`.
    pub(super) async fn connect(directory: &Path) -> Result<Self, QmpError> {
        let stream = connect(directory, SOCKET).await?;
        let mut qmp = Self { stream, buffer: Vec::with_capacity(4096), last: 0, version: String::new() };
        let greeted = tokio::time::timeout(COMMAND_WAIT, qmp.line()).await;
        let greeting = greeted.map_err(|_| QmpError::Silent { command: "connect", within: COMMAND_WAIT })??;
        let version = &greeting["QMP"]["version"];
        if version.is_null() {
            return Err(QmpError::NotQmp);
        }
        qmp.version = version.to_string();
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// QEMU's version as it says it, package included.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Executes a command; what it returned.
    pub(super) async fn execute(&mut self, command: &'static str, arguments: Value) -> Result<Value, QmpError> {
        let message = self.message(command, arguments);
        self.within(command, COMMAND_WAIT, Send::Plain(&message)).await
    }

    /// Stops the machine: its processors stand, its disks are flushed.
    pub(super) async fn stop(&mut self) -> Result<(), QmpError> {
        let message = self.message("stop", Value::Null);
        self.within("stop", STOP_WAIT, Send::Plain(&message)).await?;
        self.expect("stop", Status::Paused).await
    }

    /// Continues it.
    pub(super) async fn cont(&mut self) -> Result<(), QmpError> {
        self.execute("cont", Value::Null).await?;
        self.expect("cont", Status::Running).await
    }

    async fn expect(&mut self, command: &'static str, expected: Status) -> Result<(), QmpError> {
        let (status, word) = self.asked_status().await?;
        (status == expected).then_some(()).ok_or_else(|| QmpError::Refused { command, reason: format!("it is {word}") })
    }

    /// What it is at.
    pub(super) async fn status(&mut self) -> Result<Status, QmpError> {
        self.asked_status().await.map(|(status, _)| status)
    }

    async fn asked_status(&mut self) -> Result<(Status, String), QmpError> {
        let answer = self.execute("query-status", Value::Null).await?;
        let word = answer["status"].as_str().ok_or(QmpError::NotQmp)?;
        let status = match word {
            "running" => Status::Running,
            "paused" | "prelaunch" => Status::Paused,
            "inmigrate" => Status::Loading,
            _ => Status::Other,
        };
        Ok((status, word.to_owned()))
    }

    /// Hands QEMU a descriptor, which it then knows by `name`.
    pub(super) async fn give(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> Result<(), QmpError> {
        let message = self.message("getfd", json!({ "fdname": name }));
        self.within("getfd", COMMAND_WAIT, Send::With(&message, descriptor)).await.map(drop)
    }

    fn message(&mut self, command: &str, arguments: Value) -> Vec<u8> {
        self.last += 1;
        let mut message = json!({ "execute": command, "id": self.last });
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        message.to_string().into_bytes()
    }

    async fn within(&mut self, command: &'static str, within: Duration, send: Send<'_>) -> Result<Value, QmpError> {
        let answered = tokio::time::timeout(within, async {
            match send {
                Send::Plain(message) => self.stream.write_all(message).await?,
                Send::With(message, descriptor) => self.send_with(message, descriptor).await?,
            }
            self.answer(command).await
        });
        answered.await.map_err(|_| QmpError::Silent { command, within })?
    }

    async fn send_with(&self, message: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let sent = self.stream.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let descriptors = [descriptor];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
            Ok(sendmsg(&self.stream, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?)
        });
        // A stream socket takes some hundred bytes whole or not at all.
        (sent.await? == message.len()).then_some(()).ok_or_else(|| io::ErrorKind::WriteZero.into())
    }

    /// The answer to the last command; whatever else comes is skipped.
    async fn answer(&mut self, command: &'static str) -> Result<Value, QmpError> {
        loop {
            let mut message = self.line().await?;
            if message["id"] != self.last {
                continue;
            }
            if let Some(error) = message.get("error") {
                let reason = error["desc"].as_str().unwrap_or("without a reason").chars().take(200).collect();
                return Err(QmpError::Refused { command, reason });
            }
            return Ok(message["return"].take());
        }
    }

    /// One message.
    async fn line(&mut self) -> Result<Value, QmpError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|&byte| byte == b'\n') {
                let rest = self.buffer.split_off(searched + end + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                return serde_json::from_slice(&line).map_err(|_| QmpError::NotQmp);
            }
            searched = self.buffer.len();
            if searched >= LINE_BYTES_MAX {
                return Err(QmpError::NotQmp);
            }
            let room = LINE_BYTES_MAX - searched;
            if (&mut self.stream).take(room as u64).read_buf(&mut self.buffer).await? == 0 {
                return Err(QmpError::Closed);
            }
        }
    }
}

/// How a command is sent.
enum Send<'a> {
    Plain(&'a [u8]),
    With(&'a [u8], BorrowedFd<'a>),
}

/// Connects to the socket `name` in `directory`, however long its path: an address of a unix
/// socket has room for 108 bytes (unix(7)), so it goes by the directory's descriptor.
pub(super) async fn connect(directory: &Path, name: &str) -> io::Result<UnixStream> {
    let directory = File::open(directory)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd())).await
}

#[cfg(test)]
mod tests;
