//! Messages that travel alone: each on a one-way stream of its own beside the control stream.
//!
//! On one stream a lost datagram delays everything behind it. The question for a wake and its
//! answers are about one sprite each, and visitors wait for them; where one datagram in twenty
//! is lost, hardly a wake would come through without waiting for another's (measured:
//! `tests/e2e/latency.rs` at 300 ms). They carry an id and may overtake each other; the cores
//! at both ends are made for that. When nothing is lost they arrive in the order they left, and
//! before what left behind them on the control stream.

use crate::wire::{self, EdgeMessage, FRAME_BYTES_MAX, OwnerMessage, ToEdge, ToOwner};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use prost::Message;
use quinn::{Connection, ConnectionError, RecvStream};
use std::io;
use std::time::Duration;

/// Messages on their way to one side (chosen: as many as may wait to be sent). Further ones take
/// the control stream.
pub(super) const ALONE_MAX: u32 = super::CONTROL_QUEUE as u32;
/// From the first byte of a message to its last (chosen: five times a lost datagram at 300 ms).
/// What is later is given up: who asked asks again.
const WAIT: Duration = Duration::from_secs(5);

/// Whether a message may overtake others and be overtaken.
pub(super) trait MayGoAlone: Message + Default {
    /// It is about one wake, and somebody waits for it.
    fn may_go_alone(&self) -> bool;
}

impl MayGoAlone for ToOwner {
    fn may_go_alone(&self) -> bool {
        matches!(self.message, Some(EdgeMessage::Wake(_)))
    }
}

impl MayGoAlone for ToEdge {
    fn may_go_alone(&self) -> bool {
        matches!(self.message, Some(OwnerMessage::Answer(_)))
    }
}

/// Sends `frame` by a stream of its own; `false` when the other side has no room for one now.
///
/// # Errors
/// The session's end.
pub(super) async fn send(connection: &Connection, frame: &[u8]) -> io::Result<bool> {
    let Some(opened) = connection.open_uni().now_or_never() else { return Ok(false) };
    let mut stream = opened?;
    stream.write_all(frame).await?;
    // Dropped behind its end, it is delivered all the same.
    let _ = stream.finish();
    Ok(true)
}

/// Tells `hears` every message that comes alone, until the session ends. One that is no message
/// is left out.
pub(super) async fn receive<M: MayGoAlone>(connection: &Connection, mut hears: impl FnMut(M)) -> ConnectionError {
    let mut coming = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(message) = coming.next(), if !coming.is_empty() => {
                if let Some(message) = message {
                    hears(message);
                }
            }
            // No more of them than the other side may open.
            stream = connection.accept_uni() => match stream {
                Ok(stream) => coming.push(read::<M>(stream)),
                Err(ended) => return ended,
            },
        }
    }
}

async fn read<M: MayGoAlone>(mut stream: RecvStream) -> Option<M> {
    let whole = tokio::time::timeout(WAIT, stream.read_to_end(2 + FRAME_BYTES_MAX)).await;
    let (message, _) = wire::decode::<M>(&whole.ok()?.ok()?).ok()??;
    Some(message).filter(MayGoAlone::may_go_alone)
}
