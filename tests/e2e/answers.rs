//! wake.md, test 13: every answer of the edge's own, over each protocol, in the words of each
//! kind of client: what it says, that nobody keeps it, and that it gives nothing inside away.
//!
//! The waiting page has a suite of its own (`waiting.rs`).

use harness::client::{Answer, VERSIONS, Version, empty};
use harness::{Demo, Options};
use http::Method;

/// A client: what it is called, and the header lines that make it one.
#[derive(Clone, Copy, Debug)]
struct Kind {
    name: &'static str,
    reads: Reads,
    method: &'static str,
    lines: &'static [(&'static str, &'static str)],
}

/// In what form a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reads {
    Page,
    Problem,
    Grpc,
}

const KINDS: [Kind; 7] = [
    Kind {
        name: "navigation",
        reads: Reads::Page,
        method: "GET",
        lines: &[("sec-fetch-mode", "navigate"), ("accept", "text/html,*/*;q=0.8")],
    },
    Kind { name: "old browser", reads: Reads::Page, method: "GET", lines: &[("accept", "text/html,*/*;q=0.8")] },
    Kind {
        name: "fetch",
        reads: Reads::Problem,
        method: "POST",
        lines: &[("sec-fetch-mode", "cors"), ("accept", "text/html")],
    },
    Kind { name: "curl", reads: Reads::Problem, method: "GET", lines: &[("accept", "*/*"), ("user-agent", "curl/8")] },
    Kind {
        name: "gRPC",
        reads: Reads::Grpc,
        method: "POST",
        lines: &[("content-type", "application/grpc"), ("te", "trailers")],
    },
    Kind {
        name: "WebSocket",
        reads: Reads::Problem,
        method: "GET",
        lines: &[
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ],
    },
    Kind { name: "EventSource", reads: Reads::Problem, method: "GET", lines: &[("accept", "text/event-stream")] },
];

impl Kind {
    /// Upgrades and hop-by-hop lines are HTTP/1.1's (RFC 9113 §8.2.2).
    fn speaks(&self, version: Version) -> bool {
        version == Version::H1 || self.name != "WebSocket"
    }
}

/// A way not to reach an app: where it is met, and what must be said of it.
#[derive(Clone, Copy, Debug)]
struct Case {
    sprite: &'static str,
    code: &'static str,
    status: u16,
    grpc: &'static str,
    /// RFC 9209 §2.3.
    error: &'static str,
    /// Whether it was held, and so must be told for how long.
    held: bool,
    /// Bounds of `Retry-After`; none for no such line.
    again: Option<(u64, u64)>,
}

const fn case(
    (sprite, code): (&'static str, &'static str),
    (status, grpc, error): (u16, &'static str, &'static str),
    held: bool,
    again: Option<(u64, u64)>,
) -> Case {
    Case { sprite, code, status, grpc, error, held, again }
}

const CASES: [Case; 10] = [
    case(("nobody", "no_such_sprite"), (404, "12", "destination_not_found"), false, None),
    case(("12345", "no_such_sprite"), (404, "12", "destination_not_found"), false, None),
    case(("9999--app", "no_such_port"), (404, "12", "destination_not_found"), false, None),
    case(("closed", "unauthorized"), (401, "16", "http_request_denied"), false, None),
    case(("gone", "gone"), (410, "12", "destination_not_found"), false, None),
    case(("dozing", "wake_not_allowed"), (503, "14", "destination_unavailable"), false, Some((3600, 3600))),
    case(("stopped", "stopped_by_owner"), (503, "14", "destination_unavailable"), true, None),
    case(("broken", "wake_failed"), (503, "14", "destination_unavailable"), true, Some((1, 36))),
    case(("deaf", "port_closed"), (502, "14", "connection_refused"), true, Some((2, 2))),
    case(("slow", "wake_deadline"), (504, "4", "http_response_timeout"), true, Some((1, 60))),
];

/// Answers of the edge's own to `kind`.
async fn ask(demo: &Demo, version: Version, kind: &Kind, sprite: &str, token: &str) -> Answer {
    let mut request = demo.request(Method::from_bytes(kind.method.as_bytes()).unwrap(), sprite, "/page?secret=1");
    for (name, value) in kind.lines {
        request = request.header(*name, *value);
    }
    if sprite == "gone" {
        request = request.header("sprite-token", token);
    }
    if sprite == "slow" {
        // Less patience than the port wait of its host.
        request = request.header("prefer", "wait=1");
    }
    demo.connect(version, sprite).await.send(request.body(empty()).unwrap()).await
}

