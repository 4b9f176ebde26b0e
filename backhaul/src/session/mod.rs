//! The session between an edge process and a host: one QUIC connection inside the link.
//!
//! [`QuicEdge`] makes sessions and opens streams in them; [`HostServer`] accepts them on a
//! worker host and splices the streams to guests. The first stream of a session is its
//! control stream; what is asked and said of one wake travels beside it (`alone.rs`). What one
//! stream carries is in [`crate::wire`].

mod alone;
mod control;
mod edge;
mod ledger;
mod pop;
mod retire;
mod runs;
mod server;
mod silence;
mod stream;
mod tls;
mod transport;

pub use edge::{EdgeOptions, HostLookup, QuicEdge};
pub use pop::{ANSWER_BYTES_MAX, ASKED, Answers, PopLink, PopOptions, PopPeer, QUESTION_BYTES_MAX};
pub use server::{AppliedSink, EdgePeer, HostServer, HostServerOptions, Limits, ServeError};
pub use tls::{Identity, IdentityError, Pins, pin_of, shared as shared_pins};

pub(crate) use control::{read_frame, write_frame};
pub(crate) use ledger::Ledger;
pub(crate) use retire::Retired;
pub(crate) use runs::Runs;
pub(crate) use stream::{QuicRead, QuicWrite, Receipt, delivered_bytes};

use quinn::VarInt;
use std::time::Duration;

/// Protocol name in TLS; a new number is another protocol (RFC 7301).
const ALPN: &[u8] = b"sprite/1";
/// What one stream's receiver buffers, bytes: fills 100 Mbit/s at 80 ms.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// A handshake takes this long at most, link included.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// Control messages one side may be behind (chosen: a thousand wakes of one edge at once).
const CONTROL_QUEUE: usize = 1024;
/// The edge's error code for a stream it gives up between two requests: an end, not a reset.
pub(crate) const DONE: u32 = 1;
/// Marks an error code that carries the count of bytes delivered to the guest.
const RECEIPT: u64 = 1 << 60;

/// The error code that ends a stream and says how many bytes reached the guest.
pub(crate) fn receipt(delivered: u64) -> VarInt {
    VarInt::from_u64(RECEIPT | delivered.min(RECEIPT - 1)).unwrap_or(VarInt::MAX)
}

/// The count in an error code of the owner.
fn delivered(code: VarInt) -> Option<u64> {
    let code = code.into_inner();
    (code & RECEIPT != 0).then_some(code & (RECEIPT - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_survives_its_error_code() {
        for bytes in [0, 1, 1 << 40, RECEIPT - 1] {
            assert_eq!(delivered(receipt(bytes)), Some(bytes));
        }
        assert_eq!(delivered(0u32.into()), None);
    }
}
