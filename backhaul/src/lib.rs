//! The way from an edge to the worker hosts: links, sessions, wake-aware streams.
//!
//! What travels is in [`wire`]; who decides at the far end is [`owner::Owner`]; what a
//! run has in progress is [`activity::RunActivity`]. The edge sees one type,
//! [`Backhaul`], whatever link is below it. Nothing here parses HTTP or decides whether
//! a sprite sleeps.

pub mod activity;
pub mod direct;
pub mod keys;
pub mod link;
pub mod owner;
pub mod secret_file;
pub mod session;
pub mod signing_file;
mod splice;
pub mod stream;
mod sync;
pub mod wire;

pub use secret_file::SecretFileError;
pub use session::QuicEdge;
pub use stream::{GuestRead, GuestStream, GuestWrite};

use direct::Direct;
use owner::Owner;
use router::route::HostId;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use wire::{Open, Reply, ToEdge, ToOwner};

/// What the hosts tell an edge without being asked by a stream.
pub trait EdgeEvents: Send + Sync + 'static {
    /// One control message. Must not block.
    fn answer(&self, host: HostId, message: ToEdge);
    /// The session to `host` ended or could not be made.
    fn host_down(&self, host: HostId);
}

/// The edge's way to all hosts. Cheap to clone, usable from every core.
#[derive(Clone)]
pub struct Backhaul(Way);

#[derive(Clone)]
enum Way {
    Direct(Arc<Direct>),
    Quic(QuicEdge),
}

impl Backhaul {
    /// Plain TCP to the guests of `owner`, which is asked in-process.
    #[must_use]
    pub fn direct(owner: Arc<dyn Owner>) -> Self {
        Self(Way::Direct(Direct::new(owner)))
    }

    /// Sessions to the hosts, inside WireGuard.
    #[must_use]
    pub const fn quic(edge: QuicEdge) -> Self {
        Self(Way::Quic(edge))
    }

    /// Where control messages of the hosts go. The first call counts.
    pub fn set_events(&self, events: Arc<dyn EdgeEvents>) {
        match &self.0 {
            Way::Direct(direct) => direct.set_events(events),
            Way::Quic(edge) => edge.set_events(events),
        }
    }

    /// Sends one control message. Never blocks; connects on first need.
    ///
    /// # Errors
    /// [`Unreachable`]: it was not queued. A message that was queued for a session that
    /// cannot be made is dropped, and [`EdgeEvents::host_down`] says so.
    pub fn send(&self, host: HostId, message: ToOwner) -> Result<(), Unreachable> {
        match &self.0 {
            Way::Direct(direct) => {
                direct.send(host, message);
                Ok(())
            }
            Way::Quic(edge) => edge.send(host, message),
        }
    }

    /// How long a word to this host and its answer take at the least: zero on the direct link,
    /// what its session measured, or RFC 9002's guess of 333 ms as long as there is none. Takes no
    /// part in making one.
    #[must_use]
    pub fn round_trip(&self, host: HostId) -> Duration {
        match &self.0 {
            Way::Direct(_) => Duration::ZERO,
            Way::Quic(edge) => edge.round_trip(host),
        }
    }

    /// Opens a stream. On a session that is up this takes no round trip: the owner's
    /// decision is asked with [`GuestStream::opened`], after the request was written.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was delivered to a guest.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the stream; a wake it asked for goes on.
    pub async fn open(&self, host: HostId, open: Open) -> Result<GuestStream, OpenError> {
        match &self.0 {
            Way::Direct(direct) => direct.open(open).await,
            Way::Quic(edge) => edge.open(host, open).await,
        }
    }

    /// Claims of this edge that had no stream under them and count no more
    /// ([`activity::RunActivity::reconcile`]); on the direct link the owner looks after them.
    #[must_use]
    pub fn lease_mismatches(&self) -> u64 {
        match &self.0 {
            Way::Direct(_) => 0,
            Way::Quic(edge) => edge.lease_mismatches(),
        }
    }

    /// How the way to a host stands. Makes no session.
    #[must_use]
    pub fn session_state(&self, host: HostId) -> SessionState {
        match &self.0 {
            Way::Direct(_) => SessionState::Direct,
            Way::Quic(edge) => edge.session_state(host),
        }
    }

    /// Whether the owner tells how many bytes reached the guest when a stream breaks.
    #[must_use]
    pub const fn gives_receipts(&self) -> bool {
        matches!(self.0, Way::Quic(_))
    }
}

/// How the way to a host stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Nobody has needed it yet, or not for long.
    Idle,
    /// There is a session.
    Up,
    /// The last attempt to make one failed.
    Down,
    /// The owner is in this process: there are no sessions.
    Direct,
}

/// There is no session to the host and none can be made now.
#[derive(Debug, thiserror::Error)]
#[error("the host is unreachable")]
pub struct Unreachable;

/// Why a stream was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The owner decided otherwise.
    #[error("the owner did not open the stream: {0:?}")]
    NotOpened(Reply),
    /// No session to the host.
    #[error("the host is unreachable")]
    Unreachable,
    /// The guest's port refused or broke off the connection.
    #[error("the guest's port could not be connected")]
    GuestConnect(#[source] io::Error),
}
