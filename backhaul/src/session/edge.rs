//! The edge's side: one session per host, made on first need.
//!
//! All sessions of the process live on one runtime, the one where [`QuicEdge`] was made;
//! streams are used from every core. A session's task connects when somebody needs it,
//! carries control messages, renews leases, watches for silence, and says `host_down` when
//! it ends.

use super::alone;
use super::control::send_all;
use super::retire::{Retired, drain};
use super::runs::Runs;
use super::silence::{Silence, Verdict, asked};
use super::stream::{QuicRead, QuicWrite, Receipt};
use super::tls::Identity;
use super::{CONNECT_WAIT, CONTROL_QUEUE, transport};
use crate::keys::{PrivateKey, PublicKey};
use crate::link::{LinkOptions, SESSION_PORT, UserspaceLink};
use crate::stream::GuestStream;
use crate::wire::{self, EdgeMessage, FRAME_BYTES_MAX, Lease, Leases, Open, OwnerMessage, ToEdge, ToOwner};
use crate::{EdgeEvents, OpenError, SessionState, Unreachable};
use prost::Message;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use router::route::{HostId, HostRow};
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, watch};

/// A stream is there at once unless the host has given out all it allows.
const STREAM_WAIT: Duration = Duration::from_millis(250);
/// Back-off after a failed connect: the first, doubled up to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));
/// Of a host without a session (RFC 9002 §6.2.2): making one takes about two of its round trips.
const INITIAL_ROUND_TRIP: Duration = Duration::from_millis(333);
/// Leases are renewed, and silence is looked for, this often.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// A session nobody used for so long is closed; the next use makes a new one.
const UNUSED: Duration = Duration::from_secs(300);

/// Finds a host by its number: the hosts table.
pub type HostLookup = Arc<dyn Fn(HostId) -> Option<HostRow> + Send + Sync>;

/// How an edge process reaches its hosts.
pub struct EdgeOptions {
    /// Where its WireGuard socket listens; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Its WireGuard key: one per process, never shared with another.
    pub key: PrivateKey,
    /// Its certificate.
    pub identity: Identity,
    /// Its address inside the tunnels.
    pub address: Ipv6Addr,
    /// Largest packet inside the tunnels, bytes.
    pub inner_mtu: u16,
    /// The hosts table.
    pub hosts: HostLookup,
}

/// The sessions of one edge process. Cheap to clone, usable from every core.
#[derive(Clone)]
pub struct QuicEdge(Arc<Shared>);

struct Shared {
    link: Arc<UserspaceLink>,
    endpoint: Endpoint,
    identity: Identity,
    hosts: HostLookup,
    home: tokio::runtime::Handle,
    sessions: papaya::HashMap<HostId, Arc<Session>>,
    events: Events,
}

/// Who hears of answers and of hosts that are down. A session may be up before it is set
/// ([`QuicEdge::prewarm`]), so it is looked up for every word.
type Events = Arc<OnceLock<Arc<dyn EdgeEvents>>>;

/// One host: its session, now or when it is needed.
struct Session {
    host: HostId,
    state: watch::Sender<State>,
    /// Somebody needs a connection.
    demand: Notify,
    outbox: mpsc::Sender<ToOwner>,
    runs: Arc<Runs>,
}

#[derive(Clone)]
enum State {
    /// Not connected; may be at once.
    Idle,
    Up(Connection, Retired),
    /// The last connect failed; not before this instant.
    Down(Instant),
}

