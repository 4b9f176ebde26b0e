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
use crate::last_known_good;
use crate::names::SpriteName;
use crate::route::Route;
use crate::rows::{GENERATION_JUMP_MAX, RowError, SPRITE_PREFIX, SpriteRow};
use crate::store::{Cursor, Engine, FeedEvent, Store, StoreError};
use crate::subscriber::{Heard, Subscriber};
use crate::table::{Lookup, RouteTable};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Quiet time after which changes are written to the last-known-good file (chosen).
const SETTLE: Duration = Duration::from_millis(200);
/// Longest time changes stay unwritten when it never gets quiet (chosen).
const UNWRITTEN_MAX: Duration = Duration::from_secs(5);

/// Applies the store's sprite rows to `table`; never returns.
///
/// `last_known_good` is written after each snapshot and when changes have settled, so
/// that the next start can serve before any store answers.
///
/// # Cancel safety
/// Dropping it stops the table where it is; the file may be a few seconds behind.
pub async fn follow(store: Store, table: Arc<RouteTable>, last_known_good: PathBuf) {
    let mut applier = Applier::new(Arc::clone(&table), saved_cursor(&last_known_good));
    let mut subscriber = Subscriber::new(store, SPRITE_PREFIX);
    let mut unwritten_since = None;
    let mut quiet_at = Instant::now();
    loop {
        let write_at = unwritten_since.map(|since: Instant| quiet_at.min(since + UNWRITTEN_MAX));
        let heard = tokio::select! {
            // Overdue writing goes first, or a feed that never pauses would put it off for good.
            biased;
            () = tokio::time::sleep_until(write_at.unwrap_or(quiet_at)), if write_at.is_some() => {
                save(&applier, &table, &last_known_good).await;
                unwritten_since = None;
                continue;
            }
            () = table.removals_accepted() => applier.accept_removals(),
            heard = subscriber.next() => match heard {
                Heard::Event(event) => {
                    table.mark_fresh();
                    applier.handle(event, Instant::now())
                }
                Heard::Lost => {
                    table.mark_stale();
                    // From here on the file is all that a next start may have.
                    quiet_at = Instant::now();
                    After::Nothing
                }
            },
        };
        match heard {
            After::Nothing => {}
            After::Changed => {
                quiet_at = Instant::now() + SETTLE;
                unwritten_since.get_or_insert_with(Instant::now);
            }
            After::Synced => save(&applier, &table, &last_known_good).await,
        }
    }
}

async fn save(applier: &Applier, table: &Arc<RouteTable>, path: &Path) {
    let Some(cursor) = applier.cursor else { return };
    let (table, to) = (Arc::clone(table), path.to_owned());
    let written = tokio::task::spawn_blocking(move || last_known_good::write(&table, cursor, &to)).await;
    match written.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        Ok(()) => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "last-known-good routes not written"),
    }
}

fn saved_cursor(path: &Path) -> Option<Cursor> {
    // Whoever loaded the file has said already that it cannot be read.
    last_known_good::cursor(path).ok().flatten()
}

/// What is due after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Nothing,
    /// The table is not what was written last.
    Changed,
    /// A snapshot is complete.
    Synced,
}

/// The decisions, without clock, disk or task.
struct Applier {
    table: Arc<RouteTable>,
    /// The life of the store the table's routes are from: the file's, then what was followed.
    epoch: Option<u64>,
    /// How far the store has been followed; `None` while its rows are not to be written
    /// over the file.
    cursor: Option<Cursor>,
    /// Names that stand in the table only because the file, or an earlier life of the store, had them.
    unconfirmed: HashSet<SpriteName>,
    /// Names the snapshot in progress has; one it lacks is swept when it ends.
    snapshot: Option<HashSet<SpriteName>>,
    brake: Brake,
    /// What the brake keeps in the table.
    held: HashSet<SpriteName>,
}

impl Applier {
    fn new(table: Arc<RouteTable>, saved: Option<Cursor>) -> Self {
        let unconfirmed = table.names().into_iter().collect();
        Self {
            table,
            epoch: saved.map(|cursor| cursor.epoch),
            cursor: None,
            unconfirmed,
            snapshot: None,
            brake: Brake::default(),
            held: HashSet::new(),
        }
    }

