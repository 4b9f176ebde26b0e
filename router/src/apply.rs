//! From feed events to the table: every row is checked, a poisoned one is set aside and
//! the route it would have replaced stays.
//!
//! At start the table holds what the last run knew ([`load_last_known_good`]). Those routes
//! are *unconfirmed* until the store speaks of them, or its snapshot is complete without
//! them. One exception: a store that is empty and was made after the file was written has
//! lost its rows, and serving them from the file is better than serving nothing. The same
//! holds while it runs, when the store is made anew or brought back from a copy.
//!
//! Many rows that vanish at once are held back (`brake.rs`): their routes are served on until
//! the store speaks of them again or an operator says that it is right. A tombstone is no absence:
//! somebody wrote it, and it is believed.

use crate::brake::Brake;
use crate::bulk::Bulk;
use crate::follow::{self, After};
use crate::followed::Followed;
use crate::last_known_good::{self, Begins};
use crate::names::SpriteName;
use crate::placement::Known;
use crate::publish;
use crate::route::Route;
use crate::rows::{GENERATION_JUMP_MAX, RowError, SPRITE_PREFIX, SpriteRow};
use crate::store::{Cursor, Engine, FeedEvent, Store, StoreError};
use crate::table::{Lookup, RouteTable};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Applies the store's sprite rows to `table`; never returns.
///
/// `last_known_good` is written after each snapshot and when changes have settled, so
/// that the next start can serve before any store answers.
///
/// # Cancel safety
/// Dropping it stops the table where it is; the file may be a few seconds behind.
pub async fn follow(store: Store, table: Arc<RouteTable>, last_known_good: PathBuf) {
    follow_later(store, table, last_known_good, Duration::ZERO).await;
}

/// As [`follow()`], but when over 5 % of the routes (16 in any case) change their host or are deleted within a
/// minute, the further ones are applied `bulk_delay` later, as the store has them then. Not so what is
/// compared with the last run's file: nobody knows when that changed.
///
/// # Cancel safety
/// As [`follow()`].
pub async fn follow_later(store: Store, table: Arc<RouteTable>, last_known_good: PathBuf, bulk_delay: Duration) {
    follow_beside(store, table, Vec::new(), last_known_good, bulk_delay).await;
}

/// As [`follow_later`], of one region among several. A row that would take the place of what `others` say is judged
/// by that too: by how far its generation is from theirs, and, where operators sign, by whether its chain leads
/// through the host they name. Nobody takes a sprite he gave away to another region back in his own.
///
/// # Cancel safety
/// As [`follow()`].
pub async fn follow_beside(
    store: Store,
    table: Arc<RouteTable>,
    others: Vec<Arc<RouteTable>>,
    last_known_good: PathBuf,
    bulk_delay: Duration,
) {
    let saved = follow::saved_cursor(&last_known_good);
    let applier = Applier { bulk: Bulk::new(bulk_delay), others, ..Applier::new(table, saved) };
    follow::follow(store, applier, last_known_good).await;
}

/// The decisions, without clock, disk or task.
struct Applier {
    table: Arc<RouteTable>,
    /// What other regions say.
    others: Vec<Arc<RouteTable>>,
    /// The life of the store the table's routes are from: the file's, then what was followed.
    epoch: Option<u64>,
    /// How far the store has been followed; `None` while its rows are not to be written
    /// over the file.
    cursor: Option<Cursor>,
    /// Names that stand in the table only because the file, or an earlier life of the store, had them.
    unconfirmed: HashSet<SpriteName>,
    /// Those are of another history, whose generations say nothing here.
    foreign: bool,
    /// Names the snapshot in progress has; one it lacks is swept when it ends.
    snapshot: Option<HashSet<SpriteName>>,
    brake: Brake,
    bulk: Bulk,
    /// Of what waits there, the numbers of the rows within their generations.
    delayed_serials: HashMap<SpriteName, u64>,
    /// What the brake keeps in the table.
    held: HashSet<SpriteName>,
}

