//! Machines as every other machine knows them: a small table of rows that follows the store and is
//! kept on disk, so that a machine that starts while the store is away still knows the others.

use crate::last_known_good::{self, Begins};
use crate::rows::RowError;
use crate::signing::Operators;
use crate::store::{FeedEvent, Store};
use crate::subscriber::{Heard, Subscriber};
use arc_swap::ArcSwap;
pub use merged::{Merged, Overruled};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use tokio::sync::watch;

mod merged;

/// A kind of row, one per machine.
pub trait RegistryRow: Clone + Send + Sync + 'static {
    /// What tells its rows apart.
    type Id: Clone + Ord + Send + Sync + 'static;
    /// Its keys begin with this.
    const PREFIX: &'static str;
    /// "host": for the log.
    const WHAT: &'static str;
    /// A store without a single one may be right; else it has lost them, and what is known stays.
    const MAY_ALL_GO: bool = false;
    /// Where operators sign, its rows have papers ([`crate::papers`]), and one that is gone has left a row.
    const SIGNED: bool = false;

    /// What tells it from others of its kind.
    fn id(&self) -> Self::Id;
    /// The id in a key, if it is one.
    fn id_in(key: &str) -> Option<Self::Id>;
    /// The encoded value.
    fn encode(&self) -> Vec<u8>;
    /// Decodes and checks a stored row.
    ///
    /// # Errors
    /// [`RowError`]: what is wrong with it; the row is to be quarantined.
    fn decode(key: &str, value: &[u8]) -> Result<Self, RowError>;
    /// Whether who wrote it may have, when a row of its id is known already.
    ///
    /// # Errors
    /// [`RowError::Forged`].
    fn check(&self, known: Option<&Self>, operators: &Operators) -> Result<(), RowError> {
        let _ = (known, operators);
        Ok(())
    }
    /// It says that its machine was let go.
    fn is_removed(&self) -> bool {
        false
    }
    /// It is the same machine's, said elsewhere: it has the same keys.
    fn is_same_machine(&self, other: &Self) -> bool {
        let _ = other;
        false
    }
    /// Another machine's row has something that only one can have.
    fn clashes(&self, other: &Self) -> bool {
        let _ = other;
        false
    }
}

/// Every machine of one kind. Reads take no lock; a write copies the map, which is small and
/// changes rarely.
#[derive(Debug)]
pub struct Registry<R: RegistryRow> {
    rows: ArcSwap<BTreeMap<R::Id, Arc<R>>>,
    changes: watch::Sender<u64>,
    operators: Operators,
    read: AtomicBool,
    /// Of several regions' ones: what puts them together.
    merged: OnceLock<Weak<Merged<R>>>,
}

impl<R: RegistryRow> Default for Registry<R> {
    fn default() -> Self {
        Self {
            rows: ArcSwap::default(),
            changes: watch::Sender::new(0),
            operators: Operators::default(),
            read: AtomicBool::new(false),
            merged: OnceLock::new(),
        }
    }
}

impl<R: RegistryRow> Registry<R> {
    /// Without a row.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Without a row, of a fleet whose operators sign.
    #[must_use]
    pub fn trusting(operators: Operators) -> Self {
        Self { operators, ..Self::default() }
    }

    /// The row of this id, unless it was let go.
    #[must_use]
    pub fn lookup(&self, id: R::Id) -> Option<Arc<R>> {
        self.rows.load().get(&id).filter(|row| !row.is_removed()).cloned()
    }

