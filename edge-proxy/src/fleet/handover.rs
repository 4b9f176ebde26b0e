//! `sprite move`: from the host that has a sprite to another one, while its visitors wait.
//!
//! ```text
//! hold → sleep cold → handover.json into its directory → move_hook → row "to host B"
//!      → B reads handover.json, says ready → the route names B → A lets go; who waited asks B
//! ```
//!
//! Until the route changes, every failure ends with the sprite where it was. What B has read it
//! keeps aside until the route names it: two hosts never own one sprite. What travels by the hook
//! and not by the store are data, definition and the secret of its share links.

use crate::admin::api::{Admin, Problem, failed};
use crate::admin::{access, sprites};
use crate::stores::Stores;
use anyhow::{Context, bail, ensure};
use http::StatusCode;
use router::access::Key;
use router::handover::{HANDOVER_PREFIX, HandoverRow, Handovers};
use router::hosts::HostTable;
use router::names::SpriteName;
use router::registry::RegistryRow;
use router::route::{Generation, HostId, HostRow};
use router::rows::ROW_VERSION;
use router::store::{Engine, StoreError};
use router::table::{Lookup, RouteTable};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use wakeup::owner::core::HOLD_MAX;
use wakeup::owner::{OwnerHandle, SleepError};
use wakeup::spec::{Depth, SpriteSpec, StateName};

/// In the sprite's directory: what the other host needs besides the data.
const FILE: &str = "handover.json";
/// Definitions that were read and are not owned yet are stored under this.
const INCOMING_PREFIX: &str = "incoming/";
/// How long the hold of the visitors may last until the route must have changed: the hold less a
/// write to the store that takes its time.
const ROUTE_BY: Duration = Duration::from_secs(20);
/// Pause between two looks at a table in memory, or at a sprite that wakes.
const LOOK: Duration = Duration::from_millis(5);
/// Most output of the hook that is told, bytes.
const OUTPUT_MAX: u64 = 2_048;

/// What a worker host needs to give sprites away and to take them.
pub struct Moving {
    /// The command that brings a sprite's directory to another host.
    pub hook: String,
    /// Where the directories are.
    pub sprites: PathBuf,
    /// This host in the registry.
    pub own: Arc<HostRow>,
    /// All of them.
    pub hosts: Arc<HostTable>,
    /// Sprites on their way.
    pub handovers: Arc<Handovers>,
    /// Those this process gives away now.
    pub giving: Giving,
}

/// Sprites this process gives away now: what a start finds of a former process is not theirs.
#[derive(Debug, Default)]
pub struct Giving(Mutex<HashSet<SpriteName>>);

impl Giving {
    fn begin(&self, name: &SpriteName) -> Given<'_> {
        self.names().insert(name.clone());
        Given { giving: self, name: name.clone() }
    }

    fn has(&self, name: &SpriteName) -> bool {
        self.names().contains(name)
    }

    fn names(&self) -> std::sync::MutexGuard<'_, HashSet<SpriteName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them, until it is dropped.
struct Given<'a> {
    giving: &'a Giving,
    name: SpriteName,
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        self.giving.names().remove(&self.name);
    }
}

/// What travels with the data.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Luggage {
    spec: SpriteSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    share_seed: Option<Key>,
}

