//! One stream to one run of one sprite's port, able to carry request after request.

use super::decode::decode_head;
use super::pool::Pool;
use super::{Framing, ResponseHead, Upload, UpstreamError};
use backhaul::activity::ActivityGuard;
use backhaul::{GuestStream, GuestWrite};
use bytes::{Bytes, BytesMut};
use http::Method;
use router::names::SpriteName;
use router::route::Generation;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// Room kept free for one read while answers are small, bytes.
const READ_BYTES: usize = 16 * 1024;
/// Size of a read block, and of one read once a body is large, bytes (`floor.md`: 16 KiB
/// was never better on downloads).
const BLOCK_BYTES: usize = 64 * 1024;

thread_local! {
    /// The core's read block: connections borrow it only while they read, so an idle or
    /// waiting connection holds no buffer.
    static BLOCK: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// What came instead of, or as, the head of an answer.
#[derive(Debug)]
pub enum Received {
    /// A 1xx other than 101; another head follows.
    Interim(ResponseHead),
    /// The answer, or a 101.
    Final(ResponseHead),
}

/// A stream with what was read from it but not used yet.
pub struct Connection {
    pub(super) stream: GuestStream,
    pub(super) pending: BytesMut,
    pub(super) place: Place,
    /// Held from the first request byte to the last answer byte.
    pub(super) guard: Option<ActivityGuard>,
    /// Whether it has carried a request before.
    pub reused: bool,
    /// Bytes written to the stream before the current request.
    request_offset: u64,
    /// The task that relays the rest of the request's body.
    upload: Option<UploadTask>,
}

/// A relay under way, with the write half it returns at its end.
struct UploadTask {
    task: tokio::task::JoinHandle<()>,
    half: Rc<RefCell<Option<GuestWrite>>>,
}

impl Drop for UploadTask {
    fn drop(&mut self) {
        // The answer is over or the client gone: nobody wants the rest.
        self.task.abort();
    }
}

/// What a stream leads to; streams of different places never mix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The sprite.
    pub name: SpriteName,
    /// Its placement.
    pub generation: Generation,
    /// Its run; 0 until the owner has said.
    pub run: u64,
    /// 0 for its HTTP port.
    pub port: u16,
}

impl Connection {
    /// A stream that was just opened.
    #[must_use]
    pub fn new(stream: GuestStream, place: Place) -> Self {
        Self { stream, pending: BytesMut::new(), place, guard: None, reused: false, request_offset: 0, upload: None }
    }

    /// What it leads to.
    #[must_use]
    pub const fn place(&self) -> &Place {
        &self.place
    }

    /// The stream itself, to ask the owner's decision.
    pub const fn stream(&mut self) -> &mut GuestStream {
        &mut self.stream
    }

    /// Marks a request as in progress; `false` when the run has been closed to new ones.
    pub fn begin(&mut self) -> bool {
        if self.guard.is_none() {
            self.guard = self.stream.activity().begin();
        }
        self.guard.is_some()
    }

    /// Writes a request's head and what is there of its body, in one go.
    ///
    /// # Errors
    /// [`UpstreamError::Io`]: the guest may have read some of it.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), UpstreamError> {
        self.request_offset = self.stream.to_guest_offset();
        self.stream.write.write_all(bytes).await.map_err(UpstreamError::Io)?;
        self.stream.write.flush().await.map_err(UpstreamError::Io)
    }

    /// Relays the rest of the request's body on a task of its own, so that it goes on while
    /// the answer streams, whoever reads that or not. The connection carries no further
    /// request unless the relay has ended by the end of the answer.
    pub fn relay(&mut self, upload: Upload, framing: Framing) {
        let mut write = self.stream.write.take();
        let half = Rc::new(RefCell::new(None));
        let done = Rc::clone(&half);
        let task = tokio::task::spawn_local(async move {
            match upload.relay(framing, &mut write).await {
                Ok(()) => drop(done.replace(Some(write))),
                // Dropping the half resets the stream: the guest must not take a broken
                // body for a whole one.
                Err(error) => tracing::debug!(%error, "upload ended early"),
            }
        });
        self.upload = Some(UploadTask { task, half });
    }

    /// Whether the owner has said that nothing of the current request reached the guest.
    pub async fn nothing_delivered(&mut self) -> bool {
        self.stream.delivered().await.is_some_and(|bytes| bytes <= self.request_offset)
    }

    /// Reads the next head. An interim one leaves the stream where it was.
    ///
    /// # Errors
    /// [`UpstreamError`]; the connection cannot be used any further.
    ///
    /// # Cancel safety
    /// What was read stays in the connection.
    pub async fn read_head(&mut self, method: &Method) -> Result<Received, UpstreamError> {
        loop {
            if !self.pending.is_empty()
                && let Some(head) = decode_head(&mut self.pending, method)?
            {
                let interim = head.status.is_informational() && head.status.as_u16() != 101;
                return Ok(if interim { Received::Interim(head) } else { Received::Final(head) });
            }
            let before = self.pending.is_empty();
            if poll_fn(|cx| self.poll_fill(cx, false)).await? == 0 {
                return Err(if before { UpstreamError::ClosedBeforeAnswer } else { UpstreamError::ClosedMidAnswer });
            }
        }
    }

    /// Reads once into `pending`; 0 at the end of the stream. `large` reads whole blocks.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, large: bool) -> Poll<Result<usize, UpstreamError>> {
        BLOCK.with_borrow_mut(|block| {
            let want = if large { BLOCK_BYTES } else { READ_BYTES };
            if block.capacity() < want {
                block.reserve(BLOCK_BYTES);
            }
            let count = ready!(pin!(self.stream.read.read_buf(block)).poll(cx)).map_err(UpstreamError::Io)?;
            let got = block.split();
            if self.pending.is_empty() {
                self.pending = got;
            } else {
                self.pending.extend_from_slice(&got);
            }
            Poll::Ready(Ok(count))
        })
    }

    /// Whether an idle stream is still open and silent. Bytes nobody asked for, or its
    /// end, make it useless: the next request would take them for its answer.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = tokio::io::ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.pending.is_empty()
            && std::pin::Pin::new(&mut self.stream.read).poll_read(&mut cx, &mut buffer).is_pending()
            && !self.stream.activity().is_closed()
    }

    /// Ends the exchange cleanly and keeps the stream for the next request of its place.
    pub(super) fn give_back(mut self, pool: &Pool) {
        self.guard = None;
        if let Some(upload) = self.upload.take() {
            // Still relaying: the request was not sent whole, so the stream ends here.
            let Some(write) = upload.half.take() else { return };
            self.stream.write = write;
        }
        // Unsolicited bytes behind the answer: never reuse.
        if self.pending.is_empty() {
            self.pending = BytesMut::new();
            self.reused = true;
            pool.put(self);
        }
    }

    /// Takes it apart for a tunnel: the stream, what was read ahead, and the guard.
    #[must_use]
    pub fn into_tunnel(self) -> (GuestStream, Bytes, Option<ActivityGuard>) {
        (self.stream, self.pending.freeze(), self.guard)
    }
}
