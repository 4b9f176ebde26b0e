//! How long a sprite whose wakes fail is left alone.

use std::time::Duration;

/// Longest back-off before the jitter (`wake.md` §2).
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// 1, 2, 4 … 30 s, ±20 %, with jitter from a seed: the same in every simulation of it.
pub(super) struct Backoff {
    state: u64,
}

impl Backoff {
    pub(super) const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The pause after this many failures in a row, at least one.
    pub(super) fn pause(&mut self, failures: u32) -> Duration {
        let base = Duration::from_secs(1 << failures.saturating_sub(1).min(5)).min(BACKOFF_MAX);
        // SplitMix64: enough for jitter.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let percent = 80 + u32::try_from((mixed ^ (mixed >> 31)) % 41).unwrap_or(20);
        base * percent / 100
    }
}
