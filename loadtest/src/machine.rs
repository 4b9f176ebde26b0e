//! Where and of what a measurement was made: a figure without it says nothing.

use anyhow::Context;
use nix::time::ClockId;
use nix::unistd::Pid;
use serde::Serialize;
use std::process::Command;
use std::time::Duration;

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

/// What the machine below this one took away while it was wanted here ("steal", proc(5)).
#[derive(Debug)]
pub(crate) struct Steal {
    stolen: u64,
    busy: u64,
}

impl Steal {
    /// From now on.
    pub(crate) fn begin() -> Self {
        let (stolen, busy) = ticks(&std::fs::read_to_string("/proc/stat").unwrap_or_default());
        Self { stolen, busy }
    }

    /// Percent of the time this machine wanted to run; a few spoil every p99.
    pub(crate) fn percent(&self) -> f64 {
        let now = Self::begin();
        let (stolen, busy) = (now.stolen - self.stolen, now.busy - self.busy);
        100.0 * stolen as f64 / (stolen + busy).max(1) as f64
    }
}

/// Stolen and busy ticks of all cores since the start.
fn ticks(stat: &str) -> (u64, u64) {
    let fields = stat.lines().next().unwrap_or_default().split_ascii_whitespace().skip(1);
    let fields: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
    let of = |at: usize| fields.get(at).copied().unwrap_or(0);
    // user, nice, system, (idle, iowait,) irq, softirq, steal
    (of(7), of(0) + of(1) + of(2) + of(5) + of(6))
}

/// Processor time of a process so far, all its threads, also those that have ended (its own clock,
/// clock_getcpuclockid(3): to the nanosecond).
///
/// # Errors
/// It has ended.
pub(crate) fn processor(id: u32) -> anyhow::Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(id.cast_signed())).context("it has ended")?;
    Ok(clock.now()?.into())
}

/// Memory of a process that is in RAM now, and the most there ever was, bytes (`VmRSS`, `VmHWM`, proc(5)).
///
/// # Errors
/// It has ended.
pub(crate) fn memory(id: u32) -> anyhow::Result<(u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let of = |key: &str| -> Option<u64> {
        let value = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        value.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib << 10)
    };
    of("VmRSS").zip(of("VmHWM")).context("the kernel does not say what it takes")
}

fn git(arguments: &[&str]) -> String {
    let output = Command::new("git").args(arguments).output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn stolen_and_busy_ticks_are_read_where_the_kernel_puts_them() {
        assert_eq!(super::ticks("cpu  10 1 20 5000 7 3 4 9 0 0\ncpu0 1 1 1\n"), (9, 38));
        assert_eq!(super::ticks(""), (0, 0));
    }

    #[test]
    fn a_thread_that_has_ended_has_taken_what_it_took() {
        let taken = || super::processor(std::process::id()).unwrap();
        let enough = taken() + std::time::Duration::from_millis(20);
        std::thread::spawn(move || while taken() < enough {}).join().unwrap();
        assert!(taken() >= enough);
    }
}
