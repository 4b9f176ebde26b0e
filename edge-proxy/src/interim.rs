//! Interim answers (1xx) on their way to the client. Only the guest says them, `100
//! Continue` too.

use crate::upstream::ResponseHead;
use http::Response;
use std::cell::{Cell, RefCell};

/// Bound on interim bytes waiting for one HTTP/1.1 client (chosen): a 103 with a dozen links
/// is below 2 KiB, and a client that does not read must not make us collect them.
const BYTES_MAX: usize = 16 * 1024;

/// Where the interim answers of a request go.
#[derive(Clone, Copy)]
pub enum InterimWay<'a> {
    /// Into the bytes of the connection, in front of hyper's, which has no word for them.
    Http1(&'a Http1Interim),
    /// To the task of the stream.
    Http2(&'a Http2Interim),
    /// HTTP/1.0 knows none (RFC 9110 §15.2).
    Nowhere,
}

impl InterimWay<'_> {
    /// Passes one on.
    pub fn push(self, head: ResponseHead) {
        match self {
            Self::Http1(interim) => interim.push(&head),
            Self::Http2(interim) => interim.push(head),
            Self::Nowhere => {}
        }
    }
}

/// Rendered heads, waiting to be written ahead of hyper's next bytes.
#[derive(Default)]
pub struct Http1Interim(pub(crate) RefCell<Vec<u8>>);

impl Http1Interim {
    /// Queues one; dropped when the bound is reached, which is allowed: every 1xx but 101
    /// is advisory (RFC 9110 §15.2).
    fn push(&self, head: &ResponseHead) {
        let mut pending = self.0.borrow_mut();
        let before = pending.len();
        pending.extend_from_slice(b"HTTP/1.1 ");
        // Status and reason in one word, as hyper writes them.
        pending.extend_from_slice(head.status.to_string().as_bytes());
        pending.extend_from_slice(b"\r\n");
        for (name, value) in &head.headers {
            pending.extend_from_slice(name.as_str().as_bytes());
            pending.extend_from_slice(b": ");
            pending.extend_from_slice(value.as_bytes());
            pending.extend_from_slice(b"\r\n");
        }
        pending.extend_from_slice(b"\r\n");
        if pending.len() > BYTES_MAX {
            pending.truncate(before);
        }
    }
}

/// Heads for one HTTP/2 stream; the guest's own bound of them (`upstream`) bounds these.
#[derive(Default)]
pub struct Http2Interim(Cell<Vec<Response<()>>>);

impl Http2Interim {
    fn push(&self, head: ResponseHead) {
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        let mut heads = self.0.take();
        heads.push(response);
        self.0.set(heads);
    }

    /// What has come since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Response<()>> {
        self.0.take()
    }
}
