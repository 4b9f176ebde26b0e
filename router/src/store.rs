//! The embedded store: one file, one machine, durable before acknowledged.
//!
//! A key-value table with compare-and-set, and a feed of its changes: a snapshot, then a
//! tail, without a gap between them. It elects nothing and replicates nothing; an engine
//! that does gives the same calls. Calls block on the disk, so async callers use
//! `spawn_blocking` where a commit's few milliseconds matter.

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// key → (version, value)
const ROWS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("rows");
/// version → key that changed
const JOURNAL: TableDefinition<'_, u64, &str> = TableDefinition::new("journal");
/// `epoch` and `version`
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Changes kept for subscribers that come back (chosen: an hour of a busy fleet's moves).
const JOURNAL_LEN: u64 = 10_000;
/// Changes that may wait for one subscriber before it must start over (chosen).
const TAIL_LEN: usize = 4_096;
/// Largest value, bytes (chosen: a row is below 1 KiB).
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

/// One row. `version` is the store-wide number of the change that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Key.
    pub key: String,
    /// Value.
    pub value: Vec<u8>,
    /// Number of the change that wrote it.
    pub version: u64,
}

/// How far a subscriber has come, and in which life of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Drawn when the file was made; another one means another history.
    pub epoch: u64,
    /// The last change seen.
    pub version: u64,
}

/// What a feed delivers, in this order: a snapshot, then changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedEvent {
    /// What follows until [`FeedEvent::SnapshotEnd`] is everything there is.
    SnapshotBegin,
    /// One row of the snapshot.
    Entry(Entry),
    /// The snapshot is complete up to here.
    SnapshotEnd(Cursor),
    /// A row was written.
    Put(Entry, Cursor),
    /// A row was deleted.
    Delete(String, Cursor),
    /// Changes were lost to this subscriber: subscribe again without a cursor.
    ResyncNeeded,
}

/// Why the store did not do it. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody wrote the row in between; `actual` is its version, `None` when it does not exist.
    #[error("the row is at version {actual:?}, not {expected:?}")]
    Conflict {
        /// What the caller had seen.
        expected: Option<u64>,
        /// What is there.
        actual: Option<u64>,
    },
    /// The value exceeds [`VALUE_BYTES_MAX`].
    #[error("a value has at most {VALUE_BYTES_MAX} bytes")]
    TooLarge,
    /// The file is open in another process.
    #[error("the store is in use by another process")]
    InUse,
    /// The file could not be read or written.
    #[error("the store's file failed")]
    Storage(#[source] Box<redb::Error>),
}

fn storage(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Storage(Box::new(error.into()))
}

/// The store. Share it in an `Arc`; calls serialise on the one writer.
pub struct EmbeddedStore {
    database: Database,
    epoch: u64,
    writer: Mutex<Writer>,
}

struct Writer {
    version: u64,
    subscribers: Vec<Subscriber>,
}

struct Subscriber {
    prefix: String,
    tail: mpsc::Sender<FeedEvent>,
    /// Its queue was full once: it gets nothing more and is told when it has caught up.
    lost: bool,
}

