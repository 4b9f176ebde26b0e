//! The certificates there are, as the store says. In memory is what says when one is due; chains and sealed keys lie on
//! this machine's disk, so that a million of them cost no memory and a start without the store serves them.

mod disk;
mod packed;
mod summary;
#[cfg(test)]
mod tests;

pub(super) use summary::{Summary, ca_number, names};

use acme::certificate::{CERT_PREFIX, CertRow, cert_key, parse_cert_key};
use acme::rows::Row;
use anyhow::Context as _;
use disk::{Change, Disk};
use router::changed::{Changed, Lookers};
use router::store::{Cursor, Entry, FeedEvent, Store};
use router::subscriber::{Heard, Subscriber};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::watch;

/// Rows of a snapshot that are written at once (chosen: some hundred KiB).
const BATCH: usize = 256;

/// A row `cert/ID/GENERATION`.
#[derive(Clone, Debug)]
pub struct CertificateRow {
    /// Of which wish.
    pub wish: String,
    /// What it says.
    pub row: Arc<CertRow>,
}

impl CertificateRow {
    fn decode(key: &str, value: &[u8]) -> Result<Self, &'static str> {
        let row: CertRow = serde_json::from_slice(value).map_err(|_| "it is no certificate's row")?;
        match parse_cert_key(key) {
            Some((wish, generation)) if generation == row.generation => {
                Ok(Self { wish: wish.to_owned(), row: Arc::new(row) })
            }
            _ => Err("its generation is not that of its key"),
        }
    }
}

/// Wish and generation.
type Id = (Box<str>, u64);
type Index = BTreeMap<Id, Summary>;

/// All of them. Not for the path of a handshake but the first for a name: reads may touch the disk.
#[derive(Debug)]
pub struct CertificateTable {
    disk: Disk,
    index: RwLock<Index>,
    /// The number of the next chain. Held while the copy is written: one writer.
    next: Mutex<u64>,
    /// Those who look at wishes that have changed.
    lookers: Lookers,
    changes: watch::Sender<u64>,
    /// Everything the store has was heard since the start.
    whole: AtomicBool,
    /// Those of which [`Self::waited_for`] may be true: what has changed, and what it was true of. `None`: any.
    waited: Mutex<Option<BTreeSet<Id>>>,
}

/// How far a snapshot is: the rows it had, or none is under way.
#[derive(Debug, Default)]
struct Snapshot(Option<HashSet<(Box<str>, u64)>>);

