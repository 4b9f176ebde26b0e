//! The time, for what waits for days: seconds since 1970, and a sleep that goes by the same clock.

use std::time::Duration;
use tokio::time::Instant;

/// Longest sleep in one piece: a system clock that was set meanwhile is noticed that soon (chosen).
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// Where the time comes from.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Option<(Instant, u64)>);

impl Clock {
    /// The system's clock. What is in rows goes by it, since other machines read them.
    #[must_use]
    pub const fn system() -> Self {
        Self(None)
    }

    /// A clock that shows `unix` now and goes on as tokio's does, which a test may have stopped.
    #[must_use]
    pub fn starting_at(unix: u64) -> Self {
        Self(Some((Instant::now(), unix)))
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.0.map_or_else(crate::unix_now, |(start, unix)| unix + start.elapsed().as_secs())
    }

    /// Sleeps until then, seconds since 1970, or for a minute, whichever is sooner: look at the clock again.
    ///
    /// # Cancel safety
    /// Dropping it does nothing.
    pub async fn sleep_towards(&self, unix: u64) {
        let wait = Duration::from_secs(unix.saturating_sub(self.now()));
        tokio::time::sleep(wait.min(SLEEP_MAX)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn sleeps_and_seconds_go_together_and_the_system_is_asked_otherwise() {
        let clock = Clock::starting_at(1_800_000_000);
        clock.sleep_towards(1_800_000_010).await;
        assert_eq!(clock.now(), 1_800_000_010);
        clock.sleep_towards(1_900_000_000).await;
        assert_eq!(clock.now(), 1_800_000_070);
        let system = crate::unix_now();
        assert!((system..system + 5).contains(&Clock::system().now()));
    }
}
