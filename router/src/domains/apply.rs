//! From feed events to the domains: every row is checked, a poisoned one is set aside and what it
//! would have replaced stays.
//!
//! As for routes ([`crate::apply`]): what the last run knew is served until the store speaks; a store that
//! is empty and was made anew has lost its rows and takes no domain away; many that vanish at once
//! are held back. Domains have no generations: within one feed the later row is the newer one.

use super::name::DomainName;
use super::row::{DOMAIN_PREFIX, DomainRow, DomainRowError};
use super::table::DomainTable;
use crate::brake::Brake;
use crate::follow::{self, After};
use crate::followed::Followed;
use crate::last_known_good::{self, Begins};
use crate::publish;
use crate::store::{Cursor, Engine, FeedEvent, Store, StoreError};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::time::Instant;

/// Applies the store's domain rows to `table`; never returns. `last_known_good` is written after each
/// snapshot and when changes have settled.
///
/// # Cancel safety
/// Dropping it stops the table where it is; the file may be a few seconds behind.
pub async fn follow(store: Store, table: Arc<DomainTable>, last_known_good: PathBuf) {
    let saved = follow::saved_cursor(&last_known_good);
    follow::follow(store, Applier::new(table, saved), last_known_good).await;
}

/// Loads the domains of the last run, before any store answered; how many there were.
///
/// # Errors
/// The file is there and cannot be read, or is none of ours.
pub fn load_last_known_good(table: &DomainTable, path: &Path) -> std::io::Result<usize> {
    let loaded = AtomicUsize::new(0);
    let wrong = last_known_good::for_each(path, Begins::WithCursor, |name, row| {
        let (name, row) = DomainRow::decode(&format!("{DOMAIN_PREFIX}{name}"), row).ok()?;
        // The config file may have other suffixes than when it was written.
        if !table.refuses(&name, &row) {
            table.apply_put(name, row);
            loaded.fetch_add(1, Ordering::Relaxed);
        }
        Some(())
    })?;
    if wrong > 0 {
        tracing::warn!(path = %path.display(), lines = wrong, "last-known-good domains that cannot be read are left out");
    }
    Ok(loaded.into_inner())
}

/// Writes a domain's row, or deletes it when nothing is left in it. A write that the store did not answer is
/// looked for: when the row is there as it was to be, it was written.
///
/// # Errors
/// [`StoreError`] of the write.
pub async fn publish(
    store: &dyn Engine,
    name: &DomainName,
    row: &DomainRow,
    expected: Option<u64>,
) -> Result<(), StoreError> {
    let value = (!row.is_empty()).then(|| row.encode());
    publish::publish(store, &DomainRow::key(name), value.as_deref(), expected).await.map(drop)
}

/// The decisions, without clock, disk or task.
struct Applier {
    table: Arc<DomainTable>,
    /// The life of the store the table's rows are from.
    epoch: Option<u64>,
    /// How far the store has been followed; `None` while its rows are not to be written over the file.
    cursor: Option<Cursor>,
    /// Domains the snapshot in progress has; one it lacks is swept when it ends.
    snapshot: Option<HashSet<DomainName>>,
    brake: Brake,
    /// What the brake keeps in the table.
    held: HashSet<DomainName>,
}

impl Applier {
    fn new(table: Arc<DomainTable>, saved: Option<Cursor>) -> Self {
        let epoch = saved.map(|cursor| cursor.epoch);
        Self { table, epoch, cursor: None, snapshot: None, brake: Brake::default(), held: HashSet::new() }
    }
}

impl follow::Applier for Applier {
    const PREFIX: &'static str = DOMAIN_PREFIX;
    const WHAT: &'static str = "domains";

    fn followed(&self) -> &Followed {
        self.table.followed()
    }

