//! What hosts say of a sprite's place before the store has said it (`routing.md` §2, rules 4 and 6).
//!
//! Two memories with short lives, beside the table and never in it: a *hint* is the place a host says a
//! sprite has moved to, and a pair (sprite, host) is *unheard* when the host the sprite is to be on has never
//! heard of it. A hint changes host and generation of the table's own route and nothing else, so it
//! opens no door and cannot cross tenants; the store's next word ends it, and so does time. From
//! neither is absence ever learnt.
//!
//! No clock: `now` is passed in. Readers take no lock.

use crate::names::SpriteName;
use crate::route::{Generation, HostId, Route, Tenant};
use crate::rows::GENERATION_JUMP_MAX;
use papaya::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a host is believed that says where a sprite has moved to (`routing.md` §2, rule 4).
pub const HINT_LIFE: Duration = Duration::from_secs(30);
/// How long a host that has never heard of a sprite is not asked for it again (`routing.md` §2, rule 6).
pub const UNHEARD_FOR: Duration = Duration::from_secs(1);
/// Hints at once (chosen: 0.5 MiB; a host that is emptied at once has some thousand sprites). Over it a
/// move is waited for until the store tells of it.
const HINTS_MAX: usize = 4_096;
/// Unheard pairs at once (chosen likewise). Over it their hosts are asked again.
const UNHEARD_MAX: usize = 4_096;

/// Where a host says that a sprite is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// On this host,
    pub host: HostId,
    /// under this placement.
    pub generation: Generation,
    /// Whose sprite that was said of.
    pub tenant: Tenant,
    /// Not believed from then on.
    pub until: Instant,
}

/// The hints of one process.
#[derive(Debug, Default)]
pub struct Hints {
    hints: HashMap<SpriteName, Hint>,
    /// Until when.
    unheard: HashMap<(SpriteName, HostId), Instant>,
    /// There may be some: most of the time there are none, and a warm request looks no further.
    some: AtomicBool,
    /// Held by who adds and who sweeps.
    writes: Mutex<()>,
}

