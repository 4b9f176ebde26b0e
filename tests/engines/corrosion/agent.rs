//! What may happen to an agent, on one of our own: crashed, ended, silent, without history, made anew, without its schema;
//! and several machines that write through it.

use crate::contract::{change, next, snapshot};
use crate::edge::STEADY;
use crate::{CorrosionWorld, Edge, World, row, write};
use harness::corrosion::Agent;
use harness::{until, within};
use router::apply::load_last_known_good;
use router::store::corrosion::{CorrosionStore, OPERATOR};
use router::store::{Engine, Feed, FeedEvent, Store, StoreError};
use router::table::{Lookup, RouteTable};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// As `failures::NOTICED`.
const NOTICED: Duration = Duration::from_secs(30);

/// Waits until a key is said to be this, or gone: it may be told twice of what it was.
async fn becomes(feed: &mut Feed, wanted: Option<&[u8]>) {
    within("a change", NOTICED, async {
        loop {
            match change(feed).await {
                FeedEvent::Put(entry, _) if Some(entry.value.as_slice()) == wanted => return,
                FeedEvent::Delete(..) if wanted.is_none() => return,
                _ => {}
            }
        }
    })
    .await;
}

fn client(agent: &Agent, owner: &str) -> Store {
    Arc::new(CorrosionStore::open(&agent.settings(), owner).unwrap())
}

async fn followed() -> (Agent, Store, Edge) {
    let CorrosionWorld(agent) = CorrosionWorld::start().await.unwrap();
    let store = client(&agent, "host/a");
    write(&store, &format!("sprite/{STEADY}"), Some(&row(1))).await;
    let edge = Edge::follow(client(&agent, "edge/a")).await;
    (agent, store, edge)
}

async fn away(edge: &Edge) {
    until("it to be noticed", NOTICED, async || edge.table.followed().stale_for()).await;
}

fn subscriptions(agent: &Agent, method: &str) -> usize {
    agent.asked().iter().filter(|asked| asked.starts_with(&format!("{method} /v1/subscriptions"))).count()
}

#[tokio::test]
async fn it_crashes_and_knows_no_subscription_any_more() {
    let (mut agent, store, edge) = followed().await;
    for number in 0..20 {
        write(&store, &format!("sprite/s{number}"), Some(&row(1))).await;
    }
    edge.holds(21).await;
    agent.crash();
    away(&edge).await;
    assert_eq!(edge.table.len(), 21);
    // An edge that starts now serves what this one knew, and takes absence for nothing.
    let next = until("the last changes to be on disk", NOTICED, async || {
        let next = RouteTable::new();
        (load_last_known_good(&next, &edge.last_known_good).unwrap() == 21).then_some(next)
    })
    .await;
    assert!(matches!(next.lookup("s7"), Lookup::Found(route) if route.generation.0 == 1));
    let asked = Instant::now();
    assert!(matches!(store.get("sprite/s0").await, Err(StoreError::Unavailable(_))));
    let written = store.compare_and_set("sprite/s0", None, Some(b"x")).await;
    assert!(matches!(written, Err(StoreError::Unavailable(_))), "{written:?}");
    assert!(asked.elapsed() < NOTICED);
    // Changes come from other agents while it is away.
    agent.gossip("DELETE FROM routes WHERE name = 'sprite/s3'");
    agent.restart().await;
    write(&store, "sprite/after", Some(&row(1))).await;
    edge.has("after", Some(1)).await;
    edge.has("s3", None).await;
    assert_eq!(edge.table.followed().stale_for(), None);
    edge.agrees_with(&store).await;
}

#[tokio::test]
async fn it_ends_cleanly_and_the_edge_goes_on_from_where_it_stood() {
    let (mut agent, store, edge) = followed().await;
    let (made, attached) = (subscriptions(&agent, "POST"), subscriptions(&agent, "GET"));
    agent.end();
    away(&edge).await;
    let body = String::from_utf8(row(2)).unwrap();
    agent.gossip(&format!("UPDATE routes SET gen = gen + 1, body = '{body}' WHERE name = 'sprite/{STEADY}'"));
    agent.restart().await;
    edge.has(STEADY, Some(2)).await;
    assert_eq!(subscriptions(&agent, "POST"), made, "no snapshot");
    assert!(subscriptions(&agent, "GET") > attached);
    // Ended again, for longer than it keeps changes.
    agent.end();
    agent.gossip("DELETE FROM routes WHERE name = 'sprite/nobody'");
    write_by_gossip(&agent, "new", 1);
    agent.forget_changes();
    agent.restart().await;
    edge.has("new", Some(1)).await;
    assert_eq!(subscriptions(&agent, "POST"), made + 1, "a snapshot");
    edge.agrees_with(&store).await;
}

