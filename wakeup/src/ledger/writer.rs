//! The thread that writes: one write per record, the disk at most once a second.

use super::book::Book;
use super::record::Entry;
use super::stamp::Stamp;
use router::names::SpriteName;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// From one sync to the next at least, and from one mark to the next (`docs/ledger.md`: what
/// a power failure takes).
const PACE: Duration = Duration::from_secs(1);
/// Attempts to write what is left when the owner ends (chosen: an end should not wait for a
/// disk that is full).
const LAST_ATTEMPTS: u32 = 3;

/// What the thread is told.
pub(super) enum Note {
    Entry(Entry),
    /// The open run of a sprite is to be ended (`Book::lost`).
    Lost(SpriteName, Option<Stamp>),
    Settled,
    Close,
}

/// The queue.
#[derive(Default)]
pub(super) struct Shared {
    notes: Mutex<VecDeque<Note>>,
    there: Condvar,
    waiting: AtomicUsize,
}

impl Shared {
    pub(super) fn push(&self, note: Note) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push_back(note);
        self.there.notify_one();
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// What there is, or nothing after `until`.
    fn take(&self, until: Option<Instant>) -> VecDeque<Note> {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        while notes.is_empty() {
            notes = match until {
                None => self.there.wait(notes).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    self.there.wait_timeout(notes, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        std::mem::take(&mut notes)
    }
}

pub(super) struct Writer {
    book: Book,
    shared: Arc<Shared>,
    durable: watch::Sender<u64>,
    /// The record up to which everything is on disk.
    synced: u64,
    sync_at: Instant,
    mark_at: Instant,
    settled: bool,
    failing: bool,
}

impl Writer {
    pub(super) fn new(book: Book, shared: Arc<Shared>, durable: watch::Sender<u64>) -> Self {
        let (now, synced) = (Instant::now(), book.last());
        Self { book, shared, durable, synced, sync_at: now, mark_at: now, settled: false, failing: false }
    }

    pub(super) fn run(mut self) {
        let mut left = VecDeque::new();
        loop {
            // After a failure what is left is tried again, new notes or not.
            let until = if left.is_empty() { self.due() } else { Some(Instant::now() + PACE) };
            left.append(&mut self.shared.take(until));
            while let Some(note) = left.pop_front() {
                if matches!(note, Note::Close) {
                    return self.close(left);
                }
                if let Err(note) = self.write(note) {
                    left.push_front(note);
                    break;
                }
            }
            if left.iter().any(|note| matches!(note, Note::Close)) {
                return self.close(left);
            }
            self.keep_pace();
        }
    }

    /// When something is to be done without a note.
    fn due(&self) -> Option<Instant> {
        let sync = (self.synced < self.book.last()).then_some(self.sync_at);
        let mark = (self.settled && self.book.any_open()).then_some(self.mark_at);
        sync.into_iter().chain(mark).min()
    }

    fn write(&mut self, note: Note) -> Result<(), Note> {
        let entry = match &note {
            Note::Entry(entry) => Some(entry.clone()),
            Note::Lost(name, seen) => self.book.lost(name, *seen),
            Note::Settled => {
                self.settled = true;
                None
            }
            Note::Close => None,
        };
        if let Some(entry) = entry {
            let written = self.book.append(entry).map(drop);
            if !self.told(written) {
                return Err(note);
            }
        }
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    fn keep_pace(&mut self) {
        let now = Instant::now();
        if self.synced < self.book.last() && now >= self.sync_at {
            self.sync();
        }
        if self.settled && self.book.any_open() && now >= self.mark_at {
            let marked = self.book.mark(Stamp::now(), false);
            self.told(marked);
            self.mark_at = now + PACE;
        }
    }

    fn sync(&mut self) {
        let synced = self.book.sync();
        if self.told(synced) {
            self.synced = self.book.last();
            self.durable.send_replace(self.synced);
        }
        self.sync_at = Instant::now() + PACE;
    }

    /// Says once that the disk fails and once that it does not any more.
    fn told(&mut self, done: io::Result<()>) -> bool {
        match done {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("the ledger is written again");
                }
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "the ledger of runs cannot be written; its records wait in memory");
                }
                false
            }
        }
    }

    fn close(mut self, mut left: VecDeque<Note>) {
        left.append(&mut self.shared.take(Some(Instant::now())));
        let mut attempts = 0;
        while let Some(note) = left.pop_front() {
            if let Err(note) = self.write(note) {
                left.push_front(note);
                attempts += 1;
                if attempts == LAST_ATTEMPTS {
                    // The mark stays as it is: the next owner knows that something is missing.
                    tracing::error!(records = left.len(), "the ledger of runs ends without its last records");
                    return;
                }
            }
        }
        self.sync();
        if self.synced == self.book.last()
            && let Err(error) = self.book.mark(Stamp::now(), true)
        {
            tracing::warn!(%error, "the end of the ledger is not marked");
        }
    }
}
