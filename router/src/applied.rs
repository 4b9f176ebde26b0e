//! Word of changes as they come into effect: who makes a change wants to know when every edge goes by it
//! (`edge-proxy/src/fleet/acks.rs`).
//!
//! Only of what is new: a snapshot, and what comes while the store is caught up with, was written a while
//! ago, and nobody waits for it any more.

use crate::names::SpriteName;
use crate::route::HostId;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

/// Changes that may wait to be told (chosen: a second of a busy fleet); further ones are not.
const CHANGES_MAX: usize = 1_024;

/// A change of a route that is in effect here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The sprite.
    pub name: SpriteName,
    /// The host its route leads to now.
    pub host: HostId,
    /// The store's number of the change.
    pub version: u64,
}

/// Tells one listener, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Teller {
    to: OnceLock<mpsc::Sender<Applied>>,
    caught_up: AtomicBool,
}

impl Teller {
    /// From now on changes are told. The first listener stays; another one hears nothing.
    pub(crate) fn listen(&self) -> mpsc::Receiver<Applied> {
        let (sender, receiver) = mpsc::channel(CHANGES_MAX);
        drop(self.to.set(sender));
        receiver
    }

    /// Whether what comes from now on is new.
    pub(crate) fn set_caught_up(&self, caught_up: bool) {
        self.caught_up.store(caught_up, Ordering::Relaxed);
    }

    /// Tells a change. Never blocks.
    pub(crate) fn tell(&self, change: impl FnOnce() -> Option<Applied>) {
        if let Some(to) = self.to.get()
            && self.caught_up.load(Ordering::Relaxed)
            && let Some(change) = change()
        {
            // Full: who waits for it gives up in a moment, and says so.
            drop(to.try_send(change));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(version: u64) -> Option<Applied> {
        Some(Applied { name: SpriteName::parse("a").unwrap(), host: HostId(1), version })
    }

    #[test]
    fn only_what_is_new_is_told_and_never_more_than_may_wait() {
        let teller = Teller::default();
        teller.set_caught_up(true);
        teller.tell(|| panic!("nobody listens"));
        let mut hears = teller.listen();
        teller.set_caught_up(false);
        teller.tell(|| change(1));
        teller.set_caught_up(true);
        teller.tell(|| None);
        for version in 2..CHANGES_MAX as u64 + 10 {
            teller.tell(|| change(version));
        }
        assert_eq!(hears.try_recv().ok(), change(2));
        assert_eq!(hears.len(), CHANGES_MAX - 1);
    }
}
