//! One conformance suite for every store engine, on real servers.
//!
//! [`contract`] is what the trait promises, for each engine. [`failures`] is what a cluster of
//! three does to it, seen through the routing table: servers that are killed or cut off, all of
//! them, history that is gone, a bucket that is made anew. A test is a function over a [`World`];
//! the macros below give it to each engine by name, so `failures::nats::the_leader_is_killed` is one of them.
//!
//! `tests/run` installs the servers. Corrosion has none to install: [`corrosion`] plays recorded answers, and runs the
//! contract on an agent of our own, and on a real one when `CORROSION_API` names it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics where it stands")]

mod contract;
mod corrosion;
mod edge;
mod failures;
mod roles;
mod secured;
mod worlds;

pub(crate) use edge::Edge;
pub(crate) use worlds::{Cluster, CorrosionWorld, EmbeddedWorld, EtcdWorld, NatsWorld, PrimaryWorld, World};

use router::access::Access;
use router::route::{Generation, HostId};
use router::rows::{ROW_VERSION, SpriteRow};
use router::store::{Engine, FeedEvent, Store, StoreError};
use std::time::{Duration, Instant};

/// Longest wait for anything a cluster needs an election for (measured: up to 10 s on a busy machine).
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A test of each engine that is named.
macro_rules! each {
    ($($engine:ident: $world:ty),+ => $test:ident) => {
        $(mod $engine { $test!($world); })+
    };
}
pub(crate) use each;

/// A sprite's row of this generation, encoded.
pub(crate) fn row(generation: u64) -> Vec<u8> {
    let row = SpriteRow {
        version: ROW_VERSION,
        tenant: "t".into(),
        generation: Generation(generation),
        host: HostId(1),
        ports: vec![8080],
        access: Access::Public,
        wake: router::wake::WakeRules::default(),
        client_certificate: None,
        deleted: false,
        proof: router::placement::Proof::default(),
    };
    row.encode()
}

/// Writes whatever is there now, and again until the engine has said that it did. What it may have done is looked
/// for: to write it again would be a second change.
pub(crate) async fn write(store: &Store, key: &str, value: Option<&[u8]>) -> u64 {
    let end = Instant::now() + PATIENCE;
    // The version that was to be written over.
    let mut uncertain: Option<Option<u64>> = None;
    loop {
        let refused = match store.get(key).await {
            Ok(present) => {
                let version = present.as_ref().map(|entry| entry.version);
                let wanted = present.as_ref().map(|entry| entry.value.as_slice()) == value;
                let is_done = wanted && uncertain.is_some_and(|over| over != version);
                let written = match (is_done, version) {
                    (true, Some(version)) => Ok(version),
                    (true, None) => last_change(store, key).await,
                    (false, _) => store.compare_and_set(key, version, value).await,
                };
                match written {
                    Ok(version) => return version,
                    Err(error) => {
                        if matches!(error, StoreError::Uncertain(_)) {
                            uncertain = Some(version);
                        }
                        error
                    }
                }
            }
            Err(error) => error,
        };
        let again =
            matches!(refused, StoreError::Conflict { .. } | StoreError::Unavailable(_) | StoreError::Uncertain(_));
        assert!(again && Instant::now() < end, "{key} cannot be written: {refused}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The version of the last change of this kind of row: that of a deletion, which leaves none to say it, as long as
/// nobody else writes.
async fn last_change(store: &Store, key: &str) -> Result<u64, StoreError> {
    let (kind, _) = key.split_once('/').expect("a key has a kind");
    let mut feed = store.subscribe(&format!("{kind}/"), None).await?;
    loop {
        if let FeedEvent::SnapshotEnd(cursor) = feed.next().await? {
            return Ok(cursor.version);
        }
    }
}

/// Keys and versions of everything under `prefix`, once the engine answers.
pub(crate) async fn scan(store: &dyn Engine, prefix: &str) -> Vec<(String, u64)> {
    let entries = harness::until("a scan", PATIENCE, async || store.scan(prefix).await.ok()).await;
    entries.into_iter().map(|entry| (entry.key, entry.version)).collect()
}
