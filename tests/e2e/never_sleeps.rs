//! wake.md, test 9: the hunt for what keeps a sprite awake for ever. Clients that break off in
//! every way, at once or after a silence, and connections that stay without a request: all of
//! it sleeps in time, and the first request afterwards is served.
//!
//! One host: an edge that is killed takes its owner along (`demo_contract.rs`, `ledger.rs`).

use futures_util::SinkExt;
use harness::client::{VERSIONS, Version, empty, streamed};
use harness::{Client, Demo, Options, Raw, within};
use http::Method;
use http_body_util::BodyExt;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

/// Of the host here.
const CONFIG: &str = "[host]\nidle_timeout = \"1s\"\nminimum_run = \"0s\"\nwakes_per_hour = 0\n\
                      [hold]\nwasted_wakes_per_hour = 0\n";
/// I5 of wake.md: the idle timeout, the life of a lease (15 s), and 1 s; 8 s more because the
/// machine is busy with other tests.
const ASLEEP_WITHIN: Duration = Duration::from_secs(1 + 15 + 1 + 8);
/// What is open and says nothing keeps it awake this long here, twice its idle timeout.
const SILENCE: Duration = Duration::from_secs(2);
/// As in the report of other proxies that this comes from.
const QUIET: usize = 60;

async fn start() -> Demo {
    Demo::start(Options { config: Some(CONFIG.into()), ..Options::default() }).await
}

/// The moment after which it should sleep was `since`.
async fn sleeps(demo: &Demo, name: &str, since: Instant) {
    let row = demo.look_until(name, "asleep", ASLEEP_WITHIN.saturating_sub(since.elapsed())).await;
    println!("{name}: asleep after {:.1} s", since.elapsed().as_secs_f64());
    assert_eq!(row["warmth"], "warm", "{row}");
    let answer = demo.get(name, "/").await;
    assert_eq!((answer.status, answer.header("sprite-wake")), (200, "warm"), "{name}: {answer:?}");
}

/// What a client has left open; dropped at the end of a test, or at once.
#[allow(dead_code, reason = "held for its drop")]
enum Left {
    Nothing,
    Client(Client),
    Stream(Box<TlsStream<TcpStream>>),
    Answer(Client, http::Response<hyper::body::Incoming>),
    Socket(Box<WebSocketStream<TlsStream<TcpStream>>>),
}

/// A way to be a bad client. Each begins with a sprite that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    UploadReset,
    UploadHangs,
    UploadStreamReset,
    DownloadReset(Version),
    DownloadHangs,
    IdleConnection(Version),
    HalfHead,
    HalfClosed,
    SilentEvents(Version),
    SocketKilled,
    SocketSilent,
    GuestStalls,
}

const WAYS: [Way; 15] = [
    Way::UploadReset,
    Way::UploadHangs,
    Way::UploadStreamReset,
    Way::DownloadReset(Version::H1),
    Way::DownloadReset(Version::H2),
    Way::DownloadHangs,
    Way::IdleConnection(Version::H1),
    Way::IdleConnection(Version::H2),
    Way::HalfHead,
    Way::HalfClosed,
    Way::SilentEvents(Version::H1),
    Way::SilentEvents(Version::H2),
    Way::SocketKilled,
    Way::SocketSilent,
    Way::GuestStalls,
];

const CHUNKED: &str = "Transfer-Encoding: chunked";

