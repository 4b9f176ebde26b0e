//! wake.md, test 10, on real sockets: what a browser opens again by itself after its sprite fell
//! asleep under it wakes nothing, and a navigation wakes at once. The hour of it in virtual time
//! is `tests/simulation/reconnects.rs`; WebSockets are in `websocket.rs`, too.

use futures_util::{SinkExt, StreamExt};
use harness::client::{Answer, Client, VERSIONS, Version, empty};
use harness::{Demo, Options, within};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::time::Duration;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::{self, Message};

const LIMIT: Duration = Duration::from_secs(30);

async fn start(name: &str) -> Demo {
    let demo = Demo::start(Options { idle_timeout: "300ms".into(), ..Options::default() }).await;
    demo.create_guest(name).await;
    demo.admin(&["sprite", "limits", name, "--silent-sockets", "1s"]).await;
    demo
}

fn events(demo: &Demo, name: &str) -> http::Request<harness::client::RequestBody> {
    let request = demo.request(Method::GET, name, "/events").header("accept", "text/event-stream");
    request.header("cookie", "session=1").body(empty()).unwrap()
}

/// An `EventSource` that has heard its first event.
async fn listen(demo: &Demo, client: &mut Client, name: &str) -> http::Response<Incoming> {
    let mut answer = client.try_send(events(demo, name)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let first = within("the first event", LIMIT, answer.frame()).await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "data: one\n\n");
    answer
}

async fn ends(mut answer: http::Response<Incoming>) {
    within("the stream to end", LIMIT, async { while let Some(Ok(_)) = answer.frame().await {} }).await;
}

fn is_damped(answer: &Answer, pause: &str) {
    assert_eq!((answer.status, answer.header("retry-after")), (503, pause), "{answer:?}");
    assert!(answer.text().contains("asleep_idle"), "{answer:?}");
}

/// Tries to come back, then a page of the same session.
async fn comes_back(demo: &Demo, version: Version, name: &str) {
    let wakes = demo.receipts(name).await.len();
    for pause in ["30", "60", "120"] {
        let mut client = demo.connect(version, name).await;
        is_damped(&client.send(events(demo, name)).await, pause);
    }
    assert_eq!((demo.row(name).await["state"].as_str(), demo.receipts(name).await.len()), (Some("asleep"), wakes));
    let mut client = demo.connect(version, name).await;
    let page = demo.request(Method::GET, name, "/page").header("sec-fetch-mode", "navigate");
    let page = client.send(page.header("cookie", "session=1").body(empty()).unwrap()).await;
    assert_eq!(page.status, 200, "{page:?}");
    assert_eq!(demo.receipts(name).await.len(), wakes + 1);
    listen(demo, &mut client, name).await;
}

#[tokio::test]
async fn a_stream_of_events_that_a_sleep_ended_does_not_wake_and_a_navigation_does() {
    for version in VERSIONS {
        let demo = start("feed").await;
        let mut client = demo.connect(version, "feed").await;
        let stream = listen(&demo, &mut client, "feed").await;
        // Nothing is said on it until the sprite falls asleep.
        ends(stream).await;
        demo.wait_state("feed", "asleep").await;
        comes_back(&demo, version, "feed").await;
        demo.stop().await;
    }
}

/// An order to sleep gives no cordon ahead: the end of the stream may come before the word of it.
#[tokio::test]
async fn the_same_when_it_is_put_to_sleep_by_order() {
    let demo = Demo::new().await;
    for (name, depth) in [("frozen", None), ("ended", Some("--cold"))] {
        demo.create_guest(name).await;
        let mut client = demo.connect(Version::H1, name).await;
        let stream = listen(&demo, &mut client, name).await;
        let order: Vec<_> = ["sprite", "sleep", name].into_iter().chain(depth).collect();
        demo.admin(&order).await;
        ends(stream).await;
        demo.wait_state(name, "asleep").await;
        comes_back(&demo, Version::H1, name).await;
    }
}

#[tokio::test]
async fn a_websocket_that_an_order_ended_does_not_wake() {
    let demo = Demo::new().await;
    let url = format!("wss://{}/ws", demo.authority("chat"));
    let stream = demo.tls("chat", b"http/1.1").await;
    let (mut socket, _) = within("the upgrade", LIMIT, client_async(&url, stream)).await.expect("a WebSocket");
    socket.send(Message::text("anybody?")).await.unwrap();
    within("an echo", LIMIT, socket.next()).await.unwrap().unwrap();
    demo.sleep_warm("chat").await;
    within("the socket to end", LIMIT, async { while let Some(Ok(_)) = socket.next().await {} }).await;
    let refused = client_async(&url, demo.tls("chat", b"http/1.1").await).await.expect_err("it sleeps");
    let tungstenite::Error::Http(answer) = refused else { panic!("{refused}") };
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap()), (503, "30"));
}

/// A guest that dies is no sleep: who listens may come back.
#[tokio::test]
async fn a_stream_that_its_guest_ended_may_wake_it_again() {
    let demo = Demo::new().await;
    demo.create_guest("dies").await;
    let mut client = demo.connect(Version::H1, "dies").await;
    let pid = demo.get("dies", "/").await.json()["pid"].as_i64().unwrap();
    let stream = listen(&demo, &mut client, "dies").await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    ends(stream).await;
    demo.wait_state("dies", "asleep").await;
    let mut client = demo.connect(Version::H1, "dies").await;
    listen(&demo, &mut client, "dies").await;
}