fn write_by_gossip(agent: &Agent, name: &str, generation: u64) {
    let body = String::from_utf8(row(generation)).unwrap();
    agent.gossip(&format!("INSERT INTO routes VALUES ('sprite/{name}', 'host/b', 1, '{body}')"));
}

#[tokio::test]
async fn it_falls_silent_which_looks_like_quiet() {
    let (agent, store, edge) = followed().await;
    agent.freeze(true);
    away(&edge).await;
    assert_eq!(edge.generation(STEADY), Some(1));
    let asked = Instant::now();
    let written = store.compare_and_set("sprite/x", None, Some(b"x")).await;
    assert!(matches!(written, Err(StoreError::Unavailable(_) | StoreError::Uncertain(_))), "{written:?}");
    assert!(asked.elapsed() < NOTICED);
    agent.freeze(false);
    write(&store, "sprite/after", Some(&row(1))).await;
    edge.has("after", Some(1)).await;
    edge.agrees_with(&store).await;
}

#[tokio::test]
async fn it_is_made_anew_and_the_routes_are_served_on() {
    let (mut agent, store, edge) = followed().await;
    for number in 0..20 {
        write(&store, &format!("sprite/s{number}"), Some(&row(7))).await;
    }
    edge.holds(21).await;
    agent.end();
    agent.make_anew();
    agent.restart().await;
    write(&store, "sprite/new", Some(&row(1))).await;
    edge.has("new", Some(1)).await;
    assert_eq!((edge.generation("s0"), edge.generation(STEADY)), (Some(7), Some(1)));
    write(&store, "sprite/s0", Some(&row(1))).await;
    edge.has("s0", Some(1)).await;
}

#[tokio::test]
async fn history_is_one_however_often_an_agent_forgets_its_subscriptions() {
    let (mut agent, store, edge) = followed().await;
    write(&store, "sprite/s", Some(&row(5))).await;
    edge.has("s", Some(5)).await;
    // Brought back from an older copy: the generation counts, and does not go back.
    agent.crash();
    let body = String::from_utf8(row(4)).unwrap();
    agent.gossip(&format!("UPDATE routes SET gen = 1, body = '{body}' WHERE name = 'sprite/s'"));
    write_by_gossip(&agent, "after", 1);
    agent.restart().await;
    edge.has("after", Some(1)).await;
    assert_eq!(edge.generation("s"), Some(5));
}

#[tokio::test]
async fn of_several_writers_the_later_placement_counts_and_the_write_clears_up() {
    let CorrosionWorld(agent) = CorrosionWorld::start().await.unwrap();
    let (a, b) = (client(&agent, "host/a"), client(&agent, "host/b"));
    let edge = client(&agent, "edge/a");
    let first = a.compare_and_set("sprite/s", None, Some(&row(1))).await.unwrap();
    let mut feed = edge.subscribe("sprite/", None).await.unwrap();
    assert_eq!(snapshot(&mut feed).await.0.len(), 1);
    // It moves: B writes over what it has read, and A's row goes in the same breath.
    let second = b.compare_and_set("sprite/s", Some(first), Some(&row(2))).await.unwrap();
    becomes(&mut feed, Some(&row(2))).await;
    assert_eq!(agent.query("SELECT owner, gen FROM routes WHERE name = 'sprite/s'").len(), 1);
    let stale = a.compare_and_set("sprite/s", Some(first), Some(&row(3))).await;
    assert!(matches!(stale, Err(StoreError::Conflict { actual, .. }) if actual == Some(second)));
    // A, cut off before that, wrote on and on; then gossip brings its row. It changes nothing, nor does its end.
    let body = String::from_utf8(row(1)).unwrap();
    agent.gossip(&format!("INSERT INTO routes VALUES ('sprite/s', 'host/a', 99, '{body}')"));
    assert_eq!(edge.get("sprite/s").await.unwrap().unwrap().value, row(2));
    assert_eq!(edge.scan("sprite/").await.unwrap()[0].value, row(2));
    agent.gossip("DELETE FROM routes WHERE owner = 'host/a'");
    // The row that counted is taken away by hand: what is left counts.
    agent.gossip(&format!("INSERT INTO routes VALUES ('sprite/s', 'host/c', 1, '{body}')"));
    agent.gossip("DELETE FROM routes WHERE owner = 'host/b'");
    becomes(&mut feed, Some(&row(1))).await;
    agent.gossip("DELETE FROM routes WHERE owner = 'host/c'");
    becomes(&mut feed, None).await;
}

