//! Wakes that fail: an honest answer, a back-off, and nothing left behind. With `slow_apps.rs`
//! wake.md, test 6.

use harness::client::{Version, empty};
use harness::{Demo, Raw, until};
use http::Method;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_sprite_that_never_listens_is_port_closed_after_ten_seconds() {
    let demo = Demo::new().await;
    demo.create("deaf", "exec sleep 1000").await;
    let asked = Instant::now();

    let answer = demo.get("deaf", "/").await;

    let took = asked.elapsed();
    assert_eq!((answer.status, &answer.json()["code"]), (502, &"port_closed".into()), "{answer:?}");
    assert!((9.5..14.0).contains(&took.as_secs_f64()), "answered after {took:?}");
    assert_ne!(answer.header("retry-after"), "");
    assert!(answer.header("proxy-status").contains("port_closed"), "{:?}", answer.headers);
    assert!(answer.header("server-timing").contains("hold;dur="), "{:?}", answer.headers);
    assert_eq!(demo.held().await, 0);
    demo.stop().await;
}

#[tokio::test]
async fn a_request_with_less_patience_gets_504_at_its_own_deadline() {
    let demo = Demo::new().await;
    demo.create("deaf", "exec sleep 1000").await;
    for version in [Version::H1, Version::H2] {
        let mut client = demo.connect(version, "deaf").await;
        let request = demo.request(Method::GET, "deaf", "/").header("prefer", "wait=1").body(empty()).unwrap();
        let asked = Instant::now();

        let answer = client.send(request).await;

        let took = asked.elapsed();
        assert_eq!((answer.status, &answer.json()["code"]), (504, &"wake_deadline".into()), "{answer:?}");
        assert!((0.9..3.0).contains(&took.as_secs_f64()), "answered after {took:?}");
    }
    assert_eq!(demo.held().await, 0);
}

#[tokio::test]
async fn a_command_that_exits_is_wake_failed_and_backs_off() {
    let demo = Demo::new().await;
    demo.create("broken", "echo started >> starts; exit 3").await;

    let answer = demo.get("broken", "/").await;

    assert_eq!((answer.status, &answer.json()["code"]), (503, &"wake_failed".into()), "{answer:?}");
    let after: u64 = answer.header("retry-after").parse().unwrap();
    assert!((1..=36).contains(&after), "{after}");
    // Within the back-off a request is refused and starts nothing.
    until("a look within a back-off", Duration::from_secs(60), async || {
        let before = demo.receipts("broken").await.len();
        let again = demo.get("broken", "/").await;
        assert_eq!(again.status, 503, "{again:?}");
        let row = demo.row("broken").await;
        (row["state"] == "failed" && demo.receipts("broken").await.len() == before).then_some(())
    })
    .await;

    // After it one trial is made.
    let before = demo.receipts("broken").await.len();
    until("another trial", Duration::from_secs(60), async || {
        assert_eq!(demo.get("broken", "/").await.status, 503);
        (demo.receipts("broken").await.len() > before).then_some(())
    })
    .await;
    let receipts = demo.receipts("broken").await;
    assert!(receipts.iter().all(|receipt| receipt["result"] != "ready"), "{receipts:?}");
    assert_eq!(demo.held().await, 0);
    demo.stop().await;
}

#[tokio::test]
async fn all_that_wait_for_a_failing_wake_are_told() {
    let demo = Demo::new().await;
    let gate = demo.data().join("gate");
    demo.create("doomed", &format!("while [ ! -e '{}' ]; do sleep 0.02; done; exit 1", gate.display())).await;
    let client = demo.connect(Version::H2, "doomed").await;
    let mut clients: Vec<_> = (0..20).map(|_| client.share()).collect();
    let requests =
        async { futures_util::future::join_all(clients.iter_mut().map(|c| c.get(&demo, "doomed", "/"))).await };
    let fail = async {
        demo.wait_held(20).await;
        std::fs::write(&gate, b"").unwrap();
    };

    let (answers, ()) = tokio::join!(requests, fail);

    for answer in &answers {
        assert_eq!((answer.status, &answer.json()["code"]), (503, &"wake_failed".into()), "{answer:?}");
    }
    assert_eq!(demo.receipts("doomed").await.len(), 1, "one start");
    assert_eq!(demo.held().await, 0);
}

