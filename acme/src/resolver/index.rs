//! Whole names and their certificates: 256 tables that are replaced one at a time, so that a change of one name
//! copies a 256th of them and a lookup takes no lock.
//!
//! A name is not kept, only a keyed hash of 128 bits: two SipHashes with keys of this process, which nobody
//! outside can aim at. Of a million names two meet with a chance of 1 in 10^27.

use super::{Certificate, Handle};
use arc_swap::ArcSwap;
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

/// Tables (tls-acme-dns.md §6).
const SHARDS: usize = 256;
/// A table has so many places for so many names: two of three searches end in the line they begin with (chosen: 45
/// bytes a name).
const PLACES: (usize, usize) = (7, 5);
/// Places of a line.
const LINE: usize = 2;

/// What is known under a name.
#[derive(Clone, Debug)]
pub enum Slot {
    /// In memory.
    Loaded(Certificate),
    /// To be opened first.
    Sealed(Handle),
}

type Hash = [u64; 2];

/// See the module.
#[derive(Debug)]
pub(super) struct Index {
    keys: [RandomState; 2],
    shards: Box<[ArcSwap<Shard>]>,
    /// Who changes: one at a time, or one change would be lost.
    changing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Shard {
    /// Linear search from the line the hash says.
    lines: Box<[Line]>,
    names: usize,
}

/// A cache line: what a search looks at costs one way to memory, not two.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Line([Place; LINE]);

/// 32 bytes: whatever a lookup needs is here.
#[derive(Clone, Debug)]
struct Place {
    hash: Hash,
    to: To,
}

#[derive(Clone, Debug)]
enum To {
    Nothing,
    Sealed(Handle),
    /// With its end in minutes of Unix time, rounded down.
    Loaded(u32, Arc<CertifiedKey>),
}

impl From<Slot> for To {
    fn from(slot: Slot) -> Self {
        match slot {
            Slot::Sealed(handle) => Self::Sealed(handle),
            Slot::Loaded(Certificate { key, not_after }) => {
                Self::Loaded(u32::try_from(not_after.max(0) / 60).unwrap_or(u32::MAX), key)
            }
        }
    }
}

impl To {
    fn slot(&self) -> Option<Slot> {
        match self {
            Self::Nothing => None,
            Self::Sealed(handle) => Some(Slot::Sealed(*handle)),
            Self::Loaded(minutes, key) => {
                Some(Slot::Loaded(Certificate { key: Arc::clone(key), not_after: i64::from(*minutes) * 60 }))
            }
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| ArcSwap::default()).collect();
        Self { keys: [RandomState::new(), RandomState::new()], shards, changing: Mutex::default() }
    }
}

impl Index {
    fn hash(&self, name: &str) -> Hash {
        self.keys.each_ref().map(|key| key.hash_one(name.as_bytes()))
    }

    fn shard(hash: Hash) -> usize {
        (hash[1] % SHARDS as u64) as usize
    }

    /// What is known under a name.
    pub(super) fn find(&self, name: &str) -> Option<Slot> {
        let hash = self.hash(name);
        self.shards[Self::shard(hash)].load().find(hash)
    }

    /// Names it has.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.load().names).sum()
    }

    /// Bytes of the tables.
    pub(super) fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| size_of::<Shard>() + size_of_val(&*shard.load().lines)).sum()
    }

    /// Puts (`Some`) and takes away (`None`) names; of two changes of one name the later one holds. Each table that is
    /// touched is copied once. The handles that no name leads to any more.
    pub(super) fn change(&self, changes: impl IntoIterator<Item = (String, Option<Slot>)>) -> Vec<Handle> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_shard: HashMap<usize, HashMap<Hash, Option<Slot>>> = HashMap::new();
        for (name, slot) in changes {
            let hash = self.hash(&name);
            by_shard.entry(Self::shard(hash)).or_default().insert(hash, slot);
        }
        let mut gone = Vec::new();
        for (shard, changes) in by_shard {
            let next = self.shards[shard].load().changed(changes, &mut gone);
            self.shards[shard].store(Arc::new(next));
        }
        gone
    }

    /// Takes everything away and puts `names`. Not at one instant: table after table. The handles that were there.
    pub(super) fn replace(&self, names: impl IntoIterator<Item = (String, Slot)>) -> Vec<Handle> {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_shard: Vec<HashMap<Hash, Slot>> = vec![HashMap::new(); SHARDS];
        for (name, slot) in names {
            let hash = self.hash(&name);
            by_shard[Self::shard(hash)].insert(hash, slot);
        }
        let mut gone = Vec::new();
        for (shard, names) in self.shards.iter().zip(by_shard) {
            gone.extend(shard.load().sealed());
            shard.store(Arc::new(Shard::of(names.into_iter().map(|(hash, slot)| (hash, slot.into())))));
        }
        gone
    }
}

