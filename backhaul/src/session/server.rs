//! The host's side: accepts the sessions of known edges and serves their streams.

use super::alone;
use super::control::{read_frame, send_all};
use super::tls::{self, Identity, IdentityError, Pins};
use super::{CONNECT_WAIT, CONTROL_QUEUE, Ledger, transport};
use crate::keys::{PrivateKey, PublicKey};
use crate::link::{AddressTaken, LinkOptions, UserspaceLink};
use crate::owner::{AnswerSink, EdgeId, Owner};
use crate::splice::{self, Splice};
use crate::wire::{Applied, EdgeMessage, ToEdge, ToOwner};
use arc_swap::ArcSwap;
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// An edge process that may have a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgePeer {
    /// Its WireGuard key.
    pub key: PublicKey,
    /// Its address inside the tunnel; its only one.
    pub address: Ipv6Addr,
    /// SHA-256 of its certificate's public key, hexadecimal; any of them is accepted.
    pub pins: Vec<String>,
}

/// Numbers of sessions: an owner that has two servers, while its keys change, must not take one for another.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// How long the tunnel of an edge that is let go stays, for the word that its session is over (chosen: it
/// leaves within a turn, and nobody has a session there meanwhile).
const LAST_WORD: Duration = Duration::from_millis(200);

/// What stalled streams may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// What the stalled streams of one session may keep unread together, bytes; beyond it
    /// the longest-stalled is reset.
    pub unread_bytes_max: u64,
    /// A stream that made no progress for so long is stalled. Long enough that a busy link's
    /// turn comes to every stream.
    pub stalled_after: Duration,
}

impl Default for Limits {
    /// `design.md` §4; 10 s is chosen.
    fn default() -> Self {
        Self { unread_bytes_max: 64 * 1024 * 1024, stalled_after: Duration::from_secs(10) }
    }
}

/// Hears which edge process, by its address inside the tunnel, has applied which change of a route. Must
/// not block.
pub type AppliedSink = Arc<dyn Fn(Ipv6Addr, Applied) + Send + Sync>;

/// How a host serves its edges.
pub struct HostServerOptions {
    /// Where its WireGuard socket listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Its WireGuard key.
    pub key: PrivateKey,
    /// Its certificate.
    pub identity: Identity,
    /// Its address inside the tunnels.
    pub address: Ipv6Addr,
    /// Largest packet inside the tunnels, bytes.
    pub inner_mtu: u16,
    /// Who may have a session; [`HostServer::set_edges`] changes it.
    pub edges: Vec<EdgePeer>,
    /// Who decides.
    pub owner: Arc<dyn Owner>,
    /// Who waits for changes to be known everywhere, if anybody does.
    pub applied: Option<AppliedSink>,
    /// See [`Limits`].
    pub limits: Limits,
}

/// A host that serves. Dropping it ends every session.
pub struct HostServer {
    endpoint: Endpoint,
    host: Arc<Host>,
    link: Arc<UserspaceLink>,
    listen: SocketAddr,
}

