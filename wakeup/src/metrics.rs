//! What is counted, for Prometheus: how many wait and for how long, how wakes go, and what was
//! refused or damped. No label names a sprite, so that the number of series is bounded.
//!
//! Nothing here is touched by a request to a running sprite.

use crate::owner::core::Unwanted;
use backhaul::wire::{Cause, WakeKind};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::time::Duration;

/// Seconds: fine below one, up to the cap of every hold (`wake.md` §9).
const BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0];

/// Requests that may be on their way at once: from one to the bound of all holds.
const WINDOWS: [f64; 14] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, WINDOW_MAX as f64];
/// A window that has grown beyond this is none (`wake.md` §5: requests held per process).
const WINDOW_MAX: u32 = 8_192;

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

/// How a hold ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum HoldOutcome {
    /// Its sprite runs.
    Released,
    /// Refused, for whatever reason.
    Refused,
    /// Its time was up.
    Deadline,
    /// It was answered with the waiting page.
    Page,
    /// Its client left.
    ClientGone,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfHold {
    outcome: HoldOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfWake {
    reason_class: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPhase {
    kind: &'static str,
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRefusal {
    cause: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOutcome {
    outcome: &'static str,
}

/// What an edge counts.
#[derive(Clone, Debug)]
pub struct EdgeMetrics {
    hold_seconds: Histograms<OfHold>,
    joined: Counter,
    races: Family<OfOutcome, Counter>,
    damped: Counter,
    early: Family<OfOutcome, Counter>,
    release_window: Histogram,
}

impl Default for EdgeMetrics {
    fn default() -> Self {
        Self {
            hold_seconds: Family::new_with_constructor(histogram),
            joined: Counter::default(),
            races: Family::default(),
            damped: Counter::default(),
            early: Family::default(),
            release_window: Histogram::new(WINDOWS),
        }
    }
}

impl EdgeMetrics {
    /// Makes them known.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("hold_seconds", "How long requests were held", self.hold_seconds.clone());
        registry.register("wakes_joined_at_edge", "Holds that joined a wake of another request", self.joined.clone());
        registry.register("sleep_race", "Requests whose sprite slept when they came", self.races.clone());
        registry.register("reconnects_damped", "Sockets that came back by themselves", self.damped.clone());
        registry.register("wakes_at_client_hello", "Wakes begun before their request came", self.early.clone());
        let window = "How many held requests might be on their way at once when one of them was let go";
        registry.register("release_window", window, self.release_window.clone());
    }

    /// A hold ended.
    pub fn held(&self, outcome: HoldOutcome, held: Duration, joined: bool) {
        self.hold_seconds.get_or_create(&OfHold { outcome }).observe(held.as_secs_f64());
        if joined {
            self.joined.inc();
        }
    }

    /// A held request was let go while that many might be on their way.
    pub fn let_go(&self, window: usize) {
        self.release_window.observe(u32::try_from(window).unwrap_or(u32::MAX).min(WINDOW_MAX).into());
    }

    /// A request was sent to a sprite that slept; `again` if it was held once more.
    pub fn raced(&self, again: bool) {
        let outcome = if again { "held" } else { "gave_up" };
        self.races.get_or_create(&OfOutcome { outcome }).inc();
    }

    /// A wake before its request: "begun", and then "used" or "wasted".
    pub fn early(&self, outcome: &'static str) {
        self.early.get_or_create(&OfOutcome { outcome }).inc();
    }

    /// A socket was not let wake its sprite.
    pub fn damped(&self) {
        self.damped.inc();
    }
}

/// What an owner counts.
#[derive(Clone, Debug)]
pub struct OwnerMetrics {
    wakes: Family<OfWake, Counter>,
    wake_seconds: Histograms<OfPhase>,
    refused: Family<OfRefusal, Counter>,
    joined: Counter,
    withdrawn: Counter,
    abandoned: Counter,
}

impl Default for OwnerMetrics {
    fn default() -> Self {
        Self {
            wakes: Family::default(),
            wake_seconds: Family::new_with_constructor(histogram),
            refused: Family::default(),
            joined: Counter::default(),
            withdrawn: Counter::default(),
            abandoned: Counter::default(),
        }
    }
}

impl OwnerMetrics {
    /// Makes them known.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("wakes", "Wakes that came to their end", self.wakes.clone());
        registry.register("wake_seconds", "How long each phase of a wake took", self.wake_seconds.clone());
        registry.register("wakes_refused", "Wakes that were refused, by cause", self.refused.clone());
        registry.register("wakes_joined_at_owner", "Waiters that joined a wake of another", self.joined.clone());
        let withdrawn = "Wakes that had not begun when nobody waited any more, and did not";
        registry.register("wakes_withdrawn", withdrawn, self.withdrawn.clone());
        let abandoned = "Wakes that were gone through with although nobody waited any more";
        registry.register("wakes_abandoned", abandoned, self.abandoned.clone());
    }

    /// A wake came to its end.
    pub(crate) fn woke(
        &self,
        reason: &str,
        kind: WakeKind,
        result: &'static str,
        waiters: usize,
        phases: [Duration; 3],
    ) {
        self.wakes.get_or_create(&OfWake { reason_class: reason_class(reason), result }).inc();
        for (phase, took) in ["queued", "starting", "port_wait"].into_iter().zip(phases) {
            let of = OfPhase { kind: kind.as_str(), phase };
            self.wake_seconds.get_or_create(&of).observe(took.as_secs_f64());
        }
        self.joined.inc_by(u64::try_from(waiters.saturating_sub(1)).unwrap_or(u64::MAX));
    }

    /// Nobody waited for a wake in the end.
    pub(crate) fn unwanted(&self, what: Unwanted) {
        match what {
            Unwanted::Withdrawn => self.withdrawn.inc(),
            Unwanted::Abandoned => self.abandoned.inc(),
        };
    }

    /// A waiter was refused.
    pub(crate) fn refused(&self, cause: Cause) {
        self.refused.get_or_create(&OfRefusal { cause: format!("{cause:?}") }).inc();
    }
}

/// The first word of a reason, if it is one of ours: "http GET" is `http`.
fn reason_class(reason: &str) -> &'static str {
    let first = reason.split(' ').next().unwrap_or("");
    ["http", "hello", "admin", "stream", "timer", "task"].into_iter().find(|class| *class == first).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told_and_no_series_names_a_sprite() {
        let (edge, owner) = (EdgeMetrics::default(), OwnerMetrics::default());
        let mut registry = Registry::default();
        edge.register(&mut registry);
        owner.register(&mut registry);
        edge.held(HoldOutcome::Released, Duration::from_millis(3), true);
        edge.raced(true);
        edge.damped();
        edge.early("begun");
        edge.let_go(8);
        edge.let_go(usize::MAX);
        owner.unwanted(Unwanted::Withdrawn);
        owner.unwanted(Unwanted::Abandoned);
        owner.woke("http GET", WakeKind::Warm, "ready", 3, [Duration::ZERO; 3]);
        owner.woke("strange", WakeKind::Cold, "ready", 1, [Duration::ZERO; 3]);
        owner.refused(Cause::HostBusy);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "hold_seconds_count{outcome=\"Released\"} 1",
            "wakes_joined_at_edge_total 1",
            "sleep_race_total{outcome=\"held\"} 1",
            "reconnects_damped_total 1",
            "wakes_at_client_hello_total{outcome=\"begun\"} 1",
            "release_window_bucket{le=\"4.0\"} 0",
            "release_window_bucket{le=\"8.0\"} 1",
            "release_window_bucket{le=\"8192.0\"} 2",
            "release_window_sum 8200.0",
            "wakes_withdrawn_total 1",
            "wakes_abandoned_total 1",
            "wakes_total{reason_class=\"http\",result=\"ready\"} 1",
            "wakes_total{reason_class=\"other\",result=\"ready\"} 1",
            "wake_seconds_count{kind=\"warm\",phase=\"starting\"} 1",
            "wakes_refused_total{cause=\"HostBusy\"} 1",
            "wakes_joined_at_owner_total 2",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
