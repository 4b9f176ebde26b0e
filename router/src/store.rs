//! Stores: what keeps the rows. One trait, several engines, one conformance suite
//! (`tests/engines`).
//!
//! An engine is a key-value table with compare-and-set, and a feed of its changes: a snapshot
//! and then a tail, or from a cursor the tail alone, without a gap between them. Everything
//! that protects the routes is on this side of the trait and the same for all of them
//! ([`crate::apply`]): an engine only says what was written, and admits it when it does not know.

pub mod corrosion;
pub mod embedded;
pub mod etcd;
mod feed;
mod http;
pub mod nats;
pub mod primary;

pub use embedded::{Embedded, EmbeddedStore};
pub use feed::Feed;
#[cfg(test)]
pub(crate) use feed::feed;

use std::pin::Pin;
use std::sync::Arc;

/// Largest value, bytes (chosen: a row is below 1 KiB).
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// Longest key, bytes (chosen: a prefix and the longest domain name, RFC 1035 §2.3.4).
pub const KEY_BYTES_MAX: usize = 320;

/// One row. `version` is the store-wide number of the change that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Key.
    pub key: String,
    /// Value.
    pub value: Vec<u8>,
    /// Number of the change that wrote it.
    pub version: u64,
}

/// How far a subscriber has come, and in which life of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Another one means another history: the store was made anew or brought back from a copy.
    pub epoch: u64,
    /// The last change seen.
    pub version: u64,
}

/// What a feed delivers: a snapshot and then changes, or changes alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedEvent {
    /// What follows until [`FeedEvent::SnapshotEnd`] is everything there is, in this life of the store.
    SnapshotBegin {
        /// As [`Cursor::epoch`].
        epoch: u64,
    },
    /// One row of the snapshot.
    Entry(Entry),
    /// The snapshot is complete up to here.
    SnapshotEnd(Cursor),
    /// A row was written.
    Put(Entry, Cursor),
    /// A row was deleted.
    Delete(String, Cursor),
    /// Nothing newer existed a moment ago: the feed is alive, however quiet it is.
    Current(Cursor),
}

impl FeedEvent {
    /// The row that changed, when it is a change.
    fn changed_key(&self) -> Option<&str> {
        match self {
            Self::Put(entry, _) => Some(&entry.key),
            Self::Delete(key, _) => Some(key),
            _ => None,
        }
    }
}

/// Why the store did not do it.
///
/// Nothing was written, with one exception: [`StoreError::Uncertain`].
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody wrote the row in between; `actual` is its version, `None` when it does not exist.
    #[error("the row is at version {actual:?}, not {expected:?}")]
    Conflict {
        /// What the caller had seen.
        expected: Option<u64>,
        /// What is there.
        actual: Option<u64>,
    },
    /// The value exceeds [`VALUE_BYTES_MAX`].
    #[error("a value has at most {VALUE_BYTES_MAX} bytes")]
    TooLarge,
    /// The key has characters no engine can keep, or is too long ([`check_key`]).
    #[error("{0:?} is no key")]
    Key(String),
    /// The file is open in another process.
    #[error("the store is in use by another process")]
    InUse,
    /// The file could not be read or written.
    #[error("the store's file failed")]
    Storage(#[source] Box<redb::Error>),
    /// It does not answer, or says that it cannot just now.
    #[error("the store does not answer: {0}")]
    Unavailable(String),
    /// It refuses these credentials, or what they may do.
    #[error("the store refuses: {0}")]
    Denied(String),
    /// A write was sent and nobody knows whether it was done. Read before writing again.
    #[error("the store did not say whether it has written: {0}")]
    Uncertain(String),
    /// What it said cannot be understood, or contradicts what it said before.
    #[error("the store answered nonsense: {0}")]
    Nonsense(String),
    /// Too many changes waited for this subscriber; it has to subscribe again, with its cursor.
    #[error("this subscriber fell behind")]
    Lagged,
}

