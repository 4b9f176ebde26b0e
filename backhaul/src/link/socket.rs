//! The link's UDP socket, and the socket that QUIC sees inside the tunnel.
//!
//! A batch of QUIC's is sealed into one buffer and leaves in one system call where the
//! kernel can cut it (GSO); what arrives is read the same way (GRO). Once a packet is sealed
//! its counter is spent, so a batch the socket does not take is held, and QUIC is told to
//! wait before the next one is sealed: nothing is dropped in here.

use super::SESSION_PORT;
use super::inner::HEADERS_BYTES;
use super::peers::{AddressTaken, Batch, Drop as Dropped, Payload, Peers};
use crate::keys::{PrivateKey, PublicKey};
use bytes::BytesMut;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::io::Interest;
use tokio::sync::Notify;

/// Asked of the kernel for each direction, bytes: its own 208 KiB overflow under one burst.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Receive buffers, and the size of each: what GRO can join, bytes.
const RECEIVE_BUFFERS: usize = 8;
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;
/// Datagrams joined for QUIC in one of its buffers (chosen: it allocates 32 buffers of so
/// many datagrams once for each endpoint).
const JOINED_MAX: usize = 16;
/// Datagrams in one batch (QUIC itself makes no larger ones).
const SEGMENTS_MAX: usize = 10;
/// Largest UDP payload over IPv4, bytes.
const BATCH_BYTES_MAX: usize = 65_507;
/// Bytes WireGuard adds to a packet: header and tag.
const SEAL_BYTES: usize = 32;

/// How a link is made.
pub struct LinkOptions {
    /// Where its UDP socket listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Who we are.
    pub key: PrivateKey,
    /// Our address inside the tunnel.
    pub address: Ipv6Addr,
    /// Largest packet inside the tunnel, bytes; at least 1280.
    pub inner_mtu: u16,
}

/// WireGuard in this process. As a socket of QUIC it reaches every peer at its address
/// inside the tunnel, on [`SESSION_PORT`].
pub struct UserspaceLink {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    address: Ipv6Addr,
    inner_mtu: u16,
    inner: Mutex<Inner>,
    /// The socket took no more: writers wait for it before they seal anything.
    blocked: AtomicBool,
    /// Wakes the timer task: a deadline came nearer, or the link is gone.
    timer: Arc<Notify>,
    counters: Counters,
}

struct Inner {
    peers: Peers,
    /// A sealed batch the socket did not take.
    held: Option<Batch>,
    /// The batch buffer, when it is not held.
    spare: Batch,
    /// Payloads read from the socket that QUIC had no room for; one read's worth at most.
    ready: VecDeque<Payload>,
    scratch: Box<[u8]>,
    /// When the timer task wakes by itself.
    armed: Option<Instant>,
}

/// Packets that went no further, by reason, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// No WireGuard packet, a wrong MAC, an unknown session, or a replay.
    pub invalid: u64,
    /// A handshake with a key nobody registered.
    pub unknown_key: u64,
    /// Inside a peer's tunnel, but with another source, protocol or port than its own.
    pub wrong_inner: u64,
    /// To a peer that is unknown or whose endpoint is.
    pub no_peer: u64,
    /// The kernel refused to send.
    pub send_errors: u64,
}

#[derive(Default)]
struct Counters {
    invalid: AtomicU64,
    unknown_key: AtomicU64,
    wrong_inner: AtomicU64,
    no_peer: AtomicU64,
    send_errors: AtomicU64,
}

