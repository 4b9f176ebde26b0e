//! What several regions' stores say of machines of one kind, as one registry.
//!
//! Each region's rows are followed, kept and lost by themselves; together they are what this machine goes by. A
//! number or a name is the machine's of whoever comes first: its own region's, then the first by name. A row of a later
//! region that says something else of it, or has a key of a machine that comes first, is *overruled*: it counts
//! for nothing, it is logged once, and whoever asks is told.

use super::{Registry, RegistryRow};
use arc_swap::ArcSwap;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// A row that does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overruled<Id> {
    /// The region that has it.
    pub region: Box<str>,
    /// What it claims.
    pub id: Id,
    /// The region whose row counts.
    pub by: Box<str>,
}

/// One region's registry, by its name.
type Feed<R> = (Box<str>, Arc<Registry<R>>);

/// The registries of all regions and what they say together.
#[derive(Debug)]
pub struct Merged<R: RegistryRow> {
    /// In the order in which they count.
    feeds: Box<[Feed<R>]>,
    /// That of the only region, or one that nobody else changes.
    all: Arc<Registry<R>>,
    overruled: ArcSwap<Vec<Overruled<R::Id>>>,
    /// Held while they are put together: the last one to be is of what all say then.
    putting: Mutex<()>,
}

impl<R: RegistryRow> Merged<R> {
    /// Of this machine's own region and the others, whose names differ; in the order in which they count from then on. They
    /// are put together for as long as somebody keeps what is returned.
    #[must_use]
    pub fn new(own: Feed<R>, mut others: Vec<Feed<R>>) -> Arc<Self> {
        others.sort_by(|one, other| one.0.cmp(&other.0));
        let all = if others.is_empty() { Arc::clone(&own.1) } else { Arc::new(Registry::new()) };
        let feeds: Box<[_]> = std::iter::once(own).chain(others).collect();
        let merged = Arc::new(Self { feeds, all, overruled: ArcSwap::default(), putting: Mutex::default() });
        if merged.feeds.len() > 1 {
            for (_, feed) in &merged.feeds {
                // A registry is of one machine's regions: nobody has set it before.
                drop(feed.merged.set(Arc::downgrade(&merged)));
            }
            merged.put_together();
        }
        merged
    }

    /// What counts. Read as soon as the own region's store is.
    #[must_use]
    pub const fn all(&self) -> &Arc<Registry<R>> {
        &self.all
    }

    /// This machine's own region's rows.
    #[must_use]
    pub fn own(&self) -> &Arc<Registry<R>> {
        &self.feeds[0].1
    }

    /// One region's rows.
    #[must_use]
    pub fn of(&self, region: &str) -> Option<&Arc<Registry<R>>> {
        self.feeds.iter().find(|(name, _)| **name == *region).map(|(_, feed)| feed)
    }

    /// Whether what a region says of an id is what counts.
    #[must_use]
    pub fn counts(&self, region: &str, id: &R::Id) -> bool {
        let said = self.of(region).and_then(|feed| feed.lookup(id.clone()));
        let counted = self.all.lookup(id.clone());
        said.zip(counted).is_some_and(|(said, counted)| Arc::ptr_eq(&said, &counted) || said.is_same_machine(&counted))
    }

    /// Rows that do not count, by region and id.
    #[must_use]
    pub fn overruled(&self) -> Arc<Vec<Overruled<R::Id>>> {
        self.overruled.load_full()
    }

    pub(super) fn put_together(&self) {
        let _putting = self.putting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows: BTreeMap<R::Id, (usize, Arc<R>)> = BTreeMap::new();
        let mut overruled = Vec::new();
        for (at, (region, feed)) in self.feeds.iter().enumerate() {
            for (id, row) in &**feed.rows.load() {
                // The own region's word that a machine was let go stands; another one's is about its own alone.
                if at > 0 && row.is_removed() {
                    continue;
                }
                let by = match rows.get(id) {
                    Some((_, present)) if present.is_same_machine(row) && !present.is_removed() => continue,
                    Some((by, _)) => Some(*by),
                    None => first_with_the_same(&rows, at, &**row),
                };
                match by.filter(|by| *by != at) {
                    Some(by) => {
                        let by = self.feeds[by].0.clone();
                        overruled.push(Overruled { region: region.clone(), id: id.clone(), by });
                    }
                    None => drop(rows.insert(id.clone(), (at, Arc::clone(row)))),
                }
            }
        }
        let rows = rows.into_iter().map(|(id, (_, row))| (id, row)).collect();
        self.all.rows.store(Arc::new(rows));
        self.all.read.fetch_or(self.own().is_read(), Ordering::Release);
        self.all.changes.send_modify(|count| *count += 1);
        let before = self.overruled.swap(Arc::new(overruled.clone()));
        for new in overruled.iter().filter(|new| !before.contains(new)) {
            let Overruled { region, by, .. } = new;
            tracing::error!(
                region,
                by,
                "a region's {} row claims what is another machine's; it does not count",
                R::WHAT
            );
        }
    }
}

/// The region that comes first and has a machine with a key, an address or a name of this row.
fn first_with_the_same<R: RegistryRow>(rows: &BTreeMap<R::Id, (usize, Arc<R>)>, at: usize, row: &R) -> Option<usize> {
    let earlier = rows.values().filter(|(by, known)| *by != at && !known.is_removed());
    { earlier }.find(|(_, known)| known.clashes(row)).map(|(by, _)| *by)
}

#[cfg(test)]
mod tests;
