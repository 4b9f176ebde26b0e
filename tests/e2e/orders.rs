//! What a sprite's people order: a stop that lasts, and a hold while something else works on it.

use harness::client::{VERSIONS, streamed, whole};
use harness::{Demo, Options, until, within};
use http::Method;
use http_body_util::BodyExt;
use std::time::{Duration, Instant};

#[tokio::test]
async fn a_stopped_sprite_is_woken_by_nobody_not_even_after_a_restart() {
    let demo = Demo::new().await;
    demo.create_guest("resting").await;
    assert_eq!(demo.get("resting", "/").await.status, 200);
    let stopped = demo.admin(&["sprite", "stop", "resting"]).await;
    assert_eq!((&stopped["state"], &stopped["warmth"]), (&"stopped".into(), &serde_json::Value::Null));
    for version in VERSIONS {
        let mut client = demo.connect(version, "resting").await;
        let refused = client.get(&demo, "resting", "/").await;
        assert_eq!((refused.status, &refused.json()["code"]), (503, &"stopped_by_owner".into()), "{version:?}");
        assert_eq!(refused.header("retry-after"), "", "it is nobody's guess when it is started");
    }
    assert_eq!(demo.receipts("resting").await.len(), 1);
    let awake = demo.try_admin(&["sprite", "wake", "resting"]).await;
    assert!(String::from_utf8_lossy(&awake.stderr).contains("StoppedByOwner"), "{awake:?}");

    let data = demo.keep_data();
    demo.stop().await;
    let demo = Demo::start(Options { data: Some(data), ..Options::default() }).await;
    assert_eq!(demo.row("resting").await["state"], "stopped");
    assert_eq!(demo.get("resting", "/").await.status, 503);
    demo.admin(&["sprite", "start", "resting"]).await;
    assert_eq!(demo.row("resting").await["state"], "asleep");
    let woken = demo.get("resting", "/").await;
    assert_eq!((woken.status, &woken.json()["starts"]), (200, &2.into()), "its data is there");
}

#[tokio::test]
async fn what_was_known_before_a_hold_counts_no_more_after_it() {
    let demo = Demo::new().await;
    let gate = demo.create_gated("again").await;
    let mut client = demo.connect(harness::Version::H2, "again").await;
    let visit = client.get(&demo, "again", "/page");
    let remake = async {
        demo.wait_held(1).await;
        demo.admin(&["sprite", "delete", "again"]).await;
        demo.create_guest("again").await;
    };
    // Destroyed and made again while it waits: it is served by the one there is now, or told
    // that the one it asked for is gone, if it ended before the new one was there.
    let (answer, ()) = tokio::join!(visit, remake);
    assert!(answer.status == 200 || answer.status == 410, "{answer:?}");
    drop(gate);

    let gate = demo.create_gated("closing").await;
    let visit = demo.get("closing", "/page");
    let close = async {
        demo.wait_held(1).await;
        demo.admin(&["sprite", "access", "closing", "private"]).await;
        gate.open();
    };
    let (answer, ()) = tokio::join!(visit, close);
    assert_eq!(answer.status, 401, "public when it came, private when it could be served: {answer:?}");
}

#[tokio::test]
async fn who_waits_for_a_sprite_that_is_stopped_is_told_at_once() {
    let demo = Demo::new().await;
    let _gate = demo.create_gated("halfway").await;
    let mut client = demo.connect(harness::client::Version::H1, "halfway").await;
    let refused = async {
        let answer = client.get(&demo, "halfway", "/").await;
        assert_eq!((answer.status, &answer.json()["code"]), (503, &"stopped_by_owner".into()));
    };
    let stop = async {
        demo.wait_held(1).await;
        demo.admin(&["sprite", "stop", "halfway"]).await;
    };
    tokio::join!(refused, stop);
    assert_eq!(demo.row("halfway").await["state"], "stopped");
}

