//! Bounds of the hold, per edge process.

use crate::text::all_at_least_one;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Section `[hold]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hold {
    /// Longest hold of a request that sets no shorter deadline itself; at most 60 s.
    #[serde(with = "crate::text")]
    pub timeout: Duration,
    /// Requests held for one sprite.
    pub per_sprite: usize,
    /// Requests held for one client prefix (/32, /56) over all sprites.
    pub per_client: usize,
    /// Requests held for all sprites of one tenant.
    pub per_tenant: usize,
    /// Requests held in all; never more than a quarter of the open files the process may have.
    pub per_process: usize,
    /// Memory of all held requests, bytes. At four fifths of it anonymous ones are refused.
    pub memory_bytes: usize,
    /// Pending wakes.
    pub flights: usize,
    /// Pending wakes at one host.
    pub flights_per_host: usize,
    /// Held requests let go at once when their sprite runs; doubled each 25 ms for a second.
    pub release_window: usize,
    /// Wakes a client's network (/32, /56) may waste in an hour: those that were answered 4xx or
    /// left before the answer. 0 is no bound.
    pub wasted_wakes_per_hour: u32,
    /// The wake of a public sprite that any request wakes begins with the ClientHello that names it,
    /// before the handshake is over. Whoever only looks at certificates wakes it too.
    pub wake_at_client_hello: bool,
}

impl Default for Hold {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            per_sprite: 128,
            per_client: 512,
            per_tenant: 1_024,
            per_process: 8_192,
            memory_bytes: 384 << 20,
            flights: 4_096,
            flights_per_host: 512,
            release_window: 8,
            wasted_wakes_per_hour: 20,
            wake_at_client_hello: false,
        }
    }
}

impl Hold {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.timeout.is_zero() || self.timeout > Duration::from_secs(60) {
            return Err(("hold.timeout", "more than 0 and at most 60s".into()));
        }
        if !(1..=1_024).contains(&self.per_sprite) {
            return Err(("hold.per_sprite", "between 1 and 1024".into()));
        }
        all_at_least_one(&[
            ("hold.per_client", self.per_client),
            ("hold.per_tenant", self.per_tenant),
            ("hold.per_process", self.per_process),
            ("hold.memory_bytes", self.memory_bytes),
            ("hold.flights", self.flights),
            ("hold.flights_per_host", self.flights_per_host),
            ("hold.release_window", self.release_window),
        ])
    }
}
