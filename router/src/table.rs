//! The routing table of this process: readers can never be blocked by a writer, not even
//! by one that was stopped in the middle of a write.

mod packed;

use crate::applied::{Applied, Teller};
use crate::followed::Followed;
use crate::names::SpriteName;
use crate::route::{Generation, Route};
use crate::signing::Operators;
use compact_str::CompactString;
use foldhash::quality::RandomState;
use packed::{Packed, Policies};
use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use tokio::sync::{Notify, mpsc};

/// Most names of forged rows that are kept until somebody asks for them (chosen; further ones are counted only).
const FORGED_MAX: usize = 256;

/// Name → route. Answers are owned values; no guard ever leaves this type.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// Names of up to 24 bytes lie in the entry itself; the seed of the hash is drawn at start.
    routes: papaya::HashMap<CompactString, Packed, RandomState>,
    policies: Policies,
    followed: Followed,
    /// Numbers of rows within their generation ([`crate::placement::Proof::serial`]), of those that have one:
    /// the sprites whose policy was changed since they were placed.
    serials: papaya::HashMap<CompactString, u64, RandomState>,
    operators: Operators,
    /// Of whom rows were set aside because nobody who may had written them. No reader comes here.
    forged: Mutex<BTreeSet<SpriteName>>,
    forgery: Notify,
    teller: Teller,
}

/// What the table knows about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It is placed, or a tombstone.
    Found(Route),
    /// It does not exist.
    Unknown,
    /// Nothing has been loaded yet, so absence means nothing.
    NotReady,
}

impl RouteTable {
    /// An empty table that is not ready, and has not heard of a store yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How well it follows the store.
    #[must_use]
    pub const fn followed(&self) -> &Followed {
        &self.followed
    }

    /// The same for a fleet whose operators sign.
    #[must_use]
    pub fn trusting(operators: Operators) -> Self {
        Self { operators, ..Self::new() }
    }

    /// Whose word is believed about where a sprite lives.
    #[must_use]
    pub const fn operators(&self) -> &Operators {
        &self.operators
    }

    /// Looks a name up: a [`SpriteName`], or a `str` in its form. No lock, no allocation.
    #[must_use]
    pub fn lookup<Q: Borrow<str> + ?Sized>(&self, name: &Q) -> Lookup {
        // Asked first: a route put between the two reads must not come out as unknown.
        let synced = self.followed.is_synced();
        match self.routes.pin().get(name.borrow()) {
            Some(packed) => Lookup::Found(packed.route()),
            None if synced => Lookup::Unknown,
            None => Lookup::NotReady,
        }
    }

    /// The same, but a row that is not above `than` counts for nothing: unknown, whatever it says.
    pub(crate) fn lookup_above(&self, name: &str, than: Option<Generation>) -> Lookup {
        let synced = self.followed.is_synced();
        match self.routes.pin().get(name) {
            Some(packed) if than.is_none_or(|than| packed.generation() > than) => Lookup::Found(packed.route()),
            Some(_) => Lookup::Unknown,
            None if synced => Lookup::Unknown,
            None => Lookup::NotReady,
        }
    }

    /// Applies a fact; `false` when the table has a newer one.
    pub fn apply_put(&self, name: &SpriteName, route: Route) -> bool {
        let routes = self.routes.pin();
        // `compute` does not see to it that a growing map finds its entries fast (measured with a
        // million of them: 1,300 ns for a lookup, 180 when they were inserted).
        let Err(present) = routes.try_insert(name.as_str().into(), self.policies.pack(route)) else { return true };
        let packed = present.not_inserted;
        // An equal generation is the same placement with a policy that may have changed: the later one wins.
        let outcome = routes.compute(name.as_str().into(), |present| match present {
            Some((_, present)) if packed.generation() < present.generation() => papaya::Operation::Abort(()),
            _ => papaya::Operation::Insert(packed.clone()),
        });
        !matches!(outcome, papaya::Compute::Aborted(()))
    }

    /// Puts a route in place whatever is there: for facts of another history, whose
    /// generations cannot be compared.
    pub(crate) fn replace(&self, name: &SpriteName, route: Route) {
        self.routes.pin().insert(name.as_str().into(), self.policies.pack(route));
    }

    /// Forgets a name: the store no longer has it, not even as a tombstone.
    pub fn apply_remove(&self, name: &SpriteName) -> bool {
        self.set_serial(name, 0);
        self.routes.pin().remove(name.as_str()).is_some()
    }

    /// Some names of the table, `count` at most, always the same ones while nothing changes. No lock.
    #[must_use]
    pub fn some_names(&self, count: usize) -> Vec<SpriteName> {
        self.routes.pin().keys().take(count).filter_map(|name| SpriteName::parse(name).ok()).collect()
    }

    /// The number of the row a route is from, within its generation.
    pub(crate) fn serial(&self, name: &SpriteName) -> u64 {
        self.serials.pin().get(name.as_str()).copied().unwrap_or(0)
    }

