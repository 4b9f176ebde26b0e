//! The edge's end of one QUIC stream: the opening frame before the first byte, the owner's
//! decision before the first answer, and the receipt at the end.

use super::{DONE, RECEIPT, delivered};
use crate::OpenError;
use crate::wire::{self, FRAME_BYTES_MAX, OpenReply, Opened, Reply};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that is copied behind the opening frame, bytes: a request's head and the body it
/// may bring along.
const FIRST_BYTES_MAX: usize = 64 * 1024 + 16 * 1024;
/// A receipt travels with the end of the stream; this is for the one that is on its way.
const RECEIPT_WAIT: Duration = Duration::from_millis(500);

/// What the owner said about delivery, shared by both halves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Receipt(Arc<AtomicU64>);

impl Receipt {
    fn note(&self, code: quinn::VarInt) {
        if delivered(code).is_some() {
            self.0.store(code.into_inner(), Ordering::Relaxed);
        }
    }

    pub(crate) fn bytes(&self) -> Option<u64> {
        let code = self.0.load(Ordering::Relaxed);
        (code != 0).then_some(code & !RECEIPT)
    }
}

/// The half that reads.
#[derive(Debug)]
pub(crate) struct QuicRead {
    stream: RecvStream,
    /// What was read of the owner's frame; `None` once it is decided.
    frame: Option<Vec<u8>>,
    /// The decision, until it is taken.
    reply: Option<Reply>,
    receipt: Receipt,
    pub(crate) idle: bool,
}

impl QuicRead {
    pub(crate) const fn new(stream: RecvStream, receipt: Receipt) -> Self {
        Self { stream, frame: Some(Vec::new()), reply: None, receipt, idle: false }
    }

    /// Reads the owner's decision, once.
    ///
    /// # Cancel safety
    /// What was read stays here.
    pub(crate) async fn decision(&mut self) -> Result<Opened, OpenError> {
        std::future::poll_fn(|cx| self.poll_decision(cx)).await.map_err(|error| {
            tracing::debug!(%error, "no decision of the owner");
            OpenError::Unreachable
        })?;
        match self.reply.take() {
            Some(Reply::Opened(opened)) => Ok(opened),
            Some(reply) => Err(OpenError::NotOpened(reply)),
            None => Err(OpenError::Unreachable),
        }
    }

    fn poll_decision(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(frame) = &mut self.frame {
            let want = match frame.first_chunk::<2>() {
                Some(length) => 2 + usize::from(u16::from_be_bytes(*length)),
                None => 2,
            };
            if want > 2 + FRAME_BYTES_MAX {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            if frame.len() >= 2 && frame.len() == want {
                let decoded = wire::decode::<OpenReply>(frame);
                let Ok(Some((OpenReply { reply: Some(reply) }, _))) = decoded else {
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                };
                self.reply = Some(reply);
                self.frame = None;
                break;
            }
            // Exactly the frame: what follows it is the guest's.
            let at = frame.len();
            let mut room = [0; 256];
            let ask = (want - at).min(room.len());
            match self.stream.poll_read(cx, &mut room[..ask]) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Ok(count)) => frame.extend_from_slice(&room[..count]),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(note(&self.receipt, error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until the other end said how the stream ended.
    async fn ended(&mut self) {
        let mut rest = [0; 1024];
        while let Ok(Some(_)) = self.stream.read(&mut rest).await.inspect_err(|error| {
            if let ReadError::Reset(code) = error {
                self.receipt.note(*code);
            }
        }) {}
    }
}

impl AsyncRead for QuicRead {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_decision(cx))?;
        this.stream.poll_read_buf(cx, buf).map_err(|error| note(&this.receipt, error))
    }
}

impl Drop for QuicRead {
    fn drop(&mut self) {
        if self.idle {
            // Ended or gone already is as good.
            let _ = self.stream.stop(DONE.into());
        }
    }
}

/// The half that writes. Dropped before its end, it resets the stream.
#[derive(Debug)]
pub(crate) struct QuicWrite {
    stream: SendStream,
    /// The opening frame, until it is written: it leaves together with the first bytes.
    opening: Vec<u8>,
    finished: bool,
    receipt: Receipt,
    pub(crate) idle: bool,
}

impl QuicWrite {
    pub(crate) const fn new(stream: SendStream, opening: Vec<u8>, receipt: Receipt) -> Self {
        Self { stream, opening, finished: false, receipt, idle: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes).map_err(|error: WriteError| {
            if let WriteError::Stopped(code) = error {
                self.receipt.note(code);
            }
            error.into()
        })
    }

    /// Writes the opening frame, if it is still here, and as much of `bytes` as is taken.
    fn poll_opening(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        while !self.opening.is_empty() {
            let opening = self.opening.len();
            let mut first = std::mem::take(&mut self.opening);
            first.extend_from_slice(&bytes[..bytes.len().min(FIRST_BYTES_MAX)]);
            let written = self.poll(cx, &first);
            first.truncate(opening);
            if let Poll::Ready(Ok(count)) = &written {
                first.drain(..opening.min(*count));
            }
            self.opening = first;
            let count = ready!(written)?;
            if count > opening {
                return Poll::Ready(Ok(count - opening));
            }
        }
        Poll::Ready(Ok(0))
    }
}

impl AsyncWrite for QuicWrite {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match ready!(this.poll_opening(cx, bytes))? {
            0 if bytes.is_empty() => Poll::Ready(Ok(0)),
            0 => this.poll(cx, bytes),
            count => Poll::Ready(Ok(count)),
        }
    }

    /// Makes sure that the opening frame has left; the rest never waits in here.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_opening(cx, &[]).map_ok(|_| ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_opening(cx, &[]))?;
        this.finished = true;
        // Ended already is ended too.
        let _ = this.stream.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for QuicWrite {
    fn drop(&mut self) {
        if !self.finished {
            // Stopped by the other end, or gone with the session: nothing left to reset.
            let _ = self.stream.reset(if self.idle { DONE } else { 0 }.into());
        }
    }
}

/// How many bytes the owner says it delivered, after the stream broke.
pub(crate) async fn delivered_bytes(
    receipt: &Receipt,
    read: Option<&mut QuicRead>,
    write: Option<&mut QuicWrite>,
) -> Option<u64> {
    if receipt.bytes().is_some() {
        return receipt.bytes();
    }
    let stopped = async {
        match write {
            Some(write) => {
                if let Ok(Some(code)) = write.stream.stopped().await {
                    receipt.note(code);
                }
            }
            None => std::future::pending().await,
        }
    };
    let ended = async {
        if let Some(read) = read {
            read.ended().await;
        }
        // A clean end says nothing; the word about the other direction may still come.
        if receipt.bytes().is_none() {
            std::future::pending().await
        }
    };
    let either = async {
        let (stopped, ended) = (pin!(stopped), pin!(ended));
        futures_util::future::select(stopped, ended).await;
    };
    // Nothing came in time: unknown.
    let _ = tokio::time::timeout(RECEIPT_WAIT, either).await;
    receipt.bytes()
}

fn note(receipt: &Receipt, error: ReadError) -> io::Error {
    if let ReadError::Reset(code) = error {
        receipt.note(code);
    }
    error.into()
}
