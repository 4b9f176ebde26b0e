//! A wake-aware stream as the edge holds it: two halves towards one port of one run.

use crate::OpenError;
use crate::activity::RunActivity;
use crate::wire::Opened;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
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
    opened: Opened,
}

impl GuestStream {
    pub(crate) fn direct(tcp: TcpStream, opened: Opened, activity: Arc<RunActivity>) -> Self {
        let (read, write) = tcp.into_split();
        Self { read: GuestRead::Tcp(read), write: GuestWrite { half: Half::Tcp(write), written: 0 }, activity, opened }
    }

    /// Whether the owner's decision is known already, so that nothing need be written
    /// before asking for it.
    #[must_use]
    pub const fn is_decided(&self) -> bool {
        true
    }

    /// The owner's decision. On the QUIC session it is read from the stream, so a request
    /// may be written before: that is what saves the round trip.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was delivered to a guest.
    pub async fn opened(&mut self) -> Result<&Opened, OpenError> {
        Ok(&self.opened)
    }

    /// The gate of the run this stream leads to.
    #[must_use]
    pub const fn activity(&self) -> &Arc<RunActivity> {
        &self.activity
    }

    /// Bytes written towards the guest so far.
    #[must_use]
    pub const fn to_guest_offset(&self) -> u64 {
        self.write.written
    }

    /// After the stream broke: how many of the written bytes reached the guest, if the
    /// owner has said so. The direct link has nobody to say it.
    pub async fn delivered(&mut self) -> Option<u64> {
        None
    }
}

/// The half that reads.
#[derive(Debug)]
pub enum GuestRead {
    /// Plain TCP of the direct link.
    Tcp(OwnedReadHalf),
}

impl AsyncRead for GuestRead {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half) => Pin::new(half).poll_read(cx, buf),
        }
    }
}

/// The half that writes. `shutdown` ends it cleanly; a drop without it is a reset.
#[derive(Debug)]
pub struct GuestWrite {
    half: Half,
    written: u64,
}

#[derive(Debug)]
enum Half {
    Tcp(OwnedWriteHalf),
    /// Moved to an upload task.
    Taken,
}

impl GuestWrite {
    /// Moves the half out, for a task that relays an upload. Writing to what stays fails.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self { half: std::mem::replace(&mut self.half, Half::Taken), written: self.written }
    }
}

impl AsyncWrite for GuestWrite {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.half {
            Half::Tcp(half) => Pin::new(half).poll_write(cx, buf),
            Half::Taken => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        };
        if let Poll::Ready(Ok(count)) = &written {
            this.written += *count as u64;
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().half {
            Half::Tcp(half) => Pin::new(half).poll_flush(cx),
            Half::Taken => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().half {
            Half::Tcp(half) => Pin::new(half).poll_shutdown(cx),
            Half::Taken => Poll::Ready(Ok(())),
        }
    }
}
