//! A request wakes a sprite from either sleep, whatever the request is.

use harness::client::{VERSIONS, Version, full};
use harness::{Demo, Options};
use http::Method;

#[tokio::test]
async fn a_wake_says_how_deep_the_sleep_was() {
    let demo = Demo::new().await;
    demo.create_guest("deep").await;
    let cold = demo.get("deep", "/").await;
    assert_eq!((cold.status, cold.header("sprite-wake")), (200, "cold"));

    demo.sleep_warm("deep").await;
    let warm = demo.get("deep", "/").await;

    assert_eq!((warm.status, warm.header("sprite-wake")), (200, "warm"));
    assert_eq!(warm.json()["pid"], cold.json()["pid"], "memory stayed");
    assert!(warm.header("server-timing").contains("hold;dur="), "{:?}", warm.headers);
    assert!(warm.header("proxy-status").starts_with("edge-proxy"), "{:?}", warm.headers);

    demo.sleep_cold("deep").await;
    let again = demo.get("deep", "/").await;
    assert_eq!((again.status, again.header("sprite-wake")), (200, "cold"));
    assert_ne!(again.json()["pid"], cold.json()["pid"]);
    assert_eq!(again.json()["starts"], 2, "its folder survived");
}

#[tokio::test]
async fn each_wake_has_its_own_run_and_a_receipt() {
    let demo = Demo::new().await;
    demo.create_guest("counted").await;
    let mut runs = Vec::new();
    for round in 0..4 {
        assert_eq!(demo.get("counted", "/").await.status, 200);
        runs.push(demo.row("counted").await["run"].as_u64().unwrap());
        if round % 2 == 0 { demo.sleep_warm("counted").await } else { demo.sleep_cold("counted").await }
    }
    assert!(runs.windows(2).all(|pair| pair[0] < pair[1]), "{runs:?}");
    let receipts = demo.receipts("counted").await;
    let kinds: Vec<&str> = receipts.iter().filter_map(|receipt| receipt["kind"].as_str()).collect();
    assert_eq!(kinds.len(), 4, "{receipts:?}");
    assert_eq!(kinds.iter().filter(|&&kind| kind == "warm").count(), 2, "{receipts:?}");
    assert!(receipts.iter().all(|receipt| receipt["result"] == "ready"), "{receipts:?}");
}

#[tokio::test]
async fn the_first_request_is_never_special() {
    let demo = Demo::new().await;
    demo.create_guest("first").await;
    let large = vec![b'x'; 8 << 20];
    let mut cold = true;
    for version in VERSIONS {
        for (method, path, body) in [
            (Method::GET, "/head", &b""[..]),
            (Method::POST, "/sha", b"x"),
            (Method::PUT, "/sha", &large),
            (Method::DELETE, "/head", b""),
        ] {
            let mut answers = Vec::new();
            for asleep in [true, false] {
                if asleep && demo.row("first").await["state"] == "running" {
                    if cold {
                        demo.sleep_cold("first").await
                    } else {
                        demo.sleep_warm("first").await
                    }
                    cold = !cold;
                }
                let mut client = demo.connect(version, "first").await;
                let request = demo.request(method.clone(), "first", path).body(full(body.to_vec())).unwrap();
                let answer = client.send(request).await;
                assert_eq!(answer.status, 200, "{version:?} {method} {path}: {answer:?}");
                assert_eq!(!answer.header("sprite-wake").is_empty(), asleep, "{version:?} {method} {path}");
                answers.push(comparable(&answer.json()));
            }
            assert_eq!(answers[0], answers[1], "{version:?} {method} {path}");
        }
    }
}

/// What the guest saw, without what differs between any two requests.
fn comparable(seen: &serde_json::Value) -> String {
    let mut seen = seen.clone();
    if let Some(headers) = seen["headers"].as_array_mut() {
        headers.retain(|line| line[0] != "x-request-id" && !line[0].as_str().unwrap().starts_with("sprite-"));
    }
    seen.to_string()
}

#[tokio::test]
async fn an_idle_sprite_falls_asleep_by_itself_and_a_busy_one_does_not() {
    let demo = Demo::start(Options { idle_timeout: "1s".into(), ..Options::default() }).await;
    demo.create_guest("idle").await;
    demo.create_guest("busy").await;
    assert_eq!(demo.get("idle", "/").await.status, 200);
    let mut client = demo.connect(Version::H1, "busy").await;
    let request = demo.request(Method::GET, "busy", "/events").body(harness::client::empty()).unwrap();
    let stream = client.try_send(request).await.unwrap();
    let run = demo.row("busy").await["run"].clone();

    let row = demo.wait_state("idle", "asleep").await;

    assert_eq!(row["warmth"], "warm", "{row}");
    let busy = demo.row("busy").await;
    assert_eq!((&busy["state"], &busy["run"]), (&"running".into(), &run), "an open answer is activity");
    let woken = demo.get("idle", "/").await;
    assert_eq!((woken.status, woken.header("sprite-wake")), (200, "warm"));
    drop(stream);
}

#[tokio::test]
async fn looking_wakes_nothing() {
    let demo = Demo::new().await;
    demo.admin(&["status"]).await;
    demo.admin(&["sprite", "show", "hello"]).await;
    demo.receipts("hello").await;
    // A handshake, an upgrade to HTTPS and a misdirected request are no visit.
    drop(demo.tls("hello", b"h2").await);
    assert_eq!(demo.row("hello").await["state"], "asleep");
    assert_eq!(demo.row("hello").await["run"], 0);
}

#[tokio::test]
async fn the_operator_wakes_and_deletes() {
    let demo = Demo::new().await;
    demo.create_guest("asked").await;
    demo.admin(&["sprite", "wake", "asked"]).await;
    assert_eq!(demo.row("asked").await["state"], "running");
    let answer = demo.get("asked", "/").await;
    assert!(matches!(answer.header("sprite-wake"), "" | "none"), "it runs already: {:?}", answer.headers);

    demo.admin(&["sprite", "delete", "asked"]).await;

    let answer = demo.get("asked", "/").await;
    assert!(matches!(answer.status, 404 | 410), "{answer:?}");
    assert!(!demo.admin(&["sprite", "list"]).await.to_string().contains("asked"));

    // Made again, it is another one: a new placement, a new folder.
    demo.create_guest("asked").await;
    harness::until("the new placement to be routed", std::time::Duration::from_secs(5), async || {
        let answer = demo.get("asked", "/").await;
        (answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_counted_can_be_read_and_names_no_sprite() {
    let demo = Demo::new().await;
    demo.create_guest("counted").await;
    assert_eq!(demo.get("counted", "/page").await.status, 200);
    let read = demo.try_admin(&["metrics"]).await;
    let text = String::from_utf8(read.stdout).unwrap();
    for line in [
        "hold_seconds_count{outcome=\"Released\"} 1",
        "wakes_total{reason_class=\"http\",result=\"ready\"} 1",
        "wake_seconds_count{kind=\"cold\",phase=\"port_wait\"} 1",
        "holds 0",
        "release_window_count 1",
        "release_window_sum 8.0",
        "wakes_withdrawn_total 0",
        "wakes_abandoned_total 0",
        "lease_mismatch_total 0",
        "table_applier_still_seconds 0",
        "table_applier_stalls_total 0",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("counted\""), "{text}");
    // The watchdog looks, and has nothing to say.
    let seen = &demo.admin(&["status"]).await["watchdog"];
    assert!(seen["looked_ms_ago"].is_u64() && seen["applier_still_s"].is_null(), "{seen}");
}