    fn handle(&mut self, event: FeedEvent, now: Instant) -> After {
        let after = match event {
            FeedEvent::SnapshotBegin { epoch } => {
                self.snapshot = Some(HashSet::new());
                if self.epoch.is_some_and(|known| known != epoch) {
                    // Its generations count from another beginning.
                    self.unconfirmed = self.table.names().into_iter().collect();
                }
                After::Nothing
            }
            FeedEvent::Entry(entry) => {
                self.put(&entry.key, &entry.value);
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
                if let Some(name) = self.put(&entry.key, &entry.value) {
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
        self.table.set_held_removals(self.held.len());
        after
    }

    fn advance(&mut self, cursor: Cursor) {
        self.cursor = Some(cursor);
        self.epoch = Some(cursor.epoch);
    }

    /// The name whose route it is, unless the row was set aside.
    fn put(&mut self, key: &str, value: &[u8]) -> Option<SpriteName> {
        let (name, route) = self.checked(key, value)?;
        self.held.remove(&name);
        // What the file says of a sprite is over when the store speaks of it, whatever the
        // generations: a store that was made anew or brought back from a copy has lower
        // ones, and owners go by the store.
        if self.unconfirmed.remove(&name) {
            self.table.replace(&name, route);
        } else {
            self.table.apply_put(&name, route);
        }
        Some(name)
    }

    /// Takes routes out of the table, all or, if they are too many, none.
    fn remove(&mut self, names: &[SpriteName], now: Instant) {
        // A tombstone that goes, goes unnoticed.
        let lives = |name: &&SpriteName| matches!(self.table.lookup(*name), Lookup::Found(known) if !known.deleted);
        let living = names.iter().filter(lives).count();
        if living == 0 || self.brake.admits(now, self.table.len(), living) {
            for name in names {
                self.held.remove(name);
                self.unconfirmed.remove(name);
                self.table.apply_remove(name);
            }
            return;
        }
        if self.held.is_empty() {
            tracing::error!("too many routes vanish at once; they are served on until an operator accepts it");
        }
        self.held.extend(names.iter().cloned());
    }

    /// An operator says that what vanished is meant to be gone.
    fn accept_removals(&mut self) -> After {
        tracing::info!(routes = self.held.len(), "held removals accepted");
        for name in std::mem::take(&mut self.held) {
            self.unconfirmed.remove(&name);
            self.table.apply_remove(&name);
        }
        self.table.set_held_removals(0);
        After::Changed
    }

    fn snapshot_end(&mut self, cursor: Cursor, now: Instant) -> After {
        let Some(names) = self.snapshot.take() else { return After::Nothing };
        let made_anew = self.epoch.is_some_and(|known| known != cursor.epoch);
        if made_anew && names.is_empty() && !self.unconfirmed.is_empty() {
            let routes = self.unconfirmed.len();
            tracing::error!(routes, "the routing store has lost its rows; serving the last-known-good routes");
            self.table.mark_synced();
            return After::Nothing;
        }
        let gone: Vec<_> = self.table.names().into_iter().filter(|name| !names.contains(name)).collect();
        self.remove(&gone, now);
        // What is held is still another history's, whose generations say nothing here.
        self.unconfirmed.retain(|name| self.held.contains(name));
        self.advance(cursor);
        self.table.mark_synced();
        After::Synced
    }

    /// The row as a route, unless it is to be set aside.
    fn checked(&self, key: &str, value: &[u8]) -> Option<(SpriteName, Route)> {
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
            Ok((name, row.route()))
        });
        match decoded {
            Ok(checked) => Some(checked),
            Err(error) => {
                self.table.count_quarantined();
                tracing::warn!(key, %error, "row quarantined; the previous route stays");
                None
            }
        }
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
    let (routes, wrong) = last_known_good::read(path)?;
    if wrong > 0 {
        tracing::warn!(path = %path.display(), lines = wrong, "last-known-good routes that cannot be read are left out");
    }
    Ok(routes.into_iter().filter(|(name, route)| table.apply_put(name, route.clone())).count())
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
    let (key, value) = (SpriteRow::key(name), row.encode());
    match store.compare_and_set(&key, expected, Some(&value)).await {
        Err(StoreError::Uncertain(detail)) => match store.get(&key).await {
            Ok(Some(entry)) if entry.value == value && Some(entry.version) != expected => Ok(entry.version),
            _ => Err(StoreError::Uncertain(detail)),
        },
        done => done,
    }
}

#[cfg(test)]
mod tests;
