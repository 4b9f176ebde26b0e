//! One client connection as a request sees it: who it is, and whether it is still there.

use crate::access::VerifiedGrant;
use crate::client_certificate::header_lines;
use crate::early_wake::EarlyWake;
use crate::interim::Http1Interim;
use crate::target::NamedTarget;
use crate::tunnel::Tunnel;
use router::client_certificate::ClientCertificate;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::pki_types::CertificateDer;
use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How often a held request looks whether its client is still connected. The bound is
/// 1 s (`wake.md` §5); a quarter of it leaves room for a busy core.
const GONE_CHECK: Duration = Duration::from_millis(250);

/// What is known about a connection once its handshake is done. Lives on one core.
pub struct Client {
    /// The client's address.
    pub peer: SocketAddr,
    /// The port it connected to.
    pub local_port: u16,
    /// The name of the handshake, lower-cased by rustls; none on the plain port.
    pub server_name: Option<Box<str>>,
    /// What its handshake asked for, by the rules of the sprite it named.
    pub asked: Option<Arc<ClientCertificate>>,
    /// Header lines that are the same for every request of this connection.
    pub forwarded: Box<[u8]>,
    /// The `for=` element of `Forwarded`.
    pub forwarded_for: Box<str>,
    /// The last host that was parsed: connections rarely change it.
    pub last_target: RefCell<Option<NamedTarget>>,
    /// The last share cookie whose signature was right.
    pub last_grant: RefCell<Option<VerifiedGrant>>,
    /// Bytes of interim answers (1xx) that hyper's server cannot send itself.
    pub interim: Rc<Http1Interim>,
    /// Set when an answer switched protocols; taken by `connection.rs`.
    pub tunnel: Cell<Option<Tunnel>>,
    /// The wake its ClientHello began, until its first request.
    pub early_wake: Cell<Option<Box<EarlyWake>>>,
    socket: SharedSocket,
}

impl Client {
    /// Facts of an accepted connection.
    #[must_use]
    pub fn new(socket: SharedSocket, peer: SocketAddr, local_port: u16, server_name: Option<Box<str>>) -> Self {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let ip = peer.ip();
        let forwarded_for = match ip {
            IpAddr::V4(v4) => format!("for={v4}"),
            IpAddr::V6(v6) => format!("for=\"[{v6}]\""),
        };
        let forwarded =
            format!("x-forwarded-for: {ip}\r\nx-forwarded-proto: https\r\nx-forwarded-port: {local_port}\r\n");
        Self {
            peer,
            local_port,
            server_name,
            asked: None,
            forwarded: forwarded.into_bytes().into(),
            forwarded_for: forwarded_for.into(),
            last_target: RefCell::new(None),
            last_grant: RefCell::new(None),
            interim: Rc::new(Http1Interim::default()),
            tunnel: Cell::new(None),
            early_wake: Cell::new(None),
            socket,
        }
    }

    /// Of a connection that was made under these rules, with the certificate its handshake has verified.
    #[must_use]
    pub fn asked_for(self, rules: Arc<ClientCertificate>, chain: Option<&[CertificateDer<'_>]>) -> Self {
        let forwarded = [&*self.forwarded, &header_lines(chain)].concat().into();
        Self { asked: Some(rules), forwarded, ..self }
    }

    /// Whether the last host that was named on it is under one of our suffixes, not a custom domain.
    #[must_use]
    pub fn is_at_a_name_of_ours(&self) -> bool {
        self.last_target.borrow().as_ref().is_some_and(|last| !last.by_domain)
    }

    /// How often something was read from it.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.socket.0.reads.get()
    }

    /// Resolves when the client closed or reset its connection.
    ///
    /// hyper cannot see that while it holds unread bytes (a pipelined request, an upload
    /// nobody reads), which is exactly the state of a held request, so the socket itself
    /// is asked. A half-close counts as leaving, as it does for hyper.
    ///
    /// # Cancel safety
    /// Holds no state.
    pub async fn gone(&self) {
        loop {
            if self.socket.peer_closed() {
                return;
            }
            tokio::time::sleep(GONE_CHECK).await;
        }
    }
}

/// The client's TCP socket, shared between hyper (which reads and writes it) and the
/// watcher above (which only polls it). One core, so a `RefCell` suffices.
#[derive(Clone)]
pub struct SharedSocket(Rc<Socket>);

struct Socket {
    stream: RefCell<TcpStream>,
    /// Reads that brought something.
    reads: Cell<u64>,
}

impl SharedSocket {
    /// Shares `stream`.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self(Rc::new(Socket { stream: RefCell::new(stream), reads: Cell::new(0) }))
    }

    fn peer_closed(&self) -> bool {
        let stream = self.0.stream.borrow();
        let mut fds = [PollFd::new(&*stream, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // HUP and ERR are always reported; an error of the call itself says nothing.
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
            && fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }
}

impl AsyncRead for SharedSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let polled = Pin::new(&mut *self.0.stream.borrow_mut()).poll_read(cx, buf);
        if polled.is_ready() {
            self.0.reads.set(self.0.reads.get() + 1);
        }
        polled
    }
}

impl AsyncWrite for SharedSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.stream.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_shutdown(cx)
    }
}

/// The stream hyper reads and writes: TLS or plain, with interim answers put in front.
pub struct ClientIo<S> {
    inner: S,
    interim: Rc<Http1Interim>,
}

impl<S: AsyncWrite + Unpin> ClientIo<S> {
    /// Wraps `inner`.
    pub fn new(inner: S, interim: Rc<Http1Interim>) -> Self {
        Self { inner, interim }
    }

    /// The stream itself, once hyper is done with it.
    pub fn into_inner(self) -> S {
        self.inner
    }

    fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        loop {
            let mut pending = self.interim.0.borrow_mut();
            if pending.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &pending))?;
            if written == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            pending.drain(..written);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

/// What hyper writes by itself when the body of a client that expects it is first read.
const HYPERS_CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

impl<S: AsyncWrite + Unpin> AsyncWrite for ClientIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        // Only the guest may say it, and when it does it comes as an interim answer.
        if buf == HYPERS_CONTINUE {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        ready!(self.poll_interim(cx))?;
        if bufs.iter().map(|buf| buf.len()).sum::<usize>() == HYPERS_CONTINUE.len()
            && bufs.iter().any(|buf| **buf == *HYPERS_CONTINUE)
        {
            return Poll::Ready(Ok(HYPERS_CONTINUE.len()));
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        ready!(self.poll_interim(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
