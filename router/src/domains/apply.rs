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
use crate::last_known_good;
use crate::store::{Cursor, Engine, FeedEvent, Store, StoreError};
use crate::subscriber::{Heard, Subscriber};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Quiet time after which changes are written to the last-known-good file (chosen, as for routes).
const SETTLE: Duration = Duration::from_millis(200);
/// Longest time changes stay unwritten when it never gets quiet (chosen, as for routes).
const UNWRITTEN_MAX: Duration = Duration::from_secs(5);

/// Applies the store's domain rows to `table`; never returns. `last_known_good` is written after each
/// snapshot and when changes have settled.
///
/// # Cancel safety
/// Dropping it stops the table where it is; the file may be a few seconds behind.
pub async fn follow(store: Store, table: Arc<DomainTable>, last_known_good: PathBuf) {
    // Whoever loaded the file has said already that it cannot be read.
    let saved = last_known_good::cursor(&last_known_good).ok().flatten();
    let mut applier = Applier::new(Arc::clone(&table), saved);
    let mut subscriber = Subscriber::new(store, DOMAIN_PREFIX);
    let mut unwritten_since = None;
    let mut quiet_at = Instant::now();
    loop {
        let write_at = unwritten_since.map(|since: Instant| quiet_at.min(since + UNWRITTEN_MAX));
        let changed = tokio::select! {
            // Overdue writing goes first, or a feed that never pauses would put it off for good.
            biased;
            () = tokio::time::sleep_until(write_at.unwrap_or(quiet_at)), if write_at.is_some() => {
                save(&applier, &last_known_good).await;
                unwritten_since = None;
                continue;
            }
            () = table.removals_accepted() => applier.accept_removals(),
            heard = subscriber.next() => match heard {
                Heard::Event(event) => applier.handle(event, Instant::now()),
                Heard::Lost => {
                    // From here on the file is all that a next start may have.
                    quiet_at = Instant::now();
                    false
                }
            },
        };
        if changed {
            quiet_at = Instant::now() + SETTLE;
            unwritten_since.get_or_insert_with(Instant::now);
        }
    }
}

async fn save(applier: &Applier, path: &Path) {
    let Some(cursor) = applier.cursor else { return };
    let (table, to) = (Arc::clone(&applier.table), path.to_owned());
    let write = move || {
        let rows = table.rows().into_iter().map(|(name, row)| (name, row.encode()));
        last_known_good::write_lines(rows, cursor, &to)
    };
    let written = tokio::task::spawn_blocking(write).await;
    if let Err(error) = written.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        tracing::warn!(path = %path.display(), %error, "last-known-good domains not written");
    }
}

/// Loads the domains of the last run, before any store answered; how many there were.
///
/// # Errors
/// The file is there and cannot be read, or is none of ours.
pub fn load_last_known_good(table: &DomainTable, path: &Path) -> std::io::Result<usize> {
    let decode = |name: &str, row: &[u8]| DomainRow::decode(&format!("{DOMAIN_PREFIX}{name}"), row).ok();
    let (rows, wrong) = last_known_good::read_lines(path, decode)?;
    if wrong > 0 {
        tracing::warn!(path = %path.display(), lines = wrong, "last-known-good domains that cannot be read are left out");
    }
    // The file config may have other suffixes than when it was written.
    let rows = rows.into_iter().filter(|(name, _)| !table.is_ours(name));
    Ok(rows.map(|(name, row)| table.apply_put(name, row)).count())
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
    let key = DomainRow::key(name);
    let value = (!row.is_empty()).then(|| row.encode());
    match store.compare_and_set(&key, expected, value.as_deref()).await {
        Err(StoreError::Uncertain(detail)) => match (store.get(&key).await, value) {
            (Ok(None), None) => Ok(()),
            (Ok(Some(entry)), Some(value)) if entry.value == value && Some(entry.version) != expected => Ok(()),
            _ => Err(StoreError::Uncertain(detail)),
        },
        done => done.map(drop),
    }
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

    /// Applies one event; whether the file is behind now.
    fn handle(&mut self, event: FeedEvent, now: Instant) -> bool {
        let changed = match event {
            FeedEvent::SnapshotBegin { .. } => {
                self.snapshot = Some(HashSet::new());
                false
            }
            FeedEvent::Entry(entry) => {
                self.put(&entry.key, &entry.value);
                if let Some(names) = &mut self.snapshot {
                    // Neither is a poisoned row swept: it is no proof that the domain is gone.
                    names.extend(name_in(&entry.key));
                }
                false
            }
            FeedEvent::SnapshotEnd(cursor) => self.snapshot_end(cursor, now),
            FeedEvent::Put(entry, cursor) => {
                self.advance(cursor);
                self.put(&entry.key, &entry.value);
                true
            }
            FeedEvent::Delete(key, cursor) => {
                self.advance(cursor);
                if let Some(name) = name_in(&key) {
                    self.remove(vec![name], now);
                }
                true
            }
            FeedEvent::Current(_) => false,
        };
        self.table.set_held_removals(self.held.len());
        changed
    }

    const fn advance(&mut self, cursor: Cursor) {
        self.cursor = Some(cursor);
        self.epoch = Some(cursor.epoch);
    }

    fn put(&mut self, key: &str, value: &[u8]) {
        let decoded = DomainRow::decode(key, value).and_then(|(name, row)| match self.table.is_ours(&name) {
            true => Err(DomainRowError::Ours(name)),
            false => Ok((name, row)),
        });
        match decoded {
            Ok((name, row)) => {
                self.held.remove(&name);
                self.table.apply_put(name, row);
            }
            Err(error) => {
                self.table.count_quarantined();
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

    fn accept_removals(&mut self) -> bool {
        for name in std::mem::take(&mut self.held) {
            self.table.apply_remove(&name);
        }
        self.table.set_held_removals(0);
        true
    }

    fn snapshot_end(&mut self, cursor: Cursor, now: Instant) -> bool {
        let Some(names) = self.snapshot.take() else { return false };
        let made_anew = self.epoch.is_some_and(|known| known != cursor.epoch);
        if made_anew && names.is_empty() && !self.table.is_empty() {
            let domains = self.table.len();
            tracing::error!(domains, "the routing store has lost its rows; serving the last-known-good domains");
            self.table.mark_synced();
            return false;
        }
        let gone = self.table.pick(|name, _| (!names.contains(name)).then(|| name.clone()));
        self.remove(gone, now);
        self.advance(cursor);
        self.table.mark_synced();
        true
    }
}

fn name_in(key: &str) -> Option<DomainName> {
    key.strip_prefix(DOMAIN_PREFIX).and_then(|name| DomainName::parse(name).ok())
}

#[cfg(test)]
mod tests;