/// The future of an engine's answer.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A store engine.
///
/// Durability: what [`Engine::compare_and_set`] has acknowledged survives the end of any one
/// machine of the engine, and of all of them as far as their disks were told to sync
/// (each engine's module says how). Every call ends in bounded time, also when the engine
/// does not: with [`StoreError::Unavailable`], or [`StoreError::Uncertain`] after a write was sent.
///
/// # Cancel safety
/// Dropping a read does nothing. Dropping a write leaves it uncertain.
pub trait Engine: Send + Sync + 'static {
    /// Its name, as in the configuration.
    fn name(&self) -> &'static str;

    /// Reads one row as it is now: never what a replica remembers.
    ///
    /// # Errors
    /// [`StoreError`].
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>>;

    /// Reads every row whose key begins with `prefix`, in key order.
    ///
    /// # Errors
    /// [`StoreError`].
    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Entry>> {
        Box::pin(async move {
            let mut feed = self.subscribe(prefix, None).await?;
            let mut entries = Vec::new();
            loop {
                match feed.next().await? {
                    FeedEvent::Entry(entry) => entries.push(entry),
                    FeedEvent::SnapshotEnd(_) => break,
                    _ => {}
                }
            }
            entries.sort_unstable_by(|one, other| one.key.cmp(&other.key));
            Ok(entries)
        })
    }

    /// Writes (`Some`) or deletes (`None`) a row if it is still at version `expected`
    /// (`None`: does not exist). Returns the change's version, which is higher than that of
    /// any change before it.
    ///
    /// # Errors
    /// [`StoreError`].
    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64>;

    /// Subscribes to the rows under `prefix`, which ends with a slash or is a whole key's beginning.
    ///
    /// With a cursor of this life of the store that it still covers: what changed since (of each
    /// row the last change at least), then the tail. Otherwise a snapshot, then the tail; a
    /// snapshot is never older than what any acknowledged write had done before the call. The
    /// feed ends with an error when the engine fails or is another one than it was: subscribe
    /// again, with the cursor of the last event, after a pause.
    ///
    /// # Errors
    /// [`StoreError`].
    fn subscribe<'a>(&'a self, prefix: &'a str, resume: Option<Cursor>) -> Answer<'a, Feed>;
}

/// A store, shared.
pub type Store = Arc<dyn Engine>;

/// Whether every engine can keep `key`: `KIND/REST`, letters, digits and `-_.=/`, where the kind
/// has no dot and the rest neither begins nor ends with one, nor has two in a row.
///
/// # Errors
/// [`StoreError::Key`].
pub fn check_key(key: &str) -> Result<(), StoreError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.=/".contains(&byte);
    let parts = key.split_once('/').filter(|(kind, rest)| !kind.is_empty() && !kind.contains('.') && !rest.is_empty());
    let fine = parts.is_some_and(|(_, rest)| {
        !rest.starts_with('.') && !rest.ends_with('.') && !rest.contains("..") && key.len() <= KEY_BYTES_MAX
    });
    match fine && key.bytes().all(legal) {
        true => Ok(()),
        false => Err(StoreError::Key(key.into())),
    }
}

/// Bounds that hold for every write, whatever the engine would take.
pub(crate) fn check_write(key: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
    check_key(key)?;
    match value.is_some_and(|value| value.len() > VALUE_BYTES_MAX) {
        true => Err(StoreError::TooLarge),
        false => Ok(()),
    }
}

/// FNV-1a, 64 bits: for what all machines have to count alike, and nobody gains by counting wrong.
pub(crate) fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_what_every_engine_can_keep() {
        for key in ["sprite/a", "domain/a.example.org", "host/0", "a/b/c=_-", &format!("a/{}", "x".repeat(318))] {
            assert!(check_key(key).is_ok(), "{key}");
        }
        let long = format!("a/{}", "x".repeat(319));
        for key in ["", "a", "/a", "a/", "a.b/c", "a/.b", "a/b.", "a/b..c", "a/b c", "a/*", "a/>", "a/é", &long] {
            assert!(matches!(check_key(key), Err(StoreError::Key(_))), "{key}");
        }
    }
}