    /// Keeps it; 0 takes no room.
    pub(crate) fn set_serial(&self, name: &SpriteName, serial: u64) {
        let serials = self.serials.pin();
        match serial {
            0 => drop(serials.remove(name.as_str())),
            serial => drop(serials.insert(name.as_str().into(), serial)),
        }
    }

    /// Keeps the name of a sprite whose row was forged, for [`RouteTable::forged`]; at most 256.
    pub fn note_forged(&self, name: SpriteName) {
        let mut forged = self.forged.lock().unwrap_or_else(PoisonError::into_inner);
        if forged.len() < FORGED_MAX {
            forged.insert(name);
            self.forgery.notify_one();
        }
    }

    /// Waits until rows were forged; whose.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn forged(&self) -> Vec<SpriteName> {
        loop {
            let forged = std::mem::take(&mut *self.forged.lock().unwrap_or_else(PoisonError::into_inner));
            if !forged.is_empty() {
                return forged.into_iter().collect();
            }
            self.forgery.notified().await;
        }
    }

    /// The store is away: what comes next may be old.
    pub(crate) fn mark_behind(&self) {
        self.teller.set_caught_up(false);
    }

    /// Everything that was written until a moment ago is here: what comes from now on is new.
    pub(crate) fn mark_caught_up(&self) {
        self.teller.set_caught_up(true);
    }

    /// Tells, from now on, each change of a route as it comes into effect, for one listener: not what a
    /// snapshot has, nor what is caught up with, and not more than 1,024 that were not taken yet.
    pub fn changes(&self) -> mpsc::Receiver<Applied> {
        self.teller.listen()
    }

    /// The change with this number, of the store, is in effect.
    pub(crate) fn tell_applied(&self, name: &SpriteName, version: u64) {
        self.teller.tell(|| match self.lookup(name) {
            Lookup::Found(route) => Some(Applied { name: name.clone(), host: route.host, version }),
            Lookup::Unknown | Lookup::NotReady => None,
        });
    }

    /// Names in the table, tombstones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every name in the table, in no order.
    #[must_use]
    pub fn names(&self) -> Vec<SpriteName> {
        // What is in the table was a name when it came.
        self.routes.pin().keys().filter_map(|name| SpriteName::parse(name).ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Access;
    use crate::route::HostId;

    fn route(generation: u64, host: u32) -> Route {
        Route {
            generation: Generation(generation),
            tenant: crate::route::Tenant::default(),
            host: HostId(host),
            access: Access::Public,
            wake: None,
            ports: [].into(),
            client_certificate: None,
            deleted: false,
        }
    }

    #[test]
    fn a_generation_never_goes_back() {
        let (table, name) = (RouteTable::new(), SpriteName::parse("a").unwrap());
        assert!(table.apply_put(&name, route(3, 1)));
        assert!(!table.apply_put(&name, route(2, 9)));
        assert_eq!(table.lookup(&name), Lookup::Found(route(3, 1)));
        assert!(table.apply_put(&name, route(4, 2)));
        assert_eq!(table.lookup(&name), Lookup::Found(route(4, 2)));
    }

    #[test]
    fn a_tombstone_is_found_and_only_a_later_generation_ends_it() {
        let (table, name) = (RouteTable::new(), SpriteName::parse("a").unwrap());
        let tombstone = Route { deleted: true, ..route(2, 1) };
        assert!(table.apply_put(&name, route(1, 1)));
        assert!(table.apply_put(&name, tombstone.clone()));
        assert!(!table.apply_put(&name, route(1, 1)));
        assert_eq!(table.lookup(&name), Lookup::Found(tombstone));
        assert!(table.apply_put(&name, route(3, 1)));
        assert_eq!(table.lookup("a"), Lookup::Found(route(3, 1)));
    }

    #[test]
    fn readers_never_see_a_generation_go_back_while_writers_race() {
        let (table, name) = (RouteTable::new(), SpriteName::parse("a").unwrap());
        table.apply_put(&name, route(1, 1));
        std::thread::scope(|threads| {
            for offset in 0..3 {
                let (table, name) = (&table, &name);
                // Each in another order; what counts is the number alone.
                threads.spawn(move || {
                    for n in 0..3_000 {
                        table.apply_put(name, route(1 + (n * 7 + offset * 911) % 3_000, 1));
                    }
                });
            }
            let mut last = 0;
            while last < 3_000 {
                let Lookup::Found(route) = table.lookup(&name) else { panic!("gone") };
                assert!(route.generation.0 >= last);
                last = route.generation.0;
            }
        });
    }

    #[test]
    fn absence_means_nothing_before_the_table_is_synced() {
        let (table, name) = (RouteTable::new(), SpriteName::parse("a").unwrap());
        assert_eq!(table.lookup(&name), Lookup::NotReady);
        table.followed().mark_synced();
        assert_eq!(table.lookup(&name), Lookup::Unknown);
    }
}
