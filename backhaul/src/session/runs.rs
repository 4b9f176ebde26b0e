//! What this edge process has in progress on one host: one gate per (sprite, run), and the
//! leases that follow from them.

use crate::activity::RunActivity;
use crate::wire::Lease;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The runs streams of this edge lead to.
#[derive(Debug, Default)]
pub(crate) struct Runs(Mutex<BTreeMap<(Arc<str>, u64), Run>>);

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

    /// The session is gone and every claim with it.
    pub(super) fn forget_claims(&self) {
        self.lock().values_mut().for_each(|run| run.claimed = false);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Arc<str>, u64), Run>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
}
