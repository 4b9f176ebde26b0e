//! The embedded store: one file, one machine, durable before acknowledged.
//!
//! A key-value table with compare-and-set, and a feed of its changes: a snapshot, then a
//! tail, without a gap between them. It elects nothing and replicates nothing. Calls block on
//! the disk; [`Embedded`] is the same for async callers, as an engine among the others.

use super::feed::{Feeder, feed};
use super::{Answer, Cursor, Engine, Entry, Feed, FeedEvent, StoreError, VALUE_BYTES_MAX, check_key, check_write};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::{HashMap, VecDeque};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// key → (version, value)
const ROWS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("rows");
/// version → key that changed
const JOURNAL: TableDefinition<'_, u64, &str> = TableDefinition::new("journal");
/// `epoch` and `version`
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Changes kept for subscribers that come back (chosen: an hour of a busy fleet's moves).
const JOURNAL_LEN: u64 = 10_000;
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
    tail: Feeder,
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
        // It holds what signs share links.
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(storage)?;
        let write = database.begin_write().map_err(storage)?;
        let (epoch, version) = {
            write.open_table(ROWS).map_err(storage)?;
            write.open_table(JOURNAL).map_err(storage)?;
            let mut meta = write.open_table(META).map_err(storage)?;
            let present = meta.get("epoch").map_err(storage)?.map(|epoch| epoch.value());
            let epoch = match present {
                Some(epoch) => epoch,
                None => {
                    let epoch = getrandom::u64().map_err(|error| storage(std::io::Error::other(error.to_string())))?;
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
    pub fn subscribe(&self, prefix: &str, resume: Option<Cursor>) -> Result<Feed, StoreError> {
        // While the writer's lock is held nothing commits, so snapshot and tail meet exactly.
        let mut writer = self.writer();
        let now = Cursor { epoch: self.epoch, version: writer.version };
        let missed = resume.filter(|cursor| {
            cursor.epoch == self.epoch && cursor.version <= now.version && now.version - cursor.version < JOURNAL_LEN
        });
        let first = match missed {
            Some(cursor) => {
                let mut changes = self.changes_since(prefix, cursor)?;
                changes.push_back(FeedEvent::Current(now));
                changes
            }
            None => {
                let rows = self.scan(prefix)?.into_iter().map(FeedEvent::Entry);
                let begin = std::iter::once(FeedEvent::SnapshotBegin { epoch: self.epoch });
                begin.chain(rows).chain(std::iter::once(FeedEvent::SnapshotEnd(now))).collect()
            }
        };
        let (tail, feed) = feed(first);
        writer.subscribers.push(Subscriber { prefix: prefix.into(), tail });
        Ok(feed)
    }

    /// In the order of their versions, each with its own cursor: one who stops in the middle
    /// and comes back with the last cursor seen has missed nothing.
    fn changes_since(&self, prefix: &str, since: Cursor) -> Result<VecDeque<FeedEvent>, StoreError> {
        let read = self.database.begin_read().map_err(storage)?;
        let (journal, rows) = (read.open_table(JOURNAL).map_err(storage)?, read.open_table(ROWS).map_err(storage)?);
        let mut last = HashMap::new();
        for change in journal.range(since.version + 1..).map_err(storage)? {
            let (version, key) = change.map_err(storage)?;
            if key.value().starts_with(prefix) {
                // Only the last change of a key is of interest.
                last.insert(key.value().to_owned(), version.value());
            }
        }
        let mut last: Vec<_> = last.into_iter().collect();
        last.sort_unstable_by_key(|&(_, version)| version);
        let events = last.into_iter().map(|(key, version)| {
            let cursor = Cursor { epoch: self.epoch, version };
            Ok(match rows.get(key.as_str()).map_err(storage)? {
                Some(row) => {
                    let (version, value) = row.value();
                    FeedEvent::Put(Entry { key, value: value.into(), version }, cursor)
                }
                None => FeedEvent::Delete(key, cursor),
            })
        });
        events.collect()
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        // A panic while it was held cannot leave it torn: redb's transaction is all or
        // nothing and the counters are set after the commit.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    fn publish(&mut self, key: &str, event: impl Fn(String) -> FeedEvent) {
        // One that fell behind is let go at once, so that it learns of it even if nothing is ever
        // written again.
        self.subscribers.retain_mut(|subscriber| match key.starts_with(&subscriber.prefix) {
            true => subscriber.tail.push(event(key.into())),
            false => !subscriber.tail.is_closed(),
        });
    }
}

/// The embedded store as an [`Engine`]: durable when acknowledged, for this machine's disk.
///
/// Calls run where they may block, so they end when the disk does. They are done all the same
/// when the caller no longer waits.
#[derive(Clone)]
pub struct Embedded(pub Arc<EmbeddedStore>);

impl Embedded {
    fn call<'a, T: Send + 'static>(
        &self,
        work: impl FnOnce(&EmbeddedStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<'a, T> {
        let store = Arc::clone(&self.0);
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || work(&store)).await;
            done.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
        })
    }
}

impl Engine for Embedded {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>> {
        let key = key.to_owned();
        self.call(move |store| check_key(&key).and_then(|()| store.get(&key)))
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Entry>> {
        let prefix = prefix.to_owned();
        self.call(move |store| store.scan(&prefix))
    }

    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64> {
        let (key, value) = (key.to_owned(), value.map(<[u8]>::to_vec));
        self.call(move |store| {
            check_write(&key, value.as_deref())?;
            store.compare_and_set(&key, expected, value.as_deref())
        })
    }

    fn subscribe<'a>(&'a self, prefix: &'a str, resume: Option<Cursor>) -> Answer<'a, Feed> {
        let prefix = prefix.to_owned();
        self.call(move |store| store.subscribe(&prefix, resume))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        const WRITERS: usize = 3;
        const EACH: usize = 60;
        let (_dir, store) = store();
        let store = Arc::new(store);
        let threads: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let store = Arc::clone(&store);
                std::thread::spawn(move || {
                    for n in 0..EACH {
                        store.compare_and_set(&format!("sprite/{writer}-{n}"), None, Some(b"x")).unwrap();
                    }
                })
            })
            .collect();
        // Several subscribers come at whatever moment of it they come.
        for _ in 0..3 {
            let mut feed = store.subscribe("sprite/", None).unwrap();
            let (mut seen, mut tail) = (std::collections::BTreeSet::new(), 0);
            while seen.len() < WRITERS * EACH {
                match feed.next().await.unwrap() {
                    FeedEvent::Entry(entry) => assert!(seen.insert(entry.key), "twice"),
                    FeedEvent::Put(entry, cursor) => {
                        assert!(seen.insert(entry.key), "twice");
                        assert!(cursor.version > tail && cursor.version == entry.version, "out of order");
                        tail = cursor.version;
                    }
                    FeedEvent::SnapshotBegin { .. } => {}
                    FeedEvent::SnapshotEnd(cursor) => tail = cursor.version,
                    other => panic!("{other:?}"),
                }
            }
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn of_many_who_write_against_one_version_one_wins() {
        let (_dir, store) = store();
        let wins = std::thread::scope(|threads| {
            let tries: Vec<_> =
                (0..8).map(|_| threads.spawn(|| store.compare_and_set("k", None, Some(b"1")).is_ok())).collect();
            tries.into_iter().filter_map(|one| one.join().unwrap().then_some(())).count()
        });
        assert_eq!(wins, 1);
    }

    #[tokio::test]
    async fn a_cursor_brings_only_what_changed_since_and_a_foreign_one_brings_all() {
        let (dir, store) = store();
        store.compare_and_set("a/1", None, Some(b"1")).unwrap();
        let version = store.compare_and_set("a/2", None, Some(b"2")).unwrap();
        let cursor = Cursor { epoch: store.epoch, version };
        let third = store.compare_and_set("a/3", None, Some(b"3")).unwrap();
        store.compare_and_set("b/1", None, Some(b"not asked for")).unwrap();
        store.compare_and_set("a/2", Some(version), None).unwrap();
        drop(store);
        let store = EmbeddedStore::open(&dir.path().join("store.redb")).unwrap();
        let mut feed = store.subscribe("a/", Some(cursor)).unwrap();
        let Ok(FeedEvent::Put(entry, middle)) = feed.next().await else { panic!() };
        assert_eq!((entry.key.as_str(), middle.version), ("a/3", third));
        assert!(matches!(feed.next().await, Ok(FeedEvent::Delete(key, _)) if key == "a/2"));
        // Who stopped after the first still gets the second.
        let mut feed = store.subscribe("a/", Some(middle)).unwrap();
        assert!(matches!(feed.next().await, Ok(FeedEvent::Delete(key, _)) if key == "a/2"));
        for foreign in [Cursor { epoch: cursor.epoch ^ 1, ..cursor }, Cursor { version: 99, ..cursor }] {
            let mut feed = store.subscribe("a/", Some(foreign)).unwrap();
            assert_eq!(feed.next().await.unwrap(), FeedEvent::SnapshotBegin { epoch: cursor.epoch });
        }
    }

    #[test]
    fn two_stores_are_two_histories() {
        let ((_one, first), (_two, second)) = (store(), store());
        assert_ne!(first.epoch, second.epoch);
    }

    #[tokio::test]
    async fn a_subscriber_that_falls_behind_is_let_go_at_once_and_hears_it() {
        let (_dir, store) = store();
        let mut feed = store.subscribe("a/", None).unwrap();
        {
            // Until its queue is full, without a disk write each; nothing is written after.
            let mut writer = store.writer();
            let mut version = 0;
            while !writer.subscribers.is_empty() {
                version += 1;
                let cursor = Cursor { epoch: store.epoch, version };
                writer.publish(&format!("a/{version}"), |key| FeedEvent::Delete(key, cursor));
            }
        }
        let mut heard = 0;
        let end = loop {
            match feed.next().await {
                Ok(_) => heard += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(end, StoreError::Lagged) && heard > 1_000, "{heard} {end:?}");
    }

    #[tokio::test]
    async fn a_cursor_older_than_the_journal_brings_a_snapshot() {
        let (_dir, store) = store();
        let cursor = Cursor { epoch: store.epoch, version: 0 };
        store.writer().version = JOURNAL_LEN;
        let mut feed = store.subscribe("a/", Some(cursor)).unwrap();
        assert!(matches!(feed.next().await, Ok(FeedEvent::SnapshotBegin { .. })));
    }
}
