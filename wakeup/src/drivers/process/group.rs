//! A guest that is held by signals: the process group of its leader.
//!
//! Whatever leaves the group (`setsid`) is beyond it.

use super::super::DriverError;
use super::super::stat::Stat;
use super::{FREEZE_TIMEOUT, KILL_TIMEOUT, LOOK, system};
use rustix::process::{Pid, Signal, kill_process_group};
use std::time::{Duration, Instant};

/// Continues the group; returns when its leader is no longer stopped.
pub(super) async fn thaw(leader: Pid) -> Result<(), DriverError> {
    kill_process_group(leader, Signal::CONT).map_err(|error| system("cannot continue it")(error.into()))?;
    // The kernel makes the group runnable before the call returns; this is the proof.
    let end = Instant::now() + FREEZE_TIMEOUT;
    loop {
        match state_of(leader) {
            None => return Err(DriverError::NoGuest),
            Some('T' | 't') if Instant::now() < end => tokio::task::yield_now().await,
            Some('T' | 't') => return Err(DriverError::NotStopped),
            Some(_) => return Ok(()),
        }
    }
}

/// Stops the group; returns when every process of it is stopped, or cannot go on without stopping.
pub(super) async fn freeze(leader: Pid) -> Result<(), DriverError> {
    let end = Instant::now() + FREEZE_TIMEOUT;
    loop {
        // Again in each round: a child forked in between would run on.
        kill_process_group(leader, Signal::STOP).map_err(|error| system("cannot freeze it")(error.into()))?;
        if members_of(leader).iter().all(|(_, state)| is_held(*state)) {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(DriverError::NotStopped);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether a process that was told to stop, and is in this state, has stopped or cannot go on without stopping.
pub(super) const fn is_held(state: char) -> bool {
    // One that sleeps in the kernel stops before it runs another instruction of its own; a shell that waits
    // there for a child which was stopped before its exec (vfork(2)) would be waited for in vain.
    matches!(state, 'T' | 't' | 'D')
}

/// SIGTERM, `grace`, SIGKILL; returns when no process of the group is left, or after
/// [`KILL_TIMEOUT`]. A frozen group is continued, or it could not act on the SIGTERM.
pub(in crate::drivers) async fn end_group(leader: Pid, grace: Duration) {
    if !grace.is_zero() {
        // A group that is gone already is what we want.
        let _ = kill_process_group(leader, Signal::TERM);
        let _ = kill_process_group(leader, Signal::CONT);
        if emptied(leader, grace).await {
            return;
        }
    }
    let _ = kill_process_group(leader, Signal::KILL);
    if !emptied(leader, KILL_TIMEOUT).await {
        tracing::error!(pid = leader.as_raw_nonzero().get(), "a sprite's processes do not die");
    }
}

async fn emptied(leader: Pid, within: Duration) -> bool {
    let end = Instant::now() + within;
    loop {
        if members_of(leader).is_empty() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Living processes of a group with their state, from `/proc`. A zombie is none: it runs
/// nothing and holds nothing, and who reaps it is not ours to say.
pub(super) fn members_of(leader: Pid) -> Vec<(i32, char)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let stats = pids.filter_map(|pid| Stat::read(pid).map(|stat| (pid, stat)));
    let ours = |stat: &Stat| stat.group == leader.as_raw_nonzero().get() && !matches!(stat.state, 'Z' | 'X');
    stats.filter(|(_, stat)| ours(stat)).map(|(pid, stat)| (pid, stat.state)).collect()
}

pub(super) fn state_of(pid: Pid) -> Option<char> {
    Stat::read(pid.as_raw_nonzero().get()).map(|stat| stat.state)
}
