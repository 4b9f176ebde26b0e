//! What strangers and tenants may cost: how often anonymous requests wake a sprite, and
//! how long it may be awake in a day.
//!
//! Both are leaky buckets without a timer. Too many wakes are never refused (a webhook
//! every 90 s must be served): the sprite then stays awake longer, so that there are fewer.
//! Only the cap its own people set refuses.

use std::time::Duration;
use std::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);
/// What a cap on awake time is for.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Anonymous wakes of one sprite (`wake.md` §3, step 9).
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct WakeBudget {
    /// When it is whole again.
    whole_at: Option<Instant>,
}

impl WakeBudget {
    pub(in super::super) const fn new() -> Self {
        Self { whole_at: None }
    }

    /// One more wake; until when the sprite is to be generous with its idle timeout, if this
    /// one is over the budget of `per_hour` with bursts of `burst`. 0 an hour is no bound.
    pub(super) fn spend(&mut self, now: Instant, per_hour: u32, burst: u32) -> Option<Instant> {
        let interval = HOUR.checked_div(per_hour)?;
        let whole_at = self.whole_at.map_or(now, |at| at.max(now));
        let after = whole_at + interval;
        let over = after - now > interval * burst.max(1);
        // Over it nothing more is owed: the rest of the hour pays for it.
        self.whole_at = Some(if over { whole_at } else { after });
        over.then_some(whole_at.min(now + HOUR))
    }
}

/// Awake time of one sprite against the cap of its people.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct AwakeMeter {
    level: Duration,
    at: Instant,
}

impl AwakeMeter {
    pub(in super::super) const fn new(now: Instant) -> Self {
        Self { level: Duration::ZERO, at: now }
    }

    /// Accounts for the time since the last call, which was awake or not.
    pub(in super::super) fn advance(&mut self, now: Instant, awake: bool, cap: Option<Duration>) {
        let passed = now.saturating_duration_since(self.at);
        self.at = now;
        let Some(cap) = cap else {
            self.level = Duration::ZERO;
            return;
        };
        if awake {
            self.level += passed;
        }
        self.level = self.level.saturating_sub(passed.mul_f64(cap.as_secs_f64() / DAY.as_secs_f64()));
    }

    /// Until when it must sleep, if it was awake as long as its cap allows.
    pub(super) fn refuses(&self, cap: Option<Duration>) -> Option<Duration> {
        let cap = cap?;
        let over = self.level.checked_sub(cap)?;
        let rate = cap.as_secs_f64() / DAY.as_secs_f64();
        // A cap of nothing is a sprite that may not wake at all.
        let wait =
            if rate > 0.0 { Duration::from_secs_f64((over.as_secs_f64() / rate).min(DAY.as_secs_f64())) } else { DAY };
        Some(wait.max(Duration::from_secs(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_an_hour_with_bursts_of_twenty_and_over_it_the_rest_of_the_hour_is_named() {
        let (mut budget, began) = (WakeBudget::new(), Instant::now());
        for _ in 0..20 {
            assert_eq!(budget.spend(began, 30, 20), None);
        }
        let until = budget.spend(began, 30, 20).expect("over it");
        assert_eq!(until - began, Duration::from_secs(20 * 120));
        // Two minutes earn one back; so does not spending.
        assert_eq!(budget.spend(began + Duration::from_secs(120), 30, 20), None);
        assert!(budget.spend(began + Duration::from_secs(121), 30, 20).is_some());
        assert_eq!(budget.spend(began + HOUR, 30, 20), None);
        assert_eq!(WakeBudget::new().spend(began, 0, 20), None, "no bound");
    }

    #[test]
    fn a_cap_refuses_once_it_is_used_up_and_says_how_long() {
        let cap = Some(Duration::from_secs(3600));
        let began = Instant::now();
        let mut meter = AwakeMeter::new(began);
        meter.advance(began + Duration::from_secs(1800), true, cap);
        assert_eq!(meter.refuses(cap), None);
        meter.advance(began + Duration::from_secs(3800), true, cap);
        let wait = meter.refuses(cap).expect("used up");
        assert!(wait <= Duration::from_secs(24 * 200), "{wait:?}");
        meter.advance(began + Duration::from_secs(3800) + wait + Duration::from_secs(1), false, cap);
        assert_eq!(meter.refuses(cap), None);
        assert_eq!(meter.refuses(None), None, "without a cap");
        assert!(meter.refuses(Some(Duration::ZERO)).is_some());
    }
}
