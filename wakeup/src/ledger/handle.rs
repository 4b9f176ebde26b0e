//! The owner's end of the ledger: it hands over what happened and never waits.
//!
//! Records go into a queue in order; one thread numbers and writes them. None is ever left
//! out: while the disk does not take them they stay in memory, and from 65,536 on the
//! ledger says that it is full, so that the owner begins no further run until it is written.
//! The ends of those that run are taken all the same; there are no more of them than runs.

use super::LedgerError;
use super::book::{Book, LedgerSettings};
use super::index::OpenRun;
use super::read::{self, Page};
use super::record::Entry;
use super::stamp::{Boot, Stamp};
use super::usage::{self, Usage};
use super::writer::{Note, Shared, Writer};
use router::names::SpriteName;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::watch;

/// Records that may wait for the disk before no run begins any more (chosen: 16 MiB, hours of
/// a busy host).
const QUEUE_LEN: usize = 65_536;

/// The ledger of a host. Usable from every thread.
pub struct Ledger {
    directory: PathBuf,
    boot: Boot,
    shared: Arc<Shared>,
    durable: watch::Receiver<u64>,
    /// The last record of the owners before this one.
    begun_after: u64,
    /// What they knew of each sprite; taken when it is made known again.
    before: Mutex<HashMap<SpriteName, Known>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What an owner before this one knew of a sprite.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The last run it may have begun.
    pub run: u64,
    /// A run whose end it did not see.
    pub open: Option<OpenRun>,
}

impl Ledger {
    /// Opens the ledger, or makes it, and starts its thread.
    ///
    /// # Errors
    /// [`LedgerError`], and a thread that cannot be had.
    pub fn open(settings: LedgerSettings) -> Result<Self, LedgerError> {
        let (directory, boot) = (settings.directory.clone(), Boot::current());
        let book = Book::open(settings, boot.clone(), Stamp::now())?;
        let begun_after = book.last();
        let known = |run, open: Option<&OpenRun>| Known { run, open: open.cloned() };
        let before = book.runs().map(|(name, run, open)| (name.clone(), known(run, open))).collect();
        let shared = Arc::new(Shared::default());
        let (sender, durable) = watch::channel(begun_after);
        let writer = Writer::new(book, Arc::clone(&shared), sender);
        let thread = std::thread::Builder::new().name("ledger".into()).spawn(move || writer.run());
        let thread = thread.map_err(LedgerError::io(&directory, "its thread cannot be had"))?;
        let thread = Mutex::new(Some(thread));
        Ok(Self { directory, boot, shared, durable, begun_after, before: Mutex::new(before), thread })
    }

    /// What an owner before this one knew of a sprite; each is told once.
    pub(crate) fn take_known(&self, name: &SpriteName) -> Known {
        self.before().remove(name).unwrap_or_default()
    }

    /// The guest of an open run did not outlive its owner; `seen` is when it was ended, for
    /// one that was found running.
    pub(crate) fn lost(&self, name: &SpriteName, seen: Option<Stamp>) {
        self.shared.push(Note::Lost(name.clone(), seen));
    }

    /// Every sprite of this host is known again: open runs of others are lost. From now on
    /// the mark of the owner's life moves on.
    pub(crate) fn settle(&self, ended: &BTreeMap<SpriteName, Stamp>) {
        let left: Vec<_> = self.before().drain().filter(|(_, known)| known.open.is_some()).collect();
        for (name, _) in left {
            self.lost(&name, ended.get(&name).copied());
        }
        self.shared.push(Note::Settled);
    }

    /// Hands over what happened.
    pub fn add(&self, entry: Entry) {
        self.shared.push(Note::Entry(entry));
    }

    /// Whether so much waits for the disk that no run should begin.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.waiting() >= QUEUE_LEN
    }

    /// Records that wait for the disk.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.waiting()
    }

    /// The number of the last record that is on disk; changes with it. Only those are ever
    /// shown, so a power failure takes back nothing that somebody has read.
    #[must_use]
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.durable.clone()
    }

    /// The last record that was there when this owner began.
    #[must_use]
    pub const fn begun_after(&self) -> u64 {
        self.begun_after
    }

    /// Records behind number `after`, at most `limit`. Reads files: not for a thread that
    /// serves.
    ///
    /// # Errors
    /// [`LedgerError`], [`LedgerError::NoLongerKept`] and [`LedgerError::Beyond`] among them.
    pub fn page(&self, after: u64, limit: usize) -> Result<Page, LedgerError> {
        let durable = *self.durable.borrow();
        read::page(&self.directory, after, limit, durable)
    }

    /// What a sprite used between two moments (milliseconds since 1970). Reads files, as
    /// [`Ledger::page`].
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn usage(&self, name: &SpriteName, since_ms: u64, until_ms: u64) -> Result<Usage, LedgerError> {
        usage::usage(&self.directory, name, since_ms, until_ms, Stamp::now(), &self.boot)
    }

    /// Where a monotonic moment of the open run stands on this process's clock.
    pub(crate) fn since(&self, open: &OpenRun) -> Instant {
        let now = Instant::now();
        now.checked_sub(open.awake(Stamp::now(), &self.boot)).unwrap_or(now)
    }

    pub(crate) const fn boot(&self) -> &Boot {
        &self.boot
    }

    /// Writes what is left and says that the owner ended in order. Waits for the disk, but
    /// not for ever.
    pub fn close(&self) {
        self.shared.push(Note::Close);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It gives up by itself; a panic in it has been told.
        drop(thread.map(JoinHandle::join));
    }

    fn before(&self) -> std::sync::MutexGuard<'_, HashMap<SpriteName, Known>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.close();
    }
}
