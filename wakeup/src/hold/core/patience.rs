//! How long a request is worth holding, by how long its sprite's wakes took.
//!
//! A sprite that wakes in a second and has not after ten will not; who waits for it is told
//! while it can still do something else (`wake.md` §6).

use router::names::SpriteName;
use std::collections::BTreeMap;
use std::time::Duration;

/// Wakes remembered of one sprite (chosen: the fewest of which one in twenty is one).
const SAMPLES: usize = 20;
/// Fewer say nothing (chosen).
const SAMPLES_MIN: usize = 5;
/// Sprites remembered (chosen: about 2 MB). Beyond it the first name in order is forgotten,
/// which costs its visitors nothing but patience.
const SPRITES_MAX: usize = 10_000;
/// Nobody is told earlier (`wake.md` §6).
const LEAST: Duration = Duration::from_secs(10);

/// How long the last wakes of each sprite took.
#[derive(Debug, Default)]
pub(super) struct Patience(BTreeMap<SpriteName, Samples>);

#[derive(Debug, Default)]
struct Samples {
    /// Milliseconds; the oldest is overwritten.
    took: Vec<u32>,
    next: usize,
}

impl Patience {
    /// A wake took so long.
    pub(super) fn note(&mut self, name: &SpriteName, took_ms: u32) {
        if !self.0.contains_key(name) && self.0.len() >= SPRITES_MAX {
            self.0.pop_first();
        }
        let samples = self.0.entry(name.clone()).or_default();
        if samples.took.len() < SAMPLES {
            samples.took.push(took_ms);
        } else {
            samples.took[samples.next] = took_ms;
            samples.next = (samples.next + 1) % SAMPLES;
        }
    }

    /// How long a request for it is worth holding; nothing as long as too little is known.
    pub(super) fn worth(&self, name: &SpriteName) -> Option<Duration> {
        let took = &self.0.get(name)?.took;
        if took.len() < SAMPLES_MIN {
            return None;
        }
        let mut sorted = took.clone();
        sorted.sort_unstable();
        // Nearest rank.
        let p95 = sorted[(sorted.len() * 95).div_ceil(100) - 1];
        Some(LEAST.max(Duration::from_millis(u64::from(p95) * 7 / 2)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_and_a_half_times_the_95th_percentile_and_never_below_ten_seconds() {
        let (mut patience, name) = (Patience::default(), SpriteName::parse("a").unwrap());
        for _ in 0..4 {
            patience.note(&name, 100);
        }
        assert_eq!(patience.worth(&name), None, "too little is known");
        patience.note(&name, 100);
        assert_eq!(patience.worth(&name), Some(LEAST));
        for _ in 0..19 {
            patience.note(&name, 4_000);
        }
        assert_eq!(patience.worth(&name), Some(Duration::from_secs(14)));
        // One in twenty may be an accident.
        patience.note(&name, 60_000);
        assert_eq!(patience.worth(&name), Some(Duration::from_secs(14)));
    }

    #[test]
    fn it_remembers_only_so_many() {
        let mut patience = Patience::default();
        for n in 0..=SPRITES_MAX {
            patience.note(&SpriteName::parse(&format!("s{n}")).unwrap(), 1);
        }
        assert_eq!(patience.0.len(), SPRITES_MAX);
    }
}
