//! What a cluster of three does to an edge that follows it.

use crate::edge::STEADY;
use crate::{Cluster, Edge, PATIENCE, each, row, write};
use harness::until;
use router::apply::load_last_known_good;
use router::store::{FeedEvent, Store, StoreError};
use router::table::{Lookup, RouteTable};
use std::time::{Duration, Instant};

/// A store that is away is noticed within this (`RouteTable::stale_for`), and some for a busy machine.
const NOTICED: Duration = Duration::from_secs(30);

macro_rules! failures {
    ($world:ty) => {
        #[tokio::test]
        async fn a_server_is_killed() {
            super::one_killed::<$world>(false).await;
        }
        #[tokio::test]
        async fn the_leader_is_killed() {
            super::one_killed::<$world>(true).await;
        }
        #[tokio::test]
        async fn all_are_killed() {
            super::all_killed::<$world>().await;
        }
        #[tokio::test]
        async fn the_leader_is_cut_off() {
            super::leader_cut_off::<$world>().await;
        }
        #[tokio::test]
        async fn all_are_cut_off() {
            super::all_cut_off::<$world>().await;
        }
        #[tokio::test]
        async fn history_is_gone_past_the_cursor() {
            super::history_gone::<$world>().await;
        }
        #[tokio::test]
        async fn the_store_is_made_anew() {
            super::made_anew::<$world>().await;
        }
    };
}
each!(nats: crate::NatsWorld, etcd: crate::EtcdWorld => failures);

/// An edge that follows a store with one route.
async fn followed<C: Cluster>(world: &C) -> (Store, Edge) {
    let store = world.store().await;
    write(&store, &format!("sprite/{STEADY}"), Some(&row(1))).await;
    let edge = Edge::follow(world.store().await).await;
    (store, edge)
}

async fn one_killed<C: Cluster>(leader: bool) {
    let Some(mut world) = C::start().await else { return };
    let (store, edge) = followed(&world).await;
    let mut victim = world.leader().await;
    if !leader {
        victim = (victim + 1) % 3;
    }
    world.nodes()[victim].kill();
    for number in 0..20 {
        write(&store, &format!("sprite/s{number}"), Some(&row(number + 1))).await;
    }
    write(&store, &format!("sprite/{STEADY}"), Some(&row(2))).await;
    edge.has("s19", Some(20)).await;
    edge.has(STEADY, Some(2)).await;
    world.nodes()[victim].restart();
    write(&store, "sprite/s0", Some(&row(7))).await;
    edge.has("s0", Some(7)).await;
    edge.agrees_with(&store).await;
}

async fn all_killed<C: Cluster>() {
    let Some(mut world) = C::start().await else { return };
    let (store, edge) = followed(&world).await;
    for number in 0..20 {
        write(&store, &format!("sprite/s{number}"), Some(&row(1))).await;
    }
    edge.has("s19", Some(1)).await;
    world.nodes().iter_mut().for_each(harness::cluster::Node::kill);
    until("it to be noticed", NOTICED, async || edge.table.followed().stale_for()).await;
    assert_eq!(edge.table.len(), 21);
    // An edge that starts now serves what this one knew, and takes absence for nothing.
    let next = until("the last changes to be on disk", NOTICED, async || {
        let next = RouteTable::new();
        (load_last_known_good(&next, &edge.last_known_good).unwrap() == 21).then_some(next)
    })
    .await;
    assert!(matches!(next.lookup("s7"), Lookup::Found(route) if route.generation.0 == 1));
    assert_eq!(next.lookup("unheard-of"), Lookup::NotReady);
    // A call ends, however it ends.
    let asked = Instant::now();
    assert!(store.get("sprite/s0").await.is_err());
    let written = store.compare_and_set("sprite/s0", None, Some(b"x")).await;
    assert!(matches!(written, Err(StoreError::Unavailable(_) | StoreError::Uncertain(_))), "{written:?}");
    assert!(asked.elapsed() < NOTICED);
    world.nodes().iter_mut().for_each(harness::cluster::Node::restart);
    world.leader().await;
    // What was acknowledged is there.
    write(&store, "sprite/after", Some(&row(1))).await;
    let keys: Vec<_> = crate::scan(&*store, "sprite/").await.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys.len(), 22, "{keys:?}");
    edge.has("after", Some(1)).await;
    // It may be told once more that its connection broke.
    until("it to be fresh", PATIENCE, async || edge.table.followed().stale_for().is_none().then_some(())).await;
    edge.agrees_with(&store).await;
}

