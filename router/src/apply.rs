//! From feed events to the table: every row is checked, a poisoned one is set aside and
//! the route it would have replaced stays.
//!
//! At start the table holds what the last run knew ([`load_last_known_good`]). Those routes
//! are *unconfirmed* until the store speaks of them, or its snapshot is complete without
//! them. One exception: a store that is empty and was made after the file was written has
//! lost its rows, and serving them from the file is better than serving nothing.

use crate::last_known_good;
use crate::names::SpriteName;
use crate::route::Route;
use crate::rows::{GENERATION_JUMP_MAX, RowError, SPRITE_PREFIX, SpriteRow};
use crate::store::{Cursor, EmbeddedStore, FeedEvent, FeedReceiver, StoreError};
use crate::table::{Lookup, RouteTable};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Pause before subscribing again after the feed failed (chosen).
const RETRY: Duration = Duration::from_millis(500);
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
pub async fn follow(store: Arc<EmbeddedStore>, table: Arc<RouteTable>, last_known_good: PathBuf) {
    let mut applier = Applier::new(Arc::clone(&table), saved_cursor(&last_known_good));
    loop {
        if let Some(feed) = subscribe(&store, SPRITE_PREFIX).await {
            run(&mut applier, feed, &table, &last_known_good).await;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// A feed from the store, which is asked where it may block; `None` when it failed.
pub(crate) async fn subscribe(store: &Arc<EmbeddedStore>, prefix: &'static str) -> Option<FeedReceiver> {
    let store = Arc::clone(store);
    match tokio::task::spawn_blocking(move || store.subscribe(prefix, None)).await {
        Ok(Ok(feed)) => Some(feed),
        Ok(Err(error)) => {
            tracing::error!(prefix, %error, "the store does not answer; what is known stays");
            None
        }
        Err(error) => {
            tracing::error!(prefix, %error, "the store failed; what is known stays");
            None
        }
    }
}

async fn run(applier: &mut Applier, mut feed: FeedReceiver, table: &Arc<RouteTable>, path: &Path) {
    let mut unwritten_since = None;
    let mut quiet_at = Instant::now();
    loop {
        let write_at = unwritten_since.map(|since: Instant| quiet_at.min(since + UNWRITTEN_MAX));
        let event = tokio::select! {
            // Overdue writing goes first, or a feed that never pauses would put it off for good.
            biased;
            () = tokio::time::sleep_until(write_at.unwrap_or(quiet_at)), if write_at.is_some() => {
                save(applier, table, path).await;
                unwritten_since = None;
                continue;
            }
            event = feed.next() => event,
        };
        let Some(event) = event else { return };
        match applier.handle(event) {
            After::Nothing => {}
            After::Changed => {
                quiet_at = Instant::now() + SETTLE;
                unwritten_since.get_or_insert_with(Instant::now);
            }
            After::Synced => save(applier, table, path).await,
            After::Resync => return tracing::warn!("fell behind the routing store; starting over"),
        }
    }
}

async fn save(applier: &mut Applier, table: &Arc<RouteTable>, path: &Path) {
    let Some(cursor) = applier.cursor else { return };
    let (table, to) = (Arc::clone(table), path.to_owned());
    let written = tokio::task::spawn_blocking(move || last_known_good::write(&table, cursor, &to)).await;
    match written.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        Ok(()) => applier.saved = Some(cursor),
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
    /// Events were lost.
    Resync,
}

/// The decisions, without clock, disk or task.
struct Applier {
    table: Arc<RouteTable>,
    /// What the last-known-good file is from.
    saved: Option<Cursor>,
    /// How far the store has been followed; `None` while its rows are not to be written
    /// over the file.
    cursor: Option<Cursor>,
    /// Names that stand in the table only because the file had them.
    unconfirmed: HashSet<SpriteName>,
    /// Names the snapshot in progress has; one it lacks is swept when it ends.
    snapshot: Option<HashSet<SpriteName>>,
}

impl Applier {
    fn new(table: Arc<RouteTable>, saved: Option<Cursor>) -> Self {
        let unconfirmed = table.names().into_iter().collect();
        Self { table, saved, cursor: None, unconfirmed, snapshot: None }
    }

    fn handle(&mut self, event: FeedEvent) -> After {
        match event {
            FeedEvent::SnapshotBegin { .. } => self.snapshot = Some(HashSet::new()),
            FeedEvent::Entry(entry) => {
                self.put(&entry.key, &entry.value);
                if let Some(names) = &mut self.snapshot {
                    // Neither is a poisoned row swept: it is no proof that the sprite is gone.
                    names.extend(name_in(&entry.key));
                }
            }
            FeedEvent::SnapshotEnd(cursor) => return self.snapshot_end(cursor),
            FeedEvent::Put(entry, cursor) => {
                self.cursor = Some(cursor);
                self.put(&entry.key, &entry.value);
                return After::Changed;
            }
            FeedEvent::Delete(key, cursor) => {
                self.cursor = Some(cursor);
                if let Some(name) = name_in(&key) {
                    self.unconfirmed.remove(&name);
                    self.table.apply_remove(&name);
                }
                return After::Changed;
            }
            FeedEvent::ResyncNeeded => return After::Resync,
        }
        After::Nothing
    }

    fn put(&mut self, key: &str, value: &[u8]) {
        let Some((name, route)) = self.checked(key, value) else { return };
        // What the file says of a sprite is over when the store speaks of it, whatever the
        // generations: a store that was made anew or brought back from a copy has lower
        // ones, and owners go by the store.
        if self.unconfirmed.remove(&name) {
            self.table.replace(&name, route);
        } else {
            self.table.apply_put(&name, route);
        }
    }

    fn snapshot_end(&mut self, cursor: Cursor) -> After {
        let Some(names) = self.snapshot.take() else { return After::Nothing };
        let made_anew = self.saved.is_some_and(|saved| saved.epoch != cursor.epoch);
        if made_anew && names.is_empty() && !self.unconfirmed.is_empty() {
            let routes = self.unconfirmed.len();
            tracing::error!(routes, "the routing store has lost its rows; serving the last-known-good routes");
            self.table.mark_synced();
            return After::Nothing;
        }
        for name in self.table.names() {
            if !names.contains(&name) {
                self.table.apply_remove(&name);
            }
        }
        self.unconfirmed.clear();
        self.cursor = Some(cursor);
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

/// Writes a sprite's row.
///
/// # Errors
/// [`StoreError`] of the write.
pub fn publish(
    store: &EmbeddedStore,
    name: &SpriteName,
    row: &SpriteRow,
    expected: Option<u64>,
) -> Result<u64, StoreError> {
    store.compare_and_set(&SpriteRow::key(name), expected, Some(&row.encode()))
}

#[cfg(test)]
mod tests;
