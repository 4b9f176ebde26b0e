//! The peers of one link and their tunnels: which packet belongs to whom, what to send, when
//! to look again.
//!
//! No socket: datagrams in, payloads and datagrams out, a deadline. (The tunnels read the
//! clock themselves, so this is not a core that runs in virtual time.) A tunnel is built
//! when it is first needed; a registered peer costs a few hundred bytes until then.

use super::inner;
use crate::keys::{PrivateKey, PublicKey};
use bytes::BytesMut;
use gotatun::noise::handshake::parse_handshake_anon;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::noise::{Tunn, TunnResult};
use gotatun::packet::{Packet, WgKind};
use gotatun::tun::MtuWatcher;
use gotatun::x25519;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Handshakes a second from one address that are answered without a cookie (chosen; a
/// host that lost its state gets one from each of some hundred edges).
const HANDSHAKES_PER_SECOND: u64 = 100;
/// While a packet waits, the initiation is repeated this long after the first one. The
/// protocol's own 5 s is the worst tail a held request could have.
const RETRIES: [Duration; 4] =
    [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];
/// How often a tunnel's timers are looked at while it is in use, or was a moment ago.
const TICK: Duration = Duration::from_secs(1);
/// As long after its last packet: beyond keep-alive and new-handshake time (10 s + 5 s + jitter).
const ACTIVE: Duration = Duration::from_secs(20);
/// How often after that, until its keys expire.
const TICK_IDLE: Duration = Duration::from_secs(10);
/// Control packets (handshakes, keep-alives, packets that waited) not sent yet.
const OUTGOING_MAX: usize = 1024;

/// Why a packet went no further. Counted, never logged one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drop {
    /// No WireGuard packet, a wrong MAC, an unknown session, or a replay.
    Invalid,
    /// A well-formed handshake with a key nobody registered.
    UnknownKey,
    /// Inside a peer's tunnel: another source, protocol or port than its own.
    WrongInner,
    /// To an address no peer has, or to a peer whose endpoint is not known yet.
    NoPeer,
}

/// Two peers with one address, which would let one speak as the other.
#[derive(Debug, thiserror::Error)]
#[error("{address} belongs to another peer")]
pub struct AddressTaken {
    /// The address inside the tunnel.
    pub address: Ipv6Addr,
}

/// A batch of sealed packets for one endpoint, all of one size but the last.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) to: Option<SocketAddr>,
    pub(super) bytes: Vec<u8>,
    pub(super) segment: usize,
}

/// What one datagram of the socket turned out to carry for us.
#[derive(Debug)]
pub(super) struct Payload {
    pub(super) from: Ipv6Addr,
    pub(super) bytes: BytesMut,
}

pub(super) struct Peers {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    address: Ipv6Addr,
    port: u16,
    mtu: u16,
    limiter: Arc<RateLimiter>,
    indexes: IndexTable,
    peers: Vec<Peer>,
    /// Places in `peers` of those that were removed.
    free: Vec<usize>,
    by_key: HashMap<PublicKey, usize>,
    by_address: HashMap<Ipv6Addr, usize>,
    /// Our session indexes. An index of a session that has ended stays until the next sweep.
    by_index: HashMap<u32, usize>,
    /// Size of `by_index` that starts a sweep.
    sweep_at: usize,
    deadlines: BTreeSet<(Instant, usize)>,
    outgoing: VecDeque<(SocketAddr, Packet)>,
    plain: Vec<u8>,
}

struct Peer {
    key: PublicKey,
    address: Ipv6Addr,
    /// Where it was last heard from, or where it is said to be.
    endpoint: Option<SocketAddr>,
    /// A peer without an endpoint of its own only ever calls us. Its tunnel is kept: it
    /// remembers the last handshake's time, without which an old one could be replayed.
    calls_us: bool,
    tunnel: Option<Box<Tunn>>,
    /// Since when a packet waits for a session, and how many initiations were repeated.
    waiting: Option<(Instant, usize)>,
    used: Option<Instant>,
    ticked: Option<Instant>,
    deadline: Option<Instant>,
}

