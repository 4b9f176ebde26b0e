//! When sprites want to be woken: by the clock on the wall, which may jump.

use router::names::SpriteName;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The wall clock is looked at this often at least, so that a jump of it is noticed (chosen).
const LOOK: Duration = Duration::from_secs(30);

type Hears = dyn Fn(&SpriteName, u64) + Send + Sync;

/// Hears of timers that rang; nobody by default.
#[derive(Clone, Default)]
pub struct Rang(Option<Arc<Hears>>);

impl Rang {
    /// Told of each: the sprite, and the time it was set to, milliseconds since 1970.
    #[must_use]
    pub fn new(hears: impl Fn(&SpriteName, u64) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hears)))
    }

    pub(super) fn tell(&self, name: &SpriteName, at: u64) {
        if let Some(hears) = &self.0 {
            hears(name, at);
        }
    }
}

impl std::fmt::Debug for Rang {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rang")
    }
}

/// The timers of a host's sprites.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(u64, SpriteName)>);

impl Timers {
    /// These are the sprite's, and no others.
    pub(super) fn set(&mut self, name: &SpriteName, at: &[u64]) {
        self.forget(name);
        self.0.extend(at.iter().map(|at| (*at, name.clone())));
    }

    pub(super) fn forget(&mut self, name: &SpriteName) {
        // Thousands at most, and only when a sprite is changed.
        self.0.retain(|(_, of)| of != name);
    }

    /// The next one that is due.
    pub(super) fn pop_due(&mut self, now: SystemTime) -> Option<(u64, SpriteName)> {
        let (at, _) = self.0.first()?;
        if *at > unix_ms(now) { None } else { self.0.pop_first() }
    }

    /// How long nothing is due; forever without timers.
    pub(super) fn quiet(&self, now: SystemTime) -> Option<Duration> {
        let (at, _) = self.0.first()?;
        Some(Duration::from_millis(at.saturating_sub(unix_ms(now))).min(LOOK))
    }
}

fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_ring_in_order_and_a_clock_that_jumps_is_noticed() {
        let name = |text: &str| SpriteName::parse(text).unwrap();
        let at = |ms: u64| UNIX_EPOCH + Duration::from_millis(ms);
        let mut timers = Timers::default();
        assert_eq!(timers.quiet(at(0)), None);
        timers.set(&name("a"), &[5_000, 900_000]);
        timers.set(&name("b"), &[1_000]);
        assert_eq!(timers.quiet(at(0)), Some(Duration::from_secs(1)));
        assert_eq!(timers.pop_due(at(999)), None);
        assert_eq!(timers.pop_due(at(6_000)), Some((1_000, name("b"))));
        assert_eq!(timers.pop_due(at(6_000)), Some((5_000, name("a"))));
        assert_eq!(timers.pop_due(at(6_000)), None);
        assert_eq!(timers.quiet(at(6_000)), Some(LOOK), "the wall clock is looked at again");
        timers.set(&name("a"), &[]);
        assert_eq!(timers.pop_due(at(u64::MAX / 2)), None);
    }
}
