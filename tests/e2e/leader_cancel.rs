//! wake.md, test 2: of many that wait, the first may leave at any time and takes nobody with
//! it; and when all leave, nothing starts, or what started sleeps again at once.

use harness::client::{Version, empty};
use harness::guest::shell;
use harness::{Client, Demo, Options, until};
use http::Method;
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinHandle;

const WAITERS: usize = 50;
/// `abandoned_timeout` of the host here; 5 s by default.
const ABANDONED: Duration = Duration::from_secs(1);

type Exchange = JoinHandle<u16>;

/// One held request on a stream of its own; it leaves when it is aborted.
fn visit(demo: &Demo, client: &Client, name: &str) -> Exchange {
    let (mut stream, request) = (client.share(), demo.request(Method::GET, name, "/").body(empty()).unwrap());
    tokio::spawn(async move { stream.send(request).await.status })
}

/// `WAITERS` of them, the first one alone before the others.
async fn crowd(demo: &Demo, name: &str) -> (Exchange, Vec<Exchange>) {
    let client = demo.connect(Version::H2, name).await;
    let leader = visit(demo, &client, name);
    demo.wait_held(1).await;
    let others = (1..WAITERS).map(|_| visit(demo, &client, name)).collect();
    demo.wait_held(WAITERS as u64).await;
    (leader, others)
}

/// What is counted of wakes nobody waited for.
async fn unwanted(demo: &Demo) -> Vec<String> {
    let metrics = String::from_utf8(demo.try_admin(&["metrics"]).await.stdout).unwrap();
    let counts = |line: &&str| line.starts_with("wakes_withdrawn_total") || line.starts_with("wakes_abandoned_total");
    metrics.lines().filter(counts).map(str::to_owned).collect()
}

async fn all_served(others: Vec<Exchange>) {
    for (number, answer) in futures_util::future::join_all(others).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap(), 200, "waiter {number}");
    }
}

#[tokio::test]
async fn the_leader_leaves_while_the_guest_starts_and_49_are_served_by_one_start() {
    let demo = Demo::new().await;
    let gate = demo.create_gated("crowd").await;
    let (leader, others) = crowd(&demo, "crowd").await;
    leader.abort();
    demo.wait_held(WAITERS as u64 - 1).await;
    gate.open();
    all_served(others).await;
    assert_eq!(demo.get("crowd", "/").await.json()["starts"], 1);
    assert_eq!(demo.receipts("crowd").await.len(), 1);
    assert_eq!(demo.held().await, 0);
}

/// One start at a time, and one that takes it until the gate is open, and then fails: what
/// comes next is queued.
async fn busy_host() -> (Demo, PathBuf, Exchange) {
    let config = "[host]\nstart_slots = 1\n".to_owned();
    let demo = Demo::start(Options { config: Some(config), ..Options::default() }).await;
    let gate = demo.data().join("gate");
    let wake = format!("while [ ! -e {} ]; do sleep 0.02; done; exit 1", shell(&gate));
    demo.admin(&["sprite", "create", "before", "--public", "--wake-command", &wake, "--sleep-command", "true"]).await;
    let client = demo.connect(Version::H2, "before").await;
    let before = visit(&demo, &client, "before");
    demo.wait_held(1).await;
    demo.wait_state("before", "waking").await;
    (demo, gate, before)
}

#[tokio::test]
async fn the_leader_leaves_in_the_queue_of_starts_and_49_are_served_by_one_start() {
    let (demo, gate, before) = busy_host().await;
    demo.create_guest("crowd").await;
    let client = demo.connect(Version::H2, "crowd").await;
    let leader = visit(&demo, &client, "crowd");
    demo.wait_held(2).await;
    let others: Vec<_> = (1..WAITERS).map(|_| visit(&demo, &client, "crowd")).collect();
    demo.wait_held(WAITERS as u64 + 1).await;
    leader.abort();
    demo.wait_held(WAITERS as u64).await;
    std::fs::write(&gate, b"").unwrap();
    assert_eq!(before.await.unwrap(), 503);
    all_served(others).await;
    assert_eq!(demo.get("crowd", "/").await.json()["starts"], 1);
    assert_eq!(demo.receipts("crowd").await.len(), 1);
}

#[tokio::test]
async fn all_leave_before_the_start_and_nothing_ever_runs() {
    let (demo, gate, before) = busy_host().await;
    demo.create("crowd", &format!("echo started > started; {}", demo.guest_command())).await;
    let client = demo.connect(Version::H2, "crowd").await;
    let all: Vec<_> = (0..WAITERS).map(|_| visit(&demo, &client, "crowd")).collect();
    demo.wait_held(WAITERS as u64 + 1).await;
    all.iter().for_each(Exchange::abort);
    demo.wait_held(1).await;
    demo.wait_state("crowd", "asleep").await;
    assert_eq!(unwanted(&demo).await, ["wakes_withdrawn_total 1", "wakes_abandoned_total 0"]);
    std::fs::write(&gate, b"").unwrap();
    assert_eq!(before.await.unwrap(), 503);
    // Its place in the queue is over; the next in it starts, and it would have been the next.
    demo.create_guest("after").await;
    assert_eq!(demo.get("after", "/").await.status, 200);
    assert_eq!(demo.row("crowd").await["run"], 0);
    assert!(!demo.data().join("sprites/crowd/data/started").exists());
    assert_eq!(demo.get("crowd", "/").await.json()["starts"], 1, "and it is as good as new");
}

#[tokio::test]
async fn all_leave_after_the_start_and_it_sleeps_again_soon() {
    let config = "[host]\nidle_timeout = \"10m\"\nabandoned_timeout = \"1s\"\n".to_owned();
    let demo = Demo::start(Options { config: Some(config), ..Options::default() }).await;
    let gate = demo.create_gated("crowd").await;
    let (leader, others) = crowd(&demo, "crowd").await;
    demo.wait_state("crowd", "waking").await;
    leader.abort();
    others.iter().for_each(Exchange::abort);
    demo.wait_held(0).await;
    gate.open();
    // The wake is finished, nobody is there: not the idle timeout of ten minutes.
    until("the abandoned wake to sleep", ABANDONED + Duration::from_secs(14), async || {
        let row = demo.look("crowd").await;
        (row["state"] == "asleep").then_some(())
    })
    .await;
    assert_eq!(demo.receipts("crowd").await.len(), 1);
    assert_eq!(unwanted(&demo).await, ["wakes_withdrawn_total 0", "wakes_abandoned_total 1"]);
    let answer = demo.get("crowd", "/").await;
    assert_eq!((answer.status, &answer.json()["starts"]), (200, &1.into()), "{answer:?}");
}
