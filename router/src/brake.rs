//! How many routes may vanish at once: a store that suddenly lacks many of them has more
//! likely lost them than the fleet its sprites.

use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// Over this time vanished routes are counted (chosen).
const WINDOW: Duration = Duration::from_secs(60);
/// One in this many may vanish within it (chosen: 5 %).
const SHARE: usize = 20;
/// So many may in any case, or a small fleet could never be cleared (chosen).
const ALWAYS: usize = 16;

/// Counts what vanished lately.
#[derive(Debug, Default)]
pub(crate) struct Brake {
    /// When and how many; one entry a second at most.
    lately: VecDeque<(Instant, usize)>,
}

impl Brake {
    /// Whether `count` of `known` routes may vanish now; then they are counted. All or none.
    pub(crate) fn admits(&mut self, now: Instant, known: usize, count: usize) -> bool {
        while self.lately.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            self.lately.pop_front();
        }
        let before: usize = self.lately.iter().map(|(_, count)| count).sum();
        // What has vanished was known when the window began.
        if before + count > ((known + before) / SHARE).max(ALWAYS) {
            return false;
        }
        match self.lately.back_mut() {
            Some((at, so_far)) if now.saturating_duration_since(*at) < Duration::from_secs(1) => *so_far += count,
            _ => self.lately.push_back((now, count)),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_may_vanish_in_a_minute_and_a_few_in_any_case() {
        let (mut brake, now) = (Brake::default(), Instant::now());
        assert!(!brake.admits(now, 1_000, 51));
        assert!(brake.admits(now, 1_000, 50));
        assert!(!brake.admits(now + WINDOW / 2, 950, 1));
        assert!(brake.admits(now + WINDOW, 950, 47));
        let mut brake = Brake::default();
        for second in 0..16 {
            assert!(brake.admits(now + Duration::from_secs(second), 16, 1));
        }
        assert!(!brake.admits(now + Duration::from_secs(16), 16, 1));
        // Each second leaves the window by itself.
        assert!(brake.admits(now + WINDOW, 16, 1));
        assert!(!brake.admits(now + WINDOW, 16, 1));
        assert!(brake.lately.len() <= 61);
    }
}
