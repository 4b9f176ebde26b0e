//! Driver `process`: a sprite is a command in its own process group, with `$PORT` and a
//! directory of its own that survives.
//!
//! Where this process may make cgroups (v2), each guest has one of its own (`cgroup.rs`): it is
//! frozen, ended and limited as a whole, whatever its processes do. Elsewhere it is held by
//! signals to its process group (`group.rs`), and has no limit of memory. Which of the two is
//! found out once, at the start, and logged.
//!
//! A frozen listener still accepts connections, in the kernel, so a guest counts as continued
//! only when the kernel says that it runs.

mod cgroup;
mod cgroups;
mod group;
mod listeners;

use self::cgroup::Cgroup;
use self::cgroups::{Cgroups, forget};
pub(super) use self::group::end_group;
use self::group::members_of;
use self::listeners::listening_sockets;
use super::log::Log;
use super::ports::Ports;
use super::stat::Stat;
use super::{DoorKeeper, DriverError, Started, WakeDriver, sprites_in};
use crate::spec::{DriverSpec, SpriteSpec};
use backhaul::owner::BoxFuture;
use router::names::SpriteName;
use rustix::process::Pid;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};

/// How long every process of a guest may need to be seen stopped (chosen: the kernel
/// needs microseconds, a process in disk sleep longer).
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long after SIGKILL a guest may still be seen (chosen, as above).
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two looks at what the kernel says.
const LOOK: Duration = Duration::from_millis(2);
/// Moves itself into a cgroup before it is the command: nothing that the command begins can be
/// outside of it.
const INSIDE: &str = "echo 0 >\"$1\" || exit; exec sh -c \"$2\"";

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
    /// Where cgroups are made.
    pub cgroup: config::Cgroup,
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
    /// Or why there are none.
    cgroups: Result<Cgroups, String>,
    groups: Mutex<HashMap<SpriteName, Group>>,
}

#[derive(Clone)]
struct Group {
    leader: Pid,
    /// None for one that is held by signals.
    cgroup: Option<Arc<Cgroup>>,
    address: SocketAddr,
    /// True once the leader was waited for.
    gone: watch::Receiver<bool>,
    /// Keeps the port from other owners on this machine.
    _reserved: Arc<UnixListener>,
}

impl ProcessDriver {
    /// With these settings. Finds out whether guests can have cgroups, which takes a few
    /// milliseconds.
    #[must_use]
    pub fn new(settings: ProcessSettings) -> Self {
        let ports = Ports::new(settings.first_port, settings.last_port);
        let cgroups = Cgroups::set_up(&settings.cgroup, &settings.directory);
        tell_what_is_used(&settings.cgroup, &cgroups);
        Self { inner: Arc::new(Inner { settings, ports, cgroups, groups: Mutex::default() }) }
    }

    /// Whether guests can have a limit of memory here.
    pub(super) fn check_memory_limit(&self) -> Result<(), DriverError> {
        let limited = self.inner.cgroups.as_ref().map_err(Clone::clone).and_then(Cgroups::memory);
        limited.map_err(|reason| DriverError::NoMemoryLimit { reason })
    }

    /// Ends what an owner that died left behind: what is in cgroups it made, and process groups.
    /// A group is ours only if its leader is the very process that was recorded: same id, same
    /// start time.
    pub(super) async fn reap_orphans(&self) -> Vec<SpriteName> {
        let directory = &self.inner.settings.directory;
        let folder = self.inner.cgroups.as_ref().ok().map(Cgroups::folder);
        let mut reaped: BTreeSet<_> = cgroups::reap(directory, folder).await.into_iter().collect();
        for name in sprites_in(directory) {
            let record = directory.join(name.as_str()).join("process");
            let Ok(text) = std::fs::read_to_string(&record) else { continue };
            if let Some(leader) = recorded_leader(&text) {
                tracing::info!(sprite = %name, pid = leader.as_raw_nonzero().get(), "ending an orphan");
                end_group(leader, Duration::ZERO).await;
                reaped.insert(name);
            }
            remove_record(&record);
        }
        reaped.into_iter().collect()
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
        let DriverSpec::Process { command, memory_mib } = &spec.driver else { return Err(DriverError::NoGuest) };
        let directory = self.settings.directory.join(spec.name.as_str());
        let data = directory.join("data");
        std::fs::create_dir_all(&data).map_err(system("cannot make the sprite's directory"))?;
        let log =
            Log::open(&directory.join("output.log"), self.settings.log_bytes).map_err(system("cannot open its log"))?;
        let (port, reserved) = self.ports.pick(&[])?;
        let cgroup = self.cgroup(&spec.name, &directory, *memory_mib)?;
        let mut command = command_of(command, &spec.name, port, &data, cgroup.as_deref());
        if let Some(door) = self.settings.doors.open(&spec.name) {
            command.env("SPRITE_API", door);
        }
        let spawned = command.spawn().map_err(system("cannot start its command"));
        if let (Err(_), Some(cgroup)) = (&spawned, &cgroup) {
            forget(cgroup, &directory);
        }
        let mut child = spawned?;
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
        let group = Group { leader, cgroup: cgroup.clone(), address, gone, _reserved: Arc::new(reserved) };
        self.lock().insert(spec.name.clone(), group);
        let (name, doors) = (spec.name, self.settings.doors.clone());
        let left = Left { name, leader, cgroup, directory, record, doors };
        tokio::spawn(async move {
            let detail = left.ended(child).await;
            gone_sender.send_replace(true);
            // Nobody listens any more when the owner itself ended it.
            let _ = exited_sender.send(detail);
        });
        Ok(Started { address, at, exited })
    }