#[tokio::test]
async fn a_held_sprite_lets_visitors_wait_and_what_is_open_goes_on() {
    for link in ["userspace", "direct-insecure"] {
        let arguments = vec!["--link".into(), link.into()];
        let demo = Demo::start(Options { arguments, ..Options::default() }).await;
        demo.create_guest("busy").await;
        for version in VERSIONS {
            let mut open = demo.connect(version, "busy").await;
            let (sender, body) = streamed(1);
            sender.send("before".into()).await.unwrap();
            let request = demo.request(Method::POST, "busy", "/echo").body(body).unwrap();
            let mut answer = within("the head", Duration::from_secs(20), open.try_send(request)).await.unwrap();
            // An idle stream in the edge's pool, which must not slip past the hold.
            let mut client = demo.connect(version, "busy").await;
            assert_eq!(client.get(&demo, "busy", "/page").await.status, 200);

            let held = demo.admin(&["sprite", "hold", "busy", "--max", "25s"]).await;
            assert_eq!((&held["held"], &held["state"]), (&true.into(), &"running".into()));
            let visit = async {
                let answer = client.get(&demo, "busy", "/page").await;
                assert_eq!(answer.status, 200, "{link} {version:?}: {answer:?}");
                assert!(answer.header("server-timing").contains("hold;dur="), "{:?}", answer.headers);
            };
            let release = async {
                demo.wait_held(1).await;
                // What was open before goes on meanwhile.
                for piece in ["before", "during"] {
                    let frame = within("a piece", Duration::from_secs(10), answer.frame()).await.unwrap().unwrap();
                    assert_eq!(frame.into_data().unwrap(), piece, "{link} {version:?}");
                    if piece == "before" {
                        sender.send("during".into()).await.unwrap();
                    }
                }
                assert_eq!(demo.held().await, 1, "it still waits");
                let released = demo.admin(&["sprite", "release", "busy"]).await;
                assert_eq!(released["held"], false);
            };
            tokio::join!(visit, release);
            drop(sender);
            assert_eq!(whole(answer).await.unwrap().status, 200);
        }
        assert_eq!(demo.receipts("busy").await.len(), 1, "the hold began no other life");
    }
}

#[tokio::test]
async fn an_order_to_sleep_lets_a_request_end_that_its_guest_is_busy_with() {
    let demo = Demo::new().await;
    demo.create_guest("busy").await;
    assert_eq!(demo.get("busy", "/page").await.status, 200);
    for version in VERSIONS {
        let before = demo.get("busy", "/counts").await.json()["requests"].as_u64().unwrap();
        let visit = async {
            let mut client = demo.connect(version, "busy").await;
            client.get(&demo, "busy", "/slow?0.9").await
        };
        let sleep = async {
            let mut looks = 0;
            until("the guest to have it", Duration::from_secs(20), async || {
                looks += 1;
                let counts = demo.get("busy", "/counts").await.json();
                (counts["requests"].as_u64().unwrap() > before + looks).then_some(())
            })
            .await;
            demo.sleep_cold("busy").await;
        };
        let (answer, ()) = tokio::join!(visit, sleep);
        assert_eq!((answer.status, answer.text().as_str()), (200, "at last"), "{version:?} {answer:?}");
        // For the next round it is awake again.
        assert_eq!(demo.get("busy", "/page").await.status, 200);
    }
}

#[tokio::test]
async fn a_hold_of_a_sleeping_sprite_delays_its_wake_and_ends_by_itself() {
    let demo = Demo::new().await;
    demo.create_guest("moved").await;
    let ordered = Instant::now();
    demo.admin(&["sprite", "hold", "moved", "--max", "1500ms"]).await;
    let answer = demo.get("moved", "/").await;
    assert_eq!((answer.status, answer.header("sprite-wake")), (200, "cold"));
    let hold = answer.header("server-timing").split(',').next().unwrap().trim_start_matches("hold;dur=").to_owned();
    assert!(ordered.elapsed() >= Duration::from_millis(1_500) && hold.parse::<f64>().unwrap() > 0.0, "{hold}");
    let refused = demo.try_admin(&["sprite", "hold", "moved", "--max", "31s"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("30s"), "{refused:?}");
}

#[tokio::test]
async fn who_may_not_wake_a_sprite_waits_all_the_same_while_a_running_one_is_held() {
    let demo = Demo::new().await;
    let command = demo.guest_command();
    demo.admin(&["sprite", "create", "guarded", "--public", "--command", &command, "--wake", "never"]).await;
    demo.admin(&["sprite", "wake", "guarded"]).await;
    demo.admin(&["sprite", "hold", "guarded"]).await;
    let visit = demo.get("guarded", "/page");
    let release = async {
        demo.wait_held(1).await;
        demo.admin(&["sprite", "release", "guarded"]).await;
    };
    let (answer, ()) = tokio::join!(visit, release);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(demo.receipts("guarded").await.len(), 1, "it was woken by its owner only");
}
