//! The routing table of this process: readers can never be blocked by a writer, not even
//! by one that was stopped in the middle of a write.

use crate::names::SpriteName;
use crate::route::Route;
use std::sync::atomic::{AtomicBool, Ordering};

/// Name → route. Answers are owned values; no guard ever leaves this type.
#[derive(Debug, Default)]
pub struct RouteTable {
    routes: papaya::HashMap<SpriteName, Route>,
    synced: AtomicBool,
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
    /// An empty table that is not ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks a name up. No lock, no allocation.
    #[must_use]
    pub fn lookup(&self, name: &SpriteName) -> Lookup {
        match self.routes.pin().get(name) {
            Some(route) => Lookup::Found(route.clone()),
            None if self.synced.load(Ordering::Acquire) => Lookup::Unknown,
            None => Lookup::NotReady,
        }
    }

    /// Applies a fact; `false` when the table has a newer one.
    pub fn apply_put(&self, name: &SpriteName, route: Route) -> bool {
        let routes = self.routes.pin();
        let outcome = routes.compute(name.clone(), |present| match present {
            Some((_, present)) if !route.supersedes(present) => papaya::Operation::Abort(()),
            _ => papaya::Operation::Insert(route.clone()),
        });
        !matches!(outcome, papaya::Compute::Aborted(()))
    }

    /// Forgets a name: the store no longer has it, not even as a tombstone.
    pub fn apply_remove(&self, name: &SpriteName) -> bool {
        self.routes.pin().remove(name).is_some()
    }

    /// From now on a missing name does not exist.
    pub fn mark_synced(&self) {
        self.synced.store(true, Ordering::Release);
    }

    /// Whether absence means anything.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
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
        self.routes.pin().keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{Access, Generation, HostId};

    fn route(generation: u64, host: u32) -> Route {
        Route {
            generation: Generation(generation),
            host: HostId(host),
            access: Access::Public,
            ports: [].into(),
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
    fn absence_means_nothing_before_the_table_is_synced() {
        let (table, name) = (RouteTable::new(), SpriteName::parse("a").unwrap());
        assert_eq!(table.lookup(&name), Lookup::NotReady);
        table.mark_synced();
        assert_eq!(table.lookup(&name), Lookup::Unknown);
    }
}