    /// A cgroup for a guest. One with a limit of memory has one or does not begin; another is held
    /// by signals when it cannot have one.
    fn cgroup(
        &self,
        name: &SpriteName,
        directory: &Path,
        memory_mib: Option<u32>,
    ) -> Result<Option<Arc<Cgroup>>, DriverError> {
        let refused = |reason: &String| match memory_mib {
            Some(_) => Err(DriverError::NoMemoryLimit { reason: reason.clone() }),
            None => Ok(None),
        };
        let cgroups = match &self.cgroups {
            Ok(cgroups) => cgroups,
            Err(reason) => return refused(reason),
        };
        if let (Some(_), Err(reason)) = (memory_mib, cgroups.memory()) {
            return refused(&reason);
        }
        match cgroups.make(name, directory, memory_mib) {
            Ok(cgroup) => Ok(Some(Arc::new(cgroup))),
            Err(error) => {
                tracing::warn!(sprite = %name, %error, "no cgroup can be made for it");
                refused(&format!("no cgroup can be made for it: {error}"))
            }
        }
    }

    async fn resume(self: Arc<Self>, name: SpriteName) -> Result<Instant, DriverError> {
        let Group { leader, cgroup, .. } = self.group(&name).ok_or(DriverError::NoGuest)?;
        let at = Instant::now();
        match cgroup {
            Some(cgroup) if cgroup.is_empty() => Err(DriverError::NoGuest),
            Some(cgroup) => cgroup.thaw().await,
            None => group::thaw(leader).await,
        }
        .map(|()| at)
    }

    async fn freeze(self: Arc<Self>, name: SpriteName) -> Result<(), DriverError> {
        let Group { leader, cgroup, .. } = self.group(&name).ok_or(DriverError::NoGuest)?;
        match cgroup {
            Some(cgroup) => cgroup.freeze().await,
            None => group::freeze(leader).await,
        }
    }

    async fn end(self: Arc<Self>, name: SpriteName) {
        let Some(group) = self.lock().remove(&name) else { return };
        let grace = if *group.gone.borrow() { Duration::ZERO } else { self.settings.stop_grace };
        match &group.cgroup {
            Some(cgroup) => cgroup.end(grace).await,
            None => end_group(group.leader, grace).await,
        }
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
        self.inner.group(name).is_some_and(|group| group.listens(address.port()))
    }

    fn address(&self, name: &SpriteName) -> Option<SocketAddr> {
        self.inner.group(name).map(|group| group.address)
    }
}

pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> DriverError {
    move |source| DriverError::System { what, source }
}

/// One line at the start, for who wonders how guests are held on this host.
fn tell_what_is_used(choice: &config::Cgroup, cgroups: &Result<Cgroups, String>) {
    match cgroups {
        Ok(cgroups) => {
            let memory = cgroups.memory().map_or_else(|reason| format!("no: {reason}"), |()| "yes".into());
            let folder = cgroups.folder().display();
            tracing::info!(%folder, memory_limits = memory, "commands run in cgroups of their own");
        }
        Err(reason) if matches!(choice, config::Cgroup::At(_)) => {
            tracing::warn!(reason, "commands have no cgroups: they are held by signals to their process groups");
        }
        Err(reason) => {
            tracing::info!(reason, "commands have no cgroups: they are held by signals to their process groups");
        }
    }
}

fn command_of(command: &str, name: &SpriteName, port: u16, data: &Path, cgroup: Option<&Cgroup>) -> Command {
    let mut child = Command::new("sh");
    match cgroup {
        Some(cgroup) => child.arg("-c").arg(INSIDE).arg("sh").arg(cgroup.path().join("cgroup.procs")).arg(command),
        None => child.arg("-c").arg(command),
    };
    child.current_dir(data).env_clear().process_group(0);
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

/// What is to be put away once a guest's leader has ended.
struct Left {
    name: SpriteName,
    leader: Pid,
    cgroup: Option<Arc<Cgroup>>,
    directory: PathBuf,
    record: PathBuf,
    doors: DoorKeeper,
}

impl Left {
    /// Waits for the leader and ends what is left of its guest; how it ended.
    async fn ended(self, mut child: Child) -> String {
        let mut detail = match child.wait().await {
            Ok(status) => describe(status),
            Err(error) => format!("it cannot be waited for: {error}"),
        };
        // A guest without its leader is no sprite: helpers it left behind would hold the port.
        match &self.cgroup {
            Some(cgroup) => {
                cgroup.end(Duration::ZERO).await;
                if let Some(cause) = cgroup.ran_out_of_memory() {
                    tracing::warn!(sprite = %self.name, cause, "a guest died");
                    detail = cause;
                }
                forget(cgroup, &self.directory);
            }
            None => end_group(self.leader, Duration::ZERO).await,
        }
        remove_record(&self.record);
        self.doors.close(&self.name);
        detail
    }
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

impl Group {
    /// Whether a process of it holds a socket that listens on `port`. Its own answer is what makes
    /// a guest ready: a stranger's on the same port would be another sprite's.
    fn listens(&self, port: u16) -> bool {
        let sockets = listening_sockets(port);
        let holds = |pid: i32| {
            let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
            entries.flatten().any(|entry| {
                std::fs::read_link(entry.path()).is_ok_and(|to| sockets.iter().any(|s| to.as_os_str() == s.as_str()))
            })
        };
        !sockets.is_empty() && (holds(self.leader.as_raw_nonzero().get()) || self.members().into_iter().any(holds))
    }

    /// Its living processes.
    fn members(&self) -> Vec<i32> {
        match &self.cgroup {
            Some(cgroup) => cgroup.processes().into_iter().map(|pid| pid.as_raw_nonzero().get()).collect(),
            None => members_of(self.leader).into_iter().map(|(pid, _)| pid).collect(),
        }
    }
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