#[tokio::test]
async fn of_two_machines_that_did_not_know_of_each_other_everybody_sees_the_same_and_an_operator_first() {
    let agent = Agent::start().await;
    let store = client(&agent, "edge/a");
    for owner in ["host/a", "host/b", OPERATOR, "host/c"] {
        agent.gossip(&format!("INSERT INTO routes VALUES ('host/1', '{owner}', 1, '{owner}')"));
    }
    assert_eq!(store.get("host/1").await.unwrap().unwrap().value, OPERATOR.as_bytes());
    let mut feed = store.subscribe("host/", None).await.unwrap();
    let (mut rows, _) = snapshot(&mut feed).await;
    let mut last = rows.remove("host/1").unwrap();
    while last.value != OPERATOR.as_bytes() {
        let FeedEvent::Put(entry, _) = next(&mut feed).await else { panic!() };
        last = entry;
    }
    // Who writes next goes by it, and leaves one row.
    client(&agent, "host/a").compare_and_set("host/1", Some(1), Some(b"{}")).await.unwrap();
    assert_eq!(agent.query("SELECT owner FROM routes WHERE name = 'host/1'"), [["host/a"]]);
}

#[tokio::test]
async fn what_needs_a_compare_and_set_is_refused_with_what_to_do() {
    let agent = Agent::start().await;
    let store = client(&agent, "edge/a");
    let refused = store.compare_and_set("domain/a.example.org", None, Some(b"{}")).await.unwrap_err();
    let said = refused.to_string();
    assert!(matches!(refused, StoreError::Denied(_)) && said.contains("nats, etcd or primary"), "{said}");
    assert_eq!(store.get("domain/a.example.org").await.unwrap(), None);
    // But who asks for them is told that there are none.
    let mut feed = store.subscribe("domain/", None).await.unwrap();
    assert!(snapshot(&mut feed).await.0.is_empty());
}

#[tokio::test]
async fn an_agent_knows_its_token() {
    let agent = Agent::start_secured("secret").await;
    let folder = tempfile::tempdir().unwrap();
    let with = |token: &str| {
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, token).unwrap();
        CorrosionStore::open(&config::CorrosionStore { token_file, ..agent.settings() }, "host/a")
    };
    let store = with("secret\n").unwrap();
    let version = store.compare_and_set("sprite/a", None, Some(b"1")).await.unwrap();
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    assert_eq!(snapshot(&mut feed).await.0["sprite/a"].version, version);
    for wrong in [with("guessed").unwrap(), CorrosionStore::open(&agent.settings(), "host/a").unwrap()] {
        assert!(matches!(wrong.get("sprite/a").await, Err(StoreError::Denied(_))));
        assert!(matches!(wrong.compare_and_set("sprite/a", Some(version), None).await, Err(StoreError::Denied(_))));
        assert!(matches!(wrong.subscribe("sprite/", None).await.map(drop), Err(StoreError::Denied(_))));
    }
    for unusable in ["", "two words", "é"] {
        assert!(matches!(with(unusable).map(drop), Err(StoreError::Denied(_))), "{unusable:?}");
    }
    let missing = config::CorrosionStore { token_file: "/nowhere".into(), ..agent.settings() };
    assert!(matches!(CorrosionStore::open(&missing, "host/a").map(drop), Err(StoreError::Denied(_))));
}

#[tokio::test]
async fn an_agent_without_the_table_is_told_from_one_that_is_away() {
    let agent = Agent::start_without_schema().await;
    let asked = client(&agent, "host/a").get("sprite/a").await;
    assert!(matches!(&asked, Err(StoreError::Unavailable(why)) if why.contains("docs/stores.md")), "{asked:?}");
}
