//! Nothing is buffered, nothing is faked: what a guest says passes when it says it.

use harness::client::{VERSIONS, Version, empty, streamed, whole};
use harness::{Demo, Raw, within};
use http::Method;
use http_body_util::BodyExt;
use std::time::Duration;

#[tokio::test]
async fn an_event_arrives_before_the_stream_ends() {
    let demo = Demo::new().await;
    for version in VERSIONS {
        let name = if version == Version::H1 { "events-1" } else { "events-2" };
        demo.create_guest(name).await;
        let mut client = demo.connect(version, name).await;
        let request = demo.request(Method::GET, name, "/events").body(empty()).unwrap();
        let mut answer = client.try_send(request).await.unwrap();
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let first = within("the first event", Duration::from_secs(10), answer.frame()).await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "data: one\n\n");

        // Only now may the guest go on.
        assert_eq!(demo.get(name, "/release").await.status, 200);
        let rest = within("the second event", Duration::from_secs(10), whole(answer)).await.unwrap();

        assert_eq!(rest.text(), "data: two\n\n", "{version:?}");
    }
}

#[tokio::test]
async fn the_clock_sample_ticks() {
    let demo = Demo::new().await;
    let mut client = demo.connect(Version::H2, "clock").await;
    let request =
        demo.request(Method::GET, "clock", "/events").header("accept", "text/event-stream").body(empty()).unwrap();
    let mut answer = client.try_send(request).await.unwrap();
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"), "{answer:?}");
    let mut seen = String::new();
    while seen.matches("data:").count() < 2 {
        let frame = within("a tick", Duration::from_secs(10), answer.frame()).await.unwrap().unwrap();
        seen.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap()));
    }
}

#[tokio::test]
async fn an_upload_reaches_the_guest_piece_by_piece() {
    let demo = Demo::new().await;
    demo.create_guest("pieces").await;
    for version in VERSIONS {
        let mut client = demo.connect(version, "pieces").await;
        let (sender, body) = streamed(1);
        sender.send("ping 0".into()).await.unwrap();
        let request = demo.request(Method::POST, "pieces", "/echo").body(body).unwrap();
        let mut answer =
            within("the head before the upload ends", Duration::from_secs(20), client.try_send(request)).await.unwrap();
        for round in 0..5 {
            let frame = within("a piece echoed", Duration::from_secs(10), answer.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), format!("ping {round}"), "{version:?}");
            sender.send(format!("ping {}", round + 1).into()).await.unwrap();
        }
        drop(sender);
        let rest = whole(answer).await.unwrap();
        assert_eq!(rest.text(), "ping 5", "{version:?}");
    }
}

#[tokio::test]
async fn trailers_of_an_answer_pass() {
    let demo = Demo::new().await;
    demo.create_guest("trailing").await;
    let mut raw = Raw::connect(&demo, "trailing").await;
    raw.send_head(&demo, "trailing", "GET /trailers", &["TE: trailers"]).await;
    let head = raw.head().await;
    let (content, trailers) = raw.body(&head).await;
    assert_eq!(content, b"first second");
    assert_eq!(trailers, [("x-sum".to_owned(), "12".to_owned())], "h1");

    let mut client = demo.connect(Version::H2, "trailing").await;
    let request = demo.request(Method::GET, "trailing", "/trailers").header("te", "trailers").body(empty()).unwrap();
    let answer = client.send(request).await;
    assert_eq!(answer.text(), "first second");
    assert_eq!(answer.trailers.expect("trailers over h2")["x-sum"], "12");
}

#[tokio::test]
async fn trailers_of_an_upload_pass() {
    let demo = Demo::new().await;
    demo.create_guest("trailing").await;
    let mut raw = Raw::connect(&demo, "trailing").await;
    raw.send_head(&demo, "trailing", "POST /sha", &["Transfer-Encoding: chunked", "Trailer: X-Sum"]).await;
    raw.send("5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n").await;
    let head = raw.head().await;
    let (content, _) = raw.body(&head).await;
    let seen: serde_json::Value = serde_json::from_slice(&content).unwrap();
    assert_eq!(seen["bytes"], 5);
    assert_eq!(seen["trailers"], serde_json::json!([["x-sum", "5"]]));
}

#[tokio::test]
async fn early_hints_pass_on_h1() {
    let demo = Demo::new().await;
    demo.create_guest("hints").await;
    // Asleep, then running: an interim answer passes either way.
    for _ in 0..2 {
        let mut raw = Raw::connect(&demo, "hints").await;
        raw.send_head(&demo, "hints", "GET /hints", &[]).await;
        let hint = raw.head().await;
        assert_eq!((hint.status, hint.header("link")), (103, Some("</style.css>; rel=preload")));
        let head = raw.head().await;
        assert_eq!((head.status, raw.body(&head).await.0), (200, b"hinted".to_vec()));
    }
    // A client that cannot know them (HTTP/1.0) never sees one (RFC 9110 §15.2).
    let mut raw = Raw::connect(&demo, "hints").await;
    raw.send(format!("GET /hints HTTP/1.0\r\nHost: {}\r\n\r\n", demo.authority("hints"))).await;
    assert_eq!(raw.head().await.status, 200);
}

#[tokio::test]
async fn a_100_continue_is_the_guests_or_none() {
    let demo = Demo::new().await;
    demo.create_guest("expects").await;
    let expect = ["Content-Length: 5", "Expect: 100-continue"];
    for asleep in [true, false] {
        if !asleep {
            assert_eq!(demo.get("expects", "/").await.status, 200);
        }
        // Refused without a byte of the body: no 100 comes first.
        let mut raw = Raw::connect(&demo, "expects").await;
        raw.send_head(&demo, "expects", "POST /expect-refused", &expect).await;
        let head = raw.head().await;
        assert_eq!(head.status, 417, "asleep: {asleep}");

        // Accepted: the guest's own 100, then the body goes, then the answer.
        let mut raw = Raw::connect(&demo, "expects").await;
        raw.send_head(&demo, "expects", "POST /expect-accepted", &expect).await;
        assert_eq!(raw.head().await.status, 100);
        raw.send("hello").await;
        let head = raw.head().await;
        assert_eq!(head.status, 200);
        let seen: serde_json::Value = serde_json::from_slice(&raw.body(&head).await.0).unwrap();
        assert_eq!(seen["bytes"], 5);
    }
}

#[tokio::test]
async fn nothing_is_said_while_a_request_is_held() {
    let demo = Demo::new().await;
    let gate = demo.create_gated("silent").await;
    let mut raw = Raw::connect(&demo, "silent").await;
    raw.send_head(&demo, "silent", "POST /sha", &["Content-Length: 5", "Expect: 100-continue"]).await;
    demo.wait_held(1).await;
    assert!(!raw.speaks_within(Duration::from_millis(500)).await, "no 100, no 102, not a byte");
    gate.open();
    // The guest answers when it has the body; a client need not wait for a 100 (RFC 9110 §10.1.1).
    raw.send("hello").await;
    assert_eq!(raw.head().await.status, 200);
}