fn check(demo: &Demo, what: &str, kind: &Kind, case: &Case, answer: &Answer) {
    let again = answer.header("retry-after").parse::<u64>().ok();
    match case.again {
        None => assert_eq!(again, None, "{what}"),
        Some((least, most)) => assert!(again.is_some_and(|s| (least..=most).contains(&s)), "{what}: {again:?}"),
    }
    let id = answer.header("x-request-id");
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{what}");
    assert_eq!(answer.header("cache-control"), "no-store", "{what}");
    assert_eq!(answer.header("vary"), "Accept, Sec-Fetch-Mode", "{what}");
    assert!(!answer.header("date").is_empty(), "{what}");
    let status = format!("edge-proxy; error={}; details=\"{}\"", case.error, case.code);
    assert_eq!(answer.header("proxy-status"), status, "{what}");
    let hold = answer.header("server-timing").strip_prefix("hold;dur=").map(str::parse::<f64>);
    assert_eq!(matches!(hold, Some(Ok(_))), case.held, "{what}: {:?}", answer.header("server-timing"));
    assert_eq!(answer.headers.contains_key("www-authenticate"), case.status == 401, "{what}");
    assert_eq!(answer.header("sprite-wake"), "", "nothing was woken for it: {what}");
    assert_eq!(answer.header("x-robots-tag") == "noindex", kind.reads == Reads::Page, "{what}");
    assert!(answer.body.len() <= 1024, "{what}: {} bytes", answer.body.len());
    match kind.reads {
        Reads::Grpc => {
            assert_eq!((answer.status, answer.header("content-type")), (200, "application/grpc"), "{what}");
            assert_eq!(answer.header("grpc-status"), case.grpc, "{what}");
            assert!(!answer.header("grpc-message").is_empty() && answer.body.is_empty(), "{what}");
            let pushback = answer.header("grpc-retry-pushback-ms").parse::<u64>().ok();
            assert_eq!(pushback, again.map(|seconds| seconds * 1000), "{what}");
        }
        Reads::Problem => {
            assert_eq!((answer.status, answer.header("content-type")), (case.status, "application/problem+json"));
            let problem = answer.json();
            let members: Vec<_> = problem.as_object().unwrap().keys().map(String::as_str).collect();
            let mut expected = vec!["code", "detail", "request_id", "status", "title", "type"];
            if again.is_some() {
                expected.insert(3, "retry_after");
                assert_eq!(problem["retry_after"].as_u64(), again, "{what}");
            }
            assert_eq!(members, expected, "{what}");
            assert_eq!((&problem["type"], &problem["status"]), (&"about:blank".into(), &case.status.into()), "{what}");
            assert_eq!((&problem["code"], &problem["request_id"]), (&case.code.into(), &id.into()), "{what}");
            assert!(problem["detail"].as_str().is_some_and(|text| text.ends_with('.')), "{what}: {problem}");
            assert!(!problem["title"].as_str().unwrap().is_empty(), "{what}");
        }
        Reads::Page => {
            assert_eq!((answer.status, answer.header("content-type")), (case.status, "text/html; charset=utf-8"));
            let page = answer.text();
            assert!(page.starts_with("<!doctype html>") && page.contains(case.code) && page.contains(id), "{what}");
            assert!(!page.contains("<script") && !page.contains("http://") && !page.contains("src="), "{what}: {page}");
        }
    }
    // Names of hosts, addresses, folders, programs, generations, the query: nobody's business.
    let mut all = answer.text();
    for (name, value) in &answer.headers {
        all.push_str(&format!("\n{name}: {value:?}"));
    }
    let folder = demo.data().to_str().unwrap();
    for inside in
        [folder, "127.0.0.1", "localhost", "python", "exit status", "exit 1", "generation", "secret=1", "spt_"]
    {
        assert!(!all.to_lowercase().contains(inside), "{what} tells {inside:?}: {all}");
    }
}

#[tokio::test]
async fn every_answer_of_our_own_is_told_to_each_client_in_its_own_words() {
    let config = "[host]\nport_wait = \"1500ms\"\n[hold]\nwasted_wakes_per_hour = 0\n".to_owned();
    let demo = Demo::start(Options { config: Some(config), ..Options::default() }).await;
    let guest = demo.guest_command();
    demo.create("app", &guest).await;
    demo.admin(&["sprite", "create", "closed", "--command", &guest]).await;
    let made = demo.admin(&["sprite", "create", "gone", "--command", &guest]).await;
    let token = made["token"].as_str().unwrap();
    demo.admin(&["sprite", "delete", "gone"]).await;
    demo.admin(&["sprite", "create", "dozing", "--public", "--command", &guest, "--wake", "never"]).await;
    demo.create("stopped", &guest).await;
    demo.admin(&["sprite", "stop", "stopped"]).await;
    demo.create("broken", "exit 1").await;
    demo.create("deaf", "exec sleep 1000").await;
    demo.create("slow", "exec sleep 1000").await;
    // The last of them may come long after the first.
    demo.admin(&["sprite", "limits", "slow", "--port-wait", "60s"]).await;

    let each = VERSIONS.into_iter().flat_map(|version| KINDS.iter().map(move |kind| (version, kind)));
    let each = each.filter(|(version, kind)| kind.speaks(*version)).flat_map(|pair| CASES.map(|case| (pair, case)));
    // All at once: several of them take a second or two to be known.
    let each = each.map(async |((version, kind), case)| {
        let answer = ask(&demo, version, kind, case.sprite, token).await;
        check(&demo, &format!("{version:?} {} {}: {answer:?}", kind.name, case.sprite), kind, &case, &answer);
    });
    let checked = futures_util::future::join_all(each).await.len();
    println!("{checked} answers");
    assert_eq!(demo.held().await, 0);
}
