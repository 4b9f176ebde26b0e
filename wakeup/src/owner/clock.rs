//! Instants as receipts tell them.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Ties the two clocks receipts speak of to the one the core knows.
pub(super) struct Clock {
    instant: Instant,
    monotonic_ns: u64,
    unix_ms: u64,
}

impl Clock {
    pub(super) fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            instant: Instant::now(),
            monotonic_ns: u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000
                + u64::try_from(now.tv_nsec).unwrap_or(0),
            unix_ms: u64::try_from(unix.as_millis()).unwrap_or(0),
        }
    }

    pub(super) fn monotonic_ns(&self, at: Instant) -> u64 {
        self.monotonic_ns + u64::try_from(at.saturating_duration_since(self.instant).as_nanos()).unwrap_or(0)
    }

    pub(super) fn unix_ms(&self, at: Instant) -> u64 {
        self.unix_ms + u64::try_from(at.saturating_duration_since(self.instant).as_millis()).unwrap_or(0)
    }
}