impl QuicEdge {
    /// Opens the link. Sessions run on the current runtime.
    ///
    /// # Errors
    /// The socket could not be opened.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(options: EdgeOptions) -> io::Result<Self> {
        let EdgeOptions { listen, key, identity, address, inner_mtu, hosts } = options;
        let link = UserspaceLink::bind(LinkOptions { listen, key, address, inner_mtu })?;
        let endpoint = transport::endpoint(&link, None)?;
        Ok(Self(Arc::new(Shared {
            link,
            endpoint,
            identity,
            hosts,
            home: tokio::runtime::Handle::current(),
            sessions: papaya::HashMap::new(),
            events: Events::default(),
        })))
    }

    /// The link below the sessions, for its counters.
    #[must_use]
    pub fn link(&self) -> &Arc<UserspaceLink> {
        &self.0.link
    }

    pub(crate) fn lease_mismatches(&self) -> u64 {
        self.0.sessions.pin().values().map(|session| session.runs.mismatches()).sum()
    }

    /// Makes the session to a host before it is needed.
    pub fn prewarm(&self, host: HostId) {
        self.session(host).demand.notify_one();
    }

    /// Ends all sessions; hosts hear of it at once.
    pub fn close(&self) {
        self.0.endpoint.close(0u32.into(), b"edge closes");
    }

    pub(crate) fn session_state(&self, host: HostId) -> SessionState {
        let sessions = self.0.sessions.pin();
        let Some(session) = sessions.get(&host) else { return SessionState::Idle };
        match &*session.state.borrow() {
            State::Idle => SessionState::Idle,
            State::Up(..) => SessionState::Up,
            State::Down(_) => SessionState::Down,
        }
    }

    pub(crate) fn set_events(&self, events: Arc<dyn EdgeEvents>) {
        // The first one stays: it is set once, when the edge is put together.
        let _ = self.0.events.set(events);
    }

    pub(crate) fn send(&self, host: HostId, message: ToOwner) -> Result<(), Unreachable> {
        let session = self.session(host);
        if matches!(&*session.state.borrow(), State::Down(until) if Instant::now() < *until) {
            return Err(Unreachable);
        }
        session.outbox.try_send(message).map_err(|_| Unreachable)?;
        session.demand.notify_one();
        Ok(())
    }

    pub(crate) fn round_trip(&self, host: HostId) -> Duration {
        let sessions = self.0.sessions.pin();
        let Some(session) = sessions.get(&host) else { return INITIAL_ROUND_TRIP };
        match &*session.state.borrow() {
            State::Up(connection, _) => connection.rtt(),
            State::Idle | State::Down(_) => INITIAL_ROUND_TRIP,
        }
    }

    pub(crate) async fn open(&self, host: HostId, open: Open) -> Result<GuestStream, OpenError> {
        let session = self.session(host);
        let connected = tokio::time::timeout(CONNECT_WAIT + STREAM_WAIT, session.connection()).await;
        let (connection, retired) = connected.ok().flatten().ok_or(OpenError::Unreachable)?;
        let opened = tokio::time::timeout(STREAM_WAIT, connection.open_bi()).await;
        let Ok(Ok((send, receive))) = opened else { return Err(OpenError::Unreachable) };
        let mut frame = Vec::with_capacity(512);
        wire::encode(&open, &mut frame).map_err(|error| {
            tracing::warn!(%error, sprite = open.sprite, "stream not opened");
            OpenError::Unreachable
        })?;
        let receipt = Receipt::default();
        let read = QuicRead::new(receive, receipt.clone());
        let write = QuicWrite::new(send, frame, receipt.clone());
        let runs = Arc::clone(&session.runs);
        Ok(GuestStream::quic(read, write, receipt, runs, retired, open.sprite, open.expect_run))
    }

    fn session(&self, host: HostId) -> Arc<Session> {
        let sessions = self.0.sessions.pin();
        if let Some(session) = sessions.get(&host) {
            return Arc::clone(session);
        }
        let (outbox, queue) = mpsc::channel(CONTROL_QUEUE);
        let new = Arc::new(Session {
            host,
            state: watch::Sender::new(State::Idle),
            demand: Notify::new(),
            outbox,
            runs: Arc::default(),
        });
        let session = Arc::clone(sessions.get_or_insert(host, Arc::clone(&new)));
        if Arc::ptr_eq(&session, &new) {
            self.0.home.spawn(run(Arc::downgrade(&self.0), new, queue));
        }
        session
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.endpoint.close(0u32.into(), b"edge gone");
        // Their tasks wait for demand and find nobody.
        self.sessions.pin().values().for_each(|session| session.demand.notify_one());
    }
}

impl Session {
    /// The connection, made if need be; `None` when that failed.
    async fn connection(&self) -> Option<(Connection, Retired)> {
        let mut state = self.state.subscribe();
        loop {
            match &*state.borrow_and_update() {
                State::Up(connection, retired) if connection.close_reason().is_none() => {
                    return Some((connection.clone(), retired.clone()));
                }
                State::Down(until) if Instant::now() < *until => return None,
                // The task is about to see that it is over, or has nothing to do.
                State::Up(..) | State::Down(_) | State::Idle => self.demand.notify_one(),
            }
            state.changed().await.ok()?;
        }
    }

    async fn wanted(&self) {
        self.demand.notified().await;
    }
}