async fn misbehave(demo: &Demo, way: Way, name: &str) -> Left {
    match way {
        Way::UploadReset | Way::UploadHangs => {
            let mut raw = Raw::connect(demo, name).await;
            raw.send_head(demo, name, "POST /echo", &[CHUNKED]).await;
            raw.send("5\r\nhello\r\n5\r\nhel").await;
            assert_eq!(raw.head().await.status, 200, "the guest has begun to read");
            if way == Way::UploadHangs {
                return Left::Stream(Box::new(raw.into_stream()));
            }
            raw.reset();
        }
        Way::UploadStreamReset => {
            let client = demo.connect(Version::H2, name).await;
            let (sender, body) = streamed(1);
            sender.send("hello".into()).await.unwrap();
            let request = demo.request(Method::POST, name, "/echo").body(body).unwrap();
            let answer = client.share().try_send(request).await.unwrap();
            // RST_STREAM; the connection stays.
            drop(answer);
            return Left::Client(client);
        }
        Way::DownloadReset(Version::H1) | Way::DownloadHangs => {
            let mut raw = Raw::connect(demo, name).await;
            raw.send_head(demo, name, "GET /endless", &[]).await;
            assert_eq!(raw.head().await.status, 200);
            if way == Way::DownloadHangs {
                return Left::Stream(Box::new(raw.into_stream()));
            }
            raw.reset();
        }
        Way::DownloadReset(Version::H2) => {
            let client = demo.connect(Version::H2, name).await;
            let request = demo.request(Method::GET, name, "/endless").body(empty()).unwrap();
            let mut answer = client.share().try_send(request).await.unwrap();
            answer.frame().await.unwrap().unwrap();
            drop(answer);
            return Left::Client(client);
        }
        Way::IdleConnection(version) => {
            let mut client = demo.connect(version, name).await;
            assert_eq!(client.get(demo, name, "/").await.status, 200);
            return Left::Client(client);
        }
        Way::HalfHead => {
            let mut raw = Raw::connect(demo, name).await;
            raw.send(format!("GET / HTTP/1.1\r\nHost: {}\r\nX-Half: ", demo.authority(name))).await;
            return Left::Stream(Box::new(raw.into_stream()));
        }
        Way::HalfClosed => {
            let mut raw = Raw::connect(demo, name).await;
            raw.send_head(demo, name, "GET /events", &[]).await;
            assert_eq!(raw.head().await.status, 200);
            raw.finish().await;
            return Left::Stream(Box::new(raw.into_stream()));
        }
        Way::SilentEvents(version) => {
            let mut client = demo.connect(version, name).await;
            let request = demo.request(Method::GET, name, "/events").header("accept", "text/event-stream");
            let mut answer = client.try_send(request.body(empty()).unwrap()).await.unwrap();
            answer.frame().await.unwrap().unwrap();
            return Left::Answer(client, answer);
        }
        Way::SocketKilled | Way::SocketSilent => {
            let stream = demo.tls(name, b"http/1.1").await;
            let url = format!("wss://{}/ws", demo.authority(name));
            let (mut socket, _) = client_async(url, stream).await.expect("a WebSocket");
            if way == Way::SocketSilent {
                return Left::Socket(Box::new(socket));
            }
            // Half a message: its frame promises more than comes.
            socket.feed(Message::text("never")).await.unwrap();
            socket.get_ref().get_ref().0.set_zero_linger().unwrap();
        }
        Way::GuestStalls => {
            let mut raw = Raw::connect(demo, name).await;
            raw.send_head(demo, name, "POST /stall", &["Content-Length: 100000000"]).await;
            raw.send(vec![b'x'; 100_000]).await;
            // The guest reads no further, the client says no more: open and silent.
            return Left::Stream(Box::new(raw.into_stream()));
        }
    }
    Left::Nothing
}

impl Left {
    /// Its client dies: its connections are reset where the test holds them, closed elsewhere.
    fn vanish(self) -> Self {
        match self {
            Self::Stream(stream) => stream.get_ref().0.set_zero_linger().unwrap(),
            Self::Socket(socket) => socket.get_ref().get_ref().0.set_zero_linger().unwrap(),
            // Its connection must stay: the stream was reset.
            Self::Client(_) => return self,
            Self::Answer(..) | Self::Nothing => {}
        }
        Self::Nothing
    }

    /// Still there, and what it is.
    const fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Client(_) => "a connection",
            Self::Stream(_) => "a stream of bytes",
            Self::Answer(..) => "an answer",
            Self::Socket(_) => "a WebSocket",
        }
    }
}