impl Peers {
    pub(super) fn new(key: &PrivateKey, address: Ipv6Addr, port: u16, mtu: u16) -> Self {
        let private = key.secret().clone();
        let public = x25519::PublicKey::from(&private);
        Self {
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND)),
            private,
            public,
            address,
            port,
            mtu,
            indexes: IndexTable::from_os_rng(),
            peers: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            by_address: HashMap::new(),
            by_index: HashMap::new(),
            sweep_at: 64,
            deadlines: BTreeSet::new(),
            outgoing: VecDeque::new(),
            plain: Vec::new(),
        }
    }

    /// Adds a peer or changes where it is. `endpoint` is `None` for one that calls us.
    ///
    /// # Errors
    /// [`AddressTaken`]; nothing was changed.
    pub(super) fn upsert(
        &mut self,
        key: PublicKey,
        address: Ipv6Addr,
        endpoint: Option<SocketAddr>,
    ) -> Result<(), AddressTaken> {
        let known = self.by_key.get(&key).copied();
        if address == self.address || self.by_address.get(&address).is_some_and(|&owner| Some(owner) != known) {
            return Err(AddressTaken { address });
        }
        let id = if let Some(id) = known {
            let peer = &mut self.peers[id];
            self.by_address.remove(&peer.address);
            peer.address = address;
            peer.endpoint = endpoint.or(peer.endpoint);
            peer.calls_us = endpoint.is_none();
            id
        } else {
            self.place(Peer {
                key,
                address,
                endpoint,
                calls_us: endpoint.is_none(),
                tunnel: None,
                waiting: None,
                used: None,
                ticked: None,
                deadline: None,
            })
        };
        self.by_key.insert(key, id);
        self.by_address.insert(address, id);
        Ok(())
    }

    fn place(&mut self, peer: Peer) -> usize {
        match self.free.pop() {
            // Indexes of the one that was here before may still point to it: its tunnel refuses what
            // is not sealed for it.
            Some(id) => {
                self.peers[id] = peer;
                id
            }
            None => {
                self.peers.push(peer);
                self.peers.len() - 1
            }
        }
    }

    /// Forgets a peer and its tunnel: from now on it is a stranger.
    pub(super) fn remove(&mut self, key: PublicKey) {
        let Some(id) = self.by_key.remove(&key) else { return };
        let peer = &mut self.peers[id];
        self.by_address.remove(&peer.address);
        peer.tunnel = None;
        peer.endpoint = None;
        peer.waiting = None;
        if let Some(deadline) = peer.deadline.take() {
            self.deadlines.remove(&(deadline, id));
        }
        self.free.push(id);
    }

    /// The registered key behind an address.
    pub(super) fn key_of(&self, address: Ipv6Addr) -> Option<PublicKey> {
        Some(self.peers[*self.by_address.get(&address)?].key)
    }

    /// Seals the datagrams in `contents`, `segment` bytes each, into `batch`. Packets that
    /// must wait for a handshake are kept in the tunnel's own queue (256 at most).
    pub(super) fn seal(
        &mut self,
        now: Instant,
        to: Ipv6Addr,
        contents: &[u8],
        segment: usize,
        batch: &mut Batch,
    ) -> Result<(), Drop> {
        let id = *self.by_address.get(&to).ok_or(Drop::NoPeer)?;
        let endpoint = self.peers[id].endpoint.ok_or(Drop::NoPeer)?;
        self.touch(now, id);
        batch.to = Some(endpoint);
        batch.bytes.clear();
        batch.segment = 0;
        for payload in contents.chunks(segment.max(1)) {
            self.plain.clear();
            inner::write(self.address, to, self.port, payload, &mut self.plain);
            // WireGuard pads to 16 bytes, never beyond the MTU.
            let padded = self.plain.len().next_multiple_of(16).min(self.mtu.into()).max(self.plain.len());
            self.plain.resize(padded, 0);
            let packet = Packet::from_bytes(BytesMut::from(&self.plain[..]));
            match self.tunnel(id).encapsulate_with_session(packet) {
                Ok(sealed) => {
                    let sealed: Packet = sealed.into();
                    batch.segment = batch.segment.max(sealed.len());
                    batch.bytes.extend_from_slice(&sealed);
                }
                Err(packet) => {
                    if let Some(initiation) = self.tunnel(id).handle_outgoing_packet(packet, None) {
                        self.push(id, endpoint, initiation);
                    }
                    if self.peers[id].waiting.is_none() {
                        self.peers[id].waiting = Some((now, 0));
                        self.schedule(now, id);
                    }
                }
            }
        }
        Ok(())
    }

    /// Starts a new session with a peer that is in use but silent: it may have lost its own.
    pub(super) fn renew(&mut self, now: Instant, address: Ipv6Addr) {
        let Some(&id) = self.by_address.get(&address) else { return };
        let Some(endpoint) = self.peers[id].endpoint else { return };
        self.touch(now, id);
        if let Some(initiation) = self.tunnel(id).format_handshake_initiation(true) {
            self.push(id, endpoint, initiation.into());
            self.peers[id].waiting = Some((now, 0));
            self.schedule(now, id);
        }
    }

    /// Takes a datagram of the socket.
    pub(super) fn open(&mut self, now: Instant, from: SocketAddr, datagram: BytesMut) -> Result<Option<Payload>, Drop> {
        let packet = match self.limiter.verify_packet(from, Packet::from_bytes(datagram)) {
            Ok(packet) => packet,
            Err(TunnResult::WriteToNetwork(cookie)) => {
                self.limiter.try_reset_count();
                self.queue(from, cookie.into());
                return Ok(None);
            }
            Err(_) => return Err(Drop::Invalid),
        };
        let id = self.addressee(&packet)?;
        self.touch(now, id);
        let is_response = matches!(packet, WgKind::HandshakeResp(_));
        match self.tunnel(id).handle_incoming_packet(packet) {
            TunnResult::Done => Ok(None),
            TunnResult::Err(_) => Err(Drop::Invalid),
            TunnResult::WriteToNetwork(answer) => {
                // Authenticated: the peer is where this came from.
                self.peers[id].endpoint = Some(from);
                self.push(id, from, answer);
                if is_response {
                    self.flush(id, from);
                }
                Ok(None)
            }
            TunnResult::WriteToTunnel(mut packet) => {
                self.peers[id].endpoint = Some(from);
                if self.peers[id].waiting.is_some() {
                    self.flush(id, from);
                }
                if packet.is_empty() {
                    return Ok(None);
                }
                let source = self.peers[id].address;
                let range = inner::parse(&packet, source, self.address, self.port).ok_or(Drop::WrongInner)?;
                let mut bytes = std::mem::take(packet.buf_mut());
                bytes.truncate(range.end);
                let _ = bytes.split_to(range.start);
                Ok(Some(Payload { from: source, bytes }))
            }
        }
    }

    /// When [`Peers::handle_timeout`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(at, _)| at)
    }

    /// Looks at the tunnels that are due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.deadlines.first() {
            if at > now {
                return;
            }
            self.deadlines.pop_first();
            self.peers[id].deadline = None;
            self.tick(now, id);
            self.schedule(now, id);
        }
    }

    /// The next control packet to send.
    pub(super) fn poll_outgoing(&mut self) -> Option<(SocketAddr, Packet)> {
        self.outgoing.pop_front()
    }

    /// Puts back what could not be sent.
    pub(super) fn unpoll_outgoing(&mut self, packet: (SocketAddr, Packet)) {
        self.outgoing.push_front(packet);
    }

    // --- one peer ---

    fn tunnel(&mut self, id: usize) -> &mut Tunn {
        let peer = &mut self.peers[id];
        peer.tunnel.get_or_insert_with(|| {
            Box::new(Tunn::new(
                self.private.clone(),
                peer.key.0.into(),
                None,
                None,
                self.indexes.clone(),
                Arc::clone(&self.limiter),
            ))
        })
    }

    fn addressee(&mut self, packet: &WgKind) -> Result<usize, Drop> {
        let index = match packet {
            WgKind::HandshakeInit(packet) => {
                self.limiter.try_reset_count();
                let half = parse_handshake_anon(&self.private, &self.public, packet).map_err(|_| Drop::Invalid)?;
                return self.by_key.get(&PublicKey(half.peer_static_public)).copied().ok_or(Drop::UnknownKey);
            }
            WgKind::HandshakeResp(packet) => packet.receiver_idx.get(),
            WgKind::CookieReply(packet) => packet.receiver_idx.get(),
            WgKind::Data(packet) => packet.header.receiver_idx.get(),
        };
        let id = *self.by_index.get(&index).ok_or(Drop::Invalid)?;
        self.peers[id].tunnel.is_some().then_some(id).ok_or(Drop::Invalid)
    }

    /// Sends one of `id`'s own packets and remembers the session index it announces.
    fn push(&mut self, id: usize, to: SocketAddr, packet: WgKind) {
        let index = match &packet {
            WgKind::HandshakeInit(packet) => Some(packet.sender_idx.get()),
            WgKind::HandshakeResp(packet) => Some(packet.sender_idx.get()),
            WgKind::CookieReply(_) | WgKind::Data(_) => None,
        };
        if let Some(index) = index {
            if self.by_index.len() >= self.sweep_at {
                self.by_index.retain(|&index, _| self.indexes.in_use(index));
                self.sweep_at = 64.max(2 * self.by_index.len());
            }
            self.by_index.insert(index, id);
        }
        self.queue(to, packet.into());
    }

    fn queue(&mut self, to: SocketAddr, packet: Packet) {
        if self.outgoing.len() == OUTGOING_MAX {
            self.outgoing.pop_front();
        }
        self.outgoing.push_back((to, packet));
    }

    /// A session is there: what waited for it leaves.
    fn flush(&mut self, id: usize, to: SocketAddr) {
        self.peers[id].waiting = None;
        let mut mtu = MtuWatcher::new(self.mtu);
        let waited: Vec<_> = self.tunnel(id).get_queued_packets(&mut mtu).collect();
        for packet in waited {
            self.push(id, to, packet);
        }
    }

    /// Notes that `id` is in use. The tunnel's clock moves only with its timers, so one that
    /// rested is brought up to date first.
    fn touch(&mut self, now: Instant, id: usize) {
        self.peers[id].used = Some(now);
        let peer = &self.peers[id];
        if peer.ticked.is_none_or(|at| now.saturating_duration_since(at) >= TICK) {
            self.tick(now, id);
        }
        if self.peers[id].deadline.is_none_or(|at| at > now + TICK) {
            self.schedule(now, id);
        }
    }

    fn tick(&mut self, now: Instant, id: usize) {
        self.peers[id].ticked = Some(now);
        let Some(tunnel) = self.peers[id].tunnel.as_mut() else { return };
        let due = tunnel.update_timers();
        let endpoint = self.peers[id].endpoint;
        match (due, endpoint) {
            (Ok(Some(packet)), Some(endpoint)) => self.push(id, endpoint, packet),
            (Err(_), _) => {
                let peer = &mut self.peers[id];
                peer.waiting = None;
                if !peer.calls_us {
                    peer.tunnel = None;
                }
            }
            _ => {}
        }
        let Some((since, tries)) = self.peers[id].waiting else { return };
        if RETRIES.get(tries).is_some_and(|&after| now >= since + after) {
            self.peers[id].waiting = Some((since, tries + 1));
            let initiation = self.tunnel(id).format_handshake_initiation(true);
            if let (Some(packet), Some(endpoint)) = (initiation, endpoint) {
                self.push(id, endpoint, packet.into());
            }
        }
    }

    fn schedule(&mut self, now: Instant, id: usize) {
        let peer = &mut self.peers[id];
        if let Some(at) = peer.deadline.take() {
            self.deadlines.remove(&(at, id));
        }
        if peer.tunnel.is_none() && peer.waiting.is_none() && peer.used.is_none_or(|at| now > at + ACTIVE) {
            return;
        }
        let retry = peer.waiting.and_then(|(since, tries)| RETRIES.get(tries).map(|&after| since + after));
        let active = peer.used.is_some_and(|at| now <= at + ACTIVE);
        let at = retry.unwrap_or(now + if active { TICK } else { TICK_IDLE }).max(now);
        peer.deadline = Some(at);
        self.deadlines.insert((at, id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 4433;

    fn at(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn ula(last: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last)
    }

    /// An edge (address 1, at port 1) and a host (address 2, at port 2) that know each other.
    fn pair() -> (Peers, Peers) {
        let (edge_key, host_key) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let mut edge = Peers::new(&edge_key, ula(1), PORT, 1420);
        let mut host = Peers::new(&host_key, ula(2), PORT, 1420);
        edge.upsert(host_key.public(), ula(2), Some(at(2))).unwrap();
        host.upsert(edge_key.public(), ula(1), None).unwrap();
        (edge, host)
    }

    /// Carries control packets between the two until both are quiet; what they delivered.
    fn settle(edge: &mut Peers, host: &mut Peers) -> Vec<Payload> {
        let mut delivered = Vec::new();
        loop {
            let (to_host, to_edge) = (edge.poll_outgoing(), host.poll_outgoing());
            if to_host.is_none() && to_edge.is_none() {
                return delivered;
            }
            let now = Instant::now();
            for (packet, from, to) in [(to_host, at(1), &mut *host), (to_edge, at(2), &mut *edge)] {
                let Some((_, packet)) = packet else { continue };
                delivered.extend(to.open(now, from, BytesMut::from(&packet[..])).ok().flatten());
            }
        }
    }

    #[test]
    fn a_packet_waits_for_the_handshake_and_then_arrives() {
        let (mut edge, mut host) = pair();
        let mut batch = Batch::default();
        edge.seal(Instant::now(), ula(2), b"hello", 5, &mut batch).unwrap();
        assert!(batch.bytes.is_empty());
        let delivered = settle(&mut edge, &mut host);
        assert_eq!(delivered.len(), 1);
        assert_eq!((&delivered[0].bytes[..], delivered[0].from), (&b"hello"[..], ula(1)));
        // The host learnt where the edge is and answers there without a handshake of its own.
        host.seal(Instant::now(), ula(1), b"answer", 6, &mut batch).unwrap();
        assert_eq!((batch.to, batch.bytes.len()), (Some(at(1)), batch.segment));
        let payload = edge.open(Instant::now(), at(2), BytesMut::from(&batch.bytes[..])).unwrap().unwrap();
        assert_eq!(&payload.bytes[..], b"answer");
    }

    #[test]
    fn a_lost_initiation_is_repeated_while_a_packet_waits() {
        let (mut edge, mut host) = pair();
        let begin = Instant::now();
        edge.seal(begin, ula(2), b"hello", 5, &mut Batch::default()).unwrap();
        drop(edge.poll_outgoing().expect("the first initiation, lost"));
        assert!(edge.poll_outgoing().is_none());
        let due = edge.poll_timeout().unwrap();
        assert_eq!(due - begin, RETRIES[0]);
        edge.handle_timeout(due);
        assert_eq!(settle(&mut edge, &mut host).len(), 1);
        assert_eq!(edge.poll_timeout().map(|at| at > due), Some(true));
    }

    #[test]
    fn a_batch_is_sealed_into_equal_segments() {
        let (mut edge, mut host) = pair();
        let mut batch = Batch::default();
        edge.seal(Instant::now(), ula(2), b"x", 1, &mut batch).unwrap();
        settle(&mut edge, &mut host);
        edge.seal(Instant::now(), ula(2), &[7; 3 * 1372 + 100], 1372, &mut batch).unwrap();
        assert_eq!(batch.segment, 1420 + 32);
        let sizes: Vec<_> = batch
            .bytes
            .chunks(batch.segment)
            .map(|packet| host.open(Instant::now(), at(1), BytesMut::from(packet)).unwrap().unwrap().bytes.len())
            .collect();
        assert_eq!(sizes, [1372, 1372, 1372, 100]);
    }

    #[test]
    fn an_unknown_key_gets_no_answer() {
        let (mut edge, _) = pair();
        let mut stranger = Peers::new(&PrivateKey::generate().unwrap(), ula(2), PORT, 1420);
        edge.seal(Instant::now(), ula(2), b"hello", 5, &mut Batch::default()).unwrap();
        let (_, initiation) = edge.poll_outgoing().unwrap();
        // Not even its own key is the one the edge asked for.
        assert_eq!(stranger.open(Instant::now(), at(1), BytesMut::from(&initiation[..])).err(), Some(Drop::Invalid));

        let host_key = PrivateKey::generate().unwrap();
        let mut host = Peers::new(&host_key, ula(2), PORT, 1420);
        edge.upsert(host_key.public(), ula(3), Some(at(3))).unwrap();
        edge.seal(Instant::now(), ula(3), b"hello", 5, &mut Batch::default()).unwrap();
        let (_, initiation) = edge.poll_outgoing().unwrap();
        let opened = host.open(Instant::now(), at(1), BytesMut::from(&initiation[..]));
        assert_eq!(opened.err(), Some(Drop::UnknownKey));
        assert!(host.poll_outgoing().is_none());
    }

    #[test]
    fn a_peer_cannot_speak_as_another_one() {
        let (mut edge, mut host) = pair();
        let mut batch = Batch::default();
        edge.seal(Instant::now(), ula(2), b"x", 1, &mut batch).unwrap();
        settle(&mut edge, &mut host);
        edge.address = ula(9);
        edge.seal(Instant::now(), ula(2), b"x", 1, &mut batch).unwrap();
        let opened = host.open(Instant::now(), at(1), BytesMut::from(&batch.bytes[..]));
        assert_eq!(opened.err(), Some(Drop::WrongInner));
        let taken = edge.upsert(PrivateKey::generate().unwrap().public(), ula(2), None);
        assert!(taken.is_err(), "an address belongs to one peer");
    }

    #[test]
    fn a_removed_peer_is_a_stranger_and_its_place_is_anothers() {
        let (mut edge, mut host) = pair();
        let mut batch = Batch::default();
        edge.seal(Instant::now(), ula(2), b"before", 6, &mut batch).unwrap();
        assert_eq!(settle(&mut edge, &mut host).len(), 1);
        let (gone, place) = (host.peers[0].key, host.peers.len());
        host.remove(gone);
        assert_eq!(host.key_of(ula(1)), None);
        edge.seal(Instant::now(), ula(2), b"after", 5, &mut batch).unwrap();
        let sealed = BytesMut::from(&batch.bytes[..]);
        assert!(host.open(Instant::now(), at(1), sealed.clone()).is_err(), "its session ended with it");
        let other = PrivateKey::generate().unwrap().public();
        host.upsert(other, ula(1), None).unwrap();
        assert_eq!((host.key_of(ula(1)), host.peers.len()), (Some(other), place));
        assert!(host.open(Instant::now(), at(1), sealed).is_err(), "and nobody speaks with its keys");
        assert!(host.seal(Instant::now(), ula(1), b"x", 1, &mut batch).is_err(), "nor is it known where it is");
        host.remove(other);
        host.remove(other);
        host.upsert(gone, ula(1), None).unwrap();
        assert_eq!(host.peers.len(), place);
    }

    #[test]
    fn a_replayed_packet_is_dropped() {
        let (mut edge, mut host) = pair();
        let mut batch = Batch::default();
        edge.seal(Instant::now(), ula(2), b"x", 1, &mut batch).unwrap();
        settle(&mut edge, &mut host);
        edge.seal(Instant::now(), ula(2), b"x", 1, &mut batch).unwrap();
        let packet = BytesMut::from(&batch.bytes[..]);
        assert!(host.open(Instant::now(), at(1), packet.clone()).unwrap().is_some());
        assert_eq!(host.open(Instant::now(), at(3), packet).err(), Some(Drop::Invalid));
        assert_eq!(host.peers[0].endpoint, Some(at(1)), "a replay moves nobody");
    }
}
