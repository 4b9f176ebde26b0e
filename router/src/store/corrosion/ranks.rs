//! Which of several writers' rows of one key counts.
//!
//! Corrosion merges a row column by column, and what was edited most often wins. So no two machines write one
//! row: each has a row of its own for a key, and whoever reads decides between them, everywhere alike. A
//! placement's generation decides first, which is the sprite's and no engine's.

use crate::store::fnv;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// The writer that has the last word: `edge-proxy fleet`.
pub const OPERATOR: &str = "operator";

/// What a row counts for; the highest of a key's rows is the key's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// The generation in its value; 0 when that has none.
    pub(super) generation: u64,
    /// How many writes the key has seen, as its writer knew it.
    pub(super) count: u64,
    /// Its writer, by [`writer`].
    pub(super) writer: u64,
}

/// A writer as a number. Two that wrote in ignorance of each other are told apart by it, everywhere alike; an operator
/// comes before every machine.
pub(super) fn writer(owner: &str) -> u64 {
    match owner {
        OPERATOR => u64::MAX,
        owner => fnv(owner.bytes()) >> 1,
    }
}

/// What a row does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// It is the key's row now.
    Counts,
    /// Another row counts for more.
    Nothing,
    /// The row that counted is gone or counts for less: all of the key's rows are to be looked at.
    Ask,
}

/// The rank of each key's row: some 40 bytes a key. Keys are known by a hash that nobody outside can aim at.
pub(super) struct Ranks {
    ranks: HashMap<u64, Rank>,
    hash: RandomState,
}

impl Ranks {
    pub(super) fn new() -> Self {
        Self { ranks: HashMap::new(), hash: RandomState::new() }
    }

    /// A row of the key is this now.
    pub(super) fn put(&mut self, key: &str, rank: Rank) -> Means {
        match self.ranks.entry(self.hash.hash_one(key)).or_insert(rank) {
            known if *known <= rank => {
                *known = rank;
                Means::Counts
            }
            known if known.writer == rank.writer => Means::Ask,
            _ => Means::Nothing,
        }
    }

    /// A row of the key, which was this, is gone.
    pub(super) fn gone(&self, key: &str, rank: Rank) -> Means {
        match self.ranks.get(&self.hash.hash_one(key)) {
            Some(known) if known.writer != rank.writer => Means::Nothing,
            _ => Means::Ask,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<Rank> {
        self.ranks.get(&self.hash.hash_one(key)).copied()
    }

    /// The key's rows were looked at, and this is the one that counts.
    pub(super) fn set(&mut self, key: &str, rank: Option<Rank>) {
        let hash = self.hash.hash_one(key);
        match rank {
            Some(rank) => drop(self.ranks.insert(hash, rank)),
            None => drop(self.ranks.remove(&hash)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(generation: u64, count: u64, owner: &str) -> Rank {
        Rank { generation, count, writer: writer(owner) }
    }

    #[test]
    fn the_generation_counts_before_the_number_of_writes_and_an_operator_before_a_host() {
        let (old, new) = (rank(5, 12, "host/a"), rank(6, 11, "host/b"));
        assert!(new > old && rank(6, 12, "host/b") > new);
        for machine in ["host/a", "host/b", "edge/a", "alone", ""] {
            assert!(rank(0, 3, OPERATOR) > rank(0, 3, machine), "{machine}");
        }
        assert_ne!(writer("host/a"), writer("host/b"));
    }

    #[test]
    fn in_whatever_order_rows_come_the_same_one_counts() {
        let rows = [rank(1, 3, "host/a"), rank(2, 2, "host/b"), rank(2, 2, "host/c"), rank(0, 9, OPERATOR)];
        let best = rows.iter().copied().max();
        for first in 0..rows.len() {
            let mut ranks = Ranks::new();
            for at in 0..rows.len() {
                let row = rows[(first + at) % rows.len()];
                let before = ranks.get("sprite/a");
                let means = ranks.put("sprite/a", row);
                assert_eq!(means == Means::Counts, before.is_none_or(|before| before <= row));
            }
            assert_eq!(ranks.get("sprite/a"), best);
        }
    }

    #[test]
    fn when_the_row_that_counted_is_gone_or_less_the_others_are_asked() {
        let mut ranks = Ranks::new();
        ranks.put("sprite/a", rank(2, 2, "host/b"));
        assert_eq!(ranks.gone("sprite/a", rank(1, 1, "host/a")), Means::Nothing);
        assert_eq!(ranks.gone("sprite/a", rank(2, 2, "host/b")), Means::Ask);
        assert_eq!(ranks.gone("sprite/unheard-of", rank(2, 2, "host/b")), Means::Ask);
        assert_eq!(ranks.put("sprite/a", rank(1, 9, "host/a")), Means::Nothing);
        assert_eq!(ranks.put("sprite/a", rank(1, 1, "host/b")), Means::Ask);
        ranks.set("sprite/a", Some(rank(1, 9, "host/a")));
        assert_eq!(ranks.get("sprite/a"), Some(rank(1, 9, "host/a")));
        ranks.set("sprite/a", None);
        assert_eq!(ranks.put("sprite/a", rank(0, 1, "host/b")), Means::Counts);
    }
}
