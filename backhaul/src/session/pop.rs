//! PoP to PoP: short questions and their answers (`backhaul.md`, `pop/1`), inside a link of their own beside the one to worker hosts.
//!
//! A question is for whoever waits no longer than a DNS resolver, so none is put to a PoP that has to be connected to first: a
//! task keeps connections to [`ASKED`] of the peers, the first ones of the order they were given in that can be reached.

use super::server::ServeError;
use super::tls::{self, Identity, Pins};
use super::{CONNECT_WAIT, transport};
use crate::keys::{PrivateKey, PublicKey};
use crate::link::{LinkOptions, SESSION_PORT, UserspaceLink};
use arc_swap::ArcSwap;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Protocol name in TLS (`backhaul.md`).
const PROTOCOL: &[u8] = b"pop/1";
/// Peers that are asked at a time (`tls-acme-dns.md` §3: two).
pub const ASKED: usize = 2;
/// Longest question, bytes (chosen: twice a domain name).
pub const QUESTION_BYTES_MAX: usize = 512;
/// Longest answer, bytes (chosen: 16 character strings of 255 bytes, and what is around them).
pub const ANSWER_BYTES_MAX: usize = 8 * 1024;
/// For a whole question, or a whole answer, on its way (chosen: beyond any asker's patience).
const WAIT: Duration = Duration::from_secs(2);
/// How often connections that are missing are made (chosen).
const TICK: Duration = Duration::from_secs(1);
/// Pause after a peer could not be reached (chosen: another one is asked meanwhile).
const BACK_OFF: Duration = Duration::from_secs(8);
/// Most peers (chosen: a fleet has some hundreds of PoPs; each is one entry of a table).
const PEERS_MAX: usize = 4096;

/// Another PoP's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PopPeer {
    /// Its WireGuard key.
    pub key: PublicKey,
    /// Its address inside the tunnel.
    pub address: Ipv6Addr,
    /// SHA-256 of its certificate's public key, hexadecimal; any of them is accepted.
    pub pins: Vec<String>,
    /// Where its link listens; none when it has not said: then it asks, and is not asked.
    pub endpoint: Option<SocketAddr>,
}

/// Who answers other PoPs.
pub trait Answers: Send + Sync + 'static {
    /// At most [`ANSWER_BYTES_MAX`] bytes; empty for "I do not know". Must not block.
    fn answer(&self, question: &[u8]) -> Vec<u8>;
}

/// How a PoP is reached by others, and reaches them.
pub struct PopOptions {
    /// Where its link listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Its WireGuard key. The link to hosts may have the same: no peer is on both.
    pub key: PrivateKey,
    /// Its certificate.
    pub identity: Identity,
    /// Its address inside the tunnels.
    pub address: Ipv6Addr,
    /// Largest packet inside the tunnels, bytes.
    pub inner_mtu: u16,
    /// Who answers.
    pub answers: Arc<dyn Answers>,
}

/// The link to other PoPs. Cheap to clone. When the last one is dropped everything ends.
#[derive(Clone)]
pub struct PopLink(Arc<Shared>);

struct Shared {
    link: Arc<UserspaceLink>,
    listen: SocketAddr,
    endpoint: Endpoint,
    state: Arc<State>,
}

struct State {
    identity: Identity,
    /// In the order they are to be asked in.
    peers: ArcSwap<Vec<PopPeer>>,
    pins: Pins,
    answers: Arc<dyn Answers>,
    /// Connections we made, by address.
    made: Mutex<HashMap<Ipv6Addr, Connection>>,
    changed: Notify,
}