impl Hints {
    /// Nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.some.load(Ordering::Acquire)
    }

    /// The route as it is to be used: the table's, led to where a host says that it leads now.
    #[must_use]
    pub fn apply(&self, now: Instant, name: &SpriteName, route: Route) -> Route {
        match self.of(now, name, &route) {
            Some(Hint { host, generation, .. }) => Route { host, generation, ..route },
            None => route,
        }
    }

    /// The hint that counts beside the table's `route`.
    #[must_use]
    pub fn of(&self, now: Instant, name: &SpriteName, route: &Route) -> Option<Hint> {
        let hint = *self.hints.pin().get(name)?;
        let counts = now < hint.until
            && hint.generation > route.generation
            // Made anew by somebody else: what was said is about another sprite.
            && hint.tenant == route.tenant
            // The store's tombstone ends whatever a host says.
            && !route.deleted;
        counts.then_some(hint)
    }

    /// Host `asked` says that a sprite has moved to host `to`, under `generation`. `route` is the one it was
    /// asked by, as it is to be used. Whether it is believed: only of the host the route leads to, and only
    /// about a newer placement.
    pub fn moved(
        &self,
        now: Instant,
        name: &SpriteName,
        route: &Route,
        asked: HostId,
        (to, generation): (HostId, Generation),
    ) -> bool {
        let further = generation.0.saturating_sub(route.generation.0);
        if route.host != asked || route.deleted || to == asked || further == 0 || further > GENERATION_JUMP_MAX {
            return false;
        }
        let _writes = self.writing();
        let hints = self.hints.pin();
        let known = hints.get(name).filter(|hint| now < hint.until && hint.tenant == route.tenant);
        if known.is_some_and(|known| known.generation > generation) {
            return false;
        }
        if hints.len() >= HINTS_MAX && !hints.contains_key(name) {
            hints.retain(|_, hint| now < hint.until);
            if hints.len() >= HINTS_MAX {
                return false;
            }
        }
        hints.insert(name.clone(), Hint { host: to, generation, tenant: route.tenant, until: now + HINT_LIFE });
        self.some.store(true, Ordering::Release);
        true
    }

    /// Host `host`, to which a sprite's route leads, has never heard of it.
    pub fn never_heard(&self, now: Instant, name: &SpriteName, host: HostId) {
        let _writes = self.writing();
        let unheard = self.unheard.pin();
        if unheard.len() >= UNHEARD_MAX {
            unheard.retain(|_, until| now < *until);
            if unheard.len() >= UNHEARD_MAX {
                return;
            }
        }
        unheard.insert((name.clone(), host), now + UNHEARD_FOR);
        self.some.store(true, Ordering::Release);
    }

    /// Whether `host` is not to be asked for a sprite now.
    #[must_use]
    pub fn is_unheard(&self, now: Instant, name: &SpriteName, host: HostId) -> bool {
        !self.is_empty() && self.unheard.pin().get(&(name.clone(), host)).is_some_and(|until| now < *until)
    }

    /// What led to `host` proved wrong.
    pub fn forget(&self, name: &SpriteName, host: HostId) {
        let _ = self.hints.pin().remove_if(name, |_, hint| hint.host == host);
    }

    /// Lets go of what is over. Call it now and then.
    pub fn sweep(&self, now: Instant) {
        if self.is_empty() {
            return;
        }
        let _writes = self.writing();
        let (hints, unheard) = (self.hints.pin(), self.unheard.pin());
        hints.retain(|_, hint| now < hint.until);
        unheard.retain(|_, until| now < *until);
        self.some.store(!hints.is_empty() || !unheard.is_empty(), Ordering::Release);
    }

    fn writing(&self) -> std::sync::MutexGuard<'_, ()> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Access, Private};
    use std::sync::Arc;

    fn route(host: u32, generation: u64) -> Route {
        Route {
            generation: Generation(generation),
            host: HostId(host),
            tenant: Tenant::from("t"),
            access: Access::Private(Arc::new(Private::default())),
            wake: None,
            ports: [80].into(),
            client_certificate: None,
            deleted: false,
        }
    }

    fn name(text: &str) -> SpriteName {
        SpriteName::parse(text).unwrap()
    }

    const fn to(host: u32, generation: u64) -> (HostId, Generation) {
        (HostId(host), Generation(generation))
    }

    fn place(route: &Route) -> (u32, u64) {
        (route.host.0, route.generation.0)
    }

    #[test]
    fn a_hint_leads_elsewhere_for_thirty_seconds_and_changes_nothing_else() {
        let (hints, now, table) = (Hints::default(), Instant::now(), route(1, 3));
        assert!(hints.is_empty());
        assert!(hints.moved(now, &name("a"), &table, HostId(1), to(2, 4)));
        assert!(!hints.is_empty());
        let used = hints.apply(now, &name("a"), table.clone());
        assert_eq!(used, Route { host: HostId(2), generation: Generation(4), ..table.clone() });
        assert_eq!(hints.apply(now, &name("b"), table.clone()), table, "another sprite's");
        let last = now + HINT_LIFE.saturating_sub(Duration::from_millis(1));
        assert_eq!(place(&hints.apply(last, &name("a"), table.clone())), (2, 4));
        assert_eq!(hints.apply(now + HINT_LIFE, &name("a"), table.clone()), table, "the store did not confirm it");
    }

    #[test]
    fn the_store_has_the_last_word() {
        let (hints, now) = (Hints::default(), Instant::now());
        assert!(hints.moved(now, &name("a"), &route(1, 3), HostId(1), to(2, 5)));
        // Behind it is behind; at it or beyond, it counts, whatever it says.
        assert_eq!(place(&hints.apply(now, &name("a"), route(7, 4))), (2, 5));
        for store in [route(9, 5), route(9, 6)] {
            assert_eq!(hints.apply(now, &name("a"), store.clone()), store);
        }
        let tombstone = Route { deleted: true, ..route(1, 4) };
        assert_eq!(hints.apply(now, &name("a"), tombstone.clone()), tombstone);
        // The name is another tenant's by now.
        let other = Route { tenant: Tenant::from("other"), ..route(1, 4) };
        assert_eq!(hints.apply(now, &name("a"), other.clone()), other);
    }

    #[test]
    fn only_the_host_that_was_to_have_it_is_believed_and_only_about_what_is_newer() {
        let (hints, now, table) = (Hints::default(), Instant::now(), route(1, 3));
        let said = |asked, place| hints.moved(now, &name("a"), &table, HostId(asked), place);
        assert!(!said(2, to(3, 4)), "it was not asked");
        assert!(!said(1, to(2, 3)) && !said(1, to(2, 2)), "no newer placement");
        assert!(!said(1, to(1, 4)), "nowhere else");
        assert!(!said(1, to(2, 4 + GENERATION_JUMP_MAX)), "beyond correction");
        let tombstone = Route { deleted: true, ..table.clone() };
        assert!(!hints.moved(now, &name("a"), &tombstone, HostId(1), to(2, 4)));
        assert!(hints.is_empty());
        // A chain: the second host is asked by a hint.
        assert!(said(1, to(2, 4)));
        let used = hints.apply(now, &name("a"), table.clone());
        assert!(hints.moved(now, &name("a"), &used, HostId(2), to(3, 5)));
        assert_eq!(place(&hints.apply(now, &name("a"), table.clone())), (3, 5));
        // What is older comes too late.
        assert!(!said(1, to(2, 4)));
        hints.forget(&name("a"), HostId(2));
        assert_eq!(place(&hints.apply(now, &name("a"), table.clone())), (3, 5));
        hints.forget(&name("a"), HostId(3));
        assert_eq!(hints.apply(now, &name("a"), table.clone()), table);
    }

    #[test]
    fn who_has_never_heard_of_a_sprite_is_not_asked_for_it_for_a_second() {
        let (hints, now) = (Hints::default(), Instant::now());
        hints.never_heard(now, &name("a"), HostId(1));
        let unheard = |after, text, host| hints.is_unheard(now + after, &name(text), HostId(host));
        let last = UNHEARD_FOR.saturating_sub(Duration::from_millis(1));
        assert!(unheard(Duration::ZERO, "a", 1) && unheard(last, "a", 1));
        assert!(!unheard(UNHEARD_FOR, "a", 1));
        assert!(!unheard(Duration::ZERO, "b", 1) && !unheard(Duration::ZERO, "a", 2));
        assert_eq!(hints.apply(now, &name("a"), route(1, 1)), route(1, 1), "the route stays");
    }

    #[test]
    fn both_memories_are_bounded_and_what_is_over_is_let_go_of() {
        let (hints, now) = (Hints::default(), Instant::now());
        let moved = |at, number| hints.moved(at, &name(&format!("s{number}")), &route(1, 1), HostId(1), to(2, 2));
        for number in 0..HINTS_MAX {
            assert!(moved(now, number));
            hints.never_heard(now, &name(&format!("s{number}")), HostId(1));
        }
        assert!(!moved(now, HINTS_MAX), "no room");
        assert!(moved(now, 0), "known already");
        hints.never_heard(now, &name("more"), HostId(1));
        assert!(!hints.is_unheard(now, &name("more"), HostId(1)));
        assert!(moved(now + HINT_LIFE, HINTS_MAX), "the others are over");
        assert_eq!(hints.hints.len(), 1);
        hints.sweep(now + HINT_LIFE);
        assert!(!hints.is_empty() && hints.unheard.is_empty());
        hints.sweep(now + HINT_LIFE * 2);
        assert!(hints.is_empty() && hints.hints.is_empty());
    }
}
