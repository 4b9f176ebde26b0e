//! Driver `command`: machines somebody else runs, woken and put to sleep by commands of
//! their own.
//!
//! The contract, for `sh -c` in the sprite's directory with `SPRITE_NAME` in the environment:
//!
//! | command | also in the environment | on standard output, one JSON object | within |
//! | --- | --- | --- | --- |
//! | wake | `SPRITE_RESUME`: `1` after a warm sleep, else `0` | `{"address":"10.0.0.7:8080"}`: where it will answer | 20 s |
//! | sleep | `SPRITE_DEPTH`: `warm` or `cold` | nothing | 60 s |
//!
//! Exit status 0 is success. Anything else is a failure, and the last line on standard
//! error says why. Wake returns when the machine is on its way, not when it answers: the
//! owner watches its port. Sleep returns when nothing of it runs any more (warm: its memory
//! is kept and `SPRITE_RESUME=1` gets it back). Both may be repeated for a machine that is
//! in that state already. What a command leaves in its process group is ended with it, so a
//! command that starts a machine in the background gives it a session of its own (`setsid`).

use super::DriverError;
use super::remote::{Orchestrator, Remote, Woken};
use crate::spec::{Depth, DriverSpec, SpriteSpec};
use router::names::SpriteName;
use rustix::process::{Pid, Signal, kill_process_group};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// Longest wake: the core's own bound of a start.
const WAKE_TIMEOUT: Duration = crate::owner::core::START_TIMEOUT;
/// Longest sleep (chosen: a snapshot of some gigabytes).
const SLEEP_TIMEOUT: Duration = Duration::from_secs(60);
/// What is read of a command's output, bytes (chosen).
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;
/// Longest reason that is passed on, characters (chosen).
const REASON_CHARS_MAX: usize = 200;

/// The driver.
pub type CommandDriver = Remote<Commands>;

/// The commands of a host's sprites.
pub struct Commands {
    /// Each sprite has a directory in it.
    directory: PathBuf,
}

impl CommandDriver {
    /// For the sprites of a host whose directories are in `directory`.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self::of(Commands { directory })
    }
}

impl Orchestrator for Commands {
    async fn wake(&self, spec: &SpriteSpec, resume: bool) -> Result<SocketAddr, DriverError> {
        let DriverSpec::Command { wake, .. } = &spec.driver else { return Err(DriverError::NoGuest) };
        let resume = ("SPRITE_RESUME", if resume { "1" } else { "0" });
        let output = self.run(&spec.name, wake, resume, WAKE_TIMEOUT).await?;
        let said = serde_json::from_str::<Woken>(output.trim());
        said.map(|woken| woken.address).map_err(|error| DriverError::Command {
            what: "wake",
            reason: format!("it printed no {{\"address\":\"IP:PORT\"}}: {error}"),
        })
    }

    async fn sleep(&self, spec: &SpriteSpec, depth: Depth) -> Result<(), DriverError> {
        let DriverSpec::Command { sleep, .. } = &spec.driver else { return Err(DriverError::NoGuest) };
        let depth = match depth {
            Depth::Warm => "warm",
            Depth::Cold => "cold",
        };
        self.run(&spec.name, sleep, ("SPRITE_DEPTH", depth), SLEEP_TIMEOUT).await.map(drop)
    }
}

impl Commands {
    /// Runs a command to its end; what it printed.
    async fn run(
        &self,
        name: &SpriteName,
        command: &str,
        variable: (&'static str, &str),
        within: Duration,
    ) -> Result<String, DriverError> {
        let what = if variable.0 == "SPRITE_DEPTH" { "sleep" } else { "wake" };
        let failed = |reason: String| DriverError::Command { what, reason };
        let directory = self.directory.join(name.as_str()).join("data");
        std::fs::create_dir_all(&directory).map_err(|error| failed(error.to_string()))?;
        let mut child =
            command_of(command, name, variable, &directory).spawn().map_err(|error| failed(error.to_string()))?;
        let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
        let (out, errors) = (child.stdout.take(), child.stderr.take());
        let ended = tokio::time::timeout(within, async {
            let (out, errors, status) = tokio::join!(text_of(out), text_of(errors), child.wait());
            (out, errors, status)
        });
        let Ok((out, errors, status)) = ended.await else {
            return Err(failed(format!("it took longer than {within:?}")));
        };
        drop(group);
        let status = status.map_err(|error| failed(error.to_string()))?;
        if status.success() {
            return Ok(out);
        }
        let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no word on standard error");
        let last: String = last.chars().take(REASON_CHARS_MAX).collect();
        Err(failed(format!("{status}: {last}")))
    }
}

fn command_of(command: &str, name: &SpriteName, (variable, value): (&'static str, &str), directory: &Path) -> Command {
    let mut child = Command::new("sh");
    child.arg("-c").arg(command).current_dir(directory).env_clear().process_group(0);
    child.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()));
    child.env("HOME", directory).env("LANG", "C.UTF-8").env("SPRITE_NAME", name.as_str()).env(variable, value);
    child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    child
}

/// Reads to the end, keeps the beginning.
async fn text_of(output: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut output) = output {
        // What was read until an error is what there is.
        let _ = (&mut output).take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(&mut output, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A command's process group, ended when the command is over or given up.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // Gone is what we want.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}
