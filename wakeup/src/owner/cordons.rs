//! Which edges were told of a cordon and have not answered.
//!
//! A stop is committed once each has said what it had open and not claimed yet. `sprite hold`
//! returns once no edge begins anything new with the run: what its caller does next (a snapshot,
//! a move) then meets no visitor on the way. Both waits are bounded, because an edge that does not
//! answer is one whose visitors do not arrive either.

use backhaul::owner::EdgeId;
use router::names::SpriteName;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tokio::sync::oneshot;

/// Longest wait of a hold for the edges (`wake.md` §8: what a cordon is given before a stop is committed).
pub(super) const ACKNOWLEDGE: Duration = Duration::from_millis(200);

/// The cordons that are not in effect everywhere yet. One a run, so bounded by the sprites.
#[derive(Default)]
pub(super) struct Cordons {
    pending: HashMap<(SpriteName, u64), Pending>,
    /// That of the latest.
    number: u64,
}

struct Pending {
    number: u64,
    edges: BTreeSet<EdgeId>,
    /// Holds that wait for it.
    done: Vec<oneshot::Sender<()>>,
}

impl Cordons {
    /// `edges` are about to be told, under the number returned; an earlier one of the same run that
    /// is still pending is answered with this one.
    pub(super) fn begin(&mut self, name: &SpriteName, run: u64, edges: impl IntoIterator<Item = EdgeId>) -> u64 {
        self.number += 1;
        let number = self.number;
        let pending = self.pending.entry((name.clone(), run)).or_insert_with(|| Pending {
            number,
            edges: BTreeSet::new(),
            done: Vec::new(),
        });
        pending.number = number;
        pending.edges = edges.into_iter().collect();
        number
    }

    /// Resolves when every edge has answered, at once if nothing is pending for the run.
    pub(super) fn in_effect(&mut self, name: &SpriteName, run: u64) -> oneshot::Receiver<()> {
        let (sender, done) = oneshot::channel();
        match self.pending.get_mut(&(name.clone(), run)) {
            Some(pending) => pending.done.push(sender),
            // The receiver is here.
            None => drop(sender.send(())),
        }
        done
    }

    /// An edge has answered the cordon of that number. Whether it was the last one.
    pub(super) fn answered(&mut self, edge: EdgeId, name: &SpriteName, run: u64, number: u64) -> bool {
        let key = (name.clone(), run);
        if let Some(pending) = self.pending.get_mut(&key).filter(|pending| pending.number == number) {
            pending.edges.remove(&edge);
        }
        self.complete(&key)
    }

    /// An edge is gone. Which runs nobody is waited for any more.
    pub(super) fn gone(&mut self, edge: EdgeId) -> Vec<(SpriteName, u64)> {
        for pending in self.pending.values_mut() {
            pending.edges.remove(&edge);
        }
        let keys: Vec<_> = self.pending.keys().cloned().collect();
        keys.into_iter().filter(|key| self.complete(key)).collect()
    }

    /// Nobody waits for those any more.
    pub(super) fn forget(&mut self, name: &SpriteName, run: u64) {
        self.pending.remove(&(name.clone(), run));
    }

    fn complete(&mut self, key: &(SpriteName, u64)) -> bool {
        let complete = self.pending.get(key).is_some_and(|pending| pending.edges.is_empty());
        for done in complete.then(|| self.pending.remove(key)).flatten().into_iter().flat_map(|pending| pending.done) {
            // Its caller may have given up.
            let _ = done.send(());
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EDGES: [EdgeId; 3] = [EdgeId(1), EdgeId(2), EdgeId(3)];

    #[test]
    fn it_is_over_when_the_last_edge_has_answered_or_is_gone() {
        let name = SpriteName::parse("a").unwrap();
        let mut cordons = Cordons::default();
        let number = cordons.begin(&name, 3, EDGES);
        let mut done = cordons.in_effect(&name, 3);
        assert!(!cordons.answered(EDGES[0], &name, 3, number));
        assert!(!cordons.answered(EDGES[1], &name, 2, number), "another run");
        assert!(cordons.gone(EDGES[2]).is_empty());
        assert!(done.try_recv().is_err());
        assert!(cordons.answered(EDGES[1], &name, 3, number));
        assert!(done.try_recv().is_ok() && cordons.pending.is_empty());
        assert!(!cordons.answered(EDGES[1], &name, 3, number), "once");
        assert!(cordons.in_effect(&name, 4).try_recv().is_ok(), "there is nothing to wait for");
    }

    #[test]
    fn the_answer_to_an_earlier_one_is_not_taken_for_this_ones() {
        let name = SpriteName::parse("a").unwrap();
        let mut cordons = Cordons::default();
        let first = cordons.begin(&name, 3, [EDGES[0]]);
        let second = cordons.begin(&name, 3, [EDGES[0]]);
        assert!(!cordons.answered(EDGES[0], &name, 3, first));
        assert!(cordons.answered(EDGES[0], &name, 3, second));
        cordons.begin(&name, 3, [EDGES[0]]);
        assert_eq!(cordons.gone(EDGES[0]), [(name, 3)]);
    }
}