impl Applier {
    fn new(table: Arc<RouteTable>, saved: Option<Cursor>) -> Self {
        let unconfirmed = table.names().into_iter().collect();
        Self {
            table,
            others: Vec::new(),
            epoch: saved.map(|cursor| cursor.epoch),
            cursor: None,
            unconfirmed,
            foreign: false,
            snapshot: None,
            brake: Brake::default(),
            bulk: Bulk::new(Duration::ZERO),
            delayed_serials: HashMap::new(),
            held: HashSet::new(),
        }
    }
}

impl follow::Applier for Applier {
    const PREFIX: &'static str = SPRITE_PREFIX;
    const WHAT: &'static str = "routes";

    fn followed(&self) -> &Followed {
        self.table.followed()
    }

    fn handle(&mut self, event: FeedEvent, now: Instant) -> After {
        let after = match event {
            FeedEvent::SnapshotBegin { epoch } => {
                self.snapshot = Some(HashSet::new());
                if self.epoch.is_some_and(|known| known != epoch) {
                    // Its generations count from another beginning.
                    self.unconfirmed = self.table.names().into_iter().collect();
                    self.bulk.clear();
                    self.delayed_serials.clear();
                    self.foreign = true;
                }
                After::Nothing
            }
            FeedEvent::Entry(entry) => {
                self.put(&entry.key, &entry.value, now);
                if let Some(names) = &mut self.snapshot {
                    // Neither is a poisoned row swept: it is no proof that the sprite is gone.
                    names.extend(name_in(&entry.key));
                }
                After::Nothing
            }
            FeedEvent::SnapshotEnd(cursor) => {
                self.table.mark_caught_up();
                self.snapshot_end(cursor, now)
            }
            FeedEvent::Put(entry, cursor) => {
                self.advance(cursor);
                if let Some(name) = self.put(&entry.key, &entry.value, now) {
                    self.table.tell_applied(&name, entry.version);
                }
                After::Changed
            }
            FeedEvent::Delete(key, cursor) => {
                self.advance(cursor);
                if let Some(name) = name_in(&key) {
                    self.remove(&[name], now);
                }
                After::Changed
            }
            FeedEvent::Current(_) => {
                self.table.mark_caught_up();
                After::Nothing
            }
        };
        self.followed().set_held_removals(self.held.len());
        self.followed().set_delayed_changes(self.bulk.len());
        after
    }

    fn lost(&mut self) {
        self.table.mark_behind();
    }

    fn accept_removals(&mut self) -> After {
        tracing::info!(routes = self.held.len(), "held removals accepted");
        for name in std::mem::take(&mut self.held) {
            self.unconfirmed.remove(&name);
            self.table.apply_remove(&name);
        }
        self.followed().set_held_removals(0);
        After::Changed
    }

    fn turn(&mut self, now: Instant) -> After {
        let due = self.bulk.due(now);
        if due.is_empty() {
            return After::Nothing;
        }
        tracing::warn!(routes = due.len(), "changes that waited are applied");
        for (name, route) in due {
            let serial = self.delayed_serials.remove(&name).unwrap_or(0);
            if self.table.apply_put(&name, route) {
                self.table.set_serial(&name, serial);
            }
        }
        self.followed().set_delayed_changes(self.bulk.len());
        After::Changed
    }

    fn save(&self) -> Option<impl FnOnce(&Path) -> std::io::Result<()> + Send + 'static> {
        let (cursor, table) = (self.cursor?, Arc::clone(&self.table));
        Some(move |path: &Path| last_known_good::write(&table, cursor, path))
    }
}

impl Applier {
    fn advance(&mut self, cursor: Cursor) {
        self.cursor = Some(cursor);
        self.epoch = Some(cursor.epoch);
    }

