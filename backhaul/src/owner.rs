//! The owner as the backhaul sees it: the seam between moving bytes and deciding.
//!
//! `wakeup::owner` implements [`Owner`]; the session server calls it for every
//! stream and control message, and the `direct` link calls it in-process.

use crate::activity::RunActivity;
use crate::wire::{Open, Opened, Reply, ToEdge, ToOwner};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

/// A boxed future; owners are reached once per connection or wake, never per request.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Which edge process speaks: a number the session server gives each session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeId(pub u64);

/// Where answers to one edge go. Never blocks; a full queue drops the answer and
/// the edge's retransmission asks again.
pub type AnswerSink = Arc<dyn Fn(ToEdge) + Send + Sync>;

/// The guest may be spoken to.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// What to tell the edge.
    pub opened: Opened,
    /// Where the guest listens on this host.
    pub guest: SocketAddr,
    /// The run's gate and counters.
    pub activity: Arc<RunActivity>,
}

/// Decides about streams and wakes on a worker host.
pub trait Owner: Send + Sync + 'static {
    /// Takes one control message. Must not block; answers go to `answers`, now or later.
    fn control(&self, edge: EdgeId, message: ToOwner, answers: &AnswerSink);

    /// Decides about a stream. With `open.wake` it may wait for the guest, at most
    /// until the deadline; without, it answers at once.
    ///
    /// # Errors
    /// Any [`Reply`] but `Opened`; nothing was delivered.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the wait; a wake it began goes on.
    fn open(&self, edge: EdgeId, open: Open) -> BoxFuture<Result<Admitted, Reply>>;

    /// The edge's session ended: its waiters and leases are void.
    fn edge_gone(&self, edge: EdgeId);

    /// The admitted guest at `guest` could not be connected: it died or its port closed
    /// again. The owner looks at once.
    fn guest_unreachable(&self, sprite: &str, run: u64);
}