/// Moves a sprite of this host to host `to`.
///
/// # Errors
/// Nothing has changed then: what was wrong.
pub(crate) async fn give(admin: &Admin, name: &SpriteName, to: &str) -> Result<Value, Problem> {
    let refused = |text: String| (StatusCode::CONFLICT, text);
    let moving = admin.moving.as_ref().ok_or_else(|| refused("this machine stands alone".into()))?;
    let target = moving.hosts.all().into_iter().find(|row| row.name == to);
    let target = target.ok_or_else(|| (StatusCode::NOT_FOUND, format!("to: there is no host {to}")))?;
    if target.number == moving.own.number {
        return Err(refused(format!("{name} is on {to} already")));
    }
    if moving.hook.is_empty() {
        return Err(refused("fleet.move_hook: none; nothing would bring its data there".into()));
    }
    let owner = admin.owner()?;
    let _giving = moving.giving.begin(name);
    let spec = sprites::definition(&admin.stores.local, name).map_err(failed)?;
    let began = Instant::now();
    owner.hold(name, HOLD_MAX).await;
    let given = hand_over(admin, moving, owner, spec, &target, began).await;
    if given.is_err() && leaving(&admin.stores).is_ok_and(|names| names.contains(name)) {
        // Nobody said whether the route has changed. Its visitors wait on, until the store says so or their
        // hold is over: it must not be served here if it is another's.
        let (stores, owner) = (admin.stores.clone(), owner.clone());
        tokio::spawn(clear_up(stores, owner, Arc::clone(&moving.hosts), moving.own.number));
        let error = given.err().map(|error| format!("{error:#}")).unwrap_or_default();
        return Err(refused(format!("{error}; the store is asked whether {name} has moved: see `sprite list`")));
    }
    drop(std::fs::remove_file(moving.sprites.join(name.as_str()).join(FILE)));
    if given.is_err() {
        owner.release(name).await;
    }
    let generation = given.map_err(|error| refused(format!("{error:#}; {name} stays where it is")))?;
    Ok(json!({ "moved": name, "to": to, "generation": generation, "held_ms": began.elapsed().as_millis() as u64 }))
}

async fn hand_over(
    admin: &Admin,
    moving: &Moving,
    owner: &OwnerHandle,
    spec: SpriteSpec,
    target: &HostRow,
    began: Instant,
) -> anyhow::Result<Generation> {
    let (stores, name) = (&admin.stores, spec.name.clone());
    let (row, version) = stores.own_row(&name).await?.context("it has no route")?;
    ensure!(row.host == moving.own.number && !row.deleted, "the store places it elsewhere");
    asleep(owner, &name, began).await?;
    let share_seed = access::seed(&stores.local, &name)?.map(Key);
    pack(&moving.sprites.join(name.as_str()), &Luggage { spec, share_seed })?;
    run_hook(moving, &name, target, ROUTE_BY.saturating_sub(began.elapsed())).await?;

    let generation = Generation(row.generation.0 + 1);
    let moved = stores.given(&name, row, target, generation)?;
    let handover = HandoverRow {
        version: ROW_VERSION,
        name: name.clone(),
        from: moving.own.number,
        to: target.number,
        generation,
        ready: false,
        seal: None,
    };
    let handover = said(stores, handover);
    let key = HandoverRow::key(&name);
    let before = stores.routes.get(&key).await?.map(|entry| entry.version);
    stores.routes.compare_and_set(&key, before, Some(&handover.encode())).await?;
    let published = async {
        ready(moving, stores, &handover, began).await?;
        let state = owner.status(&name).await.map(|status| status.state);
        ensure!(began.elapsed() < ROUTE_BY && state == Some(StateName::Asleep), "its visitors could wait no longer");
        leave(stores, &name, generation)?;
        stores.publish(&name, moved, Some(version)).await?;
        anyhow::Ok(())
    };
    let published = published.await;
    // Whatever came of it, this row has served.
    drop(remove(&*stores.routes, &key).await);
    if let Err(error) = published {
        if !is_uncertain(&error) {
            drop(sprites::put_local(&stores.local, &leaving_key(&name), None));
        }
        return Err(error);
    }
    if let Err(error) = let_go(stores, owner, &name, &target.name, generation).await {
        tracing::error!(sprite = %name, %error, "it has moved, but its definition is still here; the next start clears it up");
    }
    Ok(generation)
}

/// Whether the route may have changed although nobody said so.
fn is_uncertain(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(StoreError::Uncertain(_) | StoreError::Unavailable(_)))
}

