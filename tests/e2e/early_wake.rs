//! `hold.wake_at_client_hello`: the wake of a public sprite begins with the ClientHello; not of a private
//! one, not for ever, and never by default.

use harness::client::{VERSIONS, Version};
use harness::{Demo, Options, until};
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const ON: &str = "[hold]\nwake_at_client_hello = true\nwasted_wakes_per_hour = 3\n";
const LIMIT: Duration = Duration::from_secs(60);

async fn demo(config: &str) -> Demo {
    Demo::start(Options { config: Some(config.into()), ..Options::default() }).await
}

async fn counted(demo: &Demo, outcome: &str) -> u64 {
    let read = String::from_utf8(demo.try_admin(&["metrics"]).await.stdout).unwrap();
    let line = format!("wakes_at_client_hello_total{{outcome={outcome:?}}} ");
    read.lines().find_map(|have| have.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
}

/// The first flight of a handshake for `name`, and nothing more.
async fn hello(demo: &Demo, name: &str) -> TcpStream {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let name = demo.host(name).try_into().unwrap();
    let mut tls = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut flight = Vec::new();
    tls.write_tls(&mut flight).unwrap();
    let mut stream = TcpStream::connect(demo.https).await.unwrap();
    stream.write_all(&flight).await.unwrap();
    stream
}

#[tokio::test]
async fn the_wake_begins_with_the_hello_and_the_request_joins_it() {
    let demo = demo(ON).await;
    for version in VERSIONS {
        let name = if version == Version::H1 { "one" } else { "two" };
        let gate = demo.create_gated(name).await;
        let _half = hello(&demo, name).await;
        demo.wait_state(name, "waking").await;
        // Who comes next wakes nothing: it is being woken.
        let mut client = demo.connect(version, name).await;
        let asks = client.get(&demo, name, "/page");
        let opens = async {
            demo.wait_held(2).await;
            gate.open();
        };
        let (answer, ()) = tokio::join!(asks, opens);
        assert_eq!((answer.status, answer.header("sprite-wake")), (200, "cold"), "{version:?}: {answer:?}");
        let receipts = demo.receipts(name).await;
        assert_eq!((receipts.len(), receipts[0]["reason"].as_str()), (1, Some("hello")), "{version:?}: {receipts:?}");
    }
}

#[tokio::test]
async fn a_connection_finds_its_sprite_awake_and_its_request_pays_for_the_wake() {
    let demo = demo(ON).await;
    demo.create_guest("early").await;
    for version in VERSIONS {
        let before = counted(&demo, "used").await;
        let mut client = demo.connect(version, "early").await;
        demo.wait_state("early", "running").await;
        let answer = client.get(&demo, "early", "/page").await;
        assert_eq!(answer.status, 200, "{version:?}: {answer:?}");
        assert_eq!(counted(&demo, "used").await, before + 1, "{version:?}");
        demo.sleep_warm("early").await;
    }
    assert_eq!(counted(&demo, "wasted").await, 0);
}

#[tokio::test]
async fn a_network_that_only_shakes_hands_runs_out_of_wakes() {
    let demo = demo(ON).await;
    demo.create_guest("looked-at").await;
    for wasted in 1..=3 {
        let stream = demo.tls("looked-at", b"h2").await;
        demo.wait_state("looked-at", "running").await;
        drop(stream);
        until("the waste to be seen", LIMIT, async || (counted(&demo, "wasted").await == wasted).then_some(())).await;
        demo.sleep_warm("looked-at").await;
    }
    drop(demo.tls("looked-at", b"h2").await);
    assert_eq!(counted(&demo, "begun").await, 3, "its budget is spent");
    assert_eq!(demo.row("looked-at").await["state"], "asleep");
    // Another network has its own.
    let _stream = demo.tls_from(Ipv4Addr::new(127, 0, 0, 9), "looked-at", b"h2").await;
    demo.wait_state("looked-at", "running").await;
}

#[tokio::test]
async fn no_hello_wakes_what_a_request_must_be_read_for() {
    let demo = demo(ON).await;
    let command = demo.guest_command();
    demo.admin(&["sprite", "create", "private", "--command", &command]).await;
    for policy in ["people", "authenticated", "paths", "never"] {
        demo.admin(&["sprite", "create", policy, "--public", "--command", &command, "--wake", policy]).await;
    }
    for name in ["private", "people", "authenticated", "paths", "never", "nobody", "9999--people"] {
        // By the end of the handshake it is decided.
        drop(demo.tls(name, b"http/1.1").await);
    }
    assert_eq!(counted(&demo, "begun").await, 0);
    for name in ["private", "people", "authenticated", "paths", "never"] {
        assert!(demo.receipts(name).await.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn by_default_a_handshake_wakes_nothing() {
    let demo = demo("").await;
    demo.create_guest("default").await;
    drop(demo.tls("default", b"h2").await);
    assert_eq!(counted(&demo, "begun").await, 0);
    assert!(demo.receipts("default").await.is_empty());
}
