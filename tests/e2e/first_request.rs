//! wake.md, test 4: the first request is never special. Whatever it is, a sleeping sprite's
//! answer is the running one's to the byte, and never a 5xx.
//!
//! Over HTTP/1.1 and HTTP/2; WebSocket over HTTP/2 and both over HTTP/3 are not the edge's yet.

use futures_util::{SinkExt, StreamExt};
use harness::client::{Answer, VERSIONS, Version, empty, full, streamed};
use harness::{Demo, Options, Raw, within};
use http::Method;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

/// Sleeps of one kind, and of one that carries [`LARGE`]; in full as wake.md has it.
const CYCLES: usize = 20;
const CYCLES_LARGE: usize = 4;
const CYCLES_FULL: usize = 1_000;
/// Every so many sleeps are cold: a start of an interpreter each.
const COLD_EVERY: usize = 7;
const LARGE: usize = 8 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Get,
    PostByte,
    PostLarge,
    PostLargeExpecting,
    PostChunked,
    GrpcUnary,
    ServerStream,
    Events,
    WebSocket,
}

const KINDS: [Kind; 9] = [
    Kind::Get,
    Kind::PostByte,
    Kind::PostLarge,
    Kind::PostLargeExpecting,
    Kind::PostChunked,
    Kind::GrpcUnary,
    Kind::ServerStream,
    Kind::Events,
    Kind::WebSocket,
];

impl Kind {
    fn speaks(self, version: Version) -> bool {
        match self {
            Self::GrpcUnary => version == Version::H2,
            Self::WebSocket => version == Version::H1,
            _ => true,
        }
    }

    fn is_large(self) -> bool {
        matches!(self, Self::PostLarge | Self::PostLargeExpecting | Self::PostChunked)
    }

    fn cycles(self) -> usize {
        match std::env::var_os("EDGE_PROXY_TEST_FULL").is_some_and(|full| full == "1") {
            true => CYCLES_FULL,
            false if self.is_large() => CYCLES_LARGE,
            false => CYCLES,
        }
    }
}

/// What a client sees, without what the edge says of a wake and what differs each time.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    trailers: Vec<(String, String)>,
}

const VARYING: [&str; 6] =
    ["date", "x-request-id", "sprite-wake", "server-timing", "proxy-status", "sec-websocket-accept"];

impl Seen {
    fn of(status: u16, headers: &[(String, String)], body: &[u8], trailers: Vec<(String, String)>) -> Self {
        let mut headers = headers.to_vec();
        headers.retain(|(name, _)| !VARYING.contains(&name.as_str()));
        headers.sort();
        Self { status, headers, body: body.to_vec(), trailers }
    }

    fn answer(answer: &Answer) -> (Self, String) {
        let trailers = answer.trailers.as_ref().map(lines).unwrap_or_default();
        let seen = Self::of(answer.status, &lines(&answer.headers), &answer.body, trailers);
        (seen, answer.header("sprite-wake").to_owned())
    }
}

fn lines(headers: &http::HeaderMap) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into())).collect()
}

/// One exchange on a new connection from `source`; what was seen, and how the sprite came to run.
async fn exchange(demo: &Demo, kind: Kind, version: Version, name: &str, source: Ipv4Addr) -> (Seen, String) {
    match kind {
        Kind::WebSocket => return socket(demo, name, source).await,
        Kind::PostLargeExpecting if version == Version::H1 => return expecting(demo, name, source).await,
        _ => {}
    }
    let get = |path: &str| demo.request(Method::GET, name, path).body(empty()).unwrap();
    let post = |path: &str| demo.request(Method::POST, name, path);
    let request = match kind {
        Kind::Get => get("/page"),
        Kind::ServerStream => get("/bytes?200000"),
        Kind::Events => get("/feed"),
        Kind::PostByte => post("/sha").body(full("x")).unwrap(),
        Kind::PostLarge => post("/sha").body(full(large())).unwrap(),
        Kind::PostLargeExpecting => {
            post("/expect-accepted").header("expect", "100-continue").body(full(large())).unwrap()
        }
        Kind::PostChunked => {
            let (sender, body) = streamed(2);
            tokio::spawn(async move {
                for piece in large().chunks(100_000) {
                    if sender.send(piece.to_vec().into()).await.is_err() {
                        return;
                    }
                }
            });
            post("/sha").body(body).unwrap()
        }
        Kind::GrpcUnary => post("/unary")
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .body(full(&b"\0\0\0\0\x05hello"[..]))
            .unwrap(),
        Kind::WebSocket => unreachable!("answered above"),
    };
    let mut client = demo.connect_from(source, version, name).await;
    Seen::answer(&client.send(request).await)
}

