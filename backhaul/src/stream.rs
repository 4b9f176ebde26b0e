//! A wake-aware stream as the edge holds it: two halves towards one port of one run.

use crate::OpenError;
use crate::activity::{RunActivity, RunStream};
use crate::session::{QuicRead, QuicWrite, Receipt, Retired, Runs, delivered_bytes};
use crate::wire::Opened;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// A stream to a guest. Dropping it before both halves ended cleanly resets it.
#[derive(Debug)]
pub struct GuestStream {
    /// From the guest.
    pub read: GuestRead,
    /// To the guest.
    pub write: GuestWrite,
    activity: Arc<RunActivity>,
    opened: Option<Opened>,
    session: Option<Session>,
}

/// What a stream needs of its session.
#[derive(Debug)]
struct Session {
    receipt: Receipt,
    runs: Arc<Runs>,
    retired: Retired,
    sprite: String,
}

impl GuestStream {
    pub(crate) fn direct(tcp: TcpStream, opened: Opened, activity: Arc<RunActivity>) -> Self {
        let (read, write) = tcp.into_split();
        let counted = || Arc::clone(&activity);
        let read = GuestRead { from: ReadFrom::Tcp(read, counted()), stream: Some(activity.stream()) };
        let write = GuestWrite { half: WriteTo::Tcp(write, counted()), written: 0 };
        Self { read, write, activity, opened: Some(opened), session: None }
    }

    pub(crate) fn quic(
        read: QuicRead,
        write: QuicWrite,
        receipt: Receipt,
        runs: Arc<Runs>,
        retired: Retired,
        sprite: String,
        expected: Option<u64>,
    ) -> Self {
        let activity = match expected {
            Some(run) => runs.activity(&sprite, run),
            // Replaced by the run's own as soon as the owner has named it.
            None => RunActivity::new(Instant::now()),
        };
        Self {
            read: GuestRead { from: ReadFrom::Quic(Box::new(read)), stream: None },
            write: GuestWrite { half: WriteTo::Quic(Box::new(write)), written: 0 },
            activity,
            opened: None,
            session: Some(Session { receipt, runs, retired, sprite }),
        }
    }

    /// Whether the owner's decision is known already, so that nothing need be written
    /// before asking for it.
    #[must_use]
    pub const fn is_decided(&self) -> bool {
        self.opened.is_some()
    }

    /// The owner's decision. On the QUIC session it is read from the stream, so a request
    /// may be written before: that is what saves the round trip.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was delivered to a guest.
    ///
    /// # Cancel safety
    /// May be asked again.
    pub async fn opened(&mut self) -> Result<&Opened, OpenError> {
        if self.opened.is_none() {
            // Without a request to take it along, the opening frame leaves now.
            if let Err(error) = tokio::io::AsyncWriteExt::flush(&mut self.write).await {
                // The decision says more than that the owner stopped listening.
                tracing::debug!(%error, "opening frame not written");
            }
            let ReadFrom::Quic(read) = &mut self.read.from else { return Err(OpenError::Unreachable) };
            let opened = read.decision().await?;
            if let Some(session) = &self.session {
                self.activity = session.runs.activity(&session.sprite, opened.run);
                // The owner says that it runs: an earlier cordon was called off.
                self.activity.reopen();
            }
            self.read.stream = Some(self.activity.stream());
            self.opened = Some(opened);
        }
        self.opened.as_ref().ok_or(OpenError::Unreachable)
    }

    /// The gate of the run this stream leads to; the expected run's until it is decided.
    #[must_use]
    pub const fn activity(&self) -> &Arc<RunActivity> {
        &self.activity
    }

