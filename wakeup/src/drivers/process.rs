//! Driver `process`: a sprite is a command in its own process group, with `$PORT` and a
//! directory of its own that survives.
//!
//! Warm sleep stops the group (SIGSTOP), cold sleep ends it (SIGTERM, then SIGKILL).
//! A frozen listener still accepts connections, in the kernel, so a guest counts as
//! continued only when its leader is no longer stopped. Commands that leave their group
//! (`setsid`) are beyond it: that takes a cgroup.

mod listeners;

use self::listeners::listening_sockets;
use super::log::Log;
use super::ports::Ports;
use super::stat::Stat;
use super::{DoorKeeper, DriverError, Started, WakeDriver};
use crate::spec::{DriverSpec, SpriteSpec};
use backhaul::owner::BoxFuture;
use router::names::SpriteName;
use rustix::process::{Pid, Signal, kill_process_group};
use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};

/// How long every process of a group may need to be seen stopped (chosen: the kernel
/// needs microseconds, a process in disk sleep longer).
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after SIGKILL a group may still be seen (chosen, as above).
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two looks at `/proc`.
const LOOK: Duration = Duration::from_millis(2);

/// Section `[host]`, as far as this driver is concerned.
#[derive(Clone, Debug)]
pub struct ProcessSettings {
    /// Each sprite has a directory in it.
    pub directory: PathBuf,
    /// First port given out.
    pub first_port: u16,
    /// Last port given out.
    pub last_port: u16,
    /// From SIGTERM to SIGKILL.
    pub stop_grace: Duration,
    /// Log of a sprite's output, bytes.
    pub log_bytes: u64,
    /// What guests can speak to.
    pub doors: DoorKeeper,
}

/// The driver.
pub struct ProcessDriver {
    inner: Arc<Inner>,
}

struct Inner {
    settings: ProcessSettings,
    ports: Ports,
    groups: Mutex<HashMap<SpriteName, Group>>,
}

#[derive(Clone)]
struct Group {
    leader: Pid,
    address: SocketAddr,
    /// True once the leader was waited for.
    gone: watch::Receiver<bool>,
    /// Keeps the port from other owners on this machine.
    _reserved: Arc<UnixListener>,
}

impl ProcessDriver {
    /// With these settings.
    #[must_use]
    pub fn new(settings: ProcessSettings) -> Self {
        let ports = Ports::new(settings.first_port, settings.last_port);
        Self { inner: Arc::new(Inner { settings, ports, groups: Mutex::default() }) }
    }

