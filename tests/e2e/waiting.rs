//! wake.md, test 13, in real browsers: the page of a navigation that waits for long. One page,
//! one reload, and for nothing else.

use harness::chromium::Chromium;
use harness::client::{Version, empty};
use harness::{Demo, until, within};
use http::Method;
use std::time::Duration;

const PATH: &str = "/.well-known/edge-proxy/waiting";
const LIMIT: Duration = Duration::from_secs(60);

fn navigation(demo: &Demo, name: &str) -> http::request::Builder {
    demo.request(Method::GET, name, "/page").header("sec-fetch-mode", "navigate").header("accept", "text/html")
}

#[tokio::test]
async fn a_browser_sees_the_page_then_the_app_by_a_single_reload() {
    let demo = Demo::new().await;
    let gate = demo.create_gated("slow").await;
    let mut browser = Chromium::start().await;
    browser.navigate(&demo.url("slow", "/page")).await;
    until("the waiting page", LIMIT, async || (browser.evaluate("document.title").await == "Waking up").then_some(()))
        .await;
    let listens = "performance.getEntriesByType('resource').length + document.scripts.length";
    assert!(browser.evaluate(listens).await.as_u64() >= Some(1));
    gate.open();
    until("the app's own page", LIMIT, async || {
        let text = browser.evaluate("document.body && document.body.innerText").await;
        text.as_str().is_some_and(|text| text.trim() == "page").then_some(())
    })
    .await;
    let kind = browser.evaluate("performance.getEntriesByType('navigation')[0].type").await;
    assert_eq!(kind, "reload");
    browser.close().await;
    // One navigation, one reload: the guest saw the second only, and one wake served both.
    let receipts = demo.admin(&["sprite", "receipts", "slow"]).await;
    assert_eq!(receipts.as_array().unwrap().len(), 1, "{receipts}");
}

#[tokio::test]
async fn the_page_is_for_navigations_only_and_the_wake_goes_on_without_its_request() {
    let demo = Demo::new().await;
    let gate = demo.create_gated("slow").await;
    for version in [Version::H1, Version::H2] {
        let mut client = demo.connect(version, "slow").await;
        let page = client.send(navigation(&demo, "slow").body(empty()).unwrap()).await;
        assert_eq!((page.status, page.header("cache-control")), (503, "no-store"), "{version:?}: {page:?}");
        assert!(page.text().contains("Waking up") && page.header("content-security-policy").contains("sha256-"));
        assert!(page.header("retry-after").parse::<u64>().unwrap() >= 1);
        assert_eq!(page.header("x-robots-tag"), "noindex");
    }
    // Both left; their interest keeps the wake.
    assert_eq!(demo.row("slow").await["state"], "waking");
    let mut events = demo.connect(Version::H1, "slow").await;
    let request = demo.request(Method::GET, "slow", PATH).body(empty()).unwrap();
    let listen = within("the events", LIMIT, events.send(request));
    let mut program = demo.connect(Version::H2, "slow").await;
    let post = demo.request(Method::POST, "slow", "/echo").header("sec-fetch-mode", "navigate");
    let post = program.send(post.body(empty()).unwrap());
    let open = async {
        // Longer than a navigation is held: a page would have come by now.
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        gate.open();
    };
    let (heard, posted, ()) = tokio::join!(listen, post, open);
    assert_eq!(posted.status, 200, "{posted:?}");
    assert!(heard.text().ends_with("event: ready\ndata:\n\n"), "{heard:?}");
}

#[tokio::test]
async fn listening_wakes_nothing_and_needs_the_sprites_own_credentials() {
    let demo = Demo::new().await;
    demo.create_guest("calm").await;
    let heard = demo.get("calm", PATH).await;
    assert!(heard.text().contains("event: over"), "nobody waits for it: {heard:?}");
    assert_eq!(demo.row("calm").await["state"], "asleep");
    let made = demo.admin(&["sprite", "create", "own", "--command", "true"]).await;
    assert_eq!(demo.get("own", PATH).await.status, 401);
    let mut client = demo.connect(Version::H1, "own").await;
    let token = made["token"].as_str().unwrap();
    let request = demo.request(Method::GET, "own", PATH).header("authorization", format!("Bearer {token}"));
    assert_eq!(client.send(request.body(empty()).unwrap()).await.status, 200);
    assert_eq!(demo.row("own").await["state"], "asleep");
}

#[tokio::test]
async fn the_people_of_a_sprite_say_what_the_edge_answers_and_whether_there_is_a_page() {
    let demo = Demo::new().await;
    demo.create_guest("shop").await;
    let rules = demo.script(
        "answers.toml",
        r#"
        [[answer]]
        path = "/health"
        status = 200
        body = "ok"
        when = "always"
        [[answer]]
        path = "/hello"
        method = "GET"
        status = 204
        dormant = true
        "#,
    );
    let rules = rules.to_str().unwrap();
    demo.admin(&["sprite", "wake-rules", "shop", "any", "--answers", rules, "--no-waiting-page", "--held", "1"]).await;
    let health = demo.get("shop", "/health").await;
    assert_eq!((health.status, health.text().as_str()), (200, "ok"));
    let hello = demo.get("shop", "/hello").await;
    assert_eq!((hello.status, hello.header("sprite-state")), (204, "dormant"));
    assert_eq!(demo.row("shop").await["state"], "asleep");
    assert_eq!(demo.get("shop", "/page").await.status, 200);
    assert_eq!(demo.get("shop", "/health").await.text(), "ok", "its app never sees it");
    assert_ne!(demo.get("shop", "/hello").await.status, 204, "it runs: its app answers");

    let bad = demo.script("bad.toml", "[[answer]]\npath = \"health\"\nstatus = 200\n");
    let refused = demo.try_admin(&["sprite", "wake-rules", "shop", "any", "--answers", bad.to_str().unwrap()]).await;
    assert!(!refused.status.success(), "{refused:?}");
}