impl Shard {
    fn of(names: impl ExactSizeIterator<Item = (Hash, To)>) -> Self {
        let count = names.len();
        // One place more than names at least: a search ends at a free one.
        let lines = if count == 0 { 0 } else { (count * PLACES.0 / PLACES.1 + 1).div_ceil(LINE) };
        let free = || Place { hash: [0; 2], to: To::Nothing };
        let mut shard = Self { lines: vec![Line([free(), free()]); lines].into(), names: count };
        for (hash, to) in names {
            let first = shard.first(hash);
            let (before, from) = shard.lines.split_at_mut(first);
            let mut places = from.iter_mut().chain(before).flat_map(|line| &mut line.0);
            if let Some(place) = places.find(|place| matches!(place.to, To::Nothing)) {
                *place = Place { hash, to };
            }
        }
        shard
    }

    /// Where a search begins: the hash as a fraction of the table.
    fn first(&self, hash: Hash) -> usize {
        ((u128::from(hash[0]) * self.lines.len() as u128) >> 64) as usize
    }

    fn find(&self, hash: Hash) -> Option<Slot> {
        let (before, from) = self.lines.split_at(self.first(hash));
        for line in from.iter().chain(before) {
            for place in &line.0 {
                if place.hash == hash || matches!(place.to, To::Nothing) {
                    return place.to.slot();
                }
            }
        }
        None
    }

    fn entries(&self) -> impl Iterator<Item = &Place> {
        self.lines.iter().flat_map(|line| &line.0).filter(|place| !matches!(place.to, To::Nothing))
    }

    fn sealed(&self) -> impl Iterator<Item = Handle> {
        self.entries().filter_map(|place| if let To::Sealed(handle) = place.to { Some(handle) } else { None })
    }

    fn changed(&self, changes: HashMap<Hash, Option<Slot>>, gone: &mut Vec<Handle>) -> Self {
        let mut names = Vec::with_capacity(self.names + changes.len());
        for Place { hash, to } in self.entries() {
            match (changes.get(hash), to) {
                (None, _) => names.push((*hash, to.clone())),
                (Some(Some(Slot::Sealed(kept))), To::Sealed(was)) if kept == was => {}
                (Some(_), To::Sealed(was)) => gone.push(*was),
                (Some(_), _) => {}
            }
        }
        names.extend(changes.into_iter().filter_map(|(hash, slot)| Some((hash, slot?.into()))));
        Self::of(names.into_iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(number: u64) -> Slot {
        Slot::Sealed(Handle::new(number).unwrap())
    }

    fn number(slot: Option<Slot>) -> Option<u64> {
        match slot? {
            Slot::Sealed(handle) => Some(handle.0),
            Slot::Loaded(_) => panic!("none was loaded"),
        }
    }

    #[test]
    fn every_name_is_found_after_any_changes_and_no_other() {
        let index = Index::default();
        let name = |number: u64| format!("n{number}.example");
        assert!(index.find("n0.example").is_none());
        index.change((0..5_000).map(|number| (name(number), Some(sealed(number)))));
        // A third of them changed, another third taken away, one name twice in one batch.
        let gone = index.change(
            (0..5_000)
                .filter(|number| number % 3 != 0)
                .map(|number| (name(number), (number % 3 == 1).then(|| sealed(number + 10_000)))),
        );
        assert_eq!(gone.len(), 3_333, "whatever was replaced or taken away is named");
        index.change([(name(0), Some(sealed(1))), (name(0), Some(sealed(2)))]);
        assert_eq!(index.len(), 3_334);
        for at in 1..5_000 {
            let wanted = [Some(at), Some(at + 10_000), None][(at % 3) as usize];
            assert_eq!(number(index.find(&name(at))), wanted, "{at}");
        }
        assert_eq!(number(index.find(&name(0))), Some(2));
        let gone = index.replace([("only.example".to_owned(), sealed(2))]);
        assert_eq!((index.len(), number(index.find("only.example")), gone.len()), (1, Some(2), 3_334));
        assert!(index.find(&name(1)).is_none());
    }

    #[test]
    fn a_name_takes_less_than_48_bytes() {
        let index = Index::default();
        index.change((0..100_000).map(|number| (format!("n{number}"), Some(sealed(number)))));
        let each = index.bytes() as f64 / 100_000.0;
        assert!(each <= 48.0, "{each}");
    }

    #[test]
    fn a_change_of_one_name_copies_no_other_table() {
        let index = Index::default();
        index.change((0..5_000).map(|number| (format!("n{number}"), Some(sealed(number)))));
        let before: Vec<_> = index.shards.iter().map(ArcSwap::load_full).collect();
        index.change([("n7".to_owned(), Some(sealed(70_000)))]);
        let copied = index.shards.iter().zip(&before).filter(|(now, was)| !Arc::ptr_eq(&now.load(), was)).count();
        assert_eq!(copied, 1);
    }
}