impl EmbeddedStore {
    /// Opens the file, creating it when it is absent.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Storage`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::create(path).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse,
            error => storage(error),
        })?;
        let write = database.begin_write().map_err(storage)?;
        let (epoch, version) = {
            write.open_table(ROWS).map_err(storage)?;
            write.open_table(JOURNAL).map_err(storage)?;
            let mut meta = write.open_table(META).map_err(storage)?;
            let present = meta.get("epoch").map_err(storage)?.map(|epoch| epoch.value());
            let epoch = match present {
                Some(epoch) => epoch,
                None => {
                    let epoch = random_epoch();
                    meta.insert("epoch", epoch).map_err(storage)?;
                    epoch
                }
            };
            let version = meta.get("version").map_err(storage)?.map_or(0, |version| version.value());
            (epoch, version)
        };
        write.commit().map_err(storage)?;
        Ok(Self { database, epoch, writer: Mutex::new(Writer { version, subscribers: Vec::new() }) })
    }

    /// Reads one row.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let rows = self.database.begin_read().map_err(storage)?.open_table(ROWS).map_err(storage)?;
        let entry = rows.get(key).map_err(storage)?;
        Ok(entry.map(|row| {
            let (version, value) = row.value();
            Entry { key: key.into(), value: value.into(), version }
        }))
    }

    /// Reads every row whose key begins with `prefix`, in key order.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn scan(&self, prefix: &str) -> Result<Vec<Entry>, StoreError> {
        let rows = self.database.begin_read().map_err(storage)?.open_table(ROWS).map_err(storage)?;
        let mut entries = Vec::new();
        for row in rows.range(prefix..).map_err(storage)? {
            let (key, row) = row.map_err(storage)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            let (version, value) = row.value();
            entries.push(Entry { key: key.value().into(), value: value.into(), version });
        }
        Ok(entries)
    }

    /// Writes (`Some`) or deletes (`None`) a row if it is still at version `expected`
    /// (`None`: does not exist). Returns the change's version; it is on disk by then.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], [`StoreError::TooLarge`], [`StoreError::Storage`].
    pub fn compare_and_set(&self, key: &str, expected: Option<u64>, value: Option<&[u8]>) -> Result<u64, StoreError> {
        if value.is_some_and(|value| value.len() > VALUE_BYTES_MAX) {
            return Err(StoreError::TooLarge);
        }
        let mut writer = self.writer();
        let version = writer.version + 1;
        // redb's default durability: the commit returns after the data is on disk.
        let write = self.database.begin_write().map_err(storage)?;
        {
            let mut rows = write.open_table(ROWS).map_err(storage)?;
            let actual = rows.get(key).map_err(storage)?.map(|row| row.value().0);
            if actual != expected {
                return Err(StoreError::Conflict { expected, actual });
            }
            match value {
                Some(value) => drop(rows.insert(key, (version, value)).map_err(storage)?),
                None => drop(rows.remove(key).map_err(storage)?),
            }
            let mut journal = write.open_table(JOURNAL).map_err(storage)?;
            journal.insert(version, key).map_err(storage)?;
            if version > JOURNAL_LEN {
                journal.remove(version - JOURNAL_LEN).map_err(storage)?;
            }
            write.open_table(META).map_err(storage)?.insert("version", version).map_err(storage)?;
        }
        write.commit().map_err(storage)?;
        writer.version = version;
        let cursor = Cursor { epoch: self.epoch, version };
        writer.publish(key, |key| match value {
            Some(value) => FeedEvent::Put(Entry { key, value: value.into(), version }, cursor),
            None => FeedEvent::Delete(key, cursor),
        });
        Ok(version)
    }

    /// Subscribes to the rows under `prefix`: everything there is, or with a cursor of this
    /// life of the store that the journal still covers, what changed since; then the tail.
    ///
    /// # Errors
    /// [`StoreError::Storage`].
    pub fn subscribe(&self, prefix: &str, resume: Option<Cursor>) -> Result<FeedReceiver, StoreError> {
        // While the writer's lock is held nothing commits, so snapshot and tail meet exactly.
        let mut writer = self.writer();
        let now = Cursor { epoch: self.epoch, version: writer.version };
        let missed = resume.filter(|cursor| {
            cursor.epoch == self.epoch && cursor.version <= now.version && now.version - cursor.version < JOURNAL_LEN
        });
        let first = match missed {
            Some(cursor) => self.changes_since(prefix, cursor, now)?,
            None => {
                let rows = self.scan(prefix)?.into_iter().map(FeedEvent::Entry);
                let begin = std::iter::once(FeedEvent::SnapshotBegin);
                begin.chain(rows).chain(std::iter::once(FeedEvent::SnapshotEnd(now))).collect()
            }
        };
        let (tail, receiver) = mpsc::channel(TAIL_LEN);
        writer.subscribers.push(Subscriber { prefix: prefix.into(), tail, lost: false });
        Ok(FeedReceiver { first, tail: receiver })
    }

    fn changes_since(&self, prefix: &str, since: Cursor, now: Cursor) -> Result<VecDeque<FeedEvent>, StoreError> {
        let read = self.database.begin_read().map_err(storage)?;
        let journal = read.open_table(JOURNAL).map_err(storage)?;
        let mut keys = std::collections::BTreeMap::new();
        for change in journal.range(since.version + 1..).map_err(storage)? {
            let (version, key) = change.map_err(storage)?;
            if key.value().starts_with(prefix) {
                // Only the last change of a key is of interest.
                keys.insert(key.value().to_owned(), version.value());
            }
        }
        let mut events = VecDeque::new();
        for key in keys.into_keys() {
            events.push_back(match self.get(&key)? {
                Some(entry) => FeedEvent::Put(entry, now),
                None => FeedEvent::Delete(key, now),
            });
        }
        Ok(events)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A panic while it was held cannot leave it torn: redb's transaction is all or
        // nothing and the counters are set after the commit.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    fn publish(&mut self, key: &str, event: impl Fn(String) -> FeedEvent) {
        self.subscribers.retain_mut(|subscriber| {
            if subscriber.lost {
                return subscriber.tail.try_send(FeedEvent::ResyncNeeded).is_err() && !subscriber.tail.is_closed();
            }
            if !key.starts_with(&subscriber.prefix) {
                return !subscriber.tail.is_closed();
            }
            match subscriber.tail.try_send(event(key.into())) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    subscriber.lost = true;
                    true
                }
            }
        });
    }
}

/// A subscriber's end.
pub struct FeedReceiver {
    first: VecDeque<FeedEvent>,
    tail: mpsc::Receiver<FeedEvent>,
}

