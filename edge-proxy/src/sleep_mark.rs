//! Whose socket it was that ended because its sprite fell asleep: a WebSocket, or a stream of
//! events. Both come back by themselves, and may not wake it by that (`wakeup::hold::Damping`).

use crate::upstream::{GuestBody, UpstreamError};
use crate::worker::Worker;
use backhaul::activity::RunActivity;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use wakeup::hold::SocketKey;

/// How long the word of a sleep may be behind the end of a stream: the two travel apart. Chosen:
/// more than a round trip and a lost datagram, less than any browser waits before it comes back.
const WORD: Duration = Duration::from_secs(1);

/// To be made when the sprite falls asleep under a socket.
pub struct SleepMark {
    worker: Rc<Worker>,
    key: SocketKey,
}

impl SleepMark {
    /// For the socket of `key`.
    #[must_use]
    pub const fn new(worker: Rc<Worker>, key: SocketKey) -> Self {
        Self { worker, key }
    }

    /// It ended; marked if its run is about to end, or has.
    pub fn ended(self, run: &RunActivity) {
        if run.is_cordoned() {
            self.make();
        }
    }

    /// It broke off: marked as well if that proves to have been a sleep.
    pub fn broke(self, run: Arc<RunActivity>) {
        if run.is_cordoned() {
            return self.make();
        }
        tokio::task::spawn_local(async move {
            if tokio::time::timeout(WORD, run.cordoned()).await.is_ok() {
                self.make();
            }
        });
    }

    fn make(self) {
        self.worker.edge.damping.mark(Instant::now(), self.key);
    }
}

/// The body of a stream of events, watched for its end.
pub struct EventBody {
    body: GuestBody,
    mark: Option<(SleepMark, Arc<RunActivity>)>,
}

impl EventBody {
    /// Watches `body`, which comes from `run`.
    #[must_use]
    pub const fn new(body: GuestBody, mark: SleepMark, run: Arc<RunActivity>) -> Self {
        Self { body, mark: Some((mark, run)) }
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let broke = matches!(frame, Some(Err(_)));
        if (broke || frame.is_none() || self.body.is_end_stream())
            && let Some((mark, run)) = self.mark.take()
        {
            if broke { mark.broke(run) } else { mark.ended(&run) }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
