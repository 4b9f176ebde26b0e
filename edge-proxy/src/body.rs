//! The body of an answer: ours, or the sprite's streamed through.

use crate::sleep_mark::EventBody;
use crate::upstream::{GuestBody, UpstreamError};
use crate::waiting::WaitingEvents;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

/// One answer's body. No box, no dynamic call on the warm path.
pub enum EdgeBody {
    /// Written here; `None` once it was handed out, or when there is none.
    Full(Option<Bytes>),
    /// The sprite's, read as the client reads: back-pressure is the absence of a poll.
    Sprite(GuestBody),
    /// The same for a client that comes back by itself when it ends.
    Events(Box<EventBody>),
    /// Events for the waiting page.
    Waiting(Box<WaitingEvents>),
}

impl EdgeBody {
    /// No bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self::Full(None)
    }

    /// These bytes.
    #[must_use]
    pub fn full(bytes: Bytes) -> Self {
        Self::Full((!bytes.is_empty()).then_some(bytes))
    }
}

impl Body for EdgeBody {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Sprite(body) => Pin::new(body).poll_frame(cx),
            Self::Events(body) => Pin::new(&mut **body).poll_frame(cx),
            Self::Waiting(events) => events.poll_event(cx).map(|event| event.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Sprite(body) => body.is_end_stream(),
            Self::Events(body) => body.is_end_stream(),
            Self::Waiting(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Sprite(body) => body.size_hint(),
            Self::Events(body) => body.size_hint(),
            Self::Waiting(_) => SizeHint::default(),
        }
    }
}