#[tokio::test]
async fn a_sprite_that_fails_once_serves_when_it_is_mended() {
    let demo = Demo::new().await;
    let mended = demo.data().join("mended");
    let command = format!("[ -e '{}' ] || exit 1; exec python3 -m http.server $PORT", mended.display());
    demo.create("mendable", &command).await;
    assert_eq!(demo.get("mendable", "/").await.status, 503);

    std::fs::write(&mended, b"").unwrap();

    until("the mended sprite", Duration::from_secs(20), async || {
        (demo.get("mendable", "/").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_breaks_off_is_told_apart_from_a_wake() {
    let demo = Demo::new().await;
    demo.create_guest("brittle").await;
    assert_eq!(demo.get("brittle", "/").await.status, 200);
    let mut client = demo.connect(Version::H1, "brittle").await;
    let request = demo.request(Method::POST, "brittle", "/vanish").body(empty()).unwrap();
    let answer = client.send(request).await;
    assert_eq!((answer.status, &answer.json()["code"]), (502, &"sprite_reset".into()), "{answer:?}");

    // An answer that breaks after its head cannot be mended: the connection must end, not pretend.
    let mut raw = Raw::connect(&demo, "brittle").await;
    raw.send_head(&demo, "brittle", "GET /break", &[]).await;
    let head = raw.head().await;
    assert_eq!(head.header("content-length"), Some("1000"));
    let mut stream = raw.into_stream();
    let mut rest = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest);
    let _ = harness::within("the broken answer to end", Duration::from_secs(10), end).await;
    assert!(rest.len() < 1000, "{} bytes", rest.len());
    assert_eq!(demo.get("brittle", "/").await.status, 200, "it serves on");
}

#[tokio::test]
async fn a_guest_killed_while_it_runs_is_started_again_by_the_next_request() {
    let demo = Demo::new().await;
    demo.create_guest("mortal").await;
    let pid = demo.get("mortal", "/").await.json()["pid"].as_u64().unwrap();
    let target = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(target, rustix::process::Signal::KILL).unwrap();
    until("the owner to see the death", Duration::from_secs(10), async || {
        (demo.row("mortal").await["state"] != "running").then_some(())
    })
    .await;
    let answer = until("another life", Duration::from_secs(20), async || {
        Some(demo.get("mortal", "/").await).filter(|answer| answer.status == 200)
    })
    .await;
    assert_eq!(answer.header("sprite-wake"), "cold");
    assert_ne!(answer.json()["pid"], pid);
}

#[tokio::test]
async fn a_guest_killed_in_its_sleep_tells_its_next_visitors_that_its_memory_is_lost() {
    let demo = Demo::new().await;
    demo.create_guest("frozen").await;
    let pid = demo.get("frozen", "/").await.json()["pid"].as_u64().unwrap();
    demo.sleep_warm("frozen").await;
    let target = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(target, rustix::process::Signal::KILL).unwrap();
    until("the owner to see the death", Duration::from_secs(10), async || {
        (demo.row("frozen").await["warmth"] == "cold").then_some(())
    })
    .await;
    let answer = demo.get("frozen", "/").await;
    assert_eq!((answer.status, answer.header("sprite-wake")), (200, "cold; lost-memory"));
    assert_eq!(demo.receipts("frozen").await[1]["lost_memory"], true);
    // Only those are told; and a cold sleep loses nothing anybody counted on.
    demo.sleep_cold("frozen").await;
    assert_eq!(demo.get("frozen", "/").await.header("sprite-wake"), "cold");
    assert_eq!(demo.receipts("frozen").await[2].get("lost_memory"), None);
}
