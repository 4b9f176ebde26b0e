//! The client's body on its way to the guest, and the copy that makes a replay exact.

use super::UpstreamError;
use super::chunked::{encode_chunk, encode_end};
use super::encode::Framing;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// Most body bytes kept for a replay (`design.md` §4).
pub(super) const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// A request body. Frames read before the owner has decided are kept; later ones are not,
/// and from then on the request cannot be sent again.
pub struct Upload {
    /// Gone once it was handed to a relay.
    body: Option<Incoming>,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
}

impl Upload {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(body: Incoming) -> Self {
        let ended = body.is_end_stream();
        Self { body: Some(body), kept: Vec::new(), kept_bytes: 0, trailers: None, ended }
    }

    /// How the body is to be delimited towards the guest.
    #[must_use]
    pub fn framing(&self, headers: &HeaderMap) -> Framing {
        let read = self.kept_bytes as u64;
        if self.ended && self.kept.is_empty() {
            // "POST with length 0" and "no body" differ for some servers: keep what was said.
            return if headers.contains_key(header::CONTENT_LENGTH) { Framing::Length(0) } else { Framing::None };
        }
        match self.body.as_ref().and_then(|body| body.size_hint().exact()) {
            Some(left) if self.trailers.is_none() => Framing::Length(read + left),
            _ => Framing::Chunked,
        }
    }

    /// Whether the whole body has been read.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.ended
    }

    /// Whether everything read from the client so far is still here, so that the request
    /// can be sent again.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        self.body.is_some()
    }

    /// Moves the body out for a relay; what stays cannot be sent again.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self {
            body: self.body.take(),
            kept: Vec::new(),
            kept_bytes: 0,
            trailers: self.trailers.take(),
            ended: self.ended,
        }
    }

    /// Takes what the client has sent already, up to the replay bound. Never waits.
    ///
    /// # Errors
    /// [`UpstreamError::ClientBody`].
    pub async fn prefetch(&mut self) -> Result<(), UpstreamError> {
        poll_fn(|cx| {
            while !self.ended && self.kept_bytes < REPLAY_BYTES_MAX {
                match self.poll_kept(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => break,
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    fn poll_kept(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        let Some(body) = self.body.as_mut() else {
            self.ended = true;
            return Poll::Ready(Ok(()));
        };
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(UpstreamError::ClientBody(error))),
            Poll::Ready(Some(Ok(frame))) => {
                self.ended |= body.is_end_stream();
                self.keep(frame);
                Poll::Ready(Ok(()))
            }
        }
    }

    fn keep(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => {
                self.kept_bytes += data.len();
                self.kept.push(data);
            }
            Err(frame) => self.trailers = frame.into_trailers().ok(),
        }
    }

    /// Appends everything read so far in its framing, and the body's end if it is known.
    pub fn encode_kept(&self, framing: Framing, out: &mut Vec<u8>) {
        for data in &self.kept {
            match framing {
                Framing::Chunked => encode_chunk(data, out),
                Framing::Length(_) | Framing::None => out.extend_from_slice(data),
            }
        }
        if self.ended && framing == Framing::Chunked {
            encode_end(self.trailers.as_ref(), out);
        }
    }

    /// Relays the rest of the body into `to` as the guest takes it. What goes through here
    /// is not kept.
    ///
    /// # Errors
    /// [`UpstreamError::ClientBody`] or [`UpstreamError::Io`].
    pub async fn relay<W: AsyncWrite + Unpin>(mut self, framing: Framing, to: &mut W) -> Result<(), UpstreamError> {
        let mut scratch = Vec::new();
        let Some(mut body) = self.body.take() else { return Ok(()) };
        while !self.ended {
            let frame = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            scratch.clear();
            match frame {
                None => self.ended = true,
                Some(Err(error)) => return Err(UpstreamError::ClientBody(error)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if framing == Framing::Chunked => encode_chunk(&data, &mut scratch),
                    Ok(data) => to.write_all(&data).await.map_err(UpstreamError::Io)?,
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
            }
            if self.ended && framing == Framing::Chunked {
                encode_end(self.trailers.as_ref(), &mut scratch);
            }
            if !scratch.is_empty() {
                to.write_all(&scratch).await.map_err(UpstreamError::Io)?;
            }
        }
        to.flush().await.map_err(UpstreamError::Io)
    }
}