    /// The name whose route it is, unless the row was set aside, or waits.
    fn put(&mut self, key: &str, value: &[u8], now: Instant) -> Option<SpriteName> {
        let (name, route, serial) = self.checked(key, value)?;
        self.held.remove(&name);
        // What the file says of a sprite is over when the store speaks of it, whatever the
        // generations: a store that was made anew or brought back from a copy has lower
        // ones, and owners go by the store.
        let applied = if self.unconfirmed.remove(&name) {
            self.table.replace(&name, route);
            true
        } else {
            let route = match self.table.lookup(&name) {
                Lookup::Found(present) => self.bulk.admit(now, self.table.len(), &name, &present, route),
                Lookup::Unknown | Lookup::NotReady => Some(route),
            };
            match route {
                Some(route) => {
                    self.delayed_serials.remove(&name);
                    self.table.apply_put(&name, route)
                }
                None => {
                    self.delayed_serials.insert(name, serial);
                    return None;
                }
            }
        };
        if applied {
            self.table.set_serial(&name, serial);
        }
        Some(name)
    }

    /// Takes routes out of the table, all or, if they are too many, none. Where operators sign, none: a sprite
    /// that is gone has a tombstone that its host has sealed, and a name that was forgotten could be
    /// taken by whoever has an old row of it.
    fn remove(&mut self, names: &[SpriteName], now: Instant) {
        for name in names {
            self.bulk.forget(name);
            self.delayed_serials.remove(name);
        }
        // A tombstone that goes, goes unnoticed.
        let lives = |name: &&SpriteName| matches!(self.table.lookup(*name), Lookup::Found(known) if !known.deleted);
        let living = names.iter().filter(lives).count();
        let signed = self.table.operators().demand();
        if !signed && (living == 0 || self.brake.admits(now, self.table.len(), living)) {
            for name in names {
                self.held.remove(name);
                self.unconfirmed.remove(name);
                self.table.apply_remove(name);
            }
            return;
        }
        if self.held.is_empty() && !names.is_empty() {
            let what = if signed { "routes vanish that nobody has ended" } else { "too many routes vanish at once" };
            tracing::error!("{what}; they are served on until an operator accepts it");
        }
        self.held.extend(names.iter().cloned());
    }

    fn snapshot_end(&mut self, cursor: Cursor, now: Instant) -> After {
        let Some(names) = self.snapshot.take() else { return After::Nothing };
        let made_anew = self.epoch.is_some_and(|known| known != cursor.epoch);
        if made_anew && names.is_empty() && !self.unconfirmed.is_empty() {
            let routes = self.unconfirmed.len();
            tracing::error!(routes, "the routing store has lost its rows; serving the last-known-good routes");
            self.table.followed().mark_synced();
            return After::Nothing;
        }
        let gone: Vec<_> = self.table.names().into_iter().filter(|name| !names.contains(name)).collect();
        self.remove(&gone, now);
        // What is held is still another history's, whose generations say nothing here.
        self.unconfirmed.retain(|name| self.held.contains(name));
        self.foreign &= !self.unconfirmed.is_empty();
        self.advance(cursor);
        self.table.followed().mark_synced();
        After::Synced
    }

    /// The row as a route and its number within the generation, unless it is to be set aside.
    fn checked(&self, key: &str, value: &[u8]) -> Option<(SpriteName, Route, u64)> {
        let decoded = SpriteRow::decode(key, value).and_then(|(name, row)| {
            match self.table.lookup(&name) {
                Lookup::Found(known) if !self.unconfirmed.contains(&name) => {
                    let (from, to) = (known.generation.0, row.generation.0);
                    if to.saturating_sub(from) > GENERATION_JUMP_MAX {
                        return Err(RowError::Jump { from, to });
                    }
                }
                _ => {}
            }
            let route = row.route();
            self.believe(&name, &row, &route)?;
            self.overrules(&name, &row)?;
            Ok((name, route, row.proof.serial))
        });
        match decoded {
            Ok(checked) => Some(checked),
            Err(error) => {
                self.table.followed().count_quarantined();
                if let (RowError::Forged(_), Some(name)) = (&error, name_in(key)) {
                    self.table.note_forged(name);
                }
                tracing::warn!(key, %error, "row quarantined; the previous route stays");
                None
            }
        }
    }
}

