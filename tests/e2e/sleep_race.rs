//! wake.md, test 8: a request that arrives around the moment a sprite falls asleep is served,
//! once, by the run that was or by the one after it.

use harness::client::{Version, empty};
use harness::{Client, Demo, Options};
use http::Method;
use std::time::{Duration, Instant};

/// Sprites that race at the same time, each with an idle timeout of its own.
const SPRITES: u64 = 16;
/// Arrivals in all; in full as wake.md has it.
const ARRIVALS: u64 = 400;
const ARRIVALS_FULL: u64 = 10_000;
/// The decision, the cordon's 200 ms, the stop: what is swept, in steps of 1 ms.
const BEFORE_MS: u64 = 20;
const AFTER_MS: u64 = 330;

/// How the requests of one sprite were met.
#[derive(Debug, Default)]
struct Met {
    running: u64,
    interrupted: u64,
    warm: u64,
}

async fn race(demo: &Demo, number: u64, arrivals: u64) -> Met {
    let name = format!("race-{number}");
    // 100 to 300 ms.
    let idle = 100 + number * 200 / (SPRITES - 1);
    demo.create_guest(&name).await;
    demo.admin(&["sprite", "limits", &name, "--idle-timeout", &format!("{idle}ms")]).await;
    let version = if number.is_multiple_of(2) { Version::H1 } else { Version::H2 };
    let mut client = demo.connect(version, &name).await;
    let first = client.get(demo, &name, "/").await;
    assert_eq!(first.status, 200, "{first:?}");
    let mut met = Met::default();
    let mut run = demo.look(&name).await["run"].as_u64().unwrap();
    for arrival in 0..arrivals {
        // Steps of 1 ms, spread so that a few hundred cover the whole range too.
        let step = (arrival * SPRITES + number) * 37 % (BEFORE_MS + AFTER_MS);
        let began = Instant::now();
        assert_eq!(ask(demo, &mut client, &name).await, first.json()["pid"]);
        tokio::time::sleep_until((Instant::now() + Duration::from_millis(idle - BEFORE_MS + step)).into()).await;
        let before = demo.look(&name).await["run"].as_u64().unwrap();
        let request = demo.request(Method::GET, &name, "/").body(empty()).unwrap();
        let answer = client.send(request).await;
        let what = format!("{name}, {step} ms, {:?} after {:?}", answer.headers, began.elapsed());
        assert_eq!(answer.status, 200, "{what}");
        assert_eq!(answer.json()["pid"], first.json()["pid"], "its memory is kept: {what}");
        let after = demo.look(&name).await["run"].as_u64().unwrap();
        let more = match answer.header("sprite-wake") {
            "" | "none" => {
                met.running += 1;
                0
            }
            "interrupted" => {
                met.interrupted += 1;
                0
            }
            "warm" => {
                met.warm += 1;
                1
            }
            other => panic!("Sprite-Wake {other:?}: {what}"),
        };
        assert!(before >= run && after - before == more, "run {before}, then {after}: {what}");
        run = after;
    }
    // Two requests of a round, the first, and the question itself: none came twice.
    let counts = client.get(demo, &name, "/counts").await.json();
    assert_eq!(counts["requests"], 2 * arrivals + 2, "{counts}");
    met
}

async fn ask(demo: &Demo, client: &mut Client, name: &str) -> serde_json::Value {
    let answer = client.get(demo, name, "/").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["pid"].clone()
}

#[tokio::test]
async fn a_request_at_the_moment_of_sleep_is_served_once_by_the_right_run() {
    let config = "[host]\nminimum_run = \"0s\"\nwakes_per_hour = 0\n[hold]\nwasted_wakes_per_hour = 0\n".to_owned();
    let demo = Demo::start(Options { config: Some(config), ..Options::default() }).await;
    let full = std::env::var_os("EDGE_PROXY_TEST_FULL").is_some_and(|full| full == "1");
    let arrivals = if full { ARRIVALS_FULL } else { ARRIVALS } / SPRITES;
    let began = Instant::now();
    let met = futures_util::future::join_all((0..SPRITES).map(|number| race(&demo, number, arrivals))).await;
    let sum = |of: fn(&Met) -> u64| met.iter().map(of).sum::<u64>();
    let (running, interrupted, warm) = (sum(|m| m.running), sum(|m| m.interrupted), sum(|m| m.warm));
    println!(
        "{} arrivals in {:.1} s: {running} before the decision, {interrupted} took it back, {warm} woke",
        running + interrupted + warm,
        began.elapsed().as_secs_f64()
    );
    assert!(running + interrupted > 0 && warm > 0, "the sweep missed a side of it: {met:?}");
    assert_eq!(demo.held().await, 0);
    demo.stop().await;
}
