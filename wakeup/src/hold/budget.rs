//! How many wakes a network may waste: those whose sprite answered that there is nothing
//! for it (4xx), or whose client had left by then (`wake.md` §3, step 9).
//!
//! Who asks for what exists is never counted, so a webhook is not; who knocks on doors to
//! see which open runs out of wakes. One number per network, and no timer.

use super::prefix::Prefix;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Networks remembered at a time (chosen: 2 MiB). Beyond it new ones are not counted until
/// others are forgotten: an attack from so many is not one this can end.
const NETWORKS_MAX: usize = 65_536;
const HOUR: Duration = Duration::from_secs(3600);

/// The budgets of one edge process.
#[derive(Debug)]
pub struct SourceBudget {
    /// Wakes a network may waste in an hour, all at once if it likes; 0 is no bound.
    per_hour: u32,
    /// When each network's budget is whole again.
    whole_at: Mutex<HashMap<Prefix, Instant>>,
}

impl SourceBudget {
    /// With so many an hour; 0 turns it off.
    #[must_use]
    pub fn new(per_hour: u32) -> Self {
        Self { per_hour, whole_at: Mutex::default() }
    }

    /// Whether a client's network may cause another wake.
    ///
    /// # Errors
    /// How long until it may.
    pub fn check(&self, now: Instant, client: IpAddr) -> Result<(), Duration> {
        let Some(interval) = self.interval() else { return Ok(()) };
        let Some(whole_at) = self.lock().get(&client.into()).copied() else { return Ok(()) };
        // So far from whole that not one wake is left.
        let spent = whole_at.saturating_duration_since(now);
        let left = interval * (self.per_hour - 1);
        if spent > left { Err(spent - left) } else { Ok(()) }
    }

    /// A wake that this client caused was wasted.
    pub fn spend(&self, now: Instant, client: IpAddr) {
        let Some(interval) = self.interval() else { return };
        let mut networks = self.lock();
        if networks.len() >= NETWORKS_MAX {
            networks.retain(|_, whole_at| *whole_at > now);
        }
        let room = networks.len() < NETWORKS_MAX;
        match networks.get_mut(&client.into()) {
            Some(whole_at) => *whole_at = (*whole_at).max(now) + interval,
            None if room => drop(networks.insert(client.into(), now + interval)),
            None => {}
        }
    }

    /// One wake is earned back in so long.
    fn interval(&self) -> Option<Duration> {
        HOUR.checked_div(self.per_hour)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Prefix, Instant>> {
        self.whole_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn twenty_at_once_then_one_in_three_minutes_and_a_neighbour_has_its_own() {
        let (budget, began) = (SourceBudget::new(20), Instant::now());
        for _ in 0..20 {
            assert_eq!(budget.check(began, A), Ok(()));
            budget.spend(began, A);
        }
        let wait = budget.check(began, A).unwrap_err();
        assert_eq!(wait, Duration::from_secs(180));
        assert_eq!(budget.check(began, B), Ok(()));
        assert_eq!(budget.check(began + wait, A), Ok(()));
        budget.spend(began + wait, A);
        assert!(budget.check(began + wait, A).is_err());
        // An hour later it is whole again.
        let later = began + wait + HOUR;
        for _ in 0..20 {
            assert_eq!(budget.check(later, A), Ok(()));
            budget.spend(later, A);
        }
        assert!(budget.check(later, A).is_err());
    }

    #[test]
    fn without_a_bound_nothing_is_remembered() {
        let (budget, now) = (SourceBudget::new(0), Instant::now());
        (0..1_000).for_each(|_| budget.spend(now, A));
        assert_eq!(budget.check(now, A), Ok(()));
        assert!(budget.lock().is_empty());
    }

    #[test]
    fn memory_is_bounded_and_those_whose_budget_is_whole_make_room() {
        let (budget, now) = (SourceBudget::new(20), Instant::now());
        let nth = |n: u32| IpAddr::V4(std::net::Ipv4Addr::from_bits(n));
        for n in 0..u32::try_from(NETWORKS_MAX).unwrap() + 100 {
            budget.spend(now, nth(n));
        }
        assert_eq!(budget.lock().len(), NETWORKS_MAX);
        budget.spend(now + HOUR, A);
        assert_eq!(budget.lock().len(), 1);
    }

    #[test]
    fn a_56_of_ipv6_is_one_network() {
        let (budget, now) = (SourceBudget::new(1), Instant::now());
        budget.spend(now, "2001:db8:0:100::1".parse().unwrap());
        assert!(budget.check(now, "2001:db8:0:1ff::2".parse().unwrap()).is_err());
        assert!(budget.check(now, "2001:db8:0:200::1".parse().unwrap()).is_ok());
    }
}