impl PopLink {
    /// Opens the link and answers on the current runtime.
    ///
    /// # Errors
    /// [`ServeError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(options: PopOptions) -> Result<Self, ServeError> {
        let PopOptions { listen, key, identity, address, inner_mtu, answers } = options;
        let link = UserspaceLink::bind(LinkOptions { listen, key, address, inner_mtu }).map_err(ServeError::Socket)?;
        let pins = tls::shared(std::iter::empty::<&String>());
        let config = identity.tls_server(&pins, PROTOCOL)?;
        let crypto = QuicServerConfig::try_from(config).map_err(tls::IdentityError::from)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(transport::questions(&link));
        let endpoint = transport::endpoint(&link, Some(config)).map_err(ServeError::Socket)?;
        let listen = link.listen_addr().map_err(ServeError::Socket)?;
        let state = State {
            identity,
            peers: ArcSwap::default(),
            pins,
            answers,
            made: Mutex::default(),
            changed: Notify::new(),
        };
        let state = Arc::new(state);
        tokio::spawn(accept(endpoint.clone(), Arc::clone(&state)));
        let shared = Arc::new(Shared { link, listen, endpoint, state: Arc::clone(&state) });
        tokio::spawn(keep_connected(Arc::downgrade(&shared), state));
        Ok(Self(shared))
    }

    /// Says who may ask and who is asked, in this order, from now on; 4,096 at most. Connections of all others end.
    pub fn set_peers(&self, mut peers: Vec<PopPeer>) {
        let Shared { link, state, .. } = &*self.0;
        if peers.len() > PEERS_MAX {
            tracing::warn!(peers = peers.len(), "more PoPs than are asked: the last ones are left out");
            peers.truncate(PEERS_MAX);
        }
        let before = state.peers.load_full();
        for gone in before.iter().filter(|gone| !peers.iter().any(|peer| peer.key == gone.key)) {
            link.remove_peer(gone.key);
        }
        peers.retain(|peer| match link.upsert_peer(peer.key, peer.address, peer.endpoint) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(peer = ?peer.key, %error, "this PoP is left out");
                false
            }
        });
        state.pins.store(Arc::clone(&*tls::shared(peers.iter().flat_map(|peer| &peer.pins)).load()));
        state.made().retain(|address, connection| {
            let stays = peers.iter().any(|peer| peer.address == *address && is_one_of(connection, peer));
            if !stays {
                connection.close(1u32.into(), b"removed");
            }
            stays
        });
        state.peers.store(Arc::new(peers));
        state.changed.notify_one();
    }

    /// Where the link listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.0.listen
    }

    /// How many peers can be asked now, [`ASKED`] at most.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.0.state.up().len()
    }

    /// The first answer of those who know one; `None` when nobody does, or nobody can be asked. It has no end of its own but
    /// that of a connection: whoever asks waits no longer than he likes.
    ///
    /// # Cancel safety
    /// What was asked is answered to nobody.
    pub async fn ask(&self, question: &[u8]) -> Option<Vec<u8>> {
        let mut asked: FuturesUnordered<_> =
            self.0.state.up().into_iter().map(|connection| ask(connection, question)).collect();
        while let Some(answer) = asked.next().await {
            if let Some(answer) = answer.filter(|answer| !answer.is_empty()) {
                return Some(answer);
            }
        }
        None
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.endpoint.close(0u32.into(), b"PoP gone");
    }
}

async fn ask(connection: Connection, question: &[u8]) -> Option<Vec<u8>> {
    let (mut send, mut receive) = connection.open_bi().await.ok()?;
    send.write_all(question).await.ok()?;
    send.finish().ok()?;
    receive.read_to_end(ANSWER_BYTES_MAX).await.ok()
}

impl State {
    fn made(&self) -> std::sync::MutexGuard<'_, HashMap<Ipv6Addr, Connection>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connections that are up, [`ASKED`] at most, in the peers' order.
    fn up(&self) -> Vec<Connection> {
        let mut made = self.made();
        made.retain(|_, connection| connection.close_reason().is_none());
        let peers = self.peers.load();
        peers.iter().filter_map(|peer| made.get(&peer.address).cloned()).take(ASKED).collect()
    }
}

/// Whether the other end has a pin of this peer.
fn is_one_of(connection: &Connection, peer: &PopPeer) -> bool {
    let pin = tls::pin_of_peer(connection);
    pin.is_some_and(|pin| peer.pins.iter().any(|known| known.eq_ignore_ascii_case(&pin)))
}

