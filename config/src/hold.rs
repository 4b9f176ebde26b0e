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
    /// Requests held in all.
    pub per_process: usize,
    /// Pending wakes.
    pub flights: usize,
    /// Wakes a client's network (/32, /56) may waste in an hour: those that were answered 4xx or
    /// left before the answer. 0 is no bound.
    pub wasted_wakes_per_hour: u32,
}

impl Default for Hold {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            per_sprite: 128,
            per_client: 512,
            per_process: 8_192,
            flights: 4_096,
            wasted_wakes_per_hour: 20,
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
            ("hold.per_process", self.per_process),
            ("hold.flights", self.flights),
        ])
    }
}
