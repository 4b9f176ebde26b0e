//! The way from an edge to the worker hosts: links, sessions, wake-aware streams.
//!
//! What travels is in [`wire`]; who decides at the far end is [`owner::Owner`]; what a
//! run has in progress is [`activity::RunActivity`]. The edge sees one type,
//! [`Backhaul`], whatever link is below it. Nothing here parses HTTP or decides whether
//! a sprite sleeps.

pub mod activity;
pub mod direct;
pub mod keys;
pub mod owner;
pub mod stream;
pub mod wire;

pub use stream::{GuestRead, GuestStream, GuestWrite};

use direct::Direct;
use owner::Owner;
use router::route::HostId;
use std::io;
use std::sync::Arc;
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
pub struct Backhaul {
    link: Arc<Direct>,
}

impl Backhaul {
    /// Plain TCP to the guests of `owner`, which is asked in-process.
    #[must_use]
    pub fn direct(owner: Arc<dyn Owner>) -> Self {
        Self { link: Arc::new(Direct::new(owner)) }
    }

    /// Where control messages of the hosts go. The first call counts.
    pub fn set_events(&self, events: Arc<dyn EdgeEvents>) {
        self.link.set_events(events);
    }

    /// Sends one control message. Never blocks.
    ///
    /// # Errors
    /// [`Unreachable`]: it was not queued.
    pub fn send(&self, host: HostId, message: ToOwner) -> Result<(), Unreachable> {
        self.link.send(host, message);
        Ok(())
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was delivered to a guest.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the stream; a wake it asked for goes on.
    pub async fn open(&self, _host: HostId, open: Open) -> Result<GuestStream, OpenError> {
        self.link.open(open).await
    }

    /// Whether the owner tells how many bytes reached the guest when a stream breaks.
    #[must_use]
    pub const fn gives_receipts(&self) -> bool {
        false
    }
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
