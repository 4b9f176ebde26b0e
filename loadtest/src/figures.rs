//! Percentiles, as text and JSON.

use serde::Serialize;

/// What many durations come to, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Figures {
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

impl Figures {
    /// The smallest value that at least so many of all are not above (nearest rank). None of nothing.
    pub(crate) fn of(mut nanoseconds: Vec<u64>) -> Option<Self> {
        nanoseconds.sort_unstable();
        let rank = |per_cent: usize| (nanoseconds.len() * per_cent).div_ceil(100).max(1) - 1;
        let at = |index: usize| nanoseconds.get(index).map(|&nanoseconds| nanoseconds as f64 / 1e6);
        Some(Self { p50_ms: at(rank(50))?, p90_ms: at(rank(90))?, p99_ms: at(rank(99))?, max_ms: at(rank(100))? })
    }

    /// The line above the rows of a table.
    pub(crate) fn head(title: &str) -> String {
        format!("{title:26} {:>9} {:>9} {:>9} {:>9}  ms", "p50", "p90", "p99", "max")
    }

    pub(crate) fn row(&self, name: &str) -> String {
        let Self { p50_ms, p90_ms, p99_ms, max_ms } = self;
        format!("  {name:24} {p50_ms:>9.3} {p90_ms:>9.3} {p99_ms:>9.3} {max_ms:>9.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let millis = |values: &[u64]| Figures::of(values.iter().map(|value| value * 1_000_000).collect());
        assert_eq!(millis(&[]), None);
        assert_eq!(millis(&[7]), Some(Figures { p50_ms: 7.0, p90_ms: 7.0, p99_ms: 7.0, max_ms: 7.0 }));
        let hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(millis(&hundred), Some(Figures { p50_ms: 50.0, p90_ms: 90.0, p99_ms: 99.0, max_ms: 100.0 }));
    }
}
