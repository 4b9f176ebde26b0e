//! One stream to one run of one sprite's port, able to carry request after request.
//!
//! It knows whether it may be used again; it does not know how to open itself and never
//! sends anything twice.

use super::decode::{HeadDecoder, ResponseHead};
use super::link::Link;
use super::pool::Pool;
use super::upload::{Upload, write_parts};
use super::{RequestFraming, UpstreamError};
use backhaul::GuestStream;
use backhaul::activity::RunActivity;
use bytes::{BufMut, Bytes, BytesMut};
use http_body::Body;
use router::names::SpriteName;
use router::route::{Generation, HostId};
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

/// Size of one read while answers are small, bytes: heads and most answers fit.
pub(super) const READ_SMALL_BYTES: usize = 16 * 1024;
/// Size of one read once a body is large, and of a read block, bytes (measured: 16 KiB was
/// never better on downloads).
pub(super) const READ_LARGE_BYTES: usize = 64 * 1024;
/// Most interim answers to one request (chosen: a 100, a 103 and progress once a second for
/// half a minute).
const INTERIM_MAX: u8 = 32;

thread_local! {
    /// The core's read block. Connections borrow it only while they read, so an idle or
    /// waiting one holds no buffer. What was read is split off and shared, and the block is
    /// allocated anew only after its 64 KiB are used up and still referred to.
    static BLOCK: Cell<BytesMut> = Cell::new(BytesMut::new());
}

/// What the request asked for, as far as the answer's shape depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The method is HEAD: there is no body, whatever the fields say.
    pub head: bool,
    /// A switch of protocols was asked for: a 101 is an answer.
    pub upgrade: bool,
}

/// What came instead of, or as, the head of an answer.
#[derive(Debug)]
pub enum Received {
    /// A 1xx other than 101; another head follows.
    Interim(ResponseHead),
    /// The answer, or a 101.
    Final(ResponseHead),
}

/// What a stream leads to; streams of different places never mix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The host the stream was opened to.
    pub host: HostId,
    /// The sprite.
    pub name: SpriteName,
    /// Its placement.
    pub generation: Generation,
    /// Its run.
    pub run: u64,
    /// 0 for its HTTP port.
    pub port: u16,
}

/// A stream with what was read from it but not used yet.
///
/// Dropping it resets the stream, which tells the guest to stop.
pub struct Connection<L: Link> {
    /// On the heap once per stream, so that each request moves a pointer and not the whole.
    inner: Box<Inner<L>>,
}

struct Inner<L: Link> {
    /// In front of the stream, so that it ends before that does.
    guard: Option<L::Guard>,
    link: L,
    place: Place,
    pending: Bytes,
    decoder: HeadDecoder,
    asked: Asked,
    interim: u8,
    /// A write was begun and not finished, or an interim answer broke a rule.
    spoiled: bool,
    reused: bool,
    /// Bytes written to the stream before the current request.
    request_offset: u64,
    upload: Option<UploadTask<L::Write>>,
}

/// A relay under way, with the write half it returns at its end.
struct UploadTask<W> {
    task: tokio::task::JoinHandle<()>,
    half: Rc<RefCell<Option<W>>>,
}

impl<W> Drop for UploadTask<W> {
    fn drop(&mut self) {
        // The answer is over or the client gone: nobody wants the rest.
        self.task.abort();
    }
}

impl<L: Link> Connection<L> {
    /// A stream that was just opened.
    #[must_use]
    pub fn new(link: L, place: Place) -> Self {
        let inner = Inner {
            link,
            place,
            pending: Bytes::new(),
            decoder: HeadDecoder::default(),
            asked: Asked::default(),
            interim: 0,
            guard: None,
            spoiled: false,
            reused: false,
            request_offset: 0,
            upload: None,
        };
        Self { inner: Box::new(inner) }
    }

    /// What it leads to.
    #[must_use]
    pub const fn place(&self) -> &Place {
        &self.inner.place
    }

