//! Recorded answers of an agent, and those of one that is broken (`tests/engines/transcripts`).

use crate::contract::{change, next, snapshot};
use crate::{Edge, row};
use harness::corrosion::Replay;
use harness::within;
use router::store::corrosion::CorrosionStore;
use router::store::{Cursor, Engine, Feed, FeedEvent, Store, StoreError};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const ID: &str = "ca8e2327-525e-4690-9b1c-77ddc53ee2ee";

macro_rules! transcript {
    ($name:literal) => {
        include_str!(concat!("../transcripts/", $name, ".txt"))
    };
}

async fn replay(transcript: &str) -> (Replay, CorrosionStore) {
    let replay = Replay::start(transcript).await;
    let store = CorrosionStore::open(&replay.settings(), "edge/a").unwrap();
    (replay, store)
}

/// A snapshot in short: `a@1`, by key; and where it ends.
async fn rows(feed: &mut Feed) -> (Vec<String>, Cursor) {
    let (rows, cursor) = snapshot(feed).await;
    let rows = rows.into_values().map(|entry| format!("{}@{}", entry.key.trim_start_matches("sprite/"), entry.version));
    (rows.collect(), cursor)
}

/// The next change in short: `a@2` or `-a`; and its place.
async fn tail(feed: &mut Feed) -> (String, Cursor) {
    match change(feed).await {
        FeedEvent::Put(entry, cursor) => {
            (format!("{}@{}", entry.key.trim_start_matches("sprite/"), entry.version), cursor)
        }
        FeedEvent::Delete(key, cursor) => (format!("-{}", key.trim_start_matches("sprite/")), cursor),
        other => panic!("{other:?}"),
    }
}

/// How the feed ends, after whatever it says, and the place of its last change. It may also have said that all is well.
async fn end(feed: &mut Feed) -> (Option<Cursor>, StoreError) {
    let mut last = None;
    loop {
        match within("the end of the feed", LIMIT, feed.next()).await {
            Ok(FeedEvent::Put(_, cursor) | FeedEvent::Delete(_, cursor)) => last = Some(cursor),
            Ok(_) => {}
            Err(error) => return (last, error),
        }
    }
}

#[tokio::test]
async fn a_snapshot_then_changes_and_deletions_of_both_kinds() {
    let (_replay, store) = replay(transcript!("snapshot-and-tail")).await;
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    let (rows, mut last) = rows(&mut feed).await;
    assert_eq!(rows, ["alpha@1", "beta@4"]);
    for wanted in ["alpha@3", "gamma@1", "-beta", "-gamma"] {
        let (told, cursor) = tail(&mut feed).await;
        assert_eq!((told.as_str(), cursor.epoch), (wanted, last.epoch));
        assert!(cursor.version > last.version);
        last = cursor;
    }
    // And it says that all is well while nothing changes.
    assert!(matches!(next(&mut feed).await, FeedEvent::Current(cursor) if cursor == last));
}

#[tokio::test]
async fn who_was_let_go_comes_back_from_where_he_stood() {
    let (replay, store) = replay(transcript!("resumed")).await;
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    let (_, begin) = rows(&mut feed).await;
    let (told, cursor) = tail(&mut feed).await;
    assert_eq!(told, "a@2");
    assert!(matches!(end(&mut feed).await, (None, StoreError::Unavailable(_))));
    let mut feed = store.subscribe("sprite/", Some(cursor)).await.unwrap();
    let (told, after) = tail(&mut feed).await;
    assert_eq!(told, "b@1");
    assert!(after.version > cursor.version && cursor.version > begin.version);
    // It has caught up when nothing more comes.
    assert!(matches!(next(&mut feed).await, FeedEvent::Current(cursor) if cursor == after));
    assert_eq!(replay.subscriptions(), ["POST /v1/subscriptions".into(), format!("GET /v1/subscriptions/{ID}?from=7")]);
}

#[tokio::test]
async fn who_has_not_heard_all_gets_a_snapshot() {
    let (replay, store) = replay(transcript!("lost-id")).await;
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    let (_, cursor) = rows(&mut feed).await;
    end(&mut feed).await;
    let behind = Cursor { version: cursor.version + 1_000, ..cursor };
    let mut feed = store.subscribe("sprite/", Some(behind)).await.unwrap();
    assert_eq!(rows(&mut feed).await.0, ["b@1"]);
    assert_eq!(replay.subscriptions(), ["POST /v1/subscriptions"; 2]);
}

/// After the first feed has ended, the next one begins with a snapshot of `b` alone.
async fn begins_again(transcript: &str, attached: usize) {
    let (replay, store) = replay(transcript).await;
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    let (_, mut cursor) = rows(&mut feed).await;
    let mut attempts = 0;
    loop {
        if let (Some(last), _) = end(&mut feed).await {
            cursor = last;
        }
        feed = store.subscribe("sprite/", Some(cursor)).await.unwrap();
        match within("an event", LIMIT, feed.next()).await {
            Ok(FeedEvent::SnapshotBegin { epoch }) => {
                assert_eq!(epoch, cursor.epoch, "the same history");
                break;
            }
            Ok(event) => panic!("{event:?}"),
            Err(_) => attempts += 1,
        }
        assert!(attempts < 3);
    }
    let FeedEvent::Entry(entry) = next(&mut feed).await else { panic!() };
    assert_eq!(entry.key, "sprite/b");
    let FeedEvent::SnapshotEnd(again) = next(&mut feed).await else { panic!() };
    assert_ne!(again.version, cursor.version, "a place of another subscription is another place");
    let asked = replay.subscriptions();
    assert_eq!(asked.iter().filter(|asked| asked.starts_with("GET")).count(), attached, "{asked:?}");
    assert_eq!(asked.iter().filter(|asked| asked.starts_with("POST")).count(), 2, "{asked:?}");
}

