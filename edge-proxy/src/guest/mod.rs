//! HTTP/1.1 towards the guest: our own small client codec.
//!
//! hyper's client costs a second task and channels per request, about a third of all
//! instructions of a proxied request; this codec writes a head, reads a head and
//! relays bodies on the caller's own task. It never parses requests and never talks to
//! a client. What it reads comes from a guest nobody trusts: it may be wrong in every
//! way and must not panic, stall a neighbour or make two visitors share a desync.

mod body;
mod chunked;
mod connection;
mod decode;
mod encode;
mod pool;
mod upload;

pub use body::ResponseBody;
pub use connection::{Connection, Place, Received};
pub use decode::{BodyFraming, ResponseHead};
pub use encode::{Framing, HeadParts, encode_head, finish as finish_head};
pub use pool::Pool;
pub use upload::Upload;

/// Why the exchange with a guest broke.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The guest closed before the first byte of its answer.
    #[error("the guest closed before it answered")]
    ClosedBeforeAnswer,
    /// The guest closed in the middle of its answer.
    #[error("the guest closed in the middle of its answer")]
    ClosedMidAnswer,
    /// The head of the answer is longer than 64 KiB or has too many fields.
    #[error("the head of the answer exceeds its bounds")]
    HeadTooLarge,
    /// The answer is not HTTP/1.1, or its framing can be read in two ways.
    #[error("malformed answer: {0}")]
    Malformed(&'static str),
    /// Reading or writing failed.
    #[error("the stream to the guest failed")]
    Io(#[source] std::io::Error),
    /// The client's own body broke off.
    #[error("the client's body broke off")]
    ClientBody(#[source] hyper::Error),
}
