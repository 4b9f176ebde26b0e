//! The ledger of a session: what stalled streams keep in memory, and which one has to go.
//!
//! A stream whose receiver has stopped reading keeps at most its window in memory. When the
//! stalled ones together keep more than the limit, the longest-stalled is reset. That is what
//! lets the session have no window of its own: clients that stop reading one sprite never
//! freeze its neighbours. Who is stalled is for the splice to say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// The stalled streams of one session.
#[derive(Debug)]
pub(crate) struct Ledger {
    limit: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By the order in which they stalled.
    stalled: BTreeMap<u64, (u64, oneshot::Sender<()>)>,
    bytes: u64,
    next: u64,
}

/// One stalled stream; dropping it says that it goes on.
#[derive(Debug)]
pub(crate) struct Stall {
    ledger: Arc<Ledger>,
    id: u64,
    evicted: oneshot::Receiver<()>,
}

impl Ledger {
    /// `limit` is what all stalled streams of the session may keep, bytes.
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    /// A stream stalled with up to `bytes` unread.
    pub(crate) fn stalled(self: &Arc<Self>, bytes: u64) -> Stall {
        let (evict, evicted) = oneshot::channel();
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        state.bytes += bytes;
        state.stalled.insert(id, (bytes, evict));
        while state.bytes > self.limit {
            let Some((_, (bytes, evict))) = state.stalled.pop_first() else { break };
            state.bytes -= bytes;
            // It may have gone on in this moment; then nobody listens.
            let _ = evict.send(());
        }
        drop(state);
        Stall { ledger: Arc::clone(self), id, evicted }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stall {
    /// Resolves when this stream has to go.
    pub(crate) async fn evicted(&mut self) {
        // The sender lives in the ledger until it is used or this is dropped.
        let _ = (&mut self.evicted).await;
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        let mut state = self.ledger.lock();
        if let Some((bytes, _)) = state.stalled.remove(&self.id) {
            state.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_longest_stalled_goes_when_the_limit_is_reached_and_only_then() {
        let ledger = Ledger::new(3);
        let mut first = ledger.stalled(1);
        let mut second = ledger.stalled(1);
        drop(ledger.stalled(1));
        let mut third = ledger.stalled(1);
        assert!(first.evicted.try_recv().is_err());
        let _fourth = ledger.stalled(1);
        first.evicted().await;
        assert!(second.evicted.try_recv().is_err() && third.evicted.try_recv().is_err());
        drop(first);
        let _fifth = ledger.stalled(1);
        second.evicted().await;
        assert_eq!(ledger.lock().bytes, 3);
    }
}
