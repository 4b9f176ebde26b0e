//! Who was told of a hold and has not said that it took effect.
//!
//! `sprite hold` returns once no edge begins anything new with the run: what its caller does
//! next (a snapshot, a move) then meets no visitor on the way. Bounded, because an edge that
//! does not answer is one whose visitors do not arrive either.

use backhaul::owner::EdgeId;
use router::names::SpriteName;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use tokio::sync::oneshot;

/// Longest wait for the edges (`wake.md` §8: what a cordon is given before a stop is committed).
pub(super) const ACKNOWLEDGE: Duration = Duration::from_millis(200);

/// The holds that are not in effect everywhere yet.
#[derive(Default)]
pub(super) struct Cordons(HashMap<(SpriteName, u64), Pending>);

struct Pending {
    edges: BTreeSet<EdgeId>,
    done: Vec<oneshot::Sender<()>>,
}

impl Cordons {
    /// `edges` were told; resolves when all of them have said so, or have gone.
    pub(super) fn begin(
        &mut self,
        name: &SpriteName,
        run: u64,
        edges: impl IntoIterator<Item = EdgeId>,
    ) -> oneshot::Receiver<()> {
        let (sender, done) = oneshot::channel();
        let edges: BTreeSet<_> = edges.into_iter().collect();
        if edges.is_empty() {
            // Nobody is there to wait for.
            let _ = sender.send(());
            return done;
        }
        let pending =
            self.0.entry((name.clone(), run)).or_insert_with(|| Pending { edges: BTreeSet::new(), done: Vec::new() });
        pending.edges.extend(edges);
        pending.done.push(sender);
        done
    }

    /// An edge said that it took effect.
    pub(super) fn acknowledged(&mut self, edge: EdgeId, name: &SpriteName, run: u64) {
        let key = (name.clone(), run);
        if let Some(pending) = self.0.get_mut(&key) {
            pending.edges.remove(&edge);
            self.end_if_complete(&key);
        }
    }

    /// An edge is gone.
    pub(super) fn gone(&mut self, edge: EdgeId) {
        for key in self.0.keys().cloned().collect::<Vec<_>>() {
            if let Some(pending) = self.0.get_mut(&key) {
                pending.edges.remove(&edge);
                self.end_if_complete(&key);
            }
        }
    }

    /// Nobody waits for those any more.
    pub(super) fn forget(&mut self, name: &SpriteName, run: u64) {
        self.0.remove(&(name.clone(), run));
    }

    fn end_if_complete(&mut self, key: &(SpriteName, u64)) {
        if self.0.get(key).is_some_and(|pending| pending.edges.is_empty()) {
            for done in self.0.remove(key).into_iter().flat_map(|pending| pending.done) {
                // Its caller may have given up.
                let _ = done.send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_when_the_last_edge_has_said_so_or_is_gone() {
        let name = SpriteName::parse("a").unwrap();
        let mut cordons = Cordons::default();
        let mut done = cordons.begin(&name, 3, [EdgeId(1), EdgeId(2), EdgeId(3)]);
        cordons.acknowledged(EdgeId(1), &name, 3);
        cordons.acknowledged(EdgeId(2), &name, 2);
        cordons.gone(EdgeId(3));
        assert!(done.try_recv().is_err(), "edge 2 spoke of another run");
        cordons.acknowledged(EdgeId(2), &name, 3);
        assert!(done.try_recv().is_ok() && cordons.0.is_empty());
        assert!(cordons.begin(&name, 4, []).try_recv().is_ok(), "there is nobody");
    }
}