/// Makes connections that are missing, for as long as there is a link.
async fn keep_connected(shared: Weak<Shared>, state: Arc<State>) {
    let mut not_before: HashMap<Ipv6Addr, Instant> = HashMap::new();
    let mut dialling = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = state.changed.notified() => not_before.clear(),
            Some(dialled) = dialling.join_next() => match dialled {
                Ok((address, Some(connection))) => {
                    tracing::info!(%address, "another PoP can be asked");
                    state.made().insert(address, connection);
                }
                Ok((address, None)) => drop(not_before.insert(address, Instant::now() + BACK_OFF)),
                Err(_) => {}
            },
        }
        let Some(shared) = shared.upgrade() else { return };
        let (up, now) = (state.up(), Instant::now());
        let missing = ASKED.saturating_sub(up.len() + dialling.len());
        let peers = state.peers.load_full();
        let may_be_asked = |peer: &&PopPeer| {
            let due = not_before.get(&peer.address).is_none_or(|due| *due <= now);
            peer.endpoint.is_some() && due && !state.made().contains_key(&peer.address)
        };
        let next: Vec<_> = peers.iter().filter(may_be_asked).take(missing).cloned().collect();
        for peer in next {
            // Until it is known how this ends, it is not tried again.
            not_before.insert(peer.address, now + CONNECT_WAIT + TICK);
            let (endpoint, link) = (shared.endpoint.clone(), Arc::clone(&shared.link));
            let state = Arc::clone(&state);
            dialling.spawn(async move { (peer.address, dial(&endpoint, &link, &state, &peer).await) });
        }
    }
}

async fn dial(endpoint: &Endpoint, link: &UserspaceLink, state: &State, peer: &PopPeer) -> Option<Connection> {
    let config = state.identity.tls_client(&peer.pins, PROTOCOL).ok()?;
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).ok()?));
    config.transport_config(transport::questions(link));
    let to = SocketAddr::from((peer.address, SESSION_PORT));
    let connecting = endpoint.connect_with(config, to, "pop.sprite.invalid").ok()?;
    match tokio::time::timeout(CONNECT_WAIT, connecting).await {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(error)) => {
            tracing::debug!(peer = %peer.address, %error, "another PoP is not reached");
            None
        }
        Err(_) => {
            // WireGuard has no word for "I lost my state".
            link.renew(peer.address);
            tracing::debug!(peer = %peer.address, "another PoP does not answer");
            None
        }
    }
}

async fn accept(endpoint: Endpoint, state: Arc<State>) {
    // Only peers of the tunnel can get here.
    let mut sessions = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while sessions.try_join_next().is_some() {}
        sessions.spawn(session(incoming, Arc::clone(&state)));
    }
}

/// Answers one peer for as long as it is one.
async fn session(incoming: Incoming, state: Arc<State>) {
    let IpAddr::V6(from) = incoming.remote_address().ip() else { return };
    let Ok(Ok(connection)) = tokio::time::timeout(CONNECT_WAIT, incoming).await else { return };
    let mut answering = JoinSet::new();
    while let Ok((send, receive)) = connection.accept_bi().await {
        while answering.try_join_next().is_some() {}
        // It may have lost its leave since; and TLS has checked that some PoP has this pin, not that this one has.
        if !state.peers.load().iter().any(|peer| peer.address == from && is_one_of(&connection, peer)) {
            return connection.close(1u32.into(), b"certificate");
        }
        // No more of them than the other side may open.
        answering.spawn(tokio::time::timeout(WAIT, answer(Arc::clone(&state), send, receive)));
    }
}

async fn answer(state: Arc<State>, mut send: SendStream, mut receive: RecvStream) {
    let Ok(question) = receive.read_to_end(QUESTION_BYTES_MAX).await else { return };
    let answer = state.answers.answer(&question);
    if answer.len() <= ANSWER_BYTES_MAX && send.write_all(&answer).await.is_ok() {
        // Dropped behind its end, it is delivered all the same.
        let _ = send.finish();
    }
}