/// Why a host cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket could not be opened.
    #[error("the WireGuard socket")]
    Socket(#[source] io::Error),
    /// Two edges, or an edge and this host, with one address.
    #[error(transparent)]
    Address(#[from] AddressTaken),
    /// See [`IdentityError`].
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl HostServer {
    /// Opens the socket and serves on the current runtime until dropped.
    ///
    /// # Errors
    /// [`ServeError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(options: HostServerOptions) -> Result<Self, ServeError> {
        let HostServerOptions { listen, key, identity, address, inner_mtu, edges, owner, applied, limits } = options;
        let link = UserspaceLink::bind(LinkOptions { listen, key, address, inner_mtu }).map_err(ServeError::Socket)?;
        for edge in &edges {
            link.upsert_peer(edge.key, edge.address, None)?;
        }
        let pins = tls::shared(edges.iter().flat_map(|edge| &edge.pins));
        let mut config = identity.server(&pins)?;
        config.transport_config(transport::transport(&link));
        let endpoint = transport::endpoint(&link, Some(config)).map_err(ServeError::Socket)?;
        let listen = link.listen_addr().map_err(ServeError::Socket)?;
        let edges = ArcSwap::from_pointee(edges);
        let host = Arc::new(Host { edges, pins, owner, applied, limits, current: Mutex::default() });
        tokio::spawn(accept(endpoint.clone(), Arc::clone(&host)));
        Ok(Self { endpoint, host, link, listen })
    }

    /// Says who may have a session from now on. Sessions of those who may not any more end at once, and
    /// their tunnels 200 ms later; an edge whose address belongs to another one is left out, with a
    /// word in the log.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn set_edges(&self, edges: Vec<EdgePeer>) {
        let before = self.host.edges.load_full();
        let gone = before.iter().filter(|gone| !edges.iter().any(|edge| edge.key == gone.key));
        let (at_once, later): (Vec<_>, Vec<_>) = gone
            .map(|gone| (gone.key, gone.address))
            .partition(|(_, address)| edges.iter().any(|edge| edge.address == *address));
        at_once.iter().for_each(|(key, _)| self.link.remove_peer(*key));
        let mut admitted = Vec::with_capacity(edges.len());
        for edge in edges {
            match self.link.upsert_peer(edge.key, edge.address, None) {
                Ok(()) => admitted.push(edge),
                Err(error) => tracing::error!(edge = ?edge.key, %error, "this edge is left out"),
            }
        }
        self.host.pins.store(Arc::clone(&*tls::shared(admitted.iter().flat_map(|edge| &edge.pins)).load()));
        self.host.edges.store(Arc::new(admitted));
        self.host.end_strangers();
        if later.is_empty() {
            return;
        }
        // Without its tunnel an edge does not hear that its session is over, and holds on to it for half a minute.
        let (host, link) = (Arc::clone(&self.host), Arc::clone(&self.link));
        tokio::spawn(async move {
            tokio::time::sleep(LAST_WORD).await;
            let admitted = host.edges.load_full();
            for (key, _) in later.into_iter().filter(|(key, _)| !admitted.iter().any(|edge| edge.key == *key)) {
                link.remove_peer(key);
            }
        });
    }

    /// Where the WireGuard socket listens: the endpoint for the hosts table.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.listen
    }

    /// The link below the sessions, for its counters.
    #[must_use]
    pub fn link(&self) -> &Arc<UserspaceLink> {
        &self.link
    }

    /// Ends every session and waits until the edges could hear of it.
    ///
    /// # Cancel safety
    /// The sessions end anyway.
    pub async fn shutdown(&self) {
        self.endpoint.close(0u32.into(), b"host closes");
        self.endpoint.wait_idle().await;
    }
}

impl Drop for HostServer {
    fn drop(&mut self) {
        self.endpoint.close(0u32.into(), b"host gone");
    }
}

struct Host {
    edges: ArcSwap<Vec<EdgePeer>>,
    /// Theirs, all together.
    pins: Pins,
    owner: Arc<dyn Owner>,
    applied: Option<AppliedSink>,
    limits: Limits,
    /// The latest session of each edge process. A process that restarted makes a new one
    /// long before its old one times out.
    current: Mutex<HashMap<Ipv6Addr, Connection>>,
}

async fn accept(endpoint: Endpoint, host: Arc<Host>) {
    // Only peers of the tunnel can get here, one session each: no more than that many tasks.
    let mut sessions = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while sessions.try_join_next().is_some() {}
        sessions.spawn(Arc::clone(&host).session(incoming));
    }
    sessions.join_all().await;
}