async fn leader_cut_off<C: Cluster>() {
    let Some(mut world) = C::start().await else { return };
    let (store, edge) = followed(&world).await;
    let victim = world.leader().await;
    world.nodes()[victim].freeze();
    for number in 0..5 {
        write(&store, &format!("sprite/s{number}"), Some(&row(1))).await;
        edge.has(&format!("s{number}"), Some(1)).await;
    }
    world.nodes()[victim].thaw();
    write(&store, "sprite/after", Some(&row(1))).await;
    edge.has("after", Some(1)).await;
    edge.agrees_with(&store).await;
}

async fn all_cut_off<C: Cluster>() {
    let Some(mut world) = C::start().await else { return };
    let (store, edge) = followed(&world).await;
    assert_eq!(edge.table.followed().stale_for(), None);
    world.nodes().iter().for_each(harness::cluster::Node::freeze);
    // Nothing is closed and nothing comes: silence that looks like quiet.
    until("the silence to be noticed", NOTICED, async || edge.table.followed().stale_for()).await;
    assert_eq!(edge.generation(STEADY), Some(1));
    world.nodes().iter().for_each(harness::cluster::Node::thaw);
    write(&store, "sprite/after", Some(&row(1))).await;
    edge.has("after", Some(1)).await;
    edge.agrees_with(&store).await;
}

async fn history_gone<C: Cluster>() {
    let Some(world) = C::start().await else { return };
    let store = world.store().await;
    for name in ["a", "b", "c"] {
        write(&store, &format!("sprite/{name}"), Some(&row(1))).await;
    }
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    let cursor = loop {
        if let FeedEvent::SnapshotEnd(cursor) = feed.next().await.unwrap() {
            break cursor;
        }
    };
    drop(feed);
    write(&store, "sprite/b", None).await;
    write(&store, "sprite/a", Some(&row(2))).await;
    world.forget_history().await;
    // Whatever it says now, applied to what was known, is what is there.
    let mut known: std::collections::BTreeSet<_> = ["sprite/a", "sprite/b", "sprite/c"].map(String::from).into();
    let mut feed = store.subscribe("sprite/", Some(cursor)).await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    let mut of_a = Vec::new();
    loop {
        match harness::within("an event", PATIENCE, feed.next()).await.unwrap() {
            FeedEvent::SnapshotBegin { .. } => {}
            FeedEvent::Entry(entry) | FeedEvent::Put(entry, _) => {
                if entry.key == "sprite/a" {
                    of_a = entry.value;
                }
                known.insert(entry.key.clone());
                seen.insert(entry.key);
            }
            FeedEvent::Delete(key, _) => drop(known.remove(&key)),
            FeedEvent::SnapshotEnd(_) => {
                known = seen;
                break;
            }
            FeedEvent::Current(_) => break,
        }
    }
    assert_eq!(known.into_iter().collect::<Vec<_>>(), ["sprite/a", "sprite/c"]);
    assert_eq!(of_a, row(2));
}

async fn made_anew<C: Cluster>() {
    let Some(mut world) = C::start().await else { return };
    let (store, edge) = followed(&world).await;
    for number in 0..20 {
        write(&store, &format!("sprite/s{number}"), Some(&row(7))).await;
    }
    edge.has("s19", Some(7)).await;
    world.make_anew().await;
    let store = world.store().await;
    assert!(crate::scan(&*store, "sprite/").await.is_empty());
    // It has lost its rows: they are served on, and what is written to it counts.
    write(&store, "host/1", Some(b"x")).await;
    write(&store, "sprite/new", Some(&row(1))).await;
    edge.has("new", Some(1)).await;
    assert_eq!((edge.generation("s0"), edge.generation(STEADY)), (Some(7), Some(1)));
    write(&store, "sprite/s0", Some(&row(1))).await;
    edge.has("s0", Some(1)).await;
}