impl FeedReceiver {
    /// The next event; `None` when the store is gone or a resync is due and was told.
    ///
    /// # Cancel safety
    /// No event is lost.
    pub async fn next(&mut self) -> Option<FeedEvent> {
        match self.first.pop_front() {
            Some(event) => Some(event),
            None => self.tail.recv().await,
        }
    }
}

/// A number no earlier life of the file had: the time it was made, in nanoseconds.
fn random_epoch() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn store() -> (tempfile::TempDir, EmbeddedStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(&dir.path().join("store.redb")).unwrap();
        (dir, store)
    }

    #[test]
    fn what_was_acknowledged_is_there_after_reopening() {
        let (dir, store) = store();
        let version = store.compare_and_set("sprite/a", None, Some(b"1")).unwrap();
        drop(store);
        let store = EmbeddedStore::open(&dir.path().join("store.redb")).unwrap();
        assert_eq!(
            store.get("sprite/a").unwrap().unwrap(),
            Entry { key: "sprite/a".into(), value: b"1".into(), version }
        );
        assert!(store.compare_and_set("sprite/b", None, Some(b"2")).unwrap() > version);
    }

    #[test]
    fn a_write_against_an_old_version_changes_nothing() {
        let (_dir, store) = store();
        let first = store.compare_and_set("k", None, Some(b"1")).unwrap();
        let second = store.compare_and_set("k", Some(first), Some(b"2")).unwrap();
        for expected in [None, Some(first)] {
            let refused = store.compare_and_set("k", expected, Some(b"3"));
            assert!(matches!(refused, Err(StoreError::Conflict { actual, .. }) if actual == Some(second)));
        }
        assert_eq!(store.get("k").unwrap().unwrap().value, b"2");
        assert!(matches!(
            store.compare_and_set("k", Some(second), Some(&[0; VALUE_BYTES_MAX + 1])),
            Err(StoreError::TooLarge)
        ));
    }

    #[test]
    fn a_second_process_is_told_the_file_is_in_use() {
        let (dir, _store) = store();
        assert!(matches!(EmbeddedStore::open(&dir.path().join("store.redb")), Err(StoreError::InUse)));
    }

    #[tokio::test]
    async fn snapshot_and_tail_meet_without_a_gap_while_others_write() {
        let (_dir, store) = store();
        let store = Arc::new(store);
        let writer = Arc::clone(&store);
        let thread = std::thread::spawn(move || {
            for n in 0..200 {
                writer.compare_and_set(&format!("sprite/{n}"), None, Some(b"x")).unwrap();
            }
        });
        let mut feed = store.subscribe("sprite/", None).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < 200 {
            match feed.next().await.unwrap() {
                FeedEvent::Entry(entry) | FeedEvent::Put(entry, _) => assert!(seen.insert(entry.key), "twice"),
                FeedEvent::SnapshotBegin | FeedEvent::SnapshotEnd(_) => {}
                other => panic!("{other:?}"),
            }
        }
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn a_cursor_brings_only_what_changed_since_and_a_foreign_one_brings_all() {
        let (_dir, store) = store();
        store.compare_and_set("a/1", None, Some(b"1")).unwrap();
        let version = store.compare_and_set("a/2", None, Some(b"2")).unwrap();
        let cursor = Cursor { epoch: store.epoch, version };
        store.compare_and_set("a/3", None, Some(b"3")).unwrap();
        store.compare_and_set("a/2", Some(version), None).unwrap();
        let mut feed = store.subscribe("a/", Some(cursor)).unwrap();
        assert!(matches!(feed.next().await, Some(FeedEvent::Delete(key, _)) if key == "a/2"));
        assert!(matches!(feed.next().await, Some(FeedEvent::Put(entry, _)) if entry.key == "a/3"));
        let mut feed = store.subscribe("a/", Some(Cursor { epoch: cursor.epoch + 1, ..cursor })).unwrap();
        assert_eq!(feed.next().await, Some(FeedEvent::SnapshotBegin));
    }

    #[tokio::test]
    async fn a_subscriber_that_falls_behind_is_told_to_start_over() {
        let (_dir, store) = store();
        let mut feed = store.subscribe("a/", None).unwrap();
        {
            // Fills the queue without a disk write each.
            let mut writer = store.writer();
            let cursor = Cursor { epoch: store.epoch, version: 1 };
            for _ in 0..=TAIL_LEN {
                writer.publish("a/1", |key| FeedEvent::Delete(key, cursor));
            }
        }
        let mut events = 0;
        while !matches!(feed.next().await, Some(FeedEvent::Delete(..))) {
            events += 1;
            assert!(events < 10);
        }
        store.compare_and_set("a/2", None, Some(b"x")).unwrap();
        loop {
            if feed.next().await == Some(FeedEvent::ResyncNeeded) {
                break;
            }
        }
        assert_eq!(feed.next().await, None);
    }
}
