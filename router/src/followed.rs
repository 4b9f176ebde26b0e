//! The state of a table that follows a store: what an operator asks about it, and says to it.

pub use crate::follow::TURN;
use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Part of each table that follows a store (`follow.rs`). No read of it takes a lock.
#[derive(Debug)]
pub struct Followed {
    synced: AtomicBool,
    quarantined: AtomicU64,
    held_removals: AtomicUsize,
    delayed_changes: AtomicUsize,
    accepted: Notify,
    /// Since when the store has not been heard; none while it is followed.
    stale_since: ArcSwapOption<Instant>,
    turns: AtomicU64,
}

impl Default for Followed {
    /// Of a table that is not ready, and has not heard of a store yet.
    fn default() -> Self {
        Self {
            synced: AtomicBool::new(false),
            quarantined: AtomicU64::new(0),
            held_removals: AtomicUsize::new(0),
            delayed_changes: AtomicUsize::new(0),
            accepted: Notify::new(),
            stale_since: ArcSwapOption::from_pointee(Instant::now()),
            turns: AtomicU64::new(0),
        }
    }
}

impl Followed {
    /// From now on what is missing does not exist.
    pub fn mark_synced(&self) {
        self.synced.store(true, Ordering::Release);
    }

    /// Whether absence means anything.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Counts a row that was set aside.
    pub(crate) fn count_quarantined(&self) {
        self.quarantined.fetch_add(1, Ordering::Relaxed);
    }

    /// Rows set aside since the start because they were not certain; what they would have
    /// replaced stayed.
    #[must_use]
    pub fn quarantined(&self) -> u64 {
        self.quarantined.load(Ordering::Relaxed)
    }

    /// The store is followed.
    pub(crate) fn mark_fresh(&self) {
        if self.stale_since.load().is_some() {
            self.stale_since.store(None);
        }
    }

    /// The store is away. What is in the table stays in use, however long.
    pub(crate) fn mark_stale(&self) {
        if self.stale_since.load().is_none() {
            self.stale_since.store(Some(Arc::new(Instant::now())));
        }
    }

    /// How long the store has not been heard; `None` while it is followed. A feed that only
    /// seems to live is found out within its engine's own bound, at most 20 s.
    #[must_use]
    pub fn stale_for(&self) -> Option<Duration> {
        self.stale_since.load().as_ref().map(|since| since.elapsed())
    }

    pub(crate) fn set_held_removals(&self, count: usize) {
        self.held_removals.store(count, Ordering::Relaxed);
    }

    /// Rows the store no longer has and that are served on because too many vanished at once.
    #[must_use]
    pub fn held_removals(&self) -> usize {
        self.held_removals.load(Ordering::Relaxed)
    }

    pub(crate) fn set_delayed_changes(&self, count: usize) {
        self.delayed_changes.store(count, Ordering::Relaxed);
    }

    /// Changes that the store has made and that are applied later, because too many came at once.
    #[must_use]
    pub fn delayed_changes(&self) -> usize {
        self.delayed_changes.load(Ordering::Relaxed)
    }

    /// Says that what vanished is meant to be gone ([`Followed::held_removals`]).
    pub fn accept_removals(&self) {
        self.accepted.notify_one();
    }

    pub(crate) async fn removals_accepted(&self) {
        self.accepted.notified().await;
    }

    pub(crate) fn turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// How often the loop has turned that applies what the store says: for each event, and every
    /// [`TURN`] at least. One that does not turn leaves the table as it is.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }
}
