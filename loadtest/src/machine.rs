//! Where and of what a measurement was made: a figure without it says nothing.

use serde::Serialize;
use std::process::Command;

/// The facts to print with every figure.
#[derive(Debug, Serialize)]
pub(crate) struct Facts {
    pub(crate) command: String,
    /// Of the working tree, with `+` when it was changed; empty outside of one.
    pub(crate) commit: String,
    pub(crate) profile: &'static str,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    /// Before the measurement: above the number of cores it was no quiet machine.
    pub(crate) load_average: String,
}

impl Facts {
    pub(crate) fn now() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo");
        let processor = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let load = read("/proc/loadavg");
        let changed = if git(&["status", "--porcelain", "-uno"]).is_empty() { "" } else { "+" };
        Self {
            command: std::env::args().collect::<Vec<_>>().join(" "),
            commit: format!("{}{changed}", git(&["rev-parse", "--short=12", "HEAD"])),
            profile: if cfg!(debug_assertions) { "debug: no figure to quote" } else { "release" },
            processor: processor.map_or_else(String::new, |(_, name)| name.to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_average: load.split(' ').take(3).collect::<Vec<_>>().join(" "),
        }
    }

    pub(crate) fn text(&self) -> String {
        let Self { command, commit, profile, processor, cores, kernel, load_average } = self;
        format!(
            "{command}\ncommit {commit} ({profile}); {processor}, {cores} cores, Linux {kernel}, load {load_average}\n"
        )
    }
}

fn git(arguments: &[&str]) -> String {
    let output = Command::new("git").args(arguments).output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
