//! The body of a guest's answer, read as the client takes it.

use super::chunked::{Chunk, ChunkDecoder};
use super::connection::{Connection, READ_LARGE_BYTES, READ_SMALL_BYTES};
use super::decode::ResponseHead;
use super::link::Link;
use super::{BodyFraming, Pool, UpstreamError};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// Streams the body and gives the connection back to the pool behind its last byte, which
/// is as soon as that byte was handed out and not when someone asks for more.
///
/// Back-pressure is the absence of a poll. Dropping it before its end resets the
/// connection, which tells the guest to stop.
pub struct ResponseBody<L: Link> {
    /// None once the body has ended.
    open: Option<Open<L>>,
    framing: Decoding,
    /// Fields that came behind the last byte and were not handed out yet.
    trailers: Option<Box<HeaderMap>>,
}

struct Open<L: Link> {
    connection: Connection<L>,
    pool: Rc<Pool<L>>,
    reusable: bool,
    read_size: usize,
    /// It was waited for: a long answer, or one that says something now and then.
    long: bool,
}

enum Decoding {
    Length(u64),
    Chunked(ChunkDecoder),
    UntilClose,
}

impl<L: Link> ResponseBody<L> {
    /// The body behind `head`. Without one the connection goes to the pool at once.
    #[must_use]
    pub fn new(connection: Connection<L>, head: &ResponseHead, pool: Rc<Pool<L>>) -> Self {
        let framing = match head.framing {
            BodyFraming::Empty => Decoding::Length(0),
            BodyFraming::Length(length) => Decoding::Length(length),
            BodyFraming::Chunked => Decoding::Chunked(ChunkDecoder::default()),
            BodyFraming::UntilClose => Decoding::UntilClose,
        };
        let read_size = match framing {
            Decoding::Length(length) if length >= READ_LARGE_BYTES as u64 => READ_LARGE_BYTES,
            _ => READ_SMALL_BYTES,
        };
        let open = Open { connection, pool, reusable: head.reusable, read_size, long: false };
        let mut body = Self { open: Some(open), framing, trailers: None };
        if head.framing == BodyFraming::Empty {
            body.finish(true);
        }
        body
    }

    fn finish(&mut self, complete: bool) {
        if let Some(open) = self.open.take() {
            open.connection.finish(complete && open.reusable, &open.pool);
        }
    }

    /// The next bytes; none at the end of the body.
    ///
    /// # Errors
    /// [`UpstreamError`]; the body has ended early and must not be taken for whole.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        let polled = self.poll_step(cx);
        if matches!(polled, Poll::Ready(Some(Err(_)))) {
            self.finish(false);
        }
        polled
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, UpstreamError>>> {
        loop {
            let Some(open) = self.open.as_mut() else { return Poll::Ready(None) };
            let pending = open.connection.pending();
            if !pending.is_empty() {
                match take(&mut self.framing, pending)? {
                    Taken::Data(data) => return Poll::Ready(Some(Ok(data))),
                    Taken::Last(data) => {
                        self.finish(true);
                        return Poll::Ready(Some(Ok(data)));
                    }
                    Taken::End(trailers) => {
                        self.trailers = trailers.map(Box::new);
                        self.finish(true);
                        return Poll::Ready(None);
                    }
                    Taken::More => {}
                }
            }
            let Poll::Ready(count) = open.connection.poll_fill(cx, open.read_size) else {
                // A short answer never comes here: it is behind its head.
                if !std::mem::replace(&mut open.long, true) {
                    open.connection.may_be_silent();
                }
                return Poll::Pending;
            };
            let count = count?;
            if open.long {
                open.connection.touch();
            }
            if count == 0 {
                let whole = matches!(self.framing, Decoding::UntilClose);
                self.finish(false);
                let cut = UpstreamError::ConnectionClosed { before_response: false };
                return Poll::Ready(if whole { None } else { Some(Err(cut)) });
            }
            // A read that fills its buffer says that more is waiting; a trickle of events
            // must not take a whole block each time.
            if count >= open.read_size {
                open.read_size = READ_LARGE_BYTES;
            } else if count < READ_SMALL_BYTES {
                open.read_size = READ_SMALL_BYTES;
            }
        }
    }
}

enum Taken {
    Data(Bytes),
    /// Data, and the body ends behind it without trailers.
    Last(Bytes),
    End(Option<HeaderMap>),
    More,
}

/// Takes the next piece of the body off `pending`, which is not empty.
fn take(framing: &mut Decoding, pending: &mut Bytes) -> Result<Taken, UpstreamError> {
    Ok(match framing {
        Decoding::UntilClose => Taken::Data(std::mem::take(pending)),
        Decoding::Length(left) => {
            let count = usize::try_from(*left).unwrap_or(usize::MAX).min(pending.len());
            *left -= count as u64;
            let data = pending.split_to(count);
            if *left == 0 { Taken::Last(data) } else { Taken::Data(data) }
        }
        Decoding::Chunked(decoder) => match decoder.decode(pending)? {
            // Seeing the end together with the data spares the client's side a frame.
            Chunk::Data(data) if decoder.ends_with(pending) => {
                *pending = Bytes::new();
                Taken::Last(data)
            }
            Chunk::Data(data) => Taken::Data(data),
            Chunk::End(trailers) => Taken::End(trailers),
            Chunk::More => Taken::More,
        },
    })
}

impl<L: Link> Body for ResponseBody<L>
where
    Self: Unpin,
{
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(this.poll_data(cx)) {
            Some(data) => Some(data.map(Frame::data)),
            None => this.trailers.take().map(|trailers| Ok(Frame::trailers(*trailers))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.open.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.framing {
            Decoding::Length(left) => SizeHint::with_exact(left),
            _ if self.open.is_none() => SizeHint::with_exact(0),
            _ => SizeHint::default(),
        }
    }
}
