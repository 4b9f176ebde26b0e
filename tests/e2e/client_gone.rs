//! wake.md, test 3: a client that leaves while held frees its place within a second, however
//! it leaves, and takes nobody with it.

use harness::client::{Version, empty, streamed};
use harness::{Demo, Raw, until};
use http::Method;
use std::time::{Duration, Instant};

/// The promise.
const FREED_WITHIN: Duration = Duration::from_secs(1);

/// How a held HTTP/1.1 client left.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Closes,
    Resets,
}

#[tokio::test]
async fn an_h1_client_that_leaves_frees_its_place() {
    let demo = Demo::new().await;
    let chunked = "Transfer-Encoding: chunked";
    let cases: [(&str, &str, &[&str], &[u8]); 6] = [
        ("a plain GET", "GET /", &[], b""),
        ("a GET with a pipelined byte", "GET /", &[], b"G"),
        ("a GET with a pipelined request", "GET /", &[], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("a POST with Expect and no body", "POST /sha", &["Content-Length: 5", "Expect: 100-continue"], b""),
        ("a half-sent chunked upload", "POST /sha", &[chunked], b"5\r\nhello\r\n5\r\nhel"),
        ("a half-sent large upload", "POST /sha", &["Content-Length: 100000000"], &[b'x'; 100_000]),
    ];
    for (number, (what, request, lines, body)) in cases.into_iter().enumerate() {
        // A sprite each: one that does not listen for ten seconds fails its wake.
        let name = format!("held-{number}");
        let gate = demo.create_gated(&name).await;
        for leaves in [Leaves::Closes, Leaves::Resets] {
            let mut client = Raw::connect(&demo, &name).await;
            client.send_head(&demo, &name, request, lines).await;
            client.send(body).await;
            demo.wait_held(1).await;
            match leaves {
                Leaves::Closes => drop(client),
                Leaves::Resets => client.reset(),
            }
            freed(&demo, &format!("{what}, {leaves:?}")).await;
        }
        gate.open();
        assert_eq!(demo.get(&name, "/").await.status, 200, "after {what} the sprite is as good as new");
    }
}

#[tokio::test]
async fn an_h2_client_that_resets_its_stream_frees_its_place() {
    let demo = Demo::new().await;
    let gate = demo.create_gated("held").await;
    let client = demo.connect(Version::H2, "held").await;
    for with_body in [false, true] {
        let (sender, body) = streamed(1);
        let body = if with_body { body } else { empty() };
        if with_body {
            sender.send("part of it".into()).await.unwrap();
        }
        let request = demo.request(Method::POST, "held", "/sha").body(body).unwrap();
        let mut stream = client.share();
        let exchange = tokio::spawn(async move { stream.try_send(request).await.map(drop) });
        demo.wait_held(1).await;
        // Dropping a pending exchange sends RST_STREAM; the connection stays.
        exchange.abort();
        freed(&demo, &format!("RST_STREAM, body: {with_body}")).await;
    }
    gate.open();
    let answer = client.share().get(&demo, "held", "/").await;
    assert_eq!(answer.status, 200, "the connection serves on");
}

#[tokio::test]
async fn an_h2_connection_that_ends_frees_all_its_places() {
    let demo = Demo::new().await;
    let _gate = demo.create_gated("held").await;
    let mut client = demo.connect(Version::H2, "held").await;
    let mut exchanges = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (mut stream, request) = (client.share(), demo.request(Method::GET, "held", "/").body(empty()).unwrap());
        exchanges.spawn(async move { stream.try_send(request).await.map(drop) });
    }
    demo.wait_held(20).await;
    exchanges.abort_all();
    client = demo.connect(Version::H1, "held").await;
    freed(&demo, "20 streams").await;
    drop(client);
}

#[tokio::test]
async fn the_first_that_leaves_takes_nobody_with_it() {
    let demo = Demo::new().await;
    let gate = demo.create_gated("held").await;
    let mut leader = Raw::connect(&demo, "held").await;
    leader.send_head(&demo, "held", "GET /", &[]).await;
    demo.wait_held(1).await;
    let mut others = Vec::new();
    for _ in 0..9 {
        let mut other = Raw::connect(&demo, "held").await;
        other.send_head(&demo, "held", "GET /", &[]).await;
        others.push(other);
    }
    demo.wait_held(10).await;

    leader.reset();
    demo.wait_held(9).await;
    gate.open();

    for other in &mut others {
        let head = other.head().await;
        assert_eq!(head.status, 200);
    }
    assert_eq!(demo.receipts("held").await.len(), 1);
}

#[tokio::test]
async fn a_half_close_is_no_leaving() {
    let demo = Demo::new().await;
    let gate = demo.create_gated("held").await;
    let mut client = Raw::connect(&demo, "held").await;
    client.send_head(&demo, "held", "POST /sha", &["Content-Length: 0", "Connection: close"]).await;
    demo.wait_held(1).await;
    gate.open();
    let head = client.head().await;
    assert_eq!(head.status, 200);
}

/// The count of held requests goes to zero; a look that begins within the limit proves it.
async fn freed(demo: &Demo, what: &str) {
    let left = Instant::now();
    let after = until(&format!("the place of: {what}"), Duration::from_secs(10), async || {
        let asked = left.elapsed();
        (demo.held().await == 0).then_some(asked)
    })
    .await;
    assert!(after <= FREED_WITHIN, "{what}: freed only after {after:?}");
}