/// A body in which every piece differs, so that a lost, doubled or swapped one shows.
fn large() -> Vec<u8> {
    (0..(LARGE / 8) as u64).flat_map(u64::to_be_bytes).collect()
}

/// Waits for the guest's 100 before it sends a byte, as curl does.
async fn expecting(demo: &Demo, name: &str, source: Ipv4Addr) -> (Seen, String) {
    let mut raw = Raw::over(demo.tls_from(source, name, b"http/1.1").await);
    let length = format!("Content-Length: {LARGE}");
    raw.send_head(demo, name, "POST /expect-accepted", &[&length, "Expect: 100-continue"]).await;
    let interim = raw.head().await;
    assert_eq!(interim.status, 100, "{interim:?}");
    raw.send(large()).await;
    let head = raw.head().await;
    let (body, trailers) = raw.body(&head).await;
    let wake = head.header("sprite-wake").unwrap_or_default().to_owned();
    (Seen::of(head.status, &head.headers, &body, trailers), wake)
}

/// One message there and back.
async fn socket(demo: &Demo, name: &str, source: Ipv4Addr) -> (Seen, String) {
    within("a WebSocket's life", LIMIT, async {
        let stream = demo.tls_from(source, name, b"http/1.1").await;
        let url = format!("wss://{}/ws", demo.authority(name));
        let (mut socket, upgrade) = client_async(url, stream).await.expect("a WebSocket");
        socket.send(Message::text("first words")).await.unwrap();
        let echo = socket.next().await.expect("an echo").expect("an echo").into_data();
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
        let seen = Seen::of(upgrade.status().as_u16(), &lines(upgrade.headers()), &echo, Vec::new());
        (seen, upgrade.headers().get("sprite-wake").map_or("", |value| value.to_str().unwrap()).to_owned())
    })
    .await
}

/// Sleeps and first requests of one kind; how many were cold and how many warm.
async fn cycles(demo: &Demo, kind: Kind, version: Version, number: u8) -> (usize, usize) {
    let name = format!("first-{number}");
    demo.create_guest(&name).await;
    // What it is compared with comes from a running sprite.
    demo.api(Method::POST, &format!("/v1/sprites/{name}/wake")).await;
    let here = Ipv4Addr::new(127, number + 1, 0, 1);
    let (expected, wake) = exchange(demo, kind, version, &name, here).await;
    assert!(matches!(wake.as_str(), "" | "none"), "{kind:?} {version:?}: it runs, {wake}");
    let (mut cold, mut warm) = (0, 0);
    for cycle in 0..kind.cycles() {
        match cycle % COLD_EVERY == COLD_EVERY - 1 {
            true => demo.sleep_cold(&name).await,
            false => demo.lull(&name).await,
        }
        let source = Ipv4Addr::new(127, number + 1, (cycle / 250) as u8 + 1, (cycle % 250) as u8 + 1);
        let (seen, wake) = exchange(demo, kind, version, &name, source).await;
        match wake.as_str() {
            "cold" => cold += 1,
            "warm" => warm += 1,
            other => panic!("{kind:?} {version:?} {cycle}: Sprite-Wake {other:?}, it was asleep"),
        }
        assert!(seen.status < 300, "{kind:?} {version:?} {cycle}: {}", seen.status);
        assert!(seen == expected, "{kind:?} {version:?} {cycle}: {seen:?}, not {expected:?}");
    }
    (cold, warm)
}

#[tokio::test]
async fn the_first_request_is_never_special() {
    let config = "[host]\nidle_timeout = \"10m\"\nwakes_per_hour = 0\n[hold]\nwasted_wakes_per_hour = 0\n".to_owned();
    let demo = Demo::start(Options { config: Some(config), ..Options::default() }).await;
    let began = Instant::now();
    let pairs = VERSIONS.into_iter().flat_map(|version| KINDS.map(|kind| (kind, version)));
    let pairs: Vec<_> = pairs.filter(|(kind, version)| kind.speaks(*version)).collect();
    let each = pairs.iter().zip(0..).map(|(&(kind, version), number)| cycles(&demo, kind, version, number));
    let counts = futures_util::future::join_all(each).await;
    for ((kind, version), (cold, warm)) in pairs.iter().zip(&counts) {
        println!("{kind:?} over {version:?}: {} first requests, {cold} cold, {warm} warm", cold + warm);
    }
    println!("{} kinds in {:.1} s", pairs.len(), began.elapsed().as_secs_f64());
    assert_eq!(demo.held().await, 0);
    demo.stop().await;
}