async fn asleep(owner: &OwnerHandle, name: &SpriteName, began: Instant) -> anyhow::Result<()> {
    // What is open gets its grace; what it has in memory does not travel.
    while let Err(error) = owner.sleep(name, Depth::Cold).await {
        // A wake that has begun comes to its end first.
        let state = owner.status(name).await.context("it is gone")?.state;
        let wakes = error == SleepError::NotNow && state == StateName::Waking;
        ensure!(wakes && began.elapsed() < ROUTE_BY, "it is {state:?} and cannot be put to sleep");
        tokio::time::sleep(LOOK).await;
    }
    let status = owner.status(name).await.context("it is gone")?;
    ensure!(status.state == StateName::Asleep, "it is {:?} and not asleep", status.state);
    Ok(())
}

/// Readable for us alone: it may hold the secret of its share links.
fn pack(directory: &Path, luggage: &Luggage) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let path = directory.join(FILE);
    drop(std::fs::remove_file(&path));
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let file = file.with_context(|| path.display().to_string())?;
    Ok(serde_json::to_writer(file, luggage)?)
}

async fn run_hook(moving: &Moving, name: &SpriteName, target: &HostRow, patience: Duration) -> anyhow::Result<()> {
    let mut child = tokio::process::Command::new("sh")
        .args(["-c", &moving.hook])
        .env("SPRITE_NAME", name.as_str())
        .env("SPRITE_DIRECTORY", moving.sprites.join(name.as_str()))
        .env("SPRITE_FROM", &moving.own.name)
        .env("SPRITE_TO", &target.name)
        .env("SPRITE_TO_ADDRESS", target.endpoint.ip().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("fleet.move_hook")?;
    let mut said = String::new();
    let done = async {
        if let Some(stderr) = child.stderr.take() {
            // Binary output is left out, not an error.
            let mut stderr = stderr.take(OUTPUT_MAX);
            drop(stderr.read_to_string(&mut said).await);
        }
        child.wait().await
    };
    match tokio::time::timeout(patience, done).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => bail!("fleet.move_hook ended with {status}: {}", said.trim()),
        Ok(Err(error)) => bail!("fleet.move_hook: {error}"),
        Err(_) => bail!("fleet.move_hook took longer than {patience:?}"),
    }
}

/// As this host says it.
fn said(stores: &Stores, row: HandoverRow) -> HandoverRow {
    match &stores.own {
        Some(own) => row.sealed(&own.key),
        None => row,
    }
}

/// Whether it is that host's word. Without operators everybody's is.
fn is_word_of(host: HostId, row: &HandoverRow, stores: &Stores, moving: &Moving) -> bool {
    let key = || moving.hosts.lookup(host).and_then(|host| host.signing_key());
    stores.own.is_none() || key().is_some_and(|key| row.is_of(&key))
}

