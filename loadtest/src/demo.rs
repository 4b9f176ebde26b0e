//! A demo of our own, so that one command measures.

use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A running demo in a new directory; both are gone when it is stopped.
pub(crate) struct Demo {
    child: Child,
    directory: PathBuf,
}

impl Demo {
    /// Starts the `edge-proxy` beside this program on free ports and waits until it serves.
    ///
    /// # Errors
    /// It is not built, or does not start.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("edge-proxy");
        if !program.is_file() {
            bail!("{} does not exist; build it: cargo build --release -p edge-proxy", program.display());
        }
        let directory = std::env::temp_dir().join(format!("loadtest-{}", std::process::id()));
        let mut child = Command::new(program)
            .args(["demo", "--https", "127.0.0.1:0", "--http", "127.0.0.1:0", "--idle-timeout", "10m", "--data-dir"])
            .arg(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        while let Some(line) = lines.next_line().await? {
            if line.starts_with("ready ") {
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                return Ok(Self { child, directory });
            }
        }
        bail!("the demo ended before it served")
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Ends it as Ctrl-C does.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        }
        self.child.wait().await?;
        std::fs::remove_dir_all(&self.directory)?;
        Ok(())
    }
}
