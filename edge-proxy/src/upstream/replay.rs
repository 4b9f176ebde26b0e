//! The copy of a request body that makes sending it again exact.

use super::RequestFraming;
use super::chunked::{encode_chunk, encode_end};
use bytes::Bytes;
use http::HeaderMap;

/// A body is read ahead, and so can be sent again, up to here, bytes. One frame more may
/// be kept: it was read before its length was known.
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// What was read of a request's body, in order.
#[derive(Debug, Default)]
pub struct ReplayCopy {
    /// Nearly every body that is kept is one frame; it needs no list.
    first: Bytes,
    rest: Vec<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
}

impl ReplayCopy {
    /// Bytes kept.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes
    }

    /// Whether no byte is kept.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether nothing more should be read ahead.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.bytes >= REPLAY_BYTES_MAX
    }

    /// Whether trailer fields were read.
    #[must_use]
    pub const fn has_trailers(&self) -> bool {
        self.trailers.is_some()
    }

    /// Keeps one frame.
    pub fn push(&mut self, data: Bytes) {
        self.bytes += data.len();
        if self.first.is_empty() {
            self.first = data;
        } else if !data.is_empty() {
            self.rest.push(data);
        }
    }

    /// Keeps the trailer fields.
    pub fn set_trailers(&mut self, trailers: HeaderMap) {
        self.trailers = Some(trailers);
    }

    /// Appends what is kept in its framing; with the body's end if it is `ended`.
    pub fn encode(&self, framing: RequestFraming, ended: bool, out: &mut Vec<u8>) {
        out.reserve(self.bytes);
        for data in std::iter::once(&self.first).chain(&self.rest) {
            match framing {
                RequestFraming::Chunked => encode_chunk(data, out),
                RequestFraming::Length(_) | RequestFraming::None => out.extend_from_slice(data),
            }
        }
        if ended && framing == RequestFraming::Chunked {
            encode_end(self.trailers.as_ref(), out);
        }
    }
}
