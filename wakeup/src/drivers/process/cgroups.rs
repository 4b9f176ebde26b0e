//! Where the cgroups of guests are made: found and tried once, at the start.
//!
//! An owner has a folder of its own, named after the directory of its sprites, so that the next
//! owner there finds what one that died has left and no other owner touches it. No privilege is
//! asked for: a part of the tree that was delegated (systemd's `Delegate=yes`) is as good as root.

use super::cgroup::{Cgroup, remove, write};
use crate::drivers::sprites_in;
use aws_lc_rs::digest::{SHA256, digest};
use router::names::SpriteName;
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Begin of the name of an owner's folder.
const PREFIX: &str = "edge-proxy.";
/// Where an owner moves itself when the kernel wants the cgroup it was in empty.
const SELF: &str = "edge-proxy.self";
/// Tries to lock it (chosen: whoever else holds the lock does so for microseconds).
const LOCK_TRIES: u32 = 100;
/// File in a sprite's directory: where its guest's cgroup is.
const RECORD: &str = "cgroup";

/// An owner's folder of cgroups.
#[derive(Debug)]
pub(super) struct Cgroups {
    folder: PathBuf,
    /// Why memory cannot be limited, if it cannot.
    memory: Result<(), String>,
    /// Says to other owners that this one lives; none where two of them share a directory, which
    /// their store does not let happen.
    _lock: Option<File>,
}

impl Cgroups {
    /// Makes the folder for the owner of the sprites in `sprites`, and tries whether guests can be
    /// held in it.
    ///
    /// # Errors
    /// Why they cannot, in words.
    pub(super) fn set_up(choice: &config::Cgroup, sprites: &Path) -> Result<Self, String> {
        let base = match choice {
            config::Cgroup::None => return Err("drivers.process.cgroup is \"none\"".into()),
            config::Cgroup::Auto => own()?,
            config::Cgroup::At(path) => path.clone(),
        };
        if !base.join("cgroup.procs").exists() {
            return Err(format!("{} is no cgroup (v2)", base.display()));
        }
        let folder = base.join(folder_name(sprites));
        match std::fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(format!("no cgroup can be made in {}: {error}", base.display()));
            }
            _ => {}
        }
        let lock = lock(&folder);
        remove_abandoned(&base, &folder);
        let mut cgroups = Self { folder, memory: Err(String::new()), _lock: lock };
        cgroups.try_out()?;
        cgroups.memory = limit_memory(&base, &cgroups.folder);
        Ok(cgroups)
    }

    /// A process enters a cgroup here, as guests will.
    fn try_out(&self) -> Result<(), String> {
        // No sprite has this name.
        let trial = Cgroup::make(self.folder.join("_trial"), None);
        let trial = trial.map_err(|error| format!("no cgroup can be made in {}: {error}", self.folder.display()))?;
        let entered = match trial.path().join("cgroup.freeze").exists() {
            true => enters(trial.path()),
            false => Err("this kernel cannot freeze a cgroup (Linux 5.2 can)".into()),
        };
        if let Err(error) = trial.remove() {
            tracing::warn!(cgroup = %trial.path().display(), %error, "cannot be removed");
        }
        entered
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether guests can have a limit of memory.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) fn memory(&self) -> Result<(), String> {
        self.memory.clone()
    }

    /// A new cgroup for a guest, and a record of it in the sprite's directory.
    pub(super) fn make(&self, name: &SpriteName, directory: &Path, memory_mib: Option<u32>) -> io::Result<Cgroup> {
        let path = self.folder.join(name.as_str());
        std::fs::write(directory.join(RECORD), path.as_os_str().as_encoded_bytes())?;
        Cgroup::make(path, memory_mib)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // It stays when a guest is left in it.
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// Ends the guests that an owner of the sprites in `sprites` has left in cgroups, wherever those
/// were, and removes them; whose there were.
pub(super) async fn reap(sprites: &Path, folder: Option<&Path>) -> Vec<SpriteName> {
    let ours = folder_name(sprites);
    let recorded = sprites_in(sprites).filter_map(|name| {
        let path = PathBuf::from(std::fs::read_to_string(sprites.join(name.as_str()).join(RECORD)).ok()?);
        // Whatever is written there, nothing is touched that was not made for this sprite.
        let is_ours = path.file_name()? == name.as_str() && path.parent()?.file_name()? == ours.as_str();
        is_ours.then_some((path, name))
    });
    let mut left: BTreeMap<PathBuf, SpriteName> = recorded.collect();
    if let Some(folder) = folder {
        left.extend(sprites_in(folder).map(|name| (folder.join(name.as_str()), name)));
    }
    let mut reaped = Vec::new();
    for (path, name) in left {
        let cgroup = Cgroup::found(path);
        if !cgroup.is_empty() {
            tracing::info!(sprite = %name, cgroup = %cgroup.path().display(), "ending an orphan");
            cgroup.end(Duration::ZERO).await;
            reaped.push(name.clone());
        }
        forget(&cgroup, &sprites.join(name.as_str()));
    }
    reaped
}

/// Removes a cgroup whose guest has ended, and the record of it.
pub(super) fn forget(cgroup: &Cgroup, directory: &Path) {
    match cgroup.remove() {
        Ok(()) => super::remove_record(&directory.join(RECORD)),
        Err(error) => tracing::warn!(cgroup = %cgroup.path().display(), %error, "cannot be removed"),
    }
}

/// Names an owner by where its sprites are.
fn folder_name(sprites: &Path) -> String {
    let absolute = std::path::absolute(sprites).unwrap_or_else(|_| sprites.into());
    let digest = digest(&SHA256, absolute.as_os_str().as_encoded_bytes());
    let hex = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}"));
    format!("{PREFIX}{}", hex.collect::<String>())
}

