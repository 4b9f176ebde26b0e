//! Several stores followed at once, one for each region: a table for each, and what they say together.
//!
//! Each region has a table of its own, with its own applier, brake, quarantine and last-known-good file, so
//! that a store which loses everything takes nothing from another one. Only a lookup puts them together:
//!
//! 1. the row with the highest generation counts, a tombstone as much as a live one;
//! 2. among equal generations this machine's own region, then the first by name;
//! 3. a name is unknown when no region has it and every one of them has been read; not ready before that.
//!
//! A domain's row has no generation: the first region that leads it to a sprite counts, its own before the others
//! by name.

use crate::domains::table::{DomainLookup, DomainTable};
use crate::domains::{DomainName, DomainRow};
use crate::names::SpriteName;
use crate::route::Generation;
use crate::table::{Lookup, RouteTable};
use std::borrow::Borrow;
use std::sync::Arc;
use tokio::sync::watch;

/// One region as this process knows it.
#[derive(Debug)]
pub struct Region<T> {
    /// What the configuration calls it.
    pub name: Box<str>,
    /// What its store says.
    pub table: Arc<T>,
}

/// The tables of one kind, one for each region.
#[derive(Debug)]
pub struct Regions<T> {
    own: Region<T>,
    /// By name.
    others: Box<[Region<T>]>,
}

/// Routes of every region.
pub type Routes = Regions<RouteTable>;
/// Custom domains of every region.
pub type DomainRegions = Regions<DomainTable>;

/// The name of a machine's own region where none is configured.
pub const OWN: &str = "own";

impl<T> From<Arc<T>> for Regions<T> {
    /// Of a machine that follows its own store alone.
    fn from(table: Arc<T>) -> Self {
        Self::new(Region { name: OWN.into(), table }, Vec::new())
    }
}

impl<T> Regions<T> {
    /// Of a machine that follows other regions beside its own. Their names differ.
    #[must_use]
    pub fn new(own: Region<T>, mut others: Vec<Region<T>>) -> Self {
        others.sort_by(|one, other| one.name.cmp(&other.name));
        Self { own, others: others.into() }
    }

    /// This machine's own: the one its store keeps, which is the only one it writes to.
    #[must_use]
    pub const fn own(&self) -> &Arc<T> {
        &self.own.table
    }

    /// All of them, in the order in which they count: its own, then the others by name.
    pub fn all(&self) -> impl Iterator<Item = &Region<T>> {
        std::iter::once(&self.own).chain(&self.others)
    }

    /// Whether there is none beside its own.
    #[must_use]
    pub const fn is_alone(&self) -> bool {
        self.others.is_empty()
    }
}

impl Routes {
    /// Looks a name up in every region. No lock, no allocation; with one region it is that region's own lookup.
    #[must_use]
    pub fn lookup<Q: Borrow<str> + ?Sized>(&self, name: &Q) -> Lookup {
        let own = self.own.table.lookup(name);
        if self.others.is_empty() {
            return own;
        }
        self.beyond(name.borrow(), own).0
    }

    /// The same, and whose word it is, when anybody has one.
    #[must_use]
    pub fn explain<Q: Borrow<str> + ?Sized>(&self, name: &Q) -> (Lookup, Option<&Region<RouteTable>>) {
        let own = self.own.table.lookup(name);
        let found = matches!(own, Lookup::Found(_)).then_some(&self.own);
        let (found_there, region) = self.beyond(name.borrow(), own);
        (found_there, region.or(found))
    }

    /// What the others add to what the own region says, and which of them, if it is another one's word.
    fn beyond(&self, name: &str, own: Lookup) -> (Lookup, Option<&Region<RouteTable>>) {
        let (mut best, mut whose) = (own, None);
        for region in &self.others {
            match region.table.lookup_above(name, generation(&best)) {
                found @ Lookup::Found(_) => (best, whose) = (found, Some(region)),
                // Elsewhere it may be: that nobody else has it says nothing.
                Lookup::NotReady if best == Lookup::Unknown => best = Lookup::NotReady,
                Lookup::NotReady | Lookup::Unknown => {}
            }
        }
        (best, whose)
    }

    /// Rows in all tables, tombstones included; one that two regions have counts twice.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all().map(|region| region.table.len()).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Some names of each table, `count` of it at most. No lock.
    #[must_use]
    pub fn some_names(&self, count: usize) -> Vec<SpriteName> {
        self.all().flat_map(|region| region.table.some_names(count)).collect()
    }
}

const fn generation(found: &Lookup) -> Option<Generation> {
    match found {
        Lookup::Found(route) => Some(route.generation),
        Lookup::Unknown | Lookup::NotReady => None,
    }
}

impl DomainRegions {
    /// Looks up a host name as [`DomainTable::lookup`] does, in every region. No lock, no allocation.
    #[must_use]
    pub fn lookup(&self, host: &str) -> DomainLookup {
        let mut best = self.own.table.exact(host);
        for region in &self.others {
            if matches!(best, DomainLookup::Sprite(_)) {
                return best;
            }
            match region.table.exact(host) {
                DomainLookup::Unknown => {}
                found => best = found,
            }
        }
        if matches!(best, DomainLookup::Sprite(_)) {
            return best;
        }
        // What is for all names below another counts for those alone that nobody has by themselves.
        self.all().find_map(|region| region.table.wildcard(host)).map_or(best, DomainLookup::Sprite)
    }

    /// Whether a stored row leads it to a sprite.
    #[must_use]
    pub fn is_proved(&self, name: &DomainName) -> bool {
        self.all().any(|region| region.table.row(name).is_some_and(|row| row.sprite().is_some()))
    }

    /// Whether that row is for names below it too: the first region's that leads it to a sprite.
    #[must_use]
    pub fn is_wildcard(&self, name: &DomainName) -> bool {
        let mut rows = self.all().filter_map(|region| region.table.row(name));
        rows.find(|row| row.sprite().is_some()).is_some_and(|row| row.is_wildcard())
    }

    /// The stored domains `pick` picks, each once.
    #[must_use]
    pub fn pick(&self, pick: impl Fn(&DomainName, &DomainRow) -> bool) -> Vec<DomainName> {
        let picked =
            |region: &Region<DomainTable>| region.table.pick(|name, row| pick(name, row).then(|| name.clone()));
        let mut names: Vec<_> = self.all().flat_map(picked).collect();
        if !self.others.is_empty() {
            names.sort_unstable();
            names.dedup();
        }
        names
    }

    /// Sees each change of each region; many at once are seen as one.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        // The others tell theirs there too ([`DomainTable::beside`]).
        self.own.table.changes()
    }
}

#[cfg(test)]
mod tests;