#[tokio::test]
async fn whatever_clients_leave_behind_a_sprite_falls_asleep() {
    let demo = start().await;
    let each = WAYS.iter().enumerate().map(async |(number, &way)| {
        let name = format!("hunted-{number}");
        demo.create_guest(&name).await;
        let first = demo.get(&name, "/").await;
        assert_eq!(first.status, 200, "{first:?}");
        let left = within(&format!("{way:?}"), Duration::from_secs(30), misbehave(&demo, way, &name)).await;
        let stays = matches!(way, Way::IdleConnection(_) | Way::HalfHead);
        if !stays && !matches!(left, Left::Nothing | Left::Client(_)) && way != Way::HalfClosed {
            // Not asleep under an open request; then its client is gone without a word.
            tokio::time::sleep(SILENCE).await;
            // It may be about to sleep until its edge is asked.
            demo.look_until(&name, "running", Duration::from_secs(30)).await;
            let receipts = demo.receipts(&name).await;
            assert_eq!(receipts.len(), 1, "{way:?}: {receipts:?}");
        }
        let left = if stays { left } else { left.vanish() };
        println!("{name}: {way:?} leaves {}", left.name());
        sleeps(&demo, &name, Instant::now()).await;
        drop(left);
    });
    futures_util::future::join_all(each).await;
    assert_eq!(demo.held().await, 0);
    demo.stop().await;
}

#[tokio::test]
async fn sixty_that_were_busy_and_are_quiet_all_sleep() {
    let demo = start().await;
    for number in 0..QUIET {
        // A program of ours: sixty interpreters would be the test's own load.
        demo.create(&format!("quiet-{number}"), "exec \"$EDGE_PROXY\" sample hello").await;
    }
    let mut kept = Vec::new();
    for number in 0..QUIET {
        let name = format!("quiet-{number}");
        let mut client = demo.connect(VERSIONS[number % 2], &name).await;
        for _ in 0..3 {
            assert_eq!(client.get(&demo, &name, "/").await.status, 200, "{name}");
        }
        kept.push(client);
    }
    let quiet = Instant::now();
    harness::until("all sixty asleep", ASLEEP_WITHIN, async || {
        let rows = demo.api(Method::GET, "/v1/sprites").await;
        let awake = rows.as_array().unwrap().iter().filter(|row| row["state"] != "asleep").count();
        (awake == 0).then_some(())
    })
    .await;
    println!("{QUIET} asleep after {:.1} s", quiet.elapsed().as_secs_f64());
    for (number, client) in kept.iter_mut().enumerate().step_by(7) {
        let answer = client.get(&demo, &format!("quiet-{number}"), "/").await;
        assert_eq!((answer.status, answer.header("sprite-wake")), (200, "warm"), "{answer:?}");
    }
}

#[tokio::test]
async fn what_is_open_keeps_a_sprite_awake_however_short_its_idle_timeout_is() {
    // Shorter than the second in which an edge claims what is open with it.
    let config = CONFIG.replace("idle_timeout = \"1s\"", "idle_timeout = \"100ms\"");
    let demo = Demo::start(Options { config: Some(config), ..Options::default() }).await;
    let ways = [Way::SocketSilent, Way::SilentEvents(Version::H1), Way::SilentEvents(Version::H2), Way::GuestStalls];
    for (number, way) in ways.into_iter().enumerate() {
        let name = format!("short-{number}");
        demo.create_guest(&name).await;
        let left = misbehave(&demo, way, &name).await;
        // One of them comes as soon as it is sent.
        demo.wait_state(&name, "running").await;
        let began = Instant::now();
        while began.elapsed() < SILENCE {
            assert_eq!(demo.row(&name).await["run"], 1, "{way:?}");
            let state = demo.look(&name).await["state"].clone();
            // It may be about to sleep until its edge is asked.
            assert!(state == "running" || state == "stopping", "{way:?}: {state} after {:?}", began.elapsed());
        }
        demo.look_until(&name, "running", Duration::from_secs(30)).await;
        assert_eq!(demo.receipts(&name).await.len(), 1);
        drop(left.vanish());
        sleeps(&demo, &name, Instant::now()).await;
    }
}