    /// Names the run, once the owner has said which it is.
    pub const fn set_run(&mut self, run: u64) {
        self.inner.place.run = run;
    }

    /// Whether it has carried a request before: then it may have ended in the moment it was
    /// taken, without the guest having seen anything.
    #[must_use]
    pub const fn is_reused(&self) -> bool {
        self.inner.reused
    }

    /// The stream itself, to ask the owner's decision.
    pub const fn link(&mut self) -> &mut L {
        &mut self.inner.link
    }

    /// Marks a request as in progress; `false` when the run has been closed to new ones.
    pub fn begin(&mut self) -> bool {
        if self.inner.guard.is_none() {
            self.inner.guard = self.inner.link.begin();
            self.inner.link.set_idle(false);
        }
        self.inner.guard.is_some()
    }

    /// Sends a request's head and what is there of its body, already framed, in one write.
    ///
    /// # Errors
    /// [`UpstreamError::Io`]: the guest may have read some of it. It may also have answered
    /// before it stopped reading, so [`Connection::read_head`] may still succeed.
    ///
    /// # Cancel safety
    /// None: a dropped future leaves a connection that is never reused.
    pub async fn send_head_and_small_body(
        &mut self,
        asked: Asked,
        head: &[u8],
        body: &[u8],
    ) -> Result<(), UpstreamError> {
        self.inner.asked = asked;
        self.inner.interim = 0;
        self.inner.request_offset = self.inner.link.to_guest_offset();
        self.inner.spoiled = true;
        let write = self.inner.link.write().ok_or_else(|| UpstreamError::Io(io::ErrorKind::BrokenPipe.into()))?;
        if body.is_empty() {
            write.write_all(head).await.map_err(UpstreamError::Io)?;
        } else {
            write_parts(write, [head, body], &mut Vec::new()).await.map_err(UpstreamError::Io)?;
        }
        write.flush().await.map_err(UpstreamError::Io)?;
        self.inner.spoiled = false;
        Ok(())
    }

    /// Reads the next head. After an interim one it is called again.
    ///
    /// # Errors
    /// [`UpstreamError`]; the connection cannot be used any further.
    ///
    /// # Cancel safety
    /// What was read stays in the connection.
    pub async fn read_head(&mut self) -> Result<Received, UpstreamError> {
        poll_fn(|cx| self.poll_head(cx)).await
    }