impl CertificateTable {
    /// Opens the copy of the last run, or begins one.
    ///
    /// # Errors
    /// The file cannot be read or is another process's.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let what = || format!("{}: it is a copy of what the store has; deleted, it is made anew", path.display());
        Self::of(Disk::open(path).with_context(what)?).with_context(what)
    }

    fn of(disk: Disk) -> anyhow::Result<Self> {
        let mut index = Index::new();
        let into = |key: &str, summary| {
            if let Some((wish, generation)) = parse_cert_key(key) {
                index.insert((wish.into(), generation), summary);
            }
        };
        disk.index(into)?;
        let next = disk.next_number()?;
        Ok(Self {
            disk,
            index: RwLock::new(index),
            next: Mutex::new(next),
            lookers: Lookers::default(),
            changes: watch::Sender::new(0),
            whole: AtomicBool::new(false),
            waited: Mutex::default(),
        })
    }

    /// Follows the store; never returns.
    pub(super) async fn follow(self: Arc<Self>, store: Store) {
        // Nothing that is on the disk is heard twice.
        let mut subscriber = Subscriber::resuming(store, CERT_PREFIX, self.disk.cursor().ok().flatten());
        let (mut snapshot, mut events) = (Snapshot::default(), Vec::new());
        loop {
            match subscriber.next().await {
                Heard::Event(event) => {
                    let waits = matches!(event, FeedEvent::SnapshotBegin { .. } | FeedEvent::Entry(_));
                    events.push(event);
                    if waits && events.len() < BATCH {
                        continue;
                    }
                }
                Heard::Lost => {
                    // The next one begins anew.
                    (snapshot, events) = (Snapshot::default(), Vec::new());
                    continue;
                }
            }
            let (this, heard) = (Arc::clone(&self), std::mem::take(&mut events));
            let applied = tokio::task::spawn_blocking(move || {
                this.apply(heard, &mut snapshot);
                snapshot
            });
            snapshot = applied.await.unwrap_or_default();
        }
    }

    /// The newest of a wish, from the disk.
    #[must_use]
    pub fn newest(&self, wish: &str) -> Option<Arc<CertRow>> {
        let (_, summary) = self.generations(wish).pop()?;
        Some(self.row(summary.number)?.row)
    }

    /// What is kept in memory of the newest of a wish, and its generation.
    #[must_use]
    pub fn newest_summary(&self, wish: &str) -> Option<(u64, Summary)> {
        self.generations(wish).pop()
    }

    /// Generations of a wish, the newest last.
    #[must_use]
    pub fn generations(&self, wish: &str) -> Vec<(u64, Summary)> {
        let all = (wish.into(), 0)..=(wish.into(), u64::MAX);
        self.index().range(all).map(|((_, generation), summary)| (*generation, *summary)).collect()
    }

    /// Wishes that begin with this and have a certificate.
    #[must_use]
    pub fn wishes(&self, prefix: &str) -> BTreeSet<Box<str>> {
        let from = (prefix.into(), 0)..;
        let all = self.index();
        all.range(from).map(|((wish, _), _)| wish).take_while(|wish| wish.starts_with(prefix)).cloned().collect()
    }

    /// Those in memory of every certificate that this is true of, by wish.
    #[must_use]
    pub fn wishes_where(&self, is: impl Fn(&Summary) -> bool) -> Vec<(Box<str>, u64, Summary)> {
        let all = self.index();
        let found = all.iter().filter(|(_, one)| is(one));
        found.map(|((wish, generation), one)| (wish.clone(), *generation, *one)).collect()
    }

    /// As [`Self::wishes_where`], of those that have changed or that it was true of before: for what is true of few, of
    /// nothing that has not changed, and always asked in the same way.
    #[must_use]
    pub fn waited_for(&self, is: impl Fn(&Summary) -> bool) -> Vec<(Box<str>, u64, Summary)> {
        let mut waited = self.waited.lock().unwrap_or_else(PoisonError::into_inner);
        let found: Vec<_> = match &*waited {
            None => self.wishes_where(is),
            Some(may) => {
                let index = self.index();
                let all = may.iter().filter_map(|id| Some((id, index.get(id)?)));
                all.filter(|(_, one)| is(one))
                    .map(|((wish, generation), one)| (wish.clone(), *generation, *one))
                    .collect()
            }
        };
        *waited = Some(found.iter().map(|(wish, generation, _)| (wish.clone(), *generation)).collect());
        found
    }

    /// Whether any is of the CA with this number.
    #[must_use]
    pub fn has_of(&self, ca: u32) -> bool {
        self.index().values().any(|one| one.ca == ca)
    }

    /// Shows what is kept in memory of every certificate: wish, generation and the rest. The table stands still meanwhile.
    pub fn visit(&self, mut show: impl FnMut(&str, u64, &Summary)) {
        self.index().iter().for_each(|((wish, generation), one)| show(wish, *generation, one));
    }

    /// Every row of a wish, the newest last, from the disk.
    #[must_use]
    pub fn rows_of(&self, wish: &str) -> Vec<CertificateRow> {
        self.generations(wish).into_iter().filter_map(|(_, summary)| self.row(summary.number)).collect()
    }

    /// Every row, by wish and generation; all are read from the disk: for people.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<CertificateRow>> {
        let numbers: Vec<_> = self.index().values().map(|summary| summary.number).collect();
        numbers.into_iter().filter_map(|number| self.row(number)).map(Arc::new).collect()
    }

    /// The row whose chain lies under this number; `None` for one that is gone.
    #[must_use]
    pub fn row(&self, number: u64) -> Option<CertificateRow> {
        match self.disk.row(number) {
            Ok(row) => row.and_then(|(key, value)| CertificateRow::decode(&key, &value).ok()),
            Err(error) => {
                tracing::error!(%error, "the certificates on this machine's disk cannot be read");
                None
            }
        }
    }

    /// Notes that the key of this one was opened and fits, so that no later start has to look.
    pub fn checked(&self, wish: &str, generation: u64, number: u64) {
        let next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        let Some(summary) = index.get_mut(&(wish.into(), generation)).filter(|known| known.number == number) else {
            return;
        };
        summary.checked = true;
        let change = Change::Noted { key: cert_key(wish, generation), summary: *summary };
        drop(index);
        self.write(&[change], *next, None);
    }

    /// The wishes that have changed: known before [`Self::changes`] says so.
    #[must_use]
    pub fn changed_wishes(&self) -> Arc<Changed> {
        self.lookers.follow()
    }

    /// Whether it was whole once since the start: until then it may be older than what the store has.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }

    /// The wishes after this one that begin with `prefix`, `most` of them at most.
    #[must_use]
    pub fn wishes_after(&self, prefix: &str, after: Option<&str>, most: usize) -> Vec<Box<str>> {
        let from = match after {
            Some(after) => (Bound::Excluded((after.into(), u64::MAX)), Bound::Unbounded),
            None => (Bound::Included((prefix.into(), 0)), Bound::Unbounded),
        };
        let index = self.index();
        let keys = index.range::<(Box<str>, u64), _>(from).map(|((wish, _), _)| wish);
        let mut wishes: Vec<Box<str>> = Vec::new();
        for wish in keys.take_while(|wish| wish.starts_with(prefix)) {
            if wishes.last() == Some(wish) {
                continue;
            }
            if wishes.len() == most {
                break;
            }
            wishes.push(wish.clone());
        }
        wishes
    }

    /// Notes which generation of each wish answers handshakes here, or that none does.
    pub fn note_served<'a>(&self, served: impl IntoIterator<Item = (&'a str, Option<u64>)>) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for (wish, generation) in served {
            let all = (wish.into(), 0)..=(wish.into(), u64::MAX);
            index.range_mut(all).for_each(|((_, other), summary)| summary.served = Some(*other) == generation);
        }
    }

    /// The generation that was noted last.
    #[must_use]
    pub fn served(&self, wish: &str) -> Option<u64> {
        self.generations(wish).into_iter().find(|(_, summary)| summary.served).map(|(generation, _)| generation)
    }

    /// Counts changes; marked as seen, it tells when there is another.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The store's rows of data keys as they were in the last run.
    pub(super) fn data_keys(&self) -> Vec<Row> {
        let rows = self.disk.data_keys().unwrap_or_default();
        rows.into_iter().map(|(key, value)| Row { key, value, version: 0 }).collect()
    }

    /// Keeps them for the next one; `rows` in order of keys.
    pub(super) fn keep_data_keys(&self, rows: &[Row]) {
        let kept = self.data_keys();
        let parts = |row: &Row| (row.key.clone(), row.value.clone());
        if kept.iter().map(parts).eq(rows.iter().map(parts)) {
            return;
        }
        if let Err(error) = self.disk.keep_data_keys(rows.iter().map(|row| (&*row.key, &*row.value))) {
            tracing::warn!(%error, "data keys are not kept on this machine's disk: a start without the store serves nothing");
        }
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, changes: &[Change], next: u64, cursor: Option<Cursor>) {
        if let Err(error) = self.disk.write(changes, next, cursor) {
            tracing::error!(%error, "certificates are not written to this machine's disk: names that change are not served");
        }
    }

    /// Applies what was heard, first to the disk.
    fn apply(&self, heard: Vec<FeedEvent>, snapshot: &mut Snapshot) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut changes, mut cursor, mut is_whole) = (Vec::new(), None, false);
        for event in heard {
            match event {
                FeedEvent::SnapshotBegin { .. } => snapshot.0 = Some(HashSet::new()),
                FeedEvent::Entry(entry) => {
                    if let (Some(seen), Some((wish, generation))) = (&mut snapshot.0, parse_cert_key(&entry.key)) {
                        // A row that is wrong is no proof that the certificate is gone.
                        seen.insert((wish.into(), generation));
                    }
                    self.put(entry, &mut next, &mut changes);
                }
                FeedEvent::SnapshotEnd(to) => {
                    self.sweep(&snapshot.0.take().unwrap_or_default(), &mut changes);
                    (cursor, is_whole) = (Some(to), true);
                }
                FeedEvent::Put(entry, to) => {
                    self.put(entry, &mut next, &mut changes);
                    cursor = Some(to);
                }
                FeedEvent::Delete(key, to) => {
                    if let Some((wish, generation)) = parse_cert_key(&key)
                        && let Some(summary) = self.index().get(&(wish.into(), generation))
                    {
                        changes.push(Change::Gone { key, number: summary.number });
                    }
                    cursor = Some(to);
                }
                // It would be a write each time, and what it says is in the next one.
                FeedEvent::Current(_) => is_whole = true,
            }
        }
        if !changes.is_empty() || cursor.is_some() {
            self.write(&changes, *next, cursor);
        }
        self.take(&changes);
        // Whoever notes something of a certificate reads the index first, and must not have read it before this.
        drop(next);
        if is_whole && !self.whole.swap(true, Ordering::AcqRel) {
            self.tell();
        }
    }

    fn tell(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// What a row changes; nothing when it is as it was.
    fn put(&self, entry: Entry, next: &mut u64, changes: &mut Vec<Change>) {
        let Entry { key, value, .. } = entry;
        let found = match CertificateRow::decode(&key, &value) {
            Ok(found) => found,
            Err(error) => return tracing::warn!(key, error, "certificate row quarantined; the previous one stays"),
        };
        let known = self.index().get(&(found.wish.as_str().into(), found.row.generation)).copied();
        let kept = known.and_then(|summary| Some((summary, self.row(summary.number)?)));
        let same_chain =
            kept.filter(|(_, kept)| kept.row.chain == found.row.chain && kept.row.sealed_key == found.row.sealed_key);
        let summary = match &same_chain {
            Some((_, kept)) if *kept.row == *found.row => return,
            Some((known, _)) => Summary::of(&found.wish, &found.row, known.number, known.checked),
            None => {
                let number = *next;
                *next += 1;
                Summary::of(&found.wish, &found.row, number, false)
            }
        };
        changes.push(Change::Put { key, value, summary, was: known.map(|known| known.number) });
    }

    /// What a whole snapshot did not have is gone.
    fn sweep(&self, seen: &HashSet<(Box<str>, u64)>, changes: &mut Vec<Change>) {
        let index = self.index();
        if seen.is_empty() && !index.is_empty() {
            // A fleet without certificates serves nobody, so nothing is gained by believing it.
            tracing::error!(known = index.len(), "the store has lost every certificate; they are kept");
            return;
        }
        let gone = index.iter().filter(|(id, _)| !seen.contains(*id));
        changes.extend(gone.map(|((wish, generation), summary)| Change::Gone {
            key: cert_key(wish, *generation),
            number: summary.number,
        }));
    }

    /// Takes over in memory what is on the disk now.
    fn take(&self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            let (Change::Put { key, .. } | Change::Gone { key, .. } | Change::Noted { key, .. }) = change;
            let Some((wish, generation)) = parse_cert_key(key) else { continue };
            let id = (wish.into(), generation);
            match change {
                Change::Put { summary, .. } | Change::Noted { summary, .. } => {
                    let served = index.get(&id).is_some_and(|before| before.served);
                    index.insert(id, Summary { served, ..*summary });
                }
                Change::Gone { .. } => drop(index.remove(&id)),
            }
        }
        drop(index);
        let mut waited = self.waited.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            let (Change::Put { key, .. } | Change::Gone { key, .. } | Change::Noted { key, .. }) = change;
            let Some((wish, generation)) = parse_cert_key(key) else { continue };
            if let Some(waited) = &mut *waited {
                waited.insert((wish.into(), generation));
            }
            self.lookers.note(wish);
        }
        drop(waited);
        self.tell();
    }

    /// In memory alone.
    #[cfg(test)]
    pub(super) fn new() -> Self {
        Self::of(Disk::in_memory()).unwrap()
    }

    /// As if the store had said so.
    #[cfg(test)]
    pub(super) fn apply_put(&self, row: CertificateRow) {
        let (key, value) = (cert_key(&row.wish, row.row.generation), row.row.encode());
        let cursor = Cursor { epoch: 1, version: 1 };
        self.apply(vec![FeedEvent::Put(Entry { key, value, version: 1 }, cursor)], &mut Snapshot::default());
    }
}