/// The task of one host. Ends with the edge.
async fn run(edge: Weak<Shared>, session: Arc<Session>, mut queue: mpsc::Receiver<ToOwner>) {
    let mut back_off = BACK_OFF.0;
    let mut renew = false;
    loop {
        session.wanted().await;
        let Some(edge) = edge.upgrade() else { return };
        match edge.connect(session.host, renew).await {
            Ok(mut made) => {
                back_off = BACK_OFF.0;
                let (link, events) = (Arc::clone(&edge.link), Arc::clone(&edge.events));
                let edge = {
                    let weak = Arc::downgrade(&edge);
                    drop(edge);
                    weak
                };
                let ended = loop {
                    let retired = Retired::default();
                    session.state.send_replace(State::Up(made.connection.clone(), retired.clone()));
                    let (ended, next) = serve(&mut made, &edge, &link, &session, &mut queue, &events).await;
                    let Some(next) = next else { break ended };
                    tracing::info!(
                        host = session.host.0,
                        "the host has another key; its new requests take another session"
                    );
                    let old = std::mem::replace(&mut made, next);
                    tokio::spawn(drain(old, retired, Arc::clone(&link)));
                };
                renew = matches!(ended, Ended::Silent);
                tracing::info!(host = session.host.0, reason = %ended, "session ended");
                made.connection.close(0u32.into(), b"");
                session.runs.forget_claims();
                session.state.send_replace(State::Idle);
                if let (Some(events), false) = (events.get(), matches!(ended, Ended::Unused)) {
                    events.host_down(session.host);
                }
            }
            Err(error) => {
                tracing::warn!(host = session.host.0, %error, "no session");
                renew = true;
                // What was queued is void: its senders hear of it and decide anew.
                while queue.try_recv().is_ok() {}
                let until = Instant::now() + back_off;
                back_off = (back_off * 2).min(BACK_OFF.1);
                session.state.send_replace(State::Down(until));
                let events = edge.events.get().cloned();
                drop(edge);
                if let Some(events) = events {
                    events.host_down(session.host);
                }
                tokio::time::sleep_until(until.into()).await;
            }
        }
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Closed(quinn::ConnectionError),
    #[error("its control stream broke: {0}")]
    Control(io::Error),
    #[error("the host stopped answering")]
    Silent,
    #[error("nobody used it for {UNUSED:?}")]
    Unused,
    #[error("its host has another key")]
    Replaced,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("the host is not in the table")]
    UnknownHost,
    #[error("its row in the table is wrong: {0}")]
    Row(String),
    #[error("{0}")]
    Connect(String),
    #[error("no answer in {CONNECT_WAIT:?}")]
    Timeout,
}

/// A session that was just made.
pub(super) struct Made {
    pub(super) connection: Connection,
    /// The host's key in the tunnel, and its address there.
    pub(super) key: PublicKey,
    address: Ipv6Addr,
    /// Opened before anybody else could open one: being the first is what makes it the
    /// control stream.
    control: (SendStream, RecvStream),
}

impl Shared {
    async fn connect(&self, host: HostId, renew: bool) -> Result<Made, ConnectError> {
        let row = (self.hosts)(host).ok_or(ConnectError::UnknownHost)?;
        let wrong = |error: &dyn std::fmt::Display| ConnectError::Row(error.to_string());
        let key: PublicKey = row.wireguard_key.parse().map_err(|error| wrong(&error))?;
        self.link.upsert_peer(key, row.address, Some(row.endpoint)).map_err(|error| wrong(&error))?;
        if renew {
            self.link.renew(row.address);
        }
        let mut config = self.identity.client(&row.spki_pins).map_err(|error| wrong(&error))?;
        config.transport_config(transport::transport(&self.link));
        let to = SocketAddr::from((row.address, SESSION_PORT));
        let connecting = self
            .endpoint
            .connect_with(config, to, "host.sprite.invalid")
            .map_err(|error| ConnectError::Connect(error.to_string()))?;
        let made = async {
            let connection = connecting.await?;
            let control = connection.open_bi().await?;
            Ok(Made { connection, key, address: row.address, control })
        };
        match tokio::time::timeout(CONNECT_WAIT, made).await {
            Ok(made) => made.map_err(|error: quinn::ConnectionError| ConnectError::Connect(error.to_string())),
            Err(_) => Err(ConnectError::Timeout),
        }
    }
}