    /// [`Connection::read_head`] for callers that poll.
    ///
    /// # Errors
    /// As there.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, UpstreamError>> {
        loop {
            if !self.inner.pending.is_empty()
                && let Some(head) = self.inner.decoder.decode(&mut self.inner.pending, self.inner.asked)?
            {
                return Poll::Ready(self.received(head));
            }
            if ready!(self.poll_fill(cx, READ_SMALL_BYTES))? == 0 {
                return Poll::Ready(Err(self.inner.decoder.fail(&mut self.inner.pending, self.inner.asked)));
            }
        }
    }

    fn received(&mut self, head: ResponseHead) -> Result<Received, UpstreamError> {
        if !head.is_interim() {
            return Ok(Received::Final(head));
        }
        self.inner.interim += 1;
        if self.inner.interim > INTERIM_MAX {
            return Err(UpstreamError::TooManyInterim);
        }
        self.inner.spoiled |= !head.reusable;
        Ok(Received::Interim(head))
    }

    /// What was read and not used yet.
    pub(super) const fn pending(&mut self) -> &mut Bytes {
        &mut self.inner.pending
    }

    /// Reads once, at most `size` bytes, and puts them behind `pending`; 0 at the end of the stream.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, size: usize) -> Poll<Result<usize, UpstreamError>> {
        // Taken, not borrowed: whatever the stream does while it is polled finds an empty one.
        let mut block = BLOCK.take();
        if block.capacity() < size {
            block.reserve(READ_LARGE_BYTES);
        }
        let mut room = (&mut block).limit(size);
        let polled = pin!(self.inner.link.read().read_buf(&mut room)).poll(cx);
        let got = if matches!(polled, Poll::Ready(Ok(1..))) { block.split() } else { BytesMut::new() };
        BLOCK.set(block);
        let count = ready!(polled).map_err(UpstreamError::Io)?;
        if self.inner.pending.is_empty() {
            self.inner.pending = got.freeze();
        } else if count > 0 {
            let before = std::mem::take(&mut self.inner.pending);
            let mut joined = before.try_into_mut().unwrap_or_else(|shared| {
                // Room for as much again, so that a slow head is not copied for each piece.
                let mut copy = BytesMut::with_capacity((shared.len() + count) * 2);
                copy.extend_from_slice(&shared);
                copy
            });
            joined.extend_from_slice(&got);
            self.inner.pending = joined.freeze();
        }
        Poll::Ready(Ok(count))
    }

    /// Whether an idle stream is still open and silent. Bytes nobody asked for, or its
    /// end, make it useless: the next request would take them for its answer.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        !self.inner.link.is_closed()
            && Pin::new(self.inner.link.read()).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// Ends the exchange behind the last byte of an answer. The stream is kept for the next
    /// request of its place when the answer allows it, the request was sent whole, and
    /// nothing followed the answer.
    pub(super) fn finish(mut self, reusable: bool, pool: &Pool<L>) {
        if !reusable || self.inner.spoiled || !self.inner.pending.is_empty() {
            return;
        }
        if let Some(upload) = self.inner.upload.take() {
            // Still relaying: the request was not sent whole, so the stream ends here.
            let Some(write) = upload.half.take() else { return };
            self.inner.link.put_write(write);
        }
        // Even an empty slice would keep the core's read block from being used again.
        self.inner.pending = Bytes::new();
        self.inner.guard = None;
        self.inner.reused = true;
        self.inner.link.set_idle(true);
        pool.put(self);
    }

    /// The rest of its answer may take long: silence is silence from now on.
    pub(super) fn may_be_silent(&mut self) {
        if let Some(guard) = &mut self.inner.guard {
            L::may_be_silent(guard);
        }
    }

    /// There was data on it.
    pub(super) fn touch(&self) {
        self.inner.link.touch();
    }

    /// Takes it apart for a tunnel: the stream, what was read behind the head, and the guard.
    #[must_use]
    pub fn into_tunnel(self) -> (L, Bytes, Option<L::Guard>) {
        let inner = *self.inner;
        (inner.link, inner.pending, inner.guard)
    }
}

impl<L: Link + 'static> Connection<L> {
    /// Relays the rest of the request's body on a task of its own, so that it goes on while
    /// the answer streams, whoever reads that or not. The connection carries no further
    /// request unless the relay has ended by the end of the answer.
    pub fn relay<B>(&mut self, upload: Upload<B>, framing: RequestFraming)
    where
        B: Body<Data = Bytes> + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let Some(mut write) = self.inner.link.take_write() else { return };
        let half = Rc::new(RefCell::new(None));
        let done = Rc::clone(&half);
        let task = tokio::task::spawn_local(async move {
            match upload.relay(framing, &mut write).await {
                Ok(_) => drop(done.replace(Some(write))),
                // Dropping the half resets the stream: the guest must not take a broken
                // body for a whole one.
                Err(error) => tracing::debug!(%error, "upload ended early"),
            }
        });
        self.inner.upload = Some(UploadTask { task, half });
    }
}

impl Connection<GuestStream> {
    /// What the run it leads to has in progress.
    #[must_use]
    pub fn run(&self) -> Arc<RunActivity> {
        Arc::clone(self.inner.link.activity())
    }

    /// Whether the owner has said that nothing of the current request reached the guest.
    pub async fn nothing_delivered(&mut self) -> bool {
        self.inner.link.delivered().await.is_some_and(|bytes| bytes <= self.inner.request_offset)
    }
}
