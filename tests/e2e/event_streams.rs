//! Streams of events that cannot be served now: told to come back where their sprite says so.

use harness::chromium::Chromium;
use harness::client::{Answer, VERSIONS, Version, empty};
use harness::{Demo, until};
use http::Method;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

async fn ask(demo: &Demo, version: Version, name: &str, method: Method, accept: &str) -> Answer {
    let mut client = demo.connect(version, name).await;
    client.send(demo.request(method, name, "/feed").header("accept", accept).body(empty()).unwrap()).await
}

#[tokio::test]
async fn a_refused_stream_of_events_is_told_when_to_come_back_and_nothing_else_is() {
    let demo = Demo::new().await;
    demo.create_guest("feed").await;
    demo.create_guest("plain").await;
    demo.admin(&["sprite", "create", "own", "--command", "true"]).await;
    for (name, flag) in [("feed", &["--retry-event-streams"][..]), ("own", &["--retry-event-streams"]), ("plain", &[])]
    {
        demo.admin(&[&["sprite", "wake-rules", name, "never"], flag].concat()).await;
    }
    let events = "text/event-stream";
    for version in VERSIONS {
        let told = ask(&demo, version, "feed", Method::GET, events).await;
        assert_eq!((told.status, told.text().as_str()), (200, "retry: 3600000\n\n"), "{version:?}: {told:?}");
        assert_eq!((told.header("content-type"), told.header("cache-control")), (events, "no-store"));
        assert!(told.header("proxy-status").contains("wake_not_allowed"), "{told:?}");
        for (name, method, accept, status) in [
            ("feed", Method::POST, events, 503),
            ("feed", Method::GET, "*/*", 503),
            ("plain", Method::GET, events, 503),
            ("own", Method::GET, events, 401),
            ("nobody", Method::GET, events, 404),
        ] {
            let refused = ask(&demo, version, name, method, accept).await;
            assert_eq!(refused.status, status, "{version:?} {name} {accept}: {refused:?}");
        }
    }
    assert_eq!(demo.row("feed").await["state"], "asleep");
    // A refusal that names no time.
    demo.admin(&["sprite", "stop", "feed"]).await;
    demo.admin(&["sprite", "wake-rules", "feed", "any", "--retry-event-streams"]).await;
    let told = ask(&demo, Version::H2, "feed", Method::GET, events).await;
    assert_eq!((told.status, told.text().as_str()), (200, "retry: 60000\n\n"), "{told:?}");
    demo.admin(&["sprite", "start", "feed"]).await;
    let served = ask(&demo, Version::H2, "feed", Method::GET, events).await;
    assert!(served.text().starts_with("data: 0\n\n"), "{served:?}");
}

/// The page is the edge's own answer; its `EventSource` finds the hold full, which is over when
/// the sprite runs.
#[tokio::test]
async fn a_browsers_event_source_comes_back_after_a_refusal() {
    let demo = Demo::new().await;
    let gate = demo.create_gated("busy").await;
    let page = "<title>page</title><script>heard = ''; failed = 0; source = new EventSource('/feed'); \
                source.onmessage = (event) => heard += event.data; \
                source.onerror = () => failed += 1;</script>";
    let rules = demo.script(
        "answers.toml",
        &format!(
            "[[answer]]\npath = \"/start\"\nstatus = 200\nwhen = \"always\"\ncontent_type = \"text/html\"\nbody = \"{page}\"\n"
        ),
    );
    let rules = rules.to_str().unwrap();
    let flags = ["--answers", rules, "--held", "1", "--retry-event-streams"];
    demo.admin(&[&["sprite", "wake-rules", "busy", "any"][..], &flags].concat()).await;
    let mut browser = Chromium::start().await;
    let mut first = demo.connect(Version::H1, "busy").await;
    let held = first.send(demo.request(Method::GET, "busy", "/").body(empty()).unwrap());
    let browse = async {
        until("the hold to be full", LIMIT, async || (demo.row("busy").await["state"] == "waking").then_some(())).await;
        browser.navigate(&demo.url("busy", "/start")).await;
        until("a refusal", LIMIT, async || (browser.evaluate("failed").await.as_u64() >= Some(1)).then_some(())).await;
        assert_eq!(browser.evaluate("source.readyState").await, 0, "it has given up");
        assert_eq!(browser.evaluate("heard").await, "");
        gate.open();
        let heard = until("the events", LIMIT, async || {
            let heard = browser.evaluate("heard").await;
            heard.as_str().filter(|heard| heard.starts_with("012")).map(str::to_owned)
        });
        heard.await;
        browser.close().await;
    };
    let (held, ()) = tokio::join!(held, browse);
    assert_eq!(held.status, 200, "{held:?}");
}
