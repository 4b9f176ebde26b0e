//! The holds at the edge: requests that wait while their sprite wakes.
//!
//! `core.rs` decides who waits and for how long; `desk.rs` is how the threads share it,
//! `waker.rs` what a request awaits; `views.rs` is why a warm request needs none of them.

mod budget;
pub mod core;
mod damping;
mod desk;
mod prefix;
#[cfg(test)]
mod schedules;
mod sync;
mod views;
mod waker;

pub use self::core::Fared;
pub use budget::SourceBudget;
pub use damping::{Damping, SocketKey};
pub use waker::{HoldRequest, Turn, Waker, Woken};

use backhaul::wire::{Cause, Phase};
use std::time::Duration;

/// Bounds of the hold, per edge process (`wake.md` §5; set in `[hold]`).
#[derive(Clone, Debug)]
pub struct HoldLimits {
    /// Requests held for one sprite.
    pub per_sprite: usize,
    /// Requests held for one client prefix over all sprites.
    pub per_client: usize,
    /// Requests held for all sprites of one tenant.
    pub per_tenant: usize,
    /// Requests held in all.
    pub per_process: usize,
    /// Memory of all of them, bytes: heads, and what a connection or stream costs.
    pub memory: usize,
    /// Pending wakes.
    pub flights: usize,
    /// Pending wakes at one host.
    pub flights_per_host: usize,
    /// Requests let go at once when their sprite runs; doubled each 25 ms.
    pub release_window: usize,
}

impl From<&config::Hold> for HoldLimits {
    fn from(hold: &config::Hold) -> Self {
        Self {
            per_sprite: hold.per_sprite,
            per_client: hold.per_client,
            per_tenant: hold.per_tenant,
            per_process: hold.per_process,
            memory: hold.memory_bytes,
            flights: hold.flights,
            flights_per_host: hold.flights_per_host,
            release_window: hold.release_window,
        }
    }
}

/// Why a hold ended without a running sprite.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// Too many requests wait for this sprite.
    #[error("too many requests wait for this sprite")]
    HoldFull,
    /// Too many requests of this client's network wait.
    #[error("too many requests of this client wait")]
    ClientHoldFull,
    /// Too many requests for the sprites of this tenant wait.
    #[error("too many requests for this tenant's sprites wait")]
    TenantHoldFull,
    /// Too many requests or wakes in this process.
    #[error("this edge holds as many requests as it may")]
    EdgeBusy,
    /// The request's time was up.
    #[error("the deadline passed in phase {phase:?}")]
    Deadline {
        /// How far the wake had come.
        phase: Phase,
        /// How long it may still take, as far as the owner knows; zero when it does not.
        eta: Duration,
    },
    /// The owner refused.
    #[error("the owner refused: {cause:?} {detail}")]
    Refused {
        /// Why.
        cause: Cause,
        /// When another try makes sense; 0 when unknown.
        retry_after_ms: u32,
        /// For the operator's log.
        detail: String,
    },
    /// Placed elsewhere.
    #[error("placed on host {host}")]
    Moved {
        /// The new host's id.
        host: String,
        /// Its placement number.
        generation: u64,
    },
    /// Destroyed.
    #[error("destroyed")]
    Gone {
        /// The placement that was destroyed.
        generation: u64,
    },
    /// The host has not heard of this placement.
    #[error("the host knows generation {my_generation} only")]
    Unknown {
        /// What it knows.
        my_generation: u64,
    },
    /// The host does not answer.
    #[error("the host does not answer")]
    HostUnreachable,
    /// This edge is shutting down.
    #[error("this edge is shutting down")]
    Draining,
}

impl HoldError {
    /// The same refusal with what is left of its `retry_after`.
    fn since(mut self, left: Duration) -> Self {
        if let Self::Refused { retry_after_ms, .. } = &mut self {
            *retry_after_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        }
        self
    }
}