    /// Ends the groups an owner that died left behind. A group is ours only if its leader
    /// is the very process that was recorded: same id, same start time.
    pub(super) async fn reap_orphans(&self) -> Vec<SpriteName> {
        let Ok(entries) = std::fs::read_dir(&self.inner.settings.directory) else { return Vec::new() };
        let mut reaped = Vec::new();
        for entry in entries.flatten() {
            let record = entry.path().join("process");
            let Ok(text) = std::fs::read_to_string(&record) else { continue };
            if let Some(leader) = recorded_leader(&text) {
                tracing::info!(sprite = ?entry.file_name(), pid = leader.as_raw_nonzero().get(), "ending an orphan");
                end_group(leader, Duration::ZERO).await;
                reaped.extend(entry.file_name().to_str().and_then(|name| SpriteName::parse(name).ok()));
            }
            remove_record(&record);
        }
        reaped
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<SpriteName, Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn group(&self, name: &SpriteName) -> Option<Group> {
        self.lock().get(name).cloned()
    }

    async fn start(self: Arc<Self>, spec: SpriteSpec) -> Result<Started, DriverError> {
        let DriverSpec::Process { command } = &spec.driver else { return Err(DriverError::NoGuest) };
        let directory = self.settings.directory.join(spec.name.as_str());
        let data = directory.join("data");
        std::fs::create_dir_all(&data).map_err(system("cannot make the sprite's directory"))?;
        let log =
            Log::open(&directory.join("output.log"), self.settings.log_bytes).map_err(system("cannot open its log"))?;
        let (port, reserved) = self.ports.pick(&[])?;
        let mut command = command_of(command, &spec.name, port, &data);
        if let Some(door) = self.settings.doors.open(&spec.name) {
            command.env("SPRITE_API", door);
        }
        let mut child = command.spawn().map_err(system("cannot start its command"))?;
        let at = Instant::now();
        let leader =
            child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw).ok_or(DriverError::NoGuest)?;
        let record = directory.join("process");
        if let Err(error) = write_record(&record, leader) {
            tracing::warn!(sprite = %spec.name, %error, "an orphan of this sprite would not be found after a crash");
        }
        if let Some(output) = child.stdout.take() {
            log.follow(output);
        }
        if let Some(output) = child.stderr.take() {
            log.follow(output);
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (gone_sender, gone) = watch::channel(false);
        let (exited_sender, exited) = oneshot::channel();
        self.lock().insert(spec.name.clone(), Group { leader, address, gone, _reserved: Arc::new(reserved) });
        let door = (self.settings.doors.clone(), spec.name.clone());
        tokio::spawn(watch_leader(child, leader, record, door, gone_sender, exited_sender));
        Ok(Started { address, at, exited })
    }

    async fn resume(self: Arc<Self>, name: SpriteName) -> Result<Instant, DriverError> {
        let group = self.group(&name).ok_or(DriverError::NoGuest)?;
        let at = Instant::now();
        kill_process_group(group.leader, Signal::CONT).map_err(|error| system("cannot continue it")(error.into()))?;
        // The kernel makes the group runnable before the call returns; this is the proof.
        let end = Instant::now() + FREEZE_TIMEOUT;
        loop {
            match state_of(group.leader) {
                None => return Err(DriverError::NoGuest),
                Some('T' | 't') if Instant::now() < end => tokio::task::yield_now().await,
                Some('T' | 't') => return Err(DriverError::NotStopped),
                Some(_) => return Ok(at),
            }
        }
    }

    async fn freeze(self: Arc<Self>, name: SpriteName) -> Result<(), DriverError> {
        let group = self.group(&name).ok_or(DriverError::NoGuest)?;
        let end = Instant::now() + FREEZE_TIMEOUT;
        loop {
            // Again in each round: a child forked in between would run on.
            kill_process_group(group.leader, Signal::STOP).map_err(|error| system("cannot freeze it")(error.into()))?;
            let members = members_of(group.leader);
            if members.iter().all(|(_, state)| matches!(state, 'T' | 't')) {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(DriverError::NotStopped);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn end(self: Arc<Self>, name: SpriteName) {
        let Some(group) = self.lock().remove(&name) else { return };
        let grace = if *group.gone.borrow() { Duration::ZERO } else { self.settings.stop_grace };
        end_group(group.leader, grace).await;
        let mut gone = group.gone;
        // Reaped by its own task, which ends with the leader.
        let _ = tokio::time::timeout(KILL_TIMEOUT, gone.wait_for(|gone| *gone)).await;
    }
}

impl WakeDriver for ProcessDriver {
    fn start(&self, spec: &SpriteSpec) -> BoxFuture<Result<Started, DriverError>> {
        Box::pin(Arc::clone(&self.inner).start(spec.clone()))
    }

    fn resume(&self, name: &SpriteName) -> BoxFuture<Result<Instant, DriverError>> {
        Box::pin(Arc::clone(&self.inner).resume(name.clone()))
    }

    fn freeze(&self, name: &SpriteName) -> BoxFuture<Result<(), DriverError>> {
        Box::pin(Arc::clone(&self.inner).freeze(name.clone()))
    }

    fn end(&self, name: &SpriteName) -> BoxFuture<()> {
        Box::pin(Arc::clone(&self.inner).end(name.clone()))
    }

    fn owns_listener(&self, name: &SpriteName, address: SocketAddr) -> bool {
        self.inner.group(name).is_some_and(|group| listens(group.leader, address.port()))
    }

    fn address(&self, name: &SpriteName) -> Option<SocketAddr> {
        self.inner.group(name).map(|group| group.address)
    }
}

pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> DriverError {
    move |source| DriverError::System { what, source }
}

fn command_of(command: &str, name: &SpriteName, port: u16, data: &Path) -> Command {
    let mut child = Command::new("sh");
    child.arg("-c").arg(command).current_dir(data).env_clear().process_group(0);
    // What a login would have; nothing of the edge's own environment leaks into a guest.
    child.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()));
    child.env("HOME", data).env("LANG", "C.UTF-8");
    child.env("PORT", port.to_string()).env("SPRITE_NAME", name.as_str());
    if let Ok(program) = std::env::current_exe() {
        child.env("EDGE_PROXY", program);
    }
    child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    child
}

/// Waits for the leader, ends what is left of its group, and tells.
async fn watch_leader(
    mut child: Child,
    leader: Pid,
    record: PathBuf,
    (doors, name): (DoorKeeper, SpriteName),
    gone: watch::Sender<bool>,
    exited: oneshot::Sender<String>,
) {
    let detail = match child.wait().await {
        Ok(status) => describe(status),
        Err(error) => format!("it cannot be waited for: {error}"),
    };
    // A group without its leader is no sprite: helpers it left behind would hold the port.
    end_group(leader, Duration::ZERO).await;
    remove_record(&record);
    doors.close(&name);
    gone.send_replace(true);
    // Nobody listens any more when the owner itself ended it.
    let _ = exited.send(detail);
}

/// How a process ended, in words.
pub(super) fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// SIGTERM, `grace`, SIGKILL; returns when no process of the group is left, or after
/// [`KILL_TIMEOUT`]. A frozen group is continued, or it could not act on the SIGTERM.
pub(super) async fn end_group(leader: Pid, grace: Duration) {
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
fn members_of(leader: Pid) -> Vec<(i32, char)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let stats = pids.filter_map(|pid| Stat::read(pid).map(|stat| (pid, stat)));
    let ours = |stat: &Stat| stat.group == leader.as_raw_nonzero().get() && !matches!(stat.state, 'Z' | 'X');
    stats.filter(|(_, stat)| ours(stat)).map(|(pid, stat)| (pid, stat.state)).collect()
}

fn state_of(pid: Pid) -> Option<char> {
    Stat::read(pid.as_raw_nonzero().get()).map(|stat| stat.state)
}

/// Whether a process of the group holds a socket that listens on `port`. Its own answer
/// is what makes a guest ready: a stranger's on the same port would be another sprite's.
fn listens(leader: Pid, port: u16) -> bool {
    let sockets = listening_sockets(port);
    let holds = |pid: i32| {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        entries.flatten().any(|entry| {
            std::fs::read_link(entry.path()).is_ok_and(|to| sockets.iter().any(|s| to.as_os_str() == s.as_str()))
        })
    };
    !sockets.is_empty()
        && (holds(leader.as_raw_nonzero().get()) || members_of(leader).into_iter().any(|(pid, _)| holds(pid)))
}

/// `PID START_TIME`, replaced as a whole.
pub(super) fn write_record(path: &Path, leader: Pid) -> io::Result<()> {
    let pid = leader.as_raw_nonzero().get();
    let started = Stat::read(pid).map_or(0, |stat| stat.started);
    let next = path.with_extension("next");
    std::fs::write(&next, format!("{pid} {started}\n"))?;
    std::fs::rename(next, path)
}

pub(super) fn recorded_leader(text: &str) -> Option<Pid> {
    let (pid, started) = text.trim().split_once(' ')?;
    let (pid, started): (i32, u64) = (pid.parse().ok()?, started.parse().ok()?);
    (Stat::read(pid)?.started == started).then_some(())?;
    Pid::from_raw(pid)
}

pub(super) fn remove_record(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot be removed");
    }
}

#[cfg(test)]
mod tests;