    /// Every row, by id.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<R>> {
        self.rows.load().values().filter(|row| !row.is_removed()).cloned().collect()
    }

    /// Whether a row of its id is taken for gone when the store no longer has it. Where operators sign,
    /// one that was let go has a row that says so.
    fn may_vanish(&self) -> bool {
        !(R::SIGNED && self.operators.demand())
    }

    /// Counts changes; marked as seen, it tells when there is another.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether the store's rows were read to their end at least once.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.read.load(Ordering::Acquire)
    }

    /// Puts a row in place of what was known by its id.
    pub fn apply_put(&self, row: R) {
        self.insert(row);
        self.merge();
    }

    /// Forgets a machine.
    pub fn apply_remove(&self, id: &R::Id) {
        self.change(|rows| drop(rows.remove(id)));
        self.merge();
    }

    fn insert(&self, row: R) {
        let row = Arc::new(row);
        self.change(|rows| drop(rows.insert(row.id(), Arc::clone(&row))));
    }

    /// What several regions say together is put together anew, if this is one of several. Not for each row of a
    /// snapshot: when it is complete.
    fn merge(&self) {
        if let Some(merged) = self.merged.get().and_then(Weak::upgrade) {
            merged.put_together();
        }
    }

    fn change(&self, change: impl Fn(&mut BTreeMap<R::Id, Arc<R>>)) {
        self.rows.rcu(|rows| {
            let mut rows = BTreeMap::clone(rows);
            change(&mut rows);
            rows
        });
        self.changes.send_modify(|count| *count += 1);
    }

    /// Applies one event. `seen` collects the ids of a snapshot. Whether the rows on disk are
    /// to be written anew.
    pub(crate) fn handle(&self, event: FeedEvent, seen: &mut BTreeSet<R::Id>) -> bool {
        let ends = matches!(event, FeedEvent::SnapshotEnd(_));
        let within = matches!(event, FeedEvent::SnapshotBegin { .. } | FeedEvent::Entry(_) | FeedEvent::Current(_));
        let changed = self.apply(event, seen);
        self.read.fetch_or(ends, Ordering::Release);
        if !within {
            self.merge();
        }
        changed
    }

    fn apply(&self, event: FeedEvent, seen: &mut BTreeSet<R::Id>) -> bool {
        match event {
            FeedEvent::SnapshotBegin { .. } => seen.clear(),
            FeedEvent::Entry(entry) => {
                // A poisoned row is no proof that the machine is gone.
                seen.extend(R::id_in(&entry.key));
                self.put(&entry.key, &entry.value);
            }
            FeedEvent::SnapshotEnd(_) => {
                let known = self.rows.load().len();
                if seen.is_empty() && known > 0 && !R::MAY_ALL_GO {
                    // A fleet without machines serves nobody, so nothing is gained by believing it.
                    tracing::error!(known, "the store has lost every {}; they are kept", R::WHAT);
                    return false;
                }
                if self.may_vanish() {
                    self.change(|rows| rows.retain(|id, _| seen.contains(id)));
                }
                return true;
            }
            FeedEvent::Put(entry, _) => {
                self.put(&entry.key, &entry.value);
                return true;
            }
            FeedEvent::Delete(key, _) => {
                match R::id_in(&key) {
                    Some(id) if self.may_vanish() => self.change(|rows| drop(rows.remove(&id))),
                    Some(_) => {
                        tracing::warn!(key, "{} row deleted, and no operator has signed that; it stays", R::WHAT)
                    }
                    None => {}
                }
                return true;
            }
            FeedEvent::Current(_) => {}
        }
        false
    }

    fn put(&self, key: &str, value: &[u8]) {
        match R::decode(key, value).and_then(|row| self.believed(row)) {
            Ok(row) => self.insert(row),
            Err(error) => tracing::warn!(key, %error, "{} row quarantined; the previous one stays", R::WHAT),
        }
    }

    /// The row, if who wrote it may have, by what is known here. Without operators everybody may.
    ///
    /// # Errors
    /// [`RowError::Forged`].
    pub fn believed(&self, row: R) -> Result<R, RowError> {
        if self.may_vanish() {
            return Ok(row);
        }
        let (rows, id) = (self.rows.load(), row.id());
        row.check(rows.get(&id).map(|known| &**known), &self.operators)?;
        let others = rows.iter().filter(|(other, known)| **other != id && !known.is_removed());
        match { others }.any(|(_, known)| known.clashes(&row)) && !row.is_removed() {
            true => Err(RowError::Forged("it has a key of another machine")),
            false => Ok(row),
        }
    }

    /// Loads the rows of the last run; how many. Rows that are none are left out. Before it is one of several
    /// ([`Merged::new`]).
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn load(&self, path: &Path) -> io::Result<usize> {
        let loaded = AtomicUsize::new(0);
        last_known_good::for_each(path, Begins::WithRow, |key, row| {
            self.insert(R::decode(key, row).ok()?);
            loaded.fetch_add(1, Ordering::Relaxed);
            Some(())
        })?;
        Ok(loaded.into_inner())
    }

    /// Replaces the file with what is known. One line `KEY ROW` each.
    fn save(&self, key: impl Fn(&R::Id) -> String, path: &Path) -> io::Result<()> {
        last_known_good::write_lines(self.rows.load().iter().map(|(id, row)| (key(id), row.encode())), None, path)
    }
}

/// Applies the store's rows of this kind to `registry`, and keeps them in the file at `path`; never
/// returns. The file is replaced at each change: for what changes a few times a month.
pub async fn follow<R: RegistryRow>(
    store: Store,
    registry: Arc<Registry<R>>,
    key: impl Fn(&R::Id) -> String + Send,
    path: PathBuf,
) {
    let keep = move |registry: &Registry<R>| {
        if let Err(error) = registry.save(&key, &path) {
            tracing::warn!(path = %path.display(), %error, "{} rows not written", R::WHAT);
        }
    };
    apply(store, registry, keep).await;
}

/// The same in memory alone, for what changes all the time, or is of no use after a start; never returns.
pub async fn follow_in_memory<R: RegistryRow>(store: Store, registry: Arc<Registry<R>>) {
    apply(store, registry, |_| {}).await;
}

async fn apply<R: RegistryRow>(store: Store, registry: Arc<Registry<R>>, changed: impl Fn(&Registry<R>) + Send) {
    let mut seen = BTreeSet::new();
    let mut subscriber = Subscriber::new(store, R::PREFIX);
    loop {
        if let Heard::Event(event) = subscriber.next().await
            && registry.handle(event, &mut seen)
        {
            changed(&registry);
        }
    }
}