#[tokio::test]
async fn a_subscription_the_agent_has_forgotten_is_made_again() {
    begins_again(transcript!("lost-id"), 1).await;
}

#[tokio::test]
async fn a_subscription_that_asks_something_else_now_is_made_again() {
    begins_again(transcript!("other-hash"), 1).await;
}

#[tokio::test]
async fn changes_the_agent_has_deleted_cost_a_snapshot() {
    begins_again(transcript!("horizon"), 1).await;
}

#[tokio::test]
async fn a_missing_change_is_fetched_and_when_it_stays_missing_everything_is() {
    let (replay, store) = replay(transcript!("gap")).await;
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    let (_, mut cursor) = rows(&mut feed).await;
    let mut told = Vec::new();
    loop {
        match within("an event", LIMIT, feed.next()).await {
            Ok(FeedEvent::SnapshotBegin { .. }) => break,
            Ok(FeedEvent::Put(entry, at)) => {
                told.push(entry.key);
                cursor = at;
            }
            Ok(FeedEvent::Current(at)) => cursor = at,
            Ok(event) => panic!("{event:?}"),
            Err(StoreError::Nonsense(_)) => feed = store.subscribe("sprite/", Some(cursor)).await.unwrap(),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(told, ["sprite/a", "sprite/b"], "nothing behind the gap");
    let attached = |from| format!("GET /v1/subscriptions/{ID}?from={from}");
    let post = || "POST /v1/subscriptions".to_owned();
    assert_eq!(replay.subscriptions(), [post(), attached(1), attached(2), post()]);
}

#[tokio::test]
async fn garbage_and_half_a_line_end_the_feed_and_change_nothing() {
    let (_replay, store) = replay(transcript!("nonsense")).await;
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    let (_, cursor) = rows(&mut feed).await;
    assert!(matches!(end(&mut feed).await, (None, StoreError::Nonsense(_))));
    let mut feed = store.subscribe("sprite/", Some(cursor)).await.unwrap();
    let (told, cursor) = tail(&mut feed).await;
    assert_eq!(told, "a@2");
    let (last, error) = end(&mut feed).await;
    assert!(last.is_none() && error.to_string().contains("in the middle of a line"), "{error}");
    let mut feed = store.subscribe("sprite/", Some(cursor)).await.unwrap();
    assert_eq!(tail(&mut feed).await.0, "a@4");
}

#[tokio::test]
async fn a_poisoned_row_costs_itself() {
    let encoded = |generation| String::from_utf8(row(generation)).unwrap().replace('"', "\\\"");
    let transcript = transcript!("poisoned").replace("ROW1", &encoded(1)).replace("ROW2", &encoded(2));
    let (_replay, store) = replay(&transcript).await;
    let store: Store = Arc::new(store);
    let edge = Edge::follow(Arc::clone(&store)).await;
    edge.has("after", Some(1)).await;
    edge.has("steady", Some(2)).await;
    assert_eq!(edge.table.len(), 2);
    // Without a name, or of a writer that does not count, a row is left out; with one it is set aside.
    assert_eq!(edge.table.followed().quarantined(), 5);
}

#[tokio::test]
async fn the_updates_feed_is_sooner_and_the_subscription_is_the_truth() {
    let (_replay, store) = replay(transcript!("updates")).await;
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    let (_, begin) = rows(&mut feed).await;
    let (hinted, cursor) = tail(&mut feed).await;
    assert_eq!((hinted.as_str(), cursor), ("a@2", begin), "the place is still the subscription's");
    let (told, cursor) = tail(&mut feed).await;
    assert_eq!(told, "a@3", "what was told is not told again");
    assert!(cursor.version > begin.version);
}

#[tokio::test]
async fn a_hint_that_nothing_confirms_is_taken_back() {
    let (_replay, store) = replay(transcript!("lying-updates")).await;
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    assert!(rows(&mut feed).await.0.is_empty());
    assert_eq!(tail(&mut feed).await.0, "a@1");
    assert_eq!(tail(&mut feed).await.0, "-a");
}

#[tokio::test]
async fn what_an_agent_refuses_is_said_in_words_that_help() {
    let (_replay, store) = replay(transcript!("refusals")).await;
    let said = async || {
        let mut feed = store.subscribe("sprite/", None).await.unwrap();
        end(&mut feed).await.1
    };
    let token = said().await;
    assert!(matches!(&token, StoreError::Denied(why) if why.contains("store.corrosion.token_file")), "{token}");
    let table = said().await;
    assert!(matches!(&table, StoreError::Unavailable(why) if why.contains("docs/stores.md")), "{table}");
    let busy = said().await;
    assert!(busy.to_string().contains("max concurrency limit reached"), "{busy}");
    let columns = said().await;
    assert!(matches!(&columns, StoreError::Nonsense(why) if why.contains("columns")), "{columns}");
    let id = said().await;
    assert!(matches!(&id, StoreError::Nonsense(why) if why.contains("without an id")), "{id}");
    let query = said().await;
    assert!(query.to_string().contains("could not run the query"), "{query}");
}

#[tokio::test]
async fn a_dead_connection_that_looks_like_quiet_is_found_out() {
    let (replay, store) = replay(transcript!("half-open")).await;
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    rows(&mut feed).await;
    let quiet = Instant::now();
    assert_eq!(tail(&mut feed).await.0, "a@1");
    assert!(quiet.elapsed() < Duration::from_secs(20), "{:?}", quiet.elapsed());
    assert_eq!(replay.subscriptions().len(), 2);
}