impl Applier {
    /// Whether a row may take the place of what another region says, if it does.
    fn overrules(&self, name: &SpriteName, row: &SpriteRow) -> Result<(), RowError> {
        let elsewhere = self.others.iter().filter_map(|table| match table.lookup(name) {
            Lookup::Found(route) => Some((route.generation, route.host, table.serial(name))),
            Lookup::Unknown | Lookup::NotReady => None,
        });
        let highest = elsewhere.max_by_key(|(generation, ..)| *generation);
        let Some((generation, host, serial)) = highest.filter(|(generation, ..)| *generation < row.generation) else {
            return Ok(());
        };
        // It took that place already.
        if matches!(self.table.lookup(name), Lookup::Found(known) if known.generation >= row.generation) {
            return Ok(());
        }
        let (from, to) = (generation.0, row.generation.0);
        if to - from > GENERATION_JUMP_MAX {
            return Err(RowError::Jump { from, to });
        }
        let known = Known { host, generation, serial, unchanged: false };
        row.check_proof(name, Some(known), self.table.operators())
    }

    /// Whether who wrote the row may have. What is known already is not asked about again: a snapshot of
    /// what the table holds costs no signature.
    fn believe(&self, name: &SpriteName, row: &SpriteRow, route: &Route) -> Result<(), RowError> {
        let operators = self.table.operators();
        if !operators.demand() {
            return Ok(());
        }
        let unconfirmed = self.unconfirmed.contains(name);
        let known = match self.table.lookup(name) {
            Lookup::Found(known) if !(unconfirmed && self.foreign) => known,
            _ => return row.check_proof(name, None, operators),
        };
        let serial = self.table.serial(name);
        if known == *route && serial == row.proof.serial && !unconfirmed {
            return Ok(());
        }
        // A restart's file of format 1 has no tenants.
        let unchanged = known == Route { tenant: known.tenant, ..route.clone() };
        let known = Known { host: known.host, generation: known.generation, serial, unchanged };
        row.check_proof(name, Some(known), operators)
    }
}

fn name_in(key: &str) -> Option<SpriteName> {
    key.strip_prefix(SPRITE_PREFIX).and_then(|name| SpriteName::parse(name).ok())
}

/// Loads the routes of the last run, before any store answered. Absence of a name still
/// means nothing then: the table is not marked as synced. Returns how many were loaded.
///
/// # Errors
/// The file is there and cannot be read, or is none of ours.
pub fn load_last_known_good(table: &RouteTable, path: &Path) -> std::io::Result<usize> {
    let loaded = AtomicUsize::new(0);
    let wrong = last_known_good::for_each(path, Begins::WithCursor, |name, row| {
        let (name, (route, serial)) = (SpriteName::parse(name).ok()?, last_known_good::decode(row)?);
        if table.apply_put(&name, route) {
            table.set_serial(&name, serial);
            loaded.fetch_add(1, Ordering::Relaxed);
        }
        Some(())
    })?;
    if wrong > 0 {
        tracing::warn!(path = %path.display(), lines = wrong, "last-known-good routes that cannot be read are left out");
    }
    Ok(loaded.into_inner())
}

/// Writes a sprite's row. A write that the store did not answer is looked for: when the row is
/// there as it was to be, it was written.
///
/// # Errors
/// [`StoreError`] of the write.
pub async fn publish(
    store: &dyn Engine,
    name: &SpriteName,
    row: &SpriteRow,
    expected: Option<u64>,
) -> Result<u64, StoreError> {
    publish::publish(store, &SpriteRow::key(name), Some(&row.encode()), expected).await
}

#[cfg(test)]
mod tests;
