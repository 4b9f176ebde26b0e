//! HTTP/1.1 towards the guest: our own small client codec.
//!
//! This is the warm path of the product, so it is written for few instructions: a head
//! is encoded into a reused buffer and leaves in one write, an answer's head and small
//! body arrive in one read, field values are slices of what was read, and everything
//! runs on the caller's task. It never parses requests, never talks to a client and
//! never decides whether a request is sent again; [`crate::forward`] does.
//!
//! What it reads comes from a guest nobody trusts. It may be wrong in every way and must
//! not panic, hold more than a bound, or let one visitor's answer become another's: a
//! connection is reused only when every rule about its last exchange was kept.

mod body;
mod chunked;
mod connection;
mod decode;
mod encode;
mod link;
mod pool;
mod replay;
#[cfg(test)]
mod tests;
mod upload;

pub use body::ResponseBody;
pub use chunked::{Chunk, ChunkDecoder, encode_chunk, encode_end, may_trail};
pub use connection::{Asked, Connection, Place, Received};
pub use decode::{BodyFraming, FIELDS_MAX, HEAD_BYTES_MAX, HeadDecoder, ResponseHead};
pub use encode::{RequestFraming, RequestHead, encode_head};
pub use link::{Halves, Link};
pub use pool::Pool;
pub use replay::{REPLAY_BYTES_MAX, ReplayCopy};
pub use upload::Upload;

use backhaul::GuestStream;
use std::error::Error;
use std::io;

/// A connection over the backhaul.
pub type GuestConnection = Connection<GuestStream>;
/// A body read from the backhaul.
pub type GuestBody = ResponseBody<GuestStream>;
/// The idle backhaul streams of one core.
pub type GuestPool = Pool<GuestStream>;

/// Why the exchange with a guest broke.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The guest ended the stream before its answer was complete.
    #[error("the guest closed the connection {}", if *before_response { "before it answered" } else { "in the middle of its answer" })]
    ConnectionClosed {
        /// Not one byte of an answer had arrived.
        before_response: bool,
    },
    /// The head of the answer has more than [`HEAD_BYTES_MAX`] bytes or [`FIELDS_MAX`] fields.
    #[error("the head of the answer exceeds its bounds")]
    HeadTooLarge,
    /// The answer is not HTTP/1.1 as we accept it.
    #[error("malformed answer: {0}")]
    Malformed(Malformed),
    /// More interim answers than any server has reason to send.
    #[error("too many interim answers")]
    TooManyInterim,
    /// Reading or writing failed.
    #[error("the stream to the guest failed")]
    Io(#[source] io::Error),
    /// The client's own body broke off or did not keep to its length.
    #[error("the client's body broke off")]
    ClientBody(#[source] Box<dyn Error + Send + Sync>),
}

/// What is wrong with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No status line of HTTP/1.0 or 1.1.
    #[error("status line")]
    StatusLine,
    /// A field line that RFC 9112 §5 does not allow.
    #[error("field line")]
    Field,
    /// `Content-Length` is not digits only.
    #[error("content length")]
    ContentLength,
    /// Two `Content-Length` that differ.
    #[error("differing content lengths")]
    ContentLengths,
    /// `Transfer-Encoding` is anything but one `chunked`.
    #[error("transfer coding")]
    TransferCoding,
    /// `Transfer-Encoding` with `Content-Length`, or from an HTTP/1.0 server.
    #[error("a transfer coding that contradicts the head")]
    CodingContradicted,
    /// A 101 that was not asked for.
    #[error("unasked switch of protocols")]
    UnaskedUpgrade,
    /// The line in front of a chunk.
    #[error("chunk size")]
    ChunkSize,
    /// A chunk is not followed by CRLF.
    #[error("chunk end")]
    ChunkEnd,
    /// Trailer fields, or more than their bound of them.
    #[error("trailers")]
    Trailers,
}

impl From<Malformed> for UpstreamError {
    fn from(what: Malformed) -> Self {
        Self::Malformed(what)
    }
}