    /// Whether it takes no more requests: its run is about to end, or its host has another key and new requests
    /// take another session.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.activity.is_closed() || self.session.as_ref().is_some_and(|session| session.retired.is_retired())
    }

    /// Bytes written towards the guest so far.
    #[must_use]
    pub const fn to_guest_offset(&self) -> u64 {
        self.write.written
    }

    /// Says whether the stream rests between two requests. An idle one that is dropped ends
    /// for the guest as an idle connection does, without the reset of a broken exchange.
    pub fn set_idle(&mut self, idle: bool) {
        if let ReadFrom::Quic(read) = &mut self.read.from {
            read.idle = idle;
        }
        if let WriteTo::Quic(write) = &mut self.write.half {
            write.idle = idle;
        }
    }

    /// After the stream broke: how many of the written bytes reached the guest, if the
    /// owner has said so. The direct link has nobody to say it. Takes half a second at
    /// most; what is still unread is lost.
    pub async fn delivered(&mut self) -> Option<u64> {
        let receipt = &self.session.as_ref()?.receipt;
        let read = match &mut self.read.from {
            ReadFrom::Quic(read) => Some(&mut **read),
            ReadFrom::Tcp(..) => None,
        };
        let write = match &mut self.write.half {
            WriteTo::Quic(write) => Some(&mut **write),
            WriteTo::Tcp(..) | WriteTo::Taken => None,
        };
        delivered_bytes(receipt, read, write).await
    }
}

/// The half that reads.
#[derive(Debug)]
pub struct GuestRead {
    from: ReadFrom,
    /// Once it is decided which run it leads to. Here, because whoever takes the stream apart
    /// goes on reading.
    stream: Option<RunStream>,
}

#[derive(Debug)]
enum ReadFrom {
    /// Plain TCP of the direct link. No splice counts its bytes, so they are counted here, in
    /// the owner's own figures.
    Tcp(OwnedReadHalf, Arc<RunActivity>),
    /// A stream of the session.
    Quic(Box<QuicRead>),
}

impl AsyncRead for GuestRead {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().from {
            ReadFrom::Tcp(half, counted) => {
                let before = buf.filled().len();
                let read = Pin::new(half).poll_read(cx, buf);
                counted.count(0, (buf.filled().len() - before) as u64);
                read
            }
            ReadFrom::Quic(half) => Pin::new(&mut **half).poll_read(cx, buf),
        }
    }
}

/// The half that writes. `shutdown` ends it cleanly; a drop without it is a reset on the
/// session, and on the direct link what the socket makes of it.
#[derive(Debug)]
pub struct GuestWrite {
    half: WriteTo,
    written: u64,
}

#[derive(Debug)]
enum WriteTo {
    /// As [`ReadFrom::Tcp`].
    Tcp(OwnedWriteHalf, Arc<RunActivity>),
    Quic(Box<QuicWrite>),
    /// Moved to an upload task.
    Taken,
}

impl GuestWrite {
    /// Moves the half out, for a task that relays an upload. Writing to what stays fails.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self { half: std::mem::replace(&mut self.half, WriteTo::Taken), written: self.written }
    }
}

impl AsyncWrite for GuestWrite {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.half {
            WriteTo::Tcp(half, counted) => {
                let written = Pin::new(half).poll_write(cx, buf);
                if let Poll::Ready(Ok(count)) = &written {
                    counted.count(*count as u64, 0);
                }
                written
            }
            WriteTo::Quic(half) => Pin::new(&mut **half).poll_write(cx, buf),
            WriteTo::Taken => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        if let Poll::Ready(Ok(count)) = &written {
            this.written += *count as u64;
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().half {
            WriteTo::Tcp(half, _) => Pin::new(half).poll_flush(cx),
            WriteTo::Quic(half) => Pin::new(&mut **half).poll_flush(cx),
            WriteTo::Taken => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().half {
            WriteTo::Tcp(half, _) => Pin::new(half).poll_shutdown(cx),
            WriteTo::Quic(half) => Pin::new(&mut **half).poll_shutdown(cx),
            WriteTo::Taken => Poll::Ready(Ok(())),
        }
    }
}
