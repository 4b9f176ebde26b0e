//! The body of a guest's answer, read as the client takes it.

use super::chunked::{Chunk, Decoder};
use super::connection::Connection;
use super::{BodyFraming, Pool, UpstreamError};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// A body is large, and worth whole-block reads, from here on, bytes (chosen).
const LARGE_BYTES: u64 = 64 * 1024;

/// Streams the body and gives the connection back to the pool behind its last byte.
///
/// Dropping it before its end closes the connection, which tells the guest to stop.
pub struct ResponseBody {
    connection: Option<Connection>,
    pool: Rc<Pool>,
    state: State,
    reusable: bool,
    received: u64,
}

enum State {
    Length(u64),
    Chunked(Decoder),
    UntilClose,
    Done,
}

impl ResponseBody {
    /// The body behind a head. `reusable` says whether the connection may carry another
    /// request once the body has ended: both sides keep it, and the request was sent whole.
    #[must_use]
    pub fn new(connection: Connection, framing: BodyFraming, reusable: bool, pool: Rc<Pool>) -> Self {
        let state = match framing {
            BodyFraming::Empty => State::Done,
            BodyFraming::Length(length) => State::Length(length),
            BodyFraming::Chunked => State::Chunked(Decoder::default()),
            BodyFraming::UntilClose => State::UntilClose,
        };
        let mut body = Self { connection: Some(connection), pool, state, reusable, received: 0 };
        if matches!(body.state, State::Done) {
            body.finish();
        }
        body
    }

    fn finish(&mut self) {
        self.state = State::Done;
        if let Some(connection) = self.connection.take()
            && self.reusable
        {
            connection.give_back(&self.pool);
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        loop {
            let Some(connection) = self.connection.as_mut() else { return Poll::Ready(None) };
            match &mut self.state {
                State::Done => return Poll::Ready(None),
                State::Length(left) if !connection.pending.is_empty() => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(connection.pending.len());
                    let data = connection.pending.split_to(count).freeze();
                    *left -= count as u64;
                    if *left == 0 {
                        self.finish();
                    }
                    return Poll::Ready(Some(Ok(self.data(data))));
                }
                State::UntilClose if !connection.pending.is_empty() => {
                    let data = connection.pending.split().freeze();
                    return Poll::Ready(Some(Ok(self.data(data))));
                }
                State::Chunked(decoder) => match decoder.decode(&mut connection.pending)? {
                    Chunk::Data(data) => return Poll::Ready(Some(Ok(self.data(data)))),
                    Chunk::End(trailers) => {
                        self.finish();
                        return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
                    }
                    Chunk::More => {}
                },
                State::Length(_) | State::UntilClose => {}
            }
            let large = self.received >= LARGE_BYTES;
            if ready!(connection.poll_fill(cx, large))? == 0 {
                let complete = matches!(self.state, State::UntilClose);
                self.reusable = false;
                self.finish();
                return Poll::Ready(if complete { None } else { Some(Err(UpstreamError::ClosedMidAnswer)) });
            }
        }
    }

    fn data(&mut self, data: Bytes) -> Frame<Bytes> {
        self.received += data.len() as u64;
        Frame::data(data)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = UpstreamError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UpstreamError>>> {
        self.get_mut().poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Done)
    }

    fn size_hint(&self) -> SizeHint {
        match self.state {
            State::Length(left) => SizeHint::with_exact(left),
            State::Done => SizeHint::with_exact(0),
            State::Chunked(_) | State::UntilClose => SizeHint::default(),
        }
    }
}
