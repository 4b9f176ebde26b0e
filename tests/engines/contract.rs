//! What the trait promises, for each engine.

use crate::edge::STEADY;
use crate::{Edge, World, each, row, scan, write};
use harness::within;
use router::store::{Cursor, Entry, Feed, FeedEvent, StoreError, VALUE_BYTES_MAX};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

macro_rules! contract {
    ($world:ty) => {
        $crate::contract::common!($world);
        #[tokio::test]
        async fn a_cursor_brings_what_changed_and_a_foreign_one_everything() {
            super::cursors::<$world>().await;
        }
    };
}
/// What an engine whose cursors are one process's promises too.
macro_rules! common {
    ($world:ty) => {
        #[tokio::test]
        async fn a_row_reads_back_and_a_write_against_an_old_version_changes_nothing() {
            $crate::contract::rows::<$world>().await;
        }
        #[tokio::test]
        async fn of_many_who_write_against_one_version_one_wins() {
            $crate::contract::one_wins::<$world>().await;
        }
        #[tokio::test]
        async fn snapshot_and_tail_meet_without_a_gap_while_others_write() {
            $crate::contract::no_gap::<$world>().await;
        }
        #[tokio::test]
        async fn an_empty_store_says_that_it_is_empty_and_goes_on() {
            $crate::contract::empty::<$world>().await;
        }
        #[tokio::test]
        async fn a_slow_subscriber_gets_the_last_of_each_row() {
            $crate::contract::slow::<$world>().await;
        }
        #[tokio::test]
        async fn a_poisoned_row_costs_itself_and_mass_deletion_is_held_back() {
            $crate::contract::poison_and_mass_deletion::<$world>().await;
        }
    };
}
pub(crate) use common;
each!(
    embedded: crate::EmbeddedWorld,
    primary: crate::PrimaryWorld,
    nats: crate::NatsWorld,
    etcd: crate::EtcdWorld
    => contract
);

pub(crate) async fn next(feed: &mut Feed) -> FeedEvent {
    within("an event", LIMIT, feed.next()).await.unwrap()
}