impl UserspaceLink {
    /// Opens the socket. Timers run on the current runtime until the link is dropped.
    ///
    /// # Errors
    /// The socket could not be opened, or the MTU is below 1280 or above 9000 bytes.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn bind(options: LinkOptions) -> io::Result<Arc<Self>> {
        // RFC 8200 §5 for the lower bound, jumbo frames for the upper one.
        if !(1280..=9000).contains(&options.inner_mtu) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the inner MTU must be 1280 to 9000 bytes"));
        }
        let socket = Socket::new(Domain::for_address(options.listen), Type::DGRAM, Some(Protocol::UDP))?;
        // The kernel grants what its limits allow; less only means more loss under bursts.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
        socket.set_nonblocking(true)?;
        socket.bind(&options.listen.into())?;
        let state = UdpSocketState::new((&socket).into())?;
        let io = tokio::net::UdpSocket::from_std(socket.into())?;
        let link = Arc::new(Self {
            io,
            state,
            address: options.address,
            inner_mtu: options.inner_mtu,
            inner: Mutex::new(Inner {
                peers: Peers::new(&options.key, options.address, SESSION_PORT, options.inner_mtu),
                held: None,
                spare: Batch::default(),
                ready: VecDeque::new(),
                scratch: vec![0; RECEIVE_BUFFERS * RECEIVE_BUFFER_BYTES].into(),
                armed: None,
            }),
            blocked: AtomicBool::new(false),
            timer: Arc::new(Notify::new()),
            counters: Counters::default(),
        });
        tokio::spawn(run_timers(Arc::downgrade(&link), Arc::clone(&link.timer)));
        Ok(link)
    }

    /// Where the UDP socket listens.
    ///
    /// # Errors
    /// The system's.
    pub fn listen_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    /// Receive buffer the kernel granted, bytes.
    #[must_use]
    pub fn receive_buffer_bytes(&self) -> usize {
        self.state.recv_buffer_size((&self.io).into()).unwrap_or(0)
    }

    /// Adds a peer or changes where it is; `endpoint` is `None` for one that calls us.
    ///
    /// # Errors
    /// [`AddressTaken`]; nothing was changed.
    pub fn upsert_peer(
        &self,
        key: PublicKey,
        address: Ipv6Addr,
        endpoint: Option<SocketAddr>,
    ) -> Result<(), AddressTaken> {
        self.lock().peers.upsert(key, address, endpoint)
    }

    /// Forgets a peer: what it sends is dropped from now on.
    pub fn remove_peer(&self, key: PublicKey) {
        self.lock().peers.remove(key);
    }

    /// The key registered for an address inside the tunnel.
    #[must_use]
    pub fn peer_key(&self, address: Ipv6Addr) -> Option<PublicKey> {
        self.lock().peers.key_of(address)
    }

    /// Starts a new session with a peer that is silent although it should not be. WireGuard
    /// has no word for "I lost my state", and waits 15 s by itself.
    pub fn renew(&self, address: Ipv6Addr) {
        let mut inner = self.lock();
        inner.peers.renew(Instant::now(), address);
        self.send_outgoing(&mut inner);
        self.rearm(&inner);
    }

    /// What was dropped so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            invalid: read(&self.counters.invalid),
            unknown_key: read(&self.counters.unknown_key),
            wrong_inner: read(&self.counters.wrong_inner),
            no_peer: read(&self.counters.no_peer),
            send_errors: read(&self.counters.send_errors),
        }
    }

    /// Largest datagram of QUIC, bytes.
    pub(crate) const fn payload_max(&self) -> u16 {
        self.inner_mtu - HEADERS_BYTES as u16
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, dropped: Dropped) {
        let counter = match dropped {
            Dropped::Invalid => &self.counters.invalid,
            Dropped::UnknownKey => &self.counters.unknown_key,
            Dropped::WrongInner => &self.counters.wrong_inner,
            Dropped::NoPeer => &self.counters.no_peer,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends one datagram or one batch; `false` when the socket takes no more.
    fn send(&self, to: SocketAddr, bytes: &[u8], segment: Option<usize>) -> bool {
        let transmit =
            |contents, segment_size| Transmit { destination: to, ecn: None, contents, segment_size, src_ip: None };
        let attempt = |transmit: &Transmit<'_>| {
            self.io.try_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), transmit))
        };
        match attempt(&transmit(bytes, segment)) {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // The timer task sends the rest when there is room, whether or not QUIC comes back.
                if !self.blocked.swap(true, Ordering::AcqRel) {
                    self.timer.notify_one();
                }
                return false;
            }
            // The device cannot cut batches. The state has noted it; these are cut here, and
            // what does not fit the socket any more is a loss like any other.
            Err(error) if segment.is_some() && matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL)) => {
                let cut = bytes.chunks(segment.unwrap_or(bytes.len()).max(1));
                let lost = cut.filter(|packet| attempt(&transmit(packet, None)).is_err()).count();
                self.counters.send_errors.fetch_add(lost as u64, Ordering::Relaxed);
            }
            // Probes of the path's MTU are refused like this; the rest is for QUIC to repeat.
            Err(_) => {
                self.counters.send_errors.fetch_add(1, Ordering::Relaxed);
            }
        }
        true
    }

    /// Sends the held batch and the control packets; `false` when something is left.
    fn send_outgoing(&self, inner: &mut Inner) -> bool {
        if let Some(batch) = inner.held.take() {
            if !self.send_batch(&batch) {
                inner.held = Some(batch);
                return false;
            }
            inner.spare = batch;
        }
        while let Some((to, packet)) = inner.peers.poll_outgoing() {
            if !self.send(to, &packet, None) {
                inner.peers.unpoll_outgoing((to, packet));
                return false;
            }
        }
        true
    }

    fn send_batch(&self, batch: &Batch) -> bool {
        let Some(to) = batch.to.filter(|_| !batch.bytes.is_empty()) else { return true };
        self.send(to, &batch.bytes, (batch.bytes.len() > batch.segment).then_some(batch.segment))
    }

    /// Wakes the timer task if a deadline came nearer.
    fn rearm(&self, inner: &Inner) {
        let next = inner.peers.poll_timeout();
        if next.is_some_and(|at| inner.armed.is_none_or(|armed| at < armed)) {
            self.timer.notify_one();
        }
    }

    fn handle_timeout(&self) -> Option<Instant> {
        let mut inner = self.lock();
        inner.peers.handle_timeout(Instant::now());
        self.send_outgoing(&mut inner);
        inner.armed = inner.peers.poll_timeout();
        inner.armed
    }

    /// Reads the socket once and decrypts what came.
    fn receive(&self, inner: &mut Inner, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            let Inner { peers, ready, scratch, .. } = &mut *inner;
            let mut metas = [RecvMeta::default(); RECEIVE_BUFFERS];
            let mut chunks = scratch.chunks_mut(RECEIVE_BUFFER_BYTES);
            let mut buffers: [IoSliceMut<'_>; RECEIVE_BUFFERS] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            let read =
                self.io.try_io(Interest::READABLE, || self.state.recv((&self.io).into(), &mut buffers, &mut metas));
            let count = match read {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                // An ICMP error of some peer; it says nothing about the socket.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Poll::Ready(Err(error)),
            };
            let now = Instant::now();
            for (meta, buffer) in metas.iter().zip(&buffers).take(count) {
                let mut bytes = BytesMut::from(&buffer[..meta.len.min(buffer.len())]);
                while !bytes.is_empty() {
                    let datagram = bytes.split_to(meta.stride.clamp(1, bytes.len()));
                    match peers.open(now, meta.addr, datagram) {
                        Ok(payload) => ready.extend(payload),
                        Err(dropped) => self.count(dropped),
                    }
                }
            }
            self.send_outgoing(inner);
            self.rearm(inner);
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncUdpSocket for UserspaceLink {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { link: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let IpAddr::V6(to) = transmit.destination.ip() else {
            self.count(Dropped::NoPeer);
            return Ok(());
        };
        let mut inner = self.lock();
        if !self.send_outgoing(&mut inner) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut batch = std::mem::take(&mut inner.spare);
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        match inner.peers.seal(Instant::now(), to, transmit.contents, segment, &mut batch) {
            Ok(()) if self.send_batch(&batch) => inner.spare = batch,
            Ok(()) => inner.held = Some(batch),
            Err(dropped) => {
                inner.spare = batch;
                self.count(dropped);
            }
        }
        self.send_outgoing(&mut inner);
        self.rearm(&inner);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        while inner.ready.is_empty() {
            ready!(self.receive(&mut inner, cx))?;
        }
        let limit = bufs.len().min(meta.len());
        let mut filled = 0;
        while filled < limit {
            let Some(first) = inner.ready.pop_front() else { break };
            let addr = SocketAddr::from((first.from, SESSION_PORT));
            let (buffer, stride) = (&mut bufs[filled], first.bytes.len());
            if stride == 0 || stride > buffer.len() {
                continue;
            }
            buffer[..stride].copy_from_slice(&first.bytes);
            let mut len = stride;
            // Equal ones of the same peer join it; a shorter one ends the row.
            while let Some(next) = inner.ready.front() {
                let size = next.bytes.len();
                if next.from != first.from || size == 0 || size > stride || len + size > buffer.len() {
                    break;
                }
                buffer[len..len + size].copy_from_slice(&next.bytes);
                len += size;
                inner.ready.pop_front();
                if size < stride {
                    break;
                }
            }
            meta[filled] = RecvMeta { addr, len, stride, ecn: None, dst_ip: Some(self.address.into()) };
            filled += 1;
        }
        if filled == 0 {
            // Only empty or oversized ones: look again at once.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(filled))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from((self.address, SESSION_PORT)))
    }

    fn max_transmit_segments(&self) -> usize {
        let fit = BATCH_BYTES_MAX / (usize::from(self.inner_mtu) + SEAL_BYTES);
        self.state.max_gso_segments().min(SEGMENTS_MAX).min(fit).max(1)
    }

    fn max_receive_segments(&self) -> usize {
        JOINED_MAX
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

impl fmt::Debug for UserspaceLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserspaceLink").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for UserspaceLink {
    fn drop(&mut self) {
        self.timer.notify_one();
    }
}

async fn run_timers(link: Weak<UserspaceLink>, changed: Arc<Notify>) {
    loop {
        let Some(next) = link.upgrade().map(|link| link.handle_timeout()) else { return };
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let room = async {
            match link.upgrade().filter(|link| link.blocked.load(Ordering::Acquire)) {
                Some(link) => {
                    // An error shows at the next send.
                    let _ = link.io.writable().await;
                    link.blocked.store(false, Ordering::Release);
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = room => {}
            () = changed.notified() => {}
        }
    }
}

type WritableFuture = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// Waits until the socket takes more; one for each of QUIC's connections.
struct Writable {
    link: Arc<UserspaceLink>,
    waiting: Option<WritableFuture>,
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_none() {
            // The usual case costs no registration.
            if !self.link.blocked.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
            let link = Arc::clone(&self.link);
            self.waiting = Some(Box::pin(async move { link.io.writable().await }));
        }
        let Some(waiting) = &mut self.waiting else { return Poll::Ready(Ok(())) };
        let result = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        self.link.blocked.store(false, Ordering::Release);
        Poll::Ready(result)
    }
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writable")
    }
}