/// Waits until the other host has it.
async fn ready(moving: &Moving, stores: &Stores, row: &HandoverRow, began: Instant) -> anyhow::Result<()> {
    while began.elapsed() < ROUTE_BY {
        let now = moving.handovers.lookup(row.name.clone());
        let now = now.filter(|now| now.ready && now.generation == row.generation && now.to == row.to);
        if now.is_some_and(|now| is_word_of(row.to, &now, stores, moving)) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
    bail!("the other host does not say that it is ready")
}

/// Written before the route changes: a host that starts again must ask the store before it takes the
/// sprite for its own.
fn leave(stores: &Stores, name: &SpriteName, generation: Generation) -> anyhow::Result<()> {
    sprites::put_local(&stores.local, &leaving_key(name), Some(generation.0.to_string().as_bytes()))?;
    Ok(())
}

fn leaving_key(name: &SpriteName) -> String {
    format!("leaving/{name}")
}

/// It is another host's from now on: who waits here is told.
async fn let_go(
    stores: &Stores,
    owner: &OwnerHandle,
    name: &SpriteName,
    to: &str,
    generation: Generation,
) -> anyhow::Result<()> {
    // First of all: from here on nobody is served by it any more.
    owner.moved(name, to, generation.0).await;
    stores.remember(name, None)?;
    sprites::put_local(&stores.local, &sprites::spec_key(name), None)?;
    access::forget_seed(&stores.local, name)?;
    sprites::put_local(&stores.local, &leaving_key(name), None)?;
    Ok(())
}

/// A sprite whose last move may have come to its end is not this host's before the store has said so: at
/// start, and when a write to the store had no answer. Ends when all have been cleared up.
pub async fn clear_up(stores: Stores, owner: OwnerHandle, hosts: Arc<HostTable>, own: HostId) {
    loop {
        match cleared(&stores, &owner, &hosts, own).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "moves that were cut short are not cleared up yet"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Takes back what a former process of this host has said of sprites it gives away and did not come to the end of:
/// a row in the store that nobody else would remove, and for which the other host would wait for ever. Whether a
/// route has changed since is asked elsewhere ([`clear_up`]). Ends when the store has been read and no such row is left.
pub async fn call_off_cut_short(stores: Stores, moving: Arc<Moving>) {
    while let Err(error) = called_off(&stores, &moving).await {
        tracing::debug!(%error, "moves that were cut short are not called off yet");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn called_off(stores: &Stores, moving: &Moving) -> anyhow::Result<()> {
    for entry in stores.routes.scan(HANDOVER_PREFIX).await? {
        let Ok(row) = HandoverRow::decode(&entry.key, &entry.value) else { continue };
        // What this process says was said before the scan could see it; a later word has a later version.
        if row.from == moving.own.number && !moving.giving.has(&row.name) {
            match stores.routes.compare_and_set(&entry.key, Some(entry.version), None).await {
                Ok(_) => {
                    tracing::warn!(sprite = %row.name, "its move was cut short by the end of this host; called off")
                }
                // Said anew meanwhile.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// The names of those.
///
/// # Errors
/// The local file cannot be read.
pub fn leaving(stores: &Stores) -> Result<Vec<SpriteName>, StoreError> {
    let entries = stores.local.scan("leaving/")?;
    Ok(entries.iter().filter_map(|entry| SpriteName::parse(entry.key.strip_prefix("leaving/")?).ok()).collect())
}

async fn cleared(stores: &Stores, owner: &OwnerHandle, hosts: &HostTable, own: HostId) -> anyhow::Result<bool> {
    for name in leaving(stores)? {
        // Not by what this host remembers: it may have given it away since.
        let row = stores.believed(&name).await?;
        // Left behind when the store went away: the other host would wait for its route for ever.
        call_off(&*stores.routes, &name, own).await?;
        let Some(spec) = sprites::find(&stores.local, &name)? else {
            sprites::put_local(&stores.local, &leaving_key(&name), None)?;
            continue;
        };
        owner.upsert(spec).await;
        match row {
            Some((row, _)) if row.host != own => {
                let to = hosts.lookup(row.host).map_or_else(String::new, |row| row.name.clone());
                let_go(stores, owner, &name, &to, row.generation).await?;
            }
            _ => {
                sprites::put_local(&stores.local, &leaving_key(&name), None)?;
                owner.release(&name).await;
            }
        }
    }
    Ok(leaving(stores)?.is_empty())
}

/// Takes the sprites that are meant for this host, for as long as it runs; never returns.
pub async fn receive(stores: Stores, owner: OwnerHandle, table: Arc<RouteTable>, moving: Arc<Moving>) {
    let mut changes = moving.handovers.changes();
    changes.mark_changed();
    loop {
        let waits = match adopt(&stores, &owner, &table, &moving).await {
            Ok(waits) => waits,
            Err(error) => {
                tracing::warn!(%error, "sprites on their way to this host wait");
                true
            }
        };
        if waits {
            // For the route: the table is in memory.
            drop(tokio::time::timeout(LOOK, changes.changed()).await);
        } else if changes.changed().await.is_err() {
            return;
        }
        for row in moving.handovers.all() {
            if row.to == moving.own.number
                && !row.ready
                && let Err(error) = unpack(&stores, &owner, &moving, &row).await
            {
                tracing::warn!(sprite = %row.name, error = format!("{error:#}"), "a sprite meant for this host cannot be taken");
            }
        }
    }
}

/// Reads what came with the data, keeps it aside, and says so.
async fn unpack(stores: &Stores, owner: &OwnerHandle, moving: &Moving, row: &HandoverRow) -> anyhow::Result<()> {
    let key = HandoverRow::key(&row.name);
    let Some(entry) = stores.routes.get(&key).await? else { return Ok(()) };
    if HandoverRow::decode(&key, &entry.value)? != *row {
        return Ok(());
    }
    ensure!(is_word_of(row.from, row, stores, moving), "the host that has it has not said so");
    let path = moving.sprites.join(row.name.as_str()).join(FILE);
    let text = tokio::fs::read(&path).await.with_context(|| path.display().to_string())?;
    let Luggage { spec, share_seed } = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    ensure!(spec.name == row.name, "{} is of {}", path.display(), spec.name);
    owner.check(&spec.driver).context("this host cannot run it")?;
    let spec = SpriteSpec { generation: row.generation.0, ..spec };
    let luggage = serde_json::to_vec(&Luggage { spec, share_seed })?;
    sprites::put_local(&stores.local, &format!("{INCOMING_PREFIX}{}", row.name), Some(&luggage))?;
    let ready = said(stores, HandoverRow { ready: true, ..row.clone() });
    stores.routes.compare_and_set(&key, Some(entry.version), Some(&ready.encode())).await?;
    Ok(())
}

/// Makes those its own whom the route names, and drops those who went elsewhere. Whether some are left.
async fn adopt(stores: &Stores, owner: &OwnerHandle, table: &RouteTable, moving: &Moving) -> anyhow::Result<bool> {
    let mut waits = false;
    for entry in stores.local.scan(INCOMING_PREFIX)? {
        let Luggage { spec, share_seed } = serde_json::from_slice(&entry.value)?;
        let name = spec.name.clone();
        let ours = match table.lookup(&name) {
            Lookup::Found(route) => route.host == moving.own.number && route.generation.0 == spec.generation,
            Lookup::Unknown | Lookup::NotReady => false,
        };
        if ours {
            let encoded = serde_json::to_vec(&spec)?;
            sprites::put_local(&stores.local, &sprites::spec_key(&name), Some(&encoded))?;
            if let Some(seed) = share_seed {
                access::install_seed(&stores.local, &name, &seed.0)?;
            }
            drop(std::fs::remove_file(moving.sprites.join(name.as_str()).join(FILE)));
            owner.upsert(spec).await;
            sprites::put_local(&stores.local, &entry.key, None)?;
            if stores.own.is_some()
                && let Some((row, _)) = stores.believed(&name).await?
            {
                stores.remember(&name, Some(&row))?;
            }
            tracing::info!(sprite = %name, "taken over");
        } else if moving.handovers.lookup(name.clone()).is_none() && !named(stores, moving, &spec).await? {
            // It was called off.
            sprites::put_local(&stores.local, &entry.key, None)?;
        } else {
            waits = true;
        }
    }
    Ok(waits)
}

/// Whether the store itself names this host: the table may be behind.
async fn named(stores: &Stores, moving: &Moving, spec: &SpriteSpec) -> anyhow::Result<bool> {
    let read = stores.believed(&spec.name).await?;
    Ok(read.is_some_and(|(row, _)| row.host == moving.own.number && row.generation.0 == spec.generation))
}

/// Removes what this host has written about a move; not what another one has, which has the sprite now and gives
/// it on.
async fn call_off(store: &dyn Engine, name: &SpriteName, own: HostId) -> anyhow::Result<()> {
    let key = HandoverRow::key(name);
    let Some(entry) = store.get(&key).await? else { return Ok(()) };
    if HandoverRow::decode(&key, &entry.value)?.from == own {
        store.compare_and_set(&key, Some(entry.version), None).await?;
    }
    Ok(())
}

async fn remove(store: &dyn Engine, key: &str) -> Result<(), StoreError> {
    if let Some(entry) = store.get(key).await? {
        store.compare_and_set(key, Some(entry.version), None).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