/// The cgroup (v2) this process is in, where it is mounted.
fn own() -> Result<PathBuf, String> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let inside = read("/proc/self/cgroup")?;
    let inside = inside.lines().find_map(|line| line.strip_prefix("0::")).ok_or("no cgroups of version 2 here")?;
    let mounts = read("/proc/self/mountinfo")?;
    let base = mounted(&mounts, Path::new(inside)).ok_or("our cgroup (v2) is not mounted")?;
    // Where an owner before us in this process has moved us.
    Ok(if base.ends_with(SELF) { base.parent().unwrap_or(&base).into() } else { base })
}

/// Where cgroup `inside` is, by `mountinfo` (proc(5): the fourth field is what of the tree is
/// mounted, the fifth is where; the type stands behind a hyphen).
fn mounted(mounts: &str, inside: &Path) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, at) = (place.next()?, place.next()?);
        let below = inside.strip_prefix(root).ok().filter(|_| kind.starts_with("cgroup2 "))?;
        // Joined to nothing, it would end in a slash.
        Some(if below.as_os_str().is_empty() { at.into() } else { Path::new(at).join(below) })
    })
}

/// A shell moves itself, as that of a guest does: the kernel has rules about who may (cgroups(7)).
fn enters(cgroup: &Path) -> Result<(), String> {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg("echo 0 >\"$1\"").arg("sh").arg(cgroup.join("cgroup.procs"));
    let output = shell.stdin(Stdio::null()).output().map_err(|error| format!("no shell: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("no process may enter one: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Lets the cgroups in `folder` limit memory, by way of `base`, which `folder` is in.
fn limit_memory(base: &Path, folder: &Path) -> Result<(), String> {
    let controllers = std::fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
    if !controllers.split_whitespace().any(|controller| controller == "memory") {
        return Err(format!("the memory controller is not delegated to {} (or is one of version 1)", base.display()));
    }
    let enable = |cgroup: &Path| {
        let enabled = write(&cgroup.join("cgroup.subtree_control"), "+memory");
        enabled.map_err(|error| format!("memory cannot be limited below {}: {error}", cgroup.display()))
    };
    if let Err(refused) = enable(base) {
        // A cgroup that hands out memory may have no process of its own, but for the root.
        let moved = move_aside(base).ok_or(refused)?;
        if let Err(refused) = enable(base) {
            let _ = write(&base.join("cgroup.procs"), "0");
            let _ = remove(&moved);
            return Err(refused);
        }
    }
    enable(folder)
}

/// Moves this process from `base` to a cgroup below it, when it is alone there: others are not
/// ours to move.
fn move_aside(base: &Path) -> Option<PathBuf> {
    let inside = std::fs::read_to_string(base.join("cgroup.procs")).ok()?;
    if inside.trim() != std::process::id().to_string() {
        return None;
    }
    let aside = base.join(SELF);
    match std::fs::create_dir(&aside) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return None,
        _ => {}
    }
    write(&aside.join("cgroup.procs"), "0").ok()?;
    tracing::info!(cgroup = %aside.display(), "moved there: memory is limited below the cgroup we were in");
    Some(aside)
}

/// Says that this owner lives. An owner that looks for folders of dead ones may hold the lock for
/// a moment, or have removed the folder before it was locked.
fn lock(path: &Path) -> Option<File> {
    (0..LOCK_TRIES).find_map(|tries| {
        if tries > 0 {
            std::thread::yield_now();
            let _ = std::fs::create_dir(path);
        }
        let folder = File::open(path).ok().filter(|folder| folder.try_lock().is_ok())?;
        let inode = |of: io::Result<Metadata>| of.map(|metadata| metadata.ino()).ok();
        (inode(folder.metadata()) == inode(std::fs::metadata(path))).then_some(folder)
    })
}

/// Removes what owners have left that died, if nothing is in it. Those who live hold a lock.
fn remove_abandoned(base: &Path, own: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_an_owners = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX) && name != SELF);
        if !is_an_owners || path == own {
            continue;
        }
        let Ok(folder) = File::open(&path) else { continue };
        if folder.try_lock().is_ok() && Cgroup::found(path.clone()).is_empty() {
            let _ = remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_found_where_it_is_mounted() {
        let unified = "25 1 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let found = |mounts, inside: &str| mounted(mounts, Path::new(inside));
        let service = "/system.slice/edge-proxy.service";
        assert_eq!(found(unified, service).unwrap(), Path::new("/sys/fs/cgroup/system.slice/edge-proxy.service"));
        assert_eq!(found(unified, "/").unwrap(), Path::new("/sys/fs/cgroup"));
        // A container that sees only its own part.
        let part = "25 1 0:22 /box /sys/fs/cgroup ro - cgroup2 cgroup rw";
        assert_eq!(found(part, "/box/a").unwrap(), Path::new("/sys/fs/cgroup/a"));
        assert_eq!(found(part, "/other"), None);
        // Version 1 beside version 2.
        let hybrid = "26 1 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      27 1 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        assert_eq!(found(hybrid, "/a").unwrap(), Path::new("/sys/fs/cgroup/unified/a"));
    }
}
