//! A sprite whose clients or whose guest stop reading slows nobody else.

use harness::client::{Client, VERSIONS, Version, empty, streamed};
use harness::{Demo, tools, until};
use http::Method;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const STALLED: usize = 64;
/// Requests that make a percentile; `tests/run --full` takes enough for a p99 worth quoting.
fn requests() -> usize {
    if std::env::var("EDGE_PROXY_TEST_FULL").is_ok_and(|full| full == "1") { 5_000 } else { 400 }
}

/// Beyond what noise of a shared machine explains; the quiet-machine figure is printed.
const SLACK: Duration = Duration::from_millis(25);
/// The same for the median (chosen: a time slice of a neighbour on a busy machine).
const MEDIAN_SLACK: Duration = Duration::from_millis(2);

#[tokio::test]
async fn downloads_whose_clients_stop_reading_leave_another_sprite_alone() {
    let _quiet = tools::quiet().await;
    for version in VERSIONS {
        let demo = Demo::new().await;
        demo.create_guest("loud").await;
        demo.create_guest("calm").await;
        let before = p99(&demo).await;

        let mut clients = Clients::new(version);
        let mut answers = Vec::new();
        for _ in 0..STALLED {
            let mut client = clients.next(&demo).await;
            let request = demo.request(Method::GET, "loud", "/endless").body(empty()).unwrap();
            // The head is read, the content never.
            answers.push((client.try_send(request).await.unwrap(), client));
        }
        let mut counts = demo.connect(Version::H1, "loud").await;
        let mut last = None;
        let sent = until("the guest's writes to block", Duration::from_secs(60), async || {
            let sent = counts.get(&demo, "loud", "/counts").await.json()["sent"].as_u64();
            tokio::time::sleep(Duration::from_millis(200)).await;
            (std::mem::replace(&mut last, sent) == sent).then_some(sent?)
        })
        .await;
        let during = p99(&demo).await;

        report(&format!("{version:?} downloads, {} MiB in flight", sent >> 20), before, during);
        drop(answers);
    }
}

#[tokio::test]
async fn uploads_to_a_guest_that_stops_reading_leave_another_sprite_alone() {
    let _quiet = tools::quiet().await;
    for version in VERSIONS {
        let demo = Demo::new().await;
        demo.create_guest("loud").await;
        demo.create_guest("calm").await;
        let before = p99(&demo).await;

        let taken = Arc::new(AtomicU64::new(0));
        let mut clients = Clients::new(version);
        let mut exchanges = tokio::task::JoinSet::new();
        for _ in 0..STALLED {
            let mut client = clients.next(&demo).await;
            let (sender, body) = streamed(1);
            let request = demo.request(Method::POST, "loud", "/stall").body(body).unwrap();
            exchanges.spawn(async move { client.try_send(request).await.map(drop).map_err(drop) });
            let taken = Arc::clone(&taken);
            exchanges.spawn(async move {
                while sender.send(vec![0; 64 << 10].into()).await.is_ok() {
                    taken.fetch_add(64 << 10, Ordering::Relaxed);
                }
                Ok(())
            });
        }
        let mut counts = demo.connect(Version::H1, "loud").await;
        until("64 uploads at the guest", Duration::from_secs(60), async || {
            (counts.get(&demo, "loud", "/counts").await.json()["stalled"] == STALLED).then_some(())
        })
        .await;
        let mut last = 0;
        until("the uploads to block", Duration::from_secs(60), async || {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = taken.load(Ordering::Relaxed);
            (std::mem::replace(&mut last, now) == now).then_some(())
        })
        .await;
        let during = p99(&demo).await;

        report(&format!("{version:?} uploads, {} MiB in flight", last >> 20), before, during);
        exchanges.abort_all();
    }
}

/// One connection each on HTTP/1.1; the streams of one connection on HTTP/2.
struct Clients {
    version: Version,
    shared: Option<Client>,
}

impl Clients {
    const fn new(version: Version) -> Self {
        Self { version, shared: None }
    }

    async fn next(&mut self, demo: &Demo) -> Client {
        if self.version == Version::H1 {
            return demo.connect(Version::H1, "loud").await;
        }
        if self.shared.is_none() {
            self.shared = Some(demo.connect(Version::H2, "loud").await);
        }
        self.shared.as_ref().expect("just set").share()
    }
}

/// p50 and p99 of requests to the other sprite, one after the other on one connection.
async fn p99(demo: &Demo) -> (Duration, Duration) {
    let mut client = demo.connect(Version::H1, "calm").await;
    let mut times = Vec::new();
    let count = requests();
    for number in 0..count + 20 {
        let began = Instant::now();
        assert_eq!(client.get(demo, "calm", "/page").await.status, 200);
        // The first wakes it and warms the way.
        if number >= 20 {
            times.push(began.elapsed());
        }
    }
    times.sort_unstable();
    (times[count / 2], times[count * 99 / 100])
}

fn report(what: &str, before: (Duration, Duration), during: (Duration, Duration)) {
    println!("{what}: another sprite's p50 {:?} -> {:?}, p99 {:?} -> {:?}", before.0, during.0, before.1, during.1);
    // A median is robust: half of all requests would have to meet the stalled ones.
    assert!(during.0 <= before.0 * 3 / 2 + MEDIAN_SLACK, "{what}: p50 went from {:?} to {:?}", before.0, during.0);
    assert!(during.1 <= before.1 * 3 + SLACK, "{what}: p99 went from {:?} to {:?}", before.1, during.1);
}
