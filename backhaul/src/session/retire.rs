//! A session whose host has another key: what is open on it ends in its own time, and nothing new begins.

use super::edge::{Made, TICK};
use crate::link::UserspaceLink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long what is open may go on (chosen: the host lets go of its old key after as long).
const DRAIN_MAX: Duration = Duration::from_secs(3600);

/// Whether a session takes no more requests. Each of its streams has a copy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Retired(Arc<AtomicBool>);

impl Retired {
    pub(crate) fn is_retired(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether no stream is left.
    fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

/// Waits for the streams of a session that was replaced, then closes it.
pub(super) async fn drain(old: Made, retired: Retired, link: Arc<UserspaceLink>) {
    retired.0.store(true, Ordering::Relaxed);
    let end = Instant::now() + DRAIN_MAX;
    while !retired.is_alone() && old.connection.close_reason().is_none() && Instant::now() < end {
        tokio::time::sleep(TICK).await;
    }
    old.connection.close(0u32.into(), b"replaced");
    // The host is told through the tunnel that ends here.
    tokio::time::sleep(TICK).await;
    link.remove_peer(old.key);
}