/// A snapshot: its rows by key, and where it ends.
pub(crate) async fn snapshot(feed: &mut Feed) -> (BTreeMap<String, Entry>, Cursor) {
    let FeedEvent::SnapshotBegin { epoch } = next(feed).await else { panic!("no snapshot") };
    let mut rows = BTreeMap::new();
    loop {
        match next(feed).await {
            FeedEvent::Entry(entry) => assert!(rows.insert(entry.key.clone(), entry).is_none(), "twice"),
            FeedEvent::SnapshotEnd(cursor) => {
                assert_eq!(cursor.epoch, epoch);
                return (rows, cursor);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The next event that says more than that all is well.
pub(crate) async fn change(feed: &mut Feed) -> FeedEvent {
    loop {
        match next(feed).await {
            FeedEvent::Current(_) => {}
            event => return event,
        }
    }
}

/// Each change has a place behind the one before; a hint of one may come before it.
fn later<W: World>(cursor: Cursor, last: u64) -> bool {
    cursor.version > last || (cursor.version == last && !W::ONE_NUMBER)
}

pub(crate) async fn rows<W: World>() {
    let Some(world) = W::start().await else { return };
    let store = world.store().await;
    assert_eq!(store.get("sprite/a").await.unwrap(), None);
    let first = store.compare_and_set("sprite/a", None, Some(b"1")).await.unwrap();
    let second = store.compare_and_set("sprite/a", Some(first), Some(b"\x00\xff\n")).await.unwrap();
    assert!(second > first);
    for expected in [None, Some(first), Some(second + 100)] {
        for value in [Some(&b"3"[..]), None] {
            let refused = store.compare_and_set("sprite/a", expected, value).await.unwrap_err();
            let StoreError::Conflict { expected: told, actual } = refused else { panic!("{refused:?}") };
            assert_eq!((told, actual), (expected, Some(second)));
        }
    }
    let entry = Entry { key: "sprite/a".into(), value: b"\x00\xff\n".into(), version: second };
    // Another client sees it at once.
    assert_eq!(world.store().await.get("sprite/a").await.unwrap(), Some(entry));
    let missing = store.compare_and_set("sprite/b", Some(second), Some(b"1")).await;
    assert!(matches!(missing, Err(StoreError::Conflict { actual: None, .. })), "{missing:?}");
    // Deleted, it does not exist; made again, its version goes on.
    let third = store.compare_and_set("sprite/a", Some(second), None).await.unwrap();
    assert_eq!(store.get("sprite/a").await.unwrap(), None);
    let stale = store.compare_and_set("sprite/a", Some(second), Some(b"4")).await;
    assert!(matches!(stale, Err(StoreError::Conflict { actual: None, .. })), "{stale:?}");
    let fourth = store.compare_and_set("sprite/a", None, Some(b"4")).await.unwrap();
    assert!(fourth > third && third > second);
    // The bounds are the same everywhere.
    let large = vec![b'x'; VALUE_BYTES_MAX];
    let fifth = store.compare_and_set(W::OTHER, None, Some(&large)).await.unwrap();
    assert_eq!(store.get(W::OTHER).await.unwrap().unwrap().value, large);
    let larger = store.compare_and_set("sprite/large", None, Some(&[large, vec![0]].concat())).await;
    assert!(matches!(larger, Err(StoreError::TooLarge)));
    assert!(matches!(store.compare_and_set("no key", None, Some(b"")).await, Err(StoreError::Key(_))));
    assert!(matches!(store.get("sprite/*").await, Err(StoreError::Key(_))));
    let sixth = store.compare_and_set("sprite/0", None, Some(b"")).await.unwrap();
    assert_eq!(scan(&*store, "sprite/").await, [("sprite/0".into(), sixth), ("sprite/a".into(), fourth)]);
    let (kind, _) = W::OTHER.split_once('/').unwrap();
    assert_eq!(scan(&*store, &format!("{kind}/")).await, [(W::OTHER.into(), fifth)]);
    assert_eq!(store.get("sprite/0").await.unwrap().unwrap().value, b"");
}

pub(crate) async fn one_wins<W: World>() {
    let Some(world) = W::start().await else { return };
    let store = world.store().await;
    let tries: Vec<_> = (0..8)
        .map(|number| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { (number, store.compare_and_set("sprite/k", None, Some(&[number])).await) })
        })
        .collect();
    let (mut winners, mut perhaps) = (Vec::new(), Vec::new());
    for one in tries {
        match one.await.unwrap() {
            (number, Ok(_)) => winners.push(number),
            (number, Err(StoreError::Uncertain(_))) => perhaps.push(number),
            (_, Err(StoreError::Conflict { expected: None, actual: Some(_) } | StoreError::Unavailable(_))) => {}
            (_, Err(error)) => panic!("{error:?}"),
        }
    }
    assert!(winners.len() <= 1, "{winners:?}");
    // Who was told so has won. If nobody was, one of those did who were told nothing.
    let (possible, told) = if winners.is_empty() { (perhaps, false) } else { (winners, true) };
    let answered = async || store.get("sprite/k").await.ok().filter(|row| told || row.is_some());
    let row = harness::until("the row", LIMIT, answered).await.expect("what was acknowledged is there");
    assert!(possible.iter().any(|number| row.value == [*number]), "{:?}, not of {possible:?}", row.value);
}

pub(crate) async fn no_gap<W: World>() {
    const WRITERS: usize = 3;
    const EACH: usize = 60;
    let Some(world) = W::start().await else { return };
    let store = world.store().await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0..EACH {
                    write(&store, &format!("sprite/{writer}-{n}"), Some(b"x")).await;
                    write(&store, "host/1", Some(b"not asked for")).await;
                }
            })
        })
        .collect();
    // Several subscribers come at whatever moment of it they come.
    for _ in 0..3 {
        let mut feed = store.subscribe("sprite/", None).await.unwrap();
        let (rows, end) = snapshot(&mut feed).await;
        let (mut seen, mut last): (BTreeSet<_>, _) = (rows.into_keys().collect(), end.version);
        while seen.len() < WRITERS * EACH {
            let FeedEvent::Put(entry, cursor) = change(&mut feed).await else { panic!() };
            assert!(later::<W>(cursor, last) && cursor.epoch == end.epoch);
            assert!(cursor.version == entry.version || !W::ONE_NUMBER);
            assert!(entry.key.starts_with("sprite/"), "{}", entry.key);
            assert!(seen.insert(entry.key), "twice");
            last = cursor.version;
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
}

async fn cursors<W: World>() {
    let Some(world) = W::start().await else { return };
    let store = world.store().await;
    write(&store, "sprite/1", Some(b"1")).await;
    let second = write(&store, "sprite/2", Some(b"2")).await;
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    let (rows, cursor) = snapshot(&mut feed).await;
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["sprite/1", "sprite/2"]);
    assert!(cursor.version >= second);
    drop(feed);
    let third = write(&store, "sprite/3", Some(b"3")).await;
    write(&store, "host/1", Some(b"not asked for")).await;
    let deleted = write(&store, "sprite/2", None).await;
    let fourth = write(&store, "sprite/3", Some(b"4")).await;
    // Another client, with the cursor of the first: at least the last change of each row.
    let other = world.store().await;
    let mut feed = other.subscribe("sprite/", Some(cursor)).await.unwrap();
    let mut events = Vec::new();
    let current = loop {
        match next(&mut feed).await {
            FeedEvent::Current(cursor) => break cursor,
            event => events.push(event),
        }
    };
    assert!(current.version >= fourth && current.epoch == cursor.epoch);
    let is_third = |event: &FeedEvent| matches!(event, FeedEvent::Put(entry, _) if entry.version == third);
    events.retain(|event| !is_third(event));
    let [FeedEvent::Delete(key, middle), FeedEvent::Put(entry, last)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((key.as_str(), middle.version, entry.value.as_slice()), ("sprite/2", deleted, &b"4"[..]));
    // Who stopped in the middle still gets the rest, and who has all gets nothing.
    let mut feed = other.subscribe("sprite/", Some(*middle)).await.unwrap();
    assert!(matches!(change(&mut feed).await, FeedEvent::Put(_, cursor) if cursor == *last));
    let mut feed = other.subscribe("sprite/", Some(*last)).await.unwrap();
    assert!(matches!(next(&mut feed).await, FeedEvent::Current(_)));
    let fifth = write(&store, "sprite/5", Some(b"5")).await;
    assert!(matches!(change(&mut feed).await, FeedEvent::Put(_, cursor) if cursor.version == fifth));
    // Of another history, or of the future of this one.
    for foreign in [Cursor { epoch: cursor.epoch ^ 1, ..*last }, Cursor { version: fifth + 1_000, ..*last }] {
        let mut feed = other.subscribe("sprite/", Some(foreign)).await.unwrap();
        let (rows, end) = snapshot(&mut feed).await;
        assert_eq!(rows.keys().collect::<Vec<_>>(), ["sprite/1", "sprite/3", "sprite/5"]);
        assert_eq!(end.epoch, cursor.epoch);
    }
}

pub(crate) async fn empty<W: World>() {
    let Some(world) = W::start().await else { return };
    let store = world.store().await;
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    let (rows, _) = snapshot(&mut feed).await;
    assert!(rows.is_empty());
    write(&store, "host/1", Some(b"not asked for")).await;
    let version = write(&store, "sprite/a", Some(b"1")).await;
    assert!(matches!(change(&mut feed).await, FeedEvent::Put(entry, _) if entry.version == version));
    // Emptied again, by a deletion.
    write(&store, "sprite/a", None).await;
    assert!(matches!(change(&mut feed).await, FeedEvent::Delete(key, _) if key == "sprite/a"));
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    assert!(snapshot(&mut feed).await.0.is_empty());
    let version = write(&store, "sprite/a", Some(b"2")).await;
    assert!(matches!(change(&mut feed).await, FeedEvent::Put(entry, _) if entry.version == version));
}

pub(crate) async fn slow<W: World>() {
    const ROWS: usize = 20;
    const CHANGES: usize = 400;
    let Some(world) = W::start().await else { return };
    let store = world.store().await;
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    snapshot(&mut feed).await;
    let mut versions = BTreeMap::new();
    for number in 0..CHANGES {
        let key = format!("sprite/{}", number % ROWS);
        let version = write(&store, &key, Some(number.to_string().as_bytes())).await;
        versions.insert(key, version);
    }
    // It has taken nothing so far. Each event may be skipped for a later one of the same row, none for good.
    let mut seen = BTreeMap::new();
    let mut last = 0;
    while seen != versions {
        let FeedEvent::Put(entry, cursor) = change(&mut feed).await else { panic!() };
        assert!(later::<W>(cursor, last));
        last = cursor.version;
        seen.insert(entry.key, entry.version);
    }
}

pub(crate) async fn poison_and_mass_deletion<W: World>() {
    let Some(world) = W::start().await else { return };
    let store = world.store().await;
    write(&store, &format!("sprite/{STEADY}"), Some(&row(1))).await;
    for number in 0..99 {
        write(&store, &format!("sprite/s{number}"), Some(&row(1))).await;
    }
    let edge = Edge::follow(Arc::clone(&store)).await;
    assert_eq!(edge.table.len(), 100);
    // A value of somebody who does not know what a row is, for a name that is known and one that is not.
    for key in ["sprite/s0", "sprite/new", "sprite/Not--A--Name"] {
        write(&store, key, Some(b"{\"version\":1}")).await;
    }
    write(&store, "sprite/s1", Some(&row(2))).await;
    edge.has("s1", Some(2)).await;
    // An engine that gossips keeps the order of one key's changes, not that of several keys'.
    let all = async || (edge.table.followed().quarantined() >= 3).then_some(());
    harness::until("all three to be set aside", LIMIT, all).await;
    assert_eq!(
        (edge.generation("s0"), edge.generation("new"), edge.table.followed().quarantined()),
        (Some(1), None, 3)
    );
    write(&store, "sprite/s0", Some(&row(3))).await;
    edge.has("s0", Some(3)).await;
    for key in ["sprite/new", "sprite/Not--A--Name"] {
        write(&store, key, None).await;
    }
    // 30 % of all rows vanish.
    for number in 69..99 {
        write(&store, &format!("sprite/s{number}"), None).await;
    }
    write(&store, "sprite/s2", Some(&row(2))).await;
    edge.has("s2", Some(2)).await;
    let all = async || (100 - edge.table.len() + edge.table.followed().held_removals() == 30).then_some(());
    harness::until("all thirty to be gone or held", LIMIT, all).await;
    assert_eq!((edge.table.len(), edge.table.followed().held_removals()), (84, 14), "some go, then no more");
    edge.table.followed().accept_removals();
    harness::until("the held ones to go", LIMIT, async || (edge.table.len() == 70).then_some(())).await;
    edge.agrees_with(&store).await;
}
