//! Scripts of other sites and private sprites: a browser's preflight brings no credentials, so the
//! edge answers it from what the sprite's people declared, and it never wakes.

use harness::chromium::Chromium;
use harness::client::{Answer, VERSIONS, Version, empty};
use harness::{Demo, guest, tools, until};
use http::Method;
use std::time::Duration;

const SITE: &str = "https://app.example";

async fn preflight(demo: &Demo, version: Version, name: &str, origin: &str) -> Answer {
    let mut client = demo.connect(version, name).await;
    let request = demo
        .request(Method::OPTIONS, name, "/call")
        .header("origin", origin)
        .header("access-control-request-method", "PUT")
        .header("access-control-request-headers", "content-type,sprite-token");
    client.send(request.body(empty()).unwrap()).await
}

#[tokio::test]
async fn a_preflight_is_answered_from_the_declared_policy_or_like_a_stranger_and_never_wakes() {
    let demo = Demo::new().await;
    let command = demo.guest_command();
    demo.admin(&["sprite", "create", "back", "--command", &command]).await;
    for version in VERSIONS {
        let stranger = preflight(&demo, version, "back", SITE).await;
        assert_eq!((stranger.status, stranger.header("access-control-allow-origin")), (401, ""), "{version:?}");
        let declare = ["sprite", "cors", "back", "--origin", SITE, "--method", "PUT", "--credentials"];
        let shown = demo.admin(&declare).await;
        assert_eq!(shown["cors"]["origins"][0], SITE);
        let allowed = preflight(&demo, version, "back", SITE).await;
        assert_eq!(allowed.status, 204, "{version:?}: {allowed:?}");
        for (name, value) in [
            ("access-control-allow-origin", SITE),
            ("access-control-allow-methods", "PUT"),
            ("access-control-allow-headers", "authorization, content-type, sprite-token"),
            ("access-control-allow-credentials", "true"),
            ("access-control-max-age", "600"),
            ("vary", "Origin"),
        ] {
            assert_eq!(allowed.header(name), value, "{version:?} {name}");
        }
        // Another site learns what every stranger learns, and no call passes for a preflight.
        let other = preflight(&demo, version, "back", "https://evil.example").await;
        assert_eq!((other.status, other.header("access-control-allow-origin")), (401, ""), "{version:?}");
        let mut client = demo.connect(version, "back").await;
        for (method, asks) in [(Method::OPTIONS, None), (Method::GET, Some("PUT"))] {
            let mut request = demo.request(method, "back", "/call").header("origin", SITE);
            if let Some(asks) = asks {
                request = request.header("access-control-request-method", asks);
            }
            assert_eq!(client.send(request.body(empty()).unwrap()).await.status, 401, "{version:?}");
        }
        // New tokens and links leave the policy as it is.
        demo.admin(&["sprite", "token", "back", "--revoke"]).await;
        demo.admin(&["sprite", "token", "back"]).await;
        assert_eq!(preflight(&demo, version, "back", SITE).await.status, 204, "{version:?}");
        demo.admin(&["sprite", "cors", "back", "--none"]).await;
        assert_eq!(preflight(&demo, version, "back", SITE).await.status, 401, "{version:?}");
    }
    assert!(demo.receipts("back").await.is_empty(), "it slept through all of it");
}

#[tokio::test]
async fn a_policy_that_no_browser_could_use_is_refused_with_its_rule() {
    let demo = Demo::new().await;
    demo.admin(&["sprite", "create", "back", "--command", "true"]).await;
    demo.admin(&["sprite", "create", "open", "--public", "--command", "true"]).await;
    for (arguments, rule) in [
        (&["back", "--origin", "https://a.example/"][..], "without a path"),
        (&["back", "--origin", "*", "--credentials"], "no credentials"),
        (&["back", "--origin", "*", "--max-age", "2days"], "at most a day"),
        (&["open", "--origin", "*"], "public"),
    ] {
        let refused = demo.try_admin(&[&["sprite", "cors"], arguments].concat()).await;
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && said.contains(rule), "{arguments:?}: {said}");
    }
}

/// An app that lets scripts of any site read it, and tells the token's header nobody.
const APP: &str = r#"
import http.server, sys
class App(http.server.BaseHTTPRequestHandler):
    def do_PUT(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("access-control-allow-origin", "*")
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"asked")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), App).serve_forever()
"#;

#[tokio::test]
async fn a_browsers_script_of_another_site_calls_a_private_sprite_and_wakes_it_by_its_token() {
    let demo = Demo::new().await;
    let python = guest::shell(&tools::python(&[]).expect("python3 is installed"));
    let app = guest::shell(&demo.script("app.py", APP));
    let made = demo.admin(&["sprite", "create", "back", "--command", &format!("exec {python} {app} $PORT")]).await;
    demo.create("site", &format!("exec {python} -m http.server $PORT --bind 127.0.0.1")).await;
    let site = demo.url("site", "");
    demo.admin(&["sprite", "cors", "back", "--origin", &site, "--method", "PUT"]).await;
    let mut browser = Chromium::start().await;
    browser.navigate(&demo.url("site", "/")).await;
    until("the site", Duration::from_secs(60), async || {
        (browser.evaluate("document.readyState + location.host").await == format!("complete{}", demo.authority("site")))
            .then_some(())
    })
    .await;
    let token = made["token"].as_str().unwrap();
    let call = format!(
        "window.said = ''; fetch({:?}, {{ method: 'PUT', body: 'x', headers: {{ 'sprite-token': {token:?} }} }})\
         .then(answer => answer.text()).then(text => {{ window.said = text }}, error => {{ window.said = String(error) }})",
        demo.url("back", "/call")
    );
    browser.evaluate(&call).await;
    let said = until("the script's answer", Duration::from_secs(60), async || {
        let said = browser.evaluate("window.said").await;
        said.as_str().filter(|said| !said.is_empty()).map(str::to_owned)
    })
    .await;
    browser.close().await;
    assert_eq!(said, "asked");
    assert_eq!(demo.receipts("back").await.len(), 1, "one wake, of the call itself");
}