    fn handle(&mut self, event: FeedEvent, now: Instant) -> After {
        let after = match event {
            FeedEvent::SnapshotBegin { .. } => {
                self.snapshot = Some(HashSet::new());
                After::Nothing
            }
            FeedEvent::Entry(entry) => {
                self.put(&entry.key, &entry.value);
                if let Some(names) = &mut self.snapshot {
                    // Neither is a poisoned row swept: it is no proof that the domain is gone.
                    names.extend(name_in(&entry.key));
                }
                After::Nothing
            }
            FeedEvent::SnapshotEnd(cursor) => self.snapshot_end(cursor, now),
            FeedEvent::Put(entry, cursor) => {
                self.advance(cursor);
                self.put(&entry.key, &entry.value);
                After::Changed
            }
            FeedEvent::Delete(key, cursor) => {
                self.advance(cursor);
                if let Some(name) = name_in(&key) {
                    self.remove(vec![name], now);
                }
                After::Changed
            }
            FeedEvent::Current(_) => After::Nothing,
        };
        self.followed().set_held_removals(self.held.len());
        after
    }

    fn accept_removals(&mut self) -> After {
        for name in std::mem::take(&mut self.held) {
            self.table.apply_remove(&name);
        }
        self.followed().set_held_removals(0);
        After::Changed
    }

    fn save(&self) -> Option<impl FnOnce(&Path) -> std::io::Result<()> + Send + 'static> {
        let (cursor, table) = (self.cursor?, Arc::clone(&self.table));
        Some(move |path: &Path| {
            let rows = table.rows().into_iter().map(|(name, row)| (name, row.encode()));
            last_known_good::write_lines(rows, Some(cursor), path)
        })
    }
}

impl Applier {
    const fn advance(&mut self, cursor: Cursor) {
        self.cursor = Some(cursor);
        self.epoch = Some(cursor.epoch);
    }

    fn put(&mut self, key: &str, value: &[u8]) {
        let decoded = DomainRow::decode(key, value).and_then(|(name, row)| match self.table.refuses(&name, &row) {
            true => Err(DomainRowError::Ours(name)),
            false => Ok((name, row)),
        });
        match decoded {
            Ok((name, row)) => {
                self.held.remove(&name);
                self.table.apply_put(name, row);
            }
            Err(error) => {
                self.table.followed().count_quarantined();
                tracing::warn!(key, %error, "domain row quarantined; the previous one stays");
            }
        }
    }

    /// Takes domains out of the table, all or, if they are too many, none.
    fn remove(&mut self, names: Vec<DomainName>, now: Instant) {
        // A claim that goes, goes unnoticed.
        let lives = |name: &&DomainName| self.table.row(name).is_some_and(|row| row.sprite().is_some());
        let living = names.iter().filter(lives).count();
        if living == 0 || self.brake.admits(now, self.table.len(), living) {
            for name in &names {
                self.held.remove(name);
                self.table.apply_remove(name);
            }
            return;
        }
        if self.held.is_empty() {
            tracing::error!("too many domains vanish at once; they are served on until an operator accepts it");
        }
        self.held.extend(names);
    }

    fn snapshot_end(&mut self, cursor: Cursor, now: Instant) -> After {
        let Some(names) = self.snapshot.take() else { return After::Nothing };
        let made_anew = self.epoch.is_some_and(|known| known != cursor.epoch);
        if made_anew && names.is_empty() && !self.table.is_empty() {
            let domains = self.table.len();
            tracing::error!(domains, "the routing store has lost its rows; serving the last-known-good domains");
            self.table.followed().mark_synced();
            return After::Nothing;
        }
        let gone = self.table.pick(|name, _| (!names.contains(name)).then(|| name.clone()));
        self.remove(gone, now);
        self.advance(cursor);
        self.table.followed().mark_synced();
        After::Changed
    }
}

fn name_in(key: &str) -> Option<DomainName> {
    key.strip_prefix(DOMAIN_PREFIX).and_then(|name| DomainName::parse(name).ok())
}

#[cfg(test)]
mod tests;