/// Carries a session's control stream until the session ends, or another one is there to take its place.
async fn serve(
    made: &mut Made,
    edge: &Weak<Shared>,
    link: &UserspaceLink,
    session: &Session,
    queue: &mut mpsc::Receiver<ToOwner>,
    events: &Events,
) -> (Ended, Option<Made>) {
    let Made { connection, key, address, control: (send, receive) } = made;
    // A word at once, so that the host sees the stream before others that overtake it.
    if let Err(error) = super::control::write_frame(send, &leases(Vec::new())).await {
        return (Ended::Control(error), None);
    }
    let up = send_all(connection, send, queue);
    let alone = alone::receive(connection, |message: ToEdge| {
        if let Some(events) = events.get() {
            events.answer(session.host, message);
        }
    });
    let down = async {
        loop {
            match super::control::read_frame::<ToEdge>(receive).await? {
                None => return Err::<(), _>(io::ErrorKind::UnexpectedEof.into()),
                Some(message) => {
                    let mut cordoned = None;
                    if let Some(OwnerMessage::Cordon(cordon)) = &message.message {
                        cordoned = Some(session.runs.cordon(cordon));
                    }
                    if let Some(events) = events.get() {
                        events.answer(session.host, message);
                    }
                    if let Some(cordoned) = cordoned {
                        let message = ToOwner { message: Some(EdgeMessage::Cordoned(cordoned)) };
                        // Full: the owner does not wait for it for long.
                        let _ = session.outbox.try_send(message);
                    }
                }
            }
        }
    };
    let ended = tokio::select! {
        // What travels alone before what left behind it on the control stream.
        biased;
        error = connection.closed() => Ended::Closed(error),
        error = alone => Ended::Closed(error),
        result = up => Ended::Control(result.err().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())),
        result = down => Ended::Control(result.err().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())),
        ended = watch_over(connection, link, *address, session) => ended,
        next = replacement(edge, session.host, *key) => return (Ended::Replaced, Some(next)),
    };
    (ended, None)
}

/// Makes a session to the host's next key when its row has one, while the old one goes on.
async fn replacement(edge: &Weak<Shared>, host: HostId, key: PublicKey) -> Made {
    let mut pause = TICK;
    loop {
        tokio::time::sleep(pause).await;
        pause = TICK;
        // Gone with the edge is what the session notices by itself.
        let Some(edge) = edge.upgrade() else { continue };
        let Some(row) = (edge.hosts)(host) else { continue };
        if row.wireguard_key.parse().is_ok_and(|now: PublicKey| now != key) {
            match edge.connect(host, false).await {
                Ok(made) => return made,
                Err(error) => {
                    tracing::warn!(host = host.0, %error, "no session to the host's next key yet; the old one goes on");
                    pause = BACK_OFF.1;
                }
            }
        }
    }
}

/// Renews leases, and looks for silence and disuse.
async fn watch_over(connection: &Connection, link: &UserspaceLink, address: Ipv6Addr, session: &Session) -> Ended {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut used = Instant::now();
    let (mut silence, mut streams) = (Silence::default(), 0);
    loop {
        tick.tick().await;
        let leases = session.runs.leases();
        if !leases.is_empty() {
            used = Instant::now();
        }
        for message in frames(leases) {
            // Full: the next second brings a newer one.
            let _ = session.outbox.try_send(message);
        }
        let stats = connection.stats();
        match silence.tick(stats.udp_rx.datagrams, asked(&stats.frame_tx)) {
            Verdict::Fine => {}
            Verdict::Renew => link.renew(address),
            Verdict::Dead => return Ended::Silent,
        }
        if std::mem::replace(&mut streams, stats.frame_tx.stream) != stats.frame_tx.stream {
            used = Instant::now();
        }
        if used.elapsed() >= UNUSED {
            return Ended::Unused;
        }
    }
}

fn leases(leases: Vec<Lease>) -> ToOwner {
    ToOwner { message: Some(EdgeMessage::Leases(Leases { leases })) }
}

/// As many frames as the leases need; almost always one.
fn frames(all: Vec<Lease>) -> Vec<ToOwner> {
    let (mut frames, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for lease in all {
        // Tag and length of the entry, and those of the lists around it.
        let size = lease.encoded_len() + 8;
        if bytes + size > FRAME_BYTES_MAX - 32 {
            frames.push(leases(std::mem::take(&mut part)));
            bytes = 0;
        }
        bytes += size;
        part.push(lease);
    }
    if !part.is_empty() {
        frames.push(leases(part));
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_leases_are_split_into_frames_that_fit() {
        let all: Vec<_> = (0..500)
            .map(|run| Lease { sprite: "a-name-of-some-length".into(), run, open: 1, ..Lease::default() })
            .collect();
        let frames = frames(all);
        assert!(frames.len() > 1);
        for frame in frames {
            wire::encode(&frame, &mut Vec::new()).unwrap();
        }
    }
}
