//! What this edge process has in progress on one host: one gate per (sprite, run), and the
//! leases that follow from them.

use super::edge::TICK;
use crate::activity::{RECONCILE_EVERY, RunActivity};
use crate::wire::Lease;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Leases are asked for once a [`TICK`]: after so many of them, claims are compared with streams.
const RECONCILE_TICKS: u64 = RECONCILE_EVERY.as_secs() / TICK.as_secs();

/// The runs streams of this edge lead to.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    state: Mutex<BTreeMap<(Arc<str>, u64), Run>>,
    ticks: AtomicU64,
    mismatches: AtomicU64,
}

#[derive(Debug)]
struct Run {
    activity: Arc<RunActivity>,
    /// Whether the owner's last word from us was that something is open.
    claimed: bool,
}

impl Runs {
    /// The gate of a run, made on first sight.
    pub(crate) fn activity(&self, sprite: &str, run: u64) -> Arc<RunActivity> {
        let new = || Run { activity: RunActivity::new(Instant::now()), claimed: false };
        Arc::clone(&self.lock().entry((sprite.into(), run)).or_insert_with(new).activity)
    }

    /// The owner is about to end a run: idle streams to it are not used any more.
    pub(super) fn cordon(&self, sprite: &str, run: u64, hold: bool) {
        if let Some(run) = self.lock().get(&(sprite.into(), run)) {
            if hold {
                return run.activity.close();
            }
            // Busy is fine too: the owner will find out and call the stop off, or what is open
            // is silent and about to end.
            let _ = run.activity.close_if_idle();
            run.activity.cordon();
        }
    }

    /// What the owner must hear now: everything open, and once more what no longer is, so
    /// that it need not wait for the lease to expire. Forgets runs without streams.
    pub(super) fn leases(&self) -> Vec<Lease> {
        if (self.ticks.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(RECONCILE_TICKS) {
            self.reconcile();
        }
        let mut leases = Vec::new();
        self.lock().retain(|(sprite, number), run| {
            let (open, sockets) = (run.activity.open(), run.activity.sockets());
            let quiet = run.activity.last().elapsed().as_millis();
            let quiet_ms = u32::try_from(quiet).unwrap_or(u32::MAX);
            if open > 0 || run.claimed {
                leases.push(Lease { sprite: sprite.to_string(), run: *number, open, sockets, quiet_ms });
            }
            run.claimed = open > 0;
            open > 0 || Arc::strong_count(&run.activity) > 1
        });
        leases
    }

    /// Claims that have no stream under them are no longer made.
    fn reconcile(&self) {
        for ((sprite, number), run) in &*self.lock() {
            let found = run.activity.reconcile();
            if found > 0 {
                tracing::warn!(%sprite, run = number, found, streams = run.activity.streams(), "claims without a stream count no more");
                self.mismatches.fetch_add(found.into(), Ordering::Relaxed);
            }
        }
    }

    /// Claims that had no stream under them.
    pub(super) fn mismatches(&self) -> u64 {
        self.mismatches.load(Ordering::Relaxed)
    }

    /// The session is gone and every claim with it.
    pub(super) fn forget_claims(&self) {
        self.lock().values_mut().for_each(|run| run.claimed = false);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Arc<str>, u64), Run>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_while_open_and_given_back_once() {
        let runs = Runs::default();
        let activity = runs.activity("hello", 3);
        assert!(runs.leases().is_empty());
        let guard = activity.begin().unwrap();
        for _ in 0..2 {
            assert!(matches!(&runs.leases()[..], [Lease { run: 3, open: 1, sockets: 0, .. }]));
        }
        drop(guard);
        assert!(matches!(&runs.leases()[..], [Lease { run: 3, open: 0, .. }]));
        assert!(runs.leases().is_empty());
        runs.cordon("hello", 3, false);
        assert!(activity.begin().is_none());
        drop(activity);
        runs.leases();
        assert!(runs.lock().is_empty());
    }
    #[test]
    fn a_claim_that_was_lost_is_given_back_within_two_minutes_and_one_with_a_stream_is_not() {
        let runs = Runs::default();
        let (lost, kept) = (runs.activity("lost", 1), runs.activity("kept", 1));
        let (stream, guard) = (kept.stream(), kept.begin());
        std::mem::forget(lost.begin());
        drop(lost);
        let claims = |runs: &Runs| -> Vec<_> {
            let leases = runs.leases().into_iter().filter(|lease| lease.open > 0);
            leases.map(|lease| lease.sprite).collect()
        };
        for _ in 1..2 * RECONCILE_TICKS {
            assert_eq!((claims(&runs), runs.mismatches()), (vec!["kept".into(), "lost".into()], 0));
        }
        let last = runs.leases();
        assert!(last.iter().any(|lease| lease.sprite == "lost" && lease.open == 0), "the owner is told at once");
        for _ in 0..2 * RECONCILE_TICKS {
            assert_eq!((claims(&runs), runs.mismatches()), (vec!["kept".to_owned()], 1));
        }
        drop((guard, stream));
    }
}
