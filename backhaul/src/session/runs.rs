//! What this edge process has in progress on one host: one gate per (sprite, run), and the
//! leases that follow from them.

use super::edge::TICK;
use crate::activity::{RECONCILE_EVERY, RunActivity};
use crate::wire::{Cordon, Cordoned, Lease};
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
    /// If the owner's last word from us was that something is open, when we said was the last data.
    claimed: Option<Instant>,
}

impl Run {
    /// What the owner is to hear of it now.
    fn claim(&mut self, sprite: &str, run: u64) -> Lease {
        let (open, sockets, last) = (self.activity.open(), self.activity.sockets(), self.activity.last());
        self.claimed = (open > 0).then_some(last);
        let quiet_ms = u32::try_from(last.elapsed().as_millis()).unwrap_or(u32::MAX);
        Lease { sprite: sprite.to_owned(), run, open, sockets, quiet_ms }
    }
}

impl Runs {
    /// The gate of a run, made on first sight.
    pub(crate) fn activity(&self, sprite: &str, run: u64) -> Arc<RunActivity> {
        let new = || Run { activity: RunActivity::new(Instant::now()), claimed: None };
        Arc::clone(&self.lock().entry((sprite.into(), run)).or_insert_with(new).activity)
    }

    /// The owner is about to end a run: idle streams to it are not used any more, and sockets that
    /// were silent for too long end. Claims are made once a [`TICK`]: if the owner does not know of
    /// a request, or of the last data of a socket, it is told now and nothing ends.
    pub(super) fn cordon(&self, cordon: &Cordon) -> Cordoned {
        let (sprite, run, number) = (&cordon.sprite, cordon.run, cordon.number);
        let mut claim = None;
        if let Some(found) = self.lock().get_mut(&(sprite.as_str().into(), run)) {
            if cordon.asks {
                // Once more what no longer is, as in a lease.
                let claims = found.activity.open() > 0 || found.claimed.is_some();
                let claim = claims.then(|| found.claim(sprite, run));
                return Cordoned { sprite: sprite.clone(), run, number, claim };
            }
            if cordon.hold {
                found.activity.close();
                return Cordoned { sprite: sprite.clone(), run, number, claim: None };
            }
            let silent =
                found.claimed == Some(found.activity.last()) && found.activity.open() == found.activity.sockets();
            if found.activity.close_if_idle() || silent || cordon.forced {
                found.activity.cordon();
            } else {
                claim = Some(found.claim(sprite, run));
            }
        }
        Cordoned { sprite: sprite.clone(), run, number, claim }
    }

    /// What the owner must hear now: everything open, and once more what no longer is, so
    /// that it need not wait for the lease to expire. Forgets runs without streams.
    pub(super) fn leases(&self) -> Vec<Lease> {
        if (self.ticks.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(RECONCILE_TICKS) {
            self.reconcile();
        }
        let mut leases = Vec::new();
        self.lock().retain(|(sprite, number), run| {
            if run.activity.open() > 0 || run.claimed.is_some() {
                leases.push(run.claim(sprite, *number));
            }
            run.claimed.is_some() || Arc::strong_count(&run.activity) > 1
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
        self.lock().values_mut().for_each(|run| run.claimed = None);
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
        runs.cordon(&Cordon { sprite: "hello".into(), run: 3, ..Cordon::default() });
        assert!(activity.begin().is_none());
        drop(activity);
        runs.leases();
        assert!(runs.lock().is_empty());
    }

    #[test]
    fn what_is_open_and_was_not_claimed_answers_a_cordon_with_its_claim_and_goes_on() {
        let runs = Runs::default();
        let activity = runs.activity("hello", 3);
        let mut socket = activity.begin().unwrap();
        socket.becomes_socket();
        let cordon = Cordon { sprite: "hello".into(), run: 3, number: 9, ..Cordon::default() };
        let answer = runs.cordon(&cordon);
        assert!(matches!(answer.claim, Some(Lease { run: 3, open: 1, sockets: 1, .. })), "{answer:?}");
        assert_eq!((answer.sprite.as_str(), answer.run, answer.number), ("hello", 3, 9));
        assert!(!activity.is_cordoned() && !activity.is_closed());
        // Known, and it is to end all the same: it was silent for too long.
        assert_eq!(runs.cordon(&cordon).claim, None);
        assert!(activity.is_cordoned());
        drop(socket);
        assert!(matches!(&runs.leases()[..], [Lease { open: 0, .. }]), "and it is given back");
    }

    #[test]
    fn a_question_is_answered_with_all_that_is_open_and_closes_nothing() {
        let runs = Runs::default();
        let activity = runs.activity("hello", 3);
        let asks = Cordon { sprite: "hello".into(), run: 3, asks: true, number: 7, ..Cordon::default() };
        assert_eq!(runs.cordon(&asks).claim, None);
        let open = activity.begin().unwrap();
        for _ in 0..2 {
            let answer = runs.cordon(&asks);
            assert!(
                matches!(answer.claim, Some(Lease { open: 1, sockets: 0, .. })) && answer.number == 7,
                "{answer:?}"
            );
        }
        assert!(activity.begin().is_some() && !activity.is_cordoned());
        drop(open);
        assert!(matches!(runs.cordon(&asks).claim, Some(Lease { open: 0, .. })), "it is given back");
        assert_eq!(runs.cordon(&asks).claim, None);
    }

    #[test]
    fn an_order_ends_what_was_not_claimed() {
        let runs = Runs::default();
        let activity = runs.activity("hello", 3);
        let _open = activity.begin().unwrap();
        let forced = Cordon { sprite: "hello".into(), run: 3, forced: true, ..Cordon::default() };
        assert_eq!(runs.cordon(&forced).claim, None);
        assert!(activity.is_cordoned());
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