impl Host {
    async fn session(self: Arc<Self>, incoming: Incoming) {
        let from = incoming.remote_address();
        // One that was let go a moment ago: for its side a handshake would be over before ours refuses it.
        if !self.edges.load().iter().any(|edge| from.ip() == edge.address) {
            tracing::debug!(edge = %from.ip(), "session refused: no edge has this address");
            return incoming.refuse();
        }
        let connection = match tokio::time::timeout(CONNECT_WAIT, incoming).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return tracing::warn!(edge = %from.ip(), %error, "session refused"),
            Err(_) => return tracing::debug!(edge = %from.ip(), "session not completed"),
        };
        let IpAddr::V6(address) = from.ip() else { return };
        // TLS has checked that some edge has this pin; it must be the one the tunnel leads to.
        if !self.admits(address, &connection) {
            tracing::warn!(edge = %address, "session refused: the certificate is another edge's");
            return connection.close(1u32.into(), b"certificate");
        }
        let edge = EdgeId(NEXT.fetch_add(1, Ordering::Relaxed));
        let earlier = self.lock().insert(address, connection.clone());
        if let Some(earlier) = earlier {
            earlier.close(0u32.into(), b"superseded");
        }
        // It may have lost its leave while it was let in.
        if !self.admits(address, &connection) {
            connection.close(1u32.into(), b"certificate");
        }
        tracing::info!(edge = edge.0, %address, "session");
        let mut streams = Arc::clone(&self).serve(edge, address, &connection).await;
        self.owner.edge_gone(edge);
        self.forget(address, &connection);
        // Each sees that the session is gone and resets its guest; cut off here, it would
        // end the guest's connection as if the request were complete.
        while streams.join_next().await.is_some() {}
    }

    fn admits(&self, address: Ipv6Addr, connection: &Connection) -> bool {
        let edges = self.edges.load();
        let known = edges.iter().find(|edge| edge.address == address);
        let pin = tls::pin_of_peer(connection);
        known.zip(pin).is_some_and(|(edge, pin)| edge.pins.iter().any(|known| known.eq_ignore_ascii_case(&pin)))
    }

    /// Ends the sessions of those who may not have one any more.
    fn end_strangers(&self) {
        let current: Vec<_> = self.lock().iter().map(|(address, connection)| (*address, connection.clone())).collect();
        for (address, connection) in current {
            if !self.admits(address, &connection) {
                tracing::info!(%address, "session ended: this edge was removed");
                connection.close(1u32.into(), b"removed");
            }
        }
    }

    fn forget(&self, address: Ipv6Addr, connection: &Connection) {
        let mut current = self.lock();
        if current.get(&address).is_some_and(|latest| latest.stable_id() == connection.stable_id()) {
            current.remove(&address);
        }
    }

    /// Serves until the session ends; returns the streams that are left.
    async fn serve(self: Arc<Self>, edge: EdgeId, address: Ipv6Addr, connection: &Connection) -> JoinSet<()> {
        let ledger = Ledger::new(self.limits.unread_bytes_max);
        let mut streams = JoinSet::new();
        while let Ok((send, receive)) = connection.accept_bi().await {
            while streams.try_join_next().is_some() {}
            if receive.id().index() == 0 {
                streams.spawn(Arc::clone(&self).control(edge, address, connection.clone(), send, receive));
                continue;
            }
            let splice = Splice {
                owner: Arc::clone(&self.owner),
                edge,
                ledger: Arc::clone(&ledger),
                stalled_after: self.limits.stalled_after,
            };
            streams.spawn(splice::serve(splice, send, receive));
        }
        streams
    }

    /// Carries one edge's control stream. Its end is the session's end.
    async fn control(
        self: Arc<Self>,
        edge: EdgeId,
        address: Ipv6Addr,
        connection: Connection,
        mut send: SendStream,
        mut receive: RecvStream,
    ) {
        let (answers, mut queue) = mpsc::channel::<ToEdge>(CONTROL_QUEUE);
        // Full: the answer is dropped, and the edge asks again.
        let sink: AnswerSink = Arc::new(move |answer| drop(answers.try_send(answer)));
        let down = send_all(&connection, &mut send, &mut queue);
        let alone = alone::receive(&connection, |message: ToOwner| self.owner.control(edge, message, &sink));
        let up = async {
            while let Some(message) = read_frame::<ToOwner>(&mut receive).await? {
                match (message.message, &self.applied) {
                    (Some(EdgeMessage::Applied(applied)), Some(hears)) => hears(address, applied),
                    (message, _) => self.owner.control(edge, ToOwner { message }, &sink),
                }
            }
            Ok::<_, io::Error>(())
        };
        let ended = tokio::select! {
            // What travels alone before what left behind it on the control stream.
            biased;
            ended = alone => Err(ended.into()),
            ended = up => ended,
            ended = down => ended,
        };
        if let Err(error) = ended {
            tracing::debug!(edge = edge.0, %error, "control stream ended");
        }
        connection.close(0u32.into(), b"control stream ended");
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Ipv6Addr, Connection>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
