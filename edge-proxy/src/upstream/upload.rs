//! The client's body on its way to the guest.
//!
//! What the client sent along with its head is read ahead and kept, so that it leaves in
//! the head's write and can be sent again; the rest is relayed as the guest takes it.

use super::chunked::{encode_end, size_line};
use super::replay::ReplayCopy;
use super::{RequestFraming, UpstreamError};
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::Body;
use std::error::Error;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// A request body.
pub struct Upload<B> {
    /// Gone once it was handed to a relay.
    body: Option<B>,
    kept: ReplayCopy,
    /// Bytes read from the client.
    read: u64,
    ended: bool,
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Nothing is read yet.
    #[must_use]
    pub fn new(body: B) -> Self {
        let ended = body.is_end_stream();
        Self { body: Some(body), kept: ReplayCopy::default(), read: 0, ended }
    }

    /// How the body is to be delimited towards the guest. `headers` are the client's.
    #[must_use]
    pub fn framing(&self, headers: &HeaderMap) -> RequestFraming {
        // Who chose the coding may send trailers with it, and if a length stood beside it, the
        // coding is what counts (RFC 9112 §6.1).
        if self.kept.has_trailers() || headers.contains_key(header::TRANSFER_ENCODING) {
            return RequestFraming::Chunked;
        }
        if self.ended {
            // "A body of length 0" and "no body" differ for some servers: keep what was said.
            let said = self.read > 0 || headers.contains_key(header::CONTENT_LENGTH);
            return if said { RequestFraming::Length(self.read) } else { RequestFraming::None };
        }
        match self.body.as_ref().and_then(|body| body.size_hint().exact()) {
            Some(left) => RequestFraming::Length(self.read + left),
            None => RequestFraming::Chunked,
        }
    }

    /// Whether the whole body has been read.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.ended
    }

    /// Bytes read from the client so far.
    #[must_use]
    pub const fn bytes_read(&self) -> u64 {
        self.read
    }

    /// Whether everything read from the client is still here, so that the request can be
    /// sent again.
    #[must_use]
    pub const fn can_replay(&self) -> bool {
        self.body.is_some()
    }

    /// Moves the body out for a relay; what stays cannot be sent again.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self { body: self.body.take(), kept: std::mem::take(&mut self.kept), read: self.read, ended: self.ended }
    }

    /// Takes what the client has sent already, up to the replay bound. It gives way once,
    /// so that the task that reads the client's connection can hand over a body that came
    /// together with the head, and otherwise never waits.
    ///
    /// # Errors
    /// [`UpstreamError::ClientBody`].
    ///
    /// # Cancel safety
    /// What was read is kept.
    pub async fn prefetch(&mut self) -> Result<(), UpstreamError> {
        let mut gave_way = false;
        poll_fn(|cx| {
            while !self.ended && !self.kept.is_full() {
                match self.poll_keep(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending if gave_way => break,
                    Poll::Pending => {
                        gave_way = true;
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    fn poll_keep(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        let Some(body) = self.body.as_mut() else {
            self.ended = true;
            return Poll::Ready(Ok(()));
        };
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => self.ended = true,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(UpstreamError::ClientBody(error.into()))),
            Poll::Ready(Some(Ok(frame))) => {
                self.ended = body.is_end_stream();
                match frame.into_data() {
                    Ok(data) => {
                        self.read += data.len() as u64;
                        self.kept.push(data);
                    }
                    Err(frame) => {
                        // Nothing follows trailers.
                        self.ended = true;
                        if let Ok(trailers) = frame.into_trailers() {
                            self.kept.set_trailers(trailers);
                        }
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Appends everything read so far in its framing, and the body's end if it is known.
    pub fn encode_kept(&self, framing: RequestFraming, out: &mut Vec<u8>) {
        self.kept.encode(framing, self.ended, out);
    }

    /// Relays what was not read yet into `to`, as the guest takes it; the bytes read from
    /// the client in all. What goes through here is not kept.
    ///
    /// # Errors
    /// [`UpstreamError::ClientBody`], also for a body that does not keep to the length it
    /// was announced with; [`UpstreamError::Io`]. The guest has got a part then and must
    /// not be given an end.
    pub async fn relay<W: AsyncWrite + Unpin>(
        mut self,
        framing: RequestFraming,
        to: &mut W,
    ) -> Result<u64, UpstreamError> {
        let mut scratch = Vec::new();
        let Some(mut body) = self.body.take().filter(|_| !self.ended) else { return Ok(self.read) };
        let mut trailers = None;
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            match frame.map_err(|error| UpstreamError::ClientBody(error.into()))?.into_data() {
                Ok(data) => {
                    self.read += data.len() as u64;
                    check_length(framing, |length| self.read <= length)?;
                    write_data(to, framing, &data, &mut scratch).await.map_err(UpstreamError::Io)?;
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        check_length(framing, |length| self.read == length)?;
        if framing == RequestFraming::Chunked {
            scratch.clear();
            encode_end(trailers.as_ref(), &mut scratch);
            to.write_all(&scratch).await.map_err(UpstreamError::Io)?;
        }
        to.flush().await.map_err(UpstreamError::Io)?;
        Ok(self.read)
    }
}

/// A byte too many would be the next request of a reused connection.
fn check_length(framing: RequestFraming, holds: impl FnOnce(u64) -> bool) -> Result<(), UpstreamError> {
    let kept_to = match framing {
        RequestFraming::Chunked => true,
        RequestFraming::Length(length) => holds(length),
        RequestFraming::None => holds(0),
    };
    if kept_to { Ok(()) } else { Err(UpstreamError::ClientBody("the body is not as long as announced".into())) }
}

async fn write_data<W: AsyncWrite + Unpin>(
    to: &mut W,
    framing: RequestFraming,
    data: &[u8],
    scratch: &mut Vec<u8>,
) -> io::Result<()> {
    match framing {
        // An empty chunk would end the body.
        RequestFraming::Chunked if data.is_empty() => Ok(()),
        RequestFraming::Chunked => {
            let mut line = [0; 18];
            write_parts(to, [size_line(data.len(), &mut line), data, b"\r\n"], scratch).await
        }
        RequestFraming::Length(_) | RequestFraming::None => to.write_all(data).await,
    }
}

/// Writes all parts, in one call if `to` takes slices, else joined in `scratch`: a second
/// write costs more than the copy.
pub(super) async fn write_parts<W: AsyncWrite + Unpin, const N: usize>(
    to: &mut W,
    parts: [&[u8]; N],
    scratch: &mut Vec<u8>,
) -> io::Result<()> {
    if !to.is_write_vectored() {
        scratch.clear();
        parts.iter().for_each(|part| scratch.extend_from_slice(part));
        return to.write_all(scratch).await;
    }
    let mut slices = parts.map(IoSlice::new);
    let mut left = &mut slices[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        let written = poll_fn(|cx| Pin::new(&mut *to).poll_write_vectored(cx, left)).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut left, written);
    }
    Ok(())
}
