//! Changes that wait: when many routes lead elsewhere at once, an edge that is no canary takes them
//! later, so that a mistake is seen where it does little before it is everywhere.
//!
//! A few at a time pass at once, as vanished routes do (`brake.rs`). What waits is what was said last of
//! each name: whoever takes a mistake back in the store takes it back here.

use crate::brake::Brake;
use crate::names::SpriteName;
use crate::route::Route;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// What waits, one route a name at most. No clock, no table.
#[derive(Debug)]
pub(crate) struct Bulk {
    /// How long; nothing ever waits when it is zero.
    delay: Duration,
    lately: Brake,
    waiting: HashMap<SpriteName, (Instant, Route)>,
    /// Before this nothing is due.
    next: Option<Instant>,
}

impl Bulk {
    pub(crate) fn new(delay: Duration) -> Self {
        Self { delay, lately: Brake::default(), waiting: HashMap::new(), next: None }
    }

    /// Takes what the store says of a name that the table has as `present`, one of `known`; gives it
    /// back when it is to be applied now.
    pub(crate) fn admit(
        &mut self,
        now: Instant,
        known: usize,
        name: &SpriteName,
        present: &Route,
        route: Route,
    ) -> Option<Route> {
        let waited = self.waiting.remove(name).map(|(due, _)| due);
        let leads_elsewhere = !present.deleted && (route.deleted || route.host != present.host);
        if self.delay.is_zero() || !leads_elsewhere || route.generation < present.generation {
            return Some(route);
        }
        // One that waits already was counted, and waits no longer for being said again.
        if waited.is_none() && self.lately.admits(now, known, 1) {
            return Some(route);
        }
        if self.waiting.is_empty() && waited.is_none() {
            let wait_s = self.delay.as_secs();
            tracing::error!(
                wait_s,
                "too many routes change at once; they are applied later, as the store has them then"
            );
        }
        let due = waited.unwrap_or(now + self.delay);
        self.next = Some(self.next.map_or(due, |next| next.min(due)));
        self.waiting.insert(name.clone(), (due, route));
        None
    }

    /// Forgets what waits of a name that the store no longer has.
    pub(crate) fn forget(&mut self, name: &SpriteName) {
        self.waiting.remove(name);
    }

    /// Forgets everything: what waits is of another history.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// What has waited long enough.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<(SpriteName, Route)> {
        if self.next.is_none_or(|next| next > now) {
            return Vec::new();
        }
        let due = self.waiting.extract_if(|_, (due, _)| *due <= now).map(|(name, (_, route))| (name, route)).collect();
        self.next = self.waiting.values().map(|(due, _)| *due).min();
        due
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Access;
    use crate::route::{Generation, HostId, Tenant};

    const DELAY: Duration = Duration::from_secs(60);

    fn route(generation: u64, host: u32) -> Route {
        Route {
            generation: Generation(generation),
            tenant: Tenant::default(),
            host: HostId(host),
            access: Access::Public,
            wake: None,
            ports: [].into(),
            client_certificate: None,
            deleted: false,
        }
    }

    fn name(number: usize) -> SpriteName {
        SpriteName::parse(&format!("s{number}")).unwrap()
    }

    /// Of a hundred routes sixteen may change at once.
    fn after_sixteen(bulk: &mut Bulk, now: Instant) {
        for number in 0..16 {
            assert!(bulk.admit(now, 100, &name(number), &route(1, 1), route(2, 2)).is_some(), "{number}");
        }
    }

    #[test]
    fn a_few_pass_and_the_rest_waits_for_its_time() {
        let (mut bulk, now) = (Bulk::new(DELAY), Instant::now());
        after_sixteen(&mut bulk, now);
        assert_eq!(bulk.admit(now, 100, &name(16), &route(1, 1), route(2, 2)), None);
        // What leads nowhere else is no such change, neither is what is older.
        assert!(bulk.admit(now, 100, &name(17), &route(1, 1), route(2, 1)).is_some());
        assert!(bulk.admit(now, 100, &name(18), &route(3, 1), route(2, 2)).is_some());
        let tombstone = Route { deleted: true, ..route(1, 1) };
        assert!(bulk.admit(now, 100, &name(19), &tombstone, route(2, 2)).is_some());
        assert_eq!(bulk.admit(now, 100, &name(20), &route(1, 1), tombstone), None);
        assert_eq!((bulk.len(), bulk.due(now + DELAY / 2).len()), (2, 0));
        assert_eq!((bulk.due(now + DELAY).len(), bulk.len()), (2, 0));
    }

    #[test]
    fn what_is_said_later_takes_the_place_of_what_waits_and_its_time() {
        let (mut bulk, now) = (Bulk::new(DELAY), Instant::now());
        after_sixteen(&mut bulk, now);
        for number in 16..19 {
            assert_eq!(bulk.admit(now, 100, &name(number), &route(1, 1), route(2, 2)), None);
        }
        let later = now + DELAY / 2;
        // Taken back, said once more, and gone.
        assert_eq!(bulk.admit(later, 100, &name(16), &route(1, 1), route(3, 1)), Some(route(3, 1)));
        assert_eq!(bulk.admit(later, 100, &name(17), &route(1, 1), route(3, 3)), None);
        bulk.forget(&name(18));
        assert_eq!(bulk.due(now + DELAY), [(name(17), route(3, 3))]);
        assert_eq!(bulk.due(now + 3 * DELAY), []);
    }

    #[test]
    fn without_a_delay_nothing_waits() {
        let (mut bulk, now) = (Bulk::new(Duration::ZERO), Instant::now());
        assert!((0..100).all(|number| bulk.admit(now, 100, &name(number), &route(1, 1), route(2, 2)).is_some()));
        assert_eq!(bulk.len(), 0);
    }
}
