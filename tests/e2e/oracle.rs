//! wake.md, test 12: who has no credentials learns nothing of a private name (I9): not whether
//! it sleeps, runs, fails, was stopped, was destroyed or never was, by no byte and by no time.

use harness::client::{Answer, VERSIONS, Version, empty};
use harness::{Client, Demo, Options, tools};
use http::Method;
use std::time::{Duration, Instant};

/// Of wake.md, I9.
const APART: Duration = Duration::from_millis(20);
/// Samples of each name, path and version, taken in turns so that a busy moment hits all.
const SAMPLES: usize = 15;

const STATES: [&str; 6] = ["asleep", "running", "failed", "stopped", "destroyed", "never-was"];

/// A question: what it is, its method, its path, its header lines.
type Question = (Method, &'static str, &'static [(&'static str, &'static str)]);

fn questions() -> Vec<Question> {
    let preflight: &[(&str, &str)] =
        &[("origin", "https://elsewhere.example"), ("access-control-request-method", "POST")];
    vec![
        (Method::GET, "/", &[]),
        (Method::HEAD, "/", &[]),
        (Method::POST, "/hooks/deploy", &[]),
        (Method::GET, "/", &[("accept", "text/html"), ("sec-fetch-mode", "navigate")]),
        (Method::GET, "/", &[("authorization", "Bearer spt_guess")]),
        (Method::GET, "/?sprite-share=guess", &[("sec-fetch-mode", "navigate")]),
        (Method::GET, "/robots.txt", &[]),
        (Method::GET, "/favicon.ico", &[]),
        (Method::GET, "/.well-known/edge-proxy/waiting", &[("accept", "text/event-stream")]),
        (Method::GET, "/.well-known/acme-challenge/x", &[]),
        (Method::OPTIONS, "/api", preflight),
    ]
}

/// What a stranger has in hand, without what differs from any request to the next.
fn view(mut answer: Answer) -> (u16, Vec<(String, String)>, String) {
    let id = answer.header("x-request-id").to_owned();
    answer.headers.remove("x-request-id");
    answer.headers.remove("date");
    let lines = answer.headers.iter().map(|(name, value)| (name.to_string(), format!("{value:?}")));
    (answer.status, lines.collect(), answer.text().replace(&id, ""))
}

async fn ask(demo: &Demo, client: &mut Client, name: &str, (method, path, lines): &Question) -> (Answer, Duration) {
    let mut request = demo.request(method.clone(), name, path);
    for (name, value) in *lines {
        request = request.header(*name, *value);
    }
    let began = Instant::now();
    let answer = client.send(request.body(empty()).unwrap()).await;
    (answer, began.elapsed())
}

async fn world() -> Demo {
    let arguments = vec!["--unknown-names".into(), "as-private".into()];
    let demo = Demo::start(Options { arguments, ..Options::default() }).await;
    let guest = demo.guest_command();
    for name in &STATES[..5] {
        let command = if *name == "failed" { "exit 1" } else { &guest };
        demo.admin(&["sprite", "create", name, "--command", command]).await;
    }
    // Refused requests are no traffic, and there are many of them.
    demo.admin(&["sprite", "limits", "running", "--idle-timeout", "10m"]).await;
    demo.admin(&["sprite", "wake", "running"]).await;
    assert!(!demo.try_admin(&["sprite", "wake", "failed"]).await.status.success(), "its command fails");
    demo.admin(&["sprite", "stop", "stopped"]).await;
    demo.admin(&["sprite", "delete", "destroyed"]).await;
    demo
}

#[tokio::test]
async fn no_state_of_a_private_name_can_be_told_from_another() {
    let _quiet = tools::quiet().await;
    let demo = world().await;
    for version in VERSIONS {
        let mut clients = Vec::new();
        for name in STATES {
            clients.push(demo.connect(version, name).await);
        }
        for question in questions() {
            let mut times = vec![Vec::new(); STATES.len()];
            let mut first = None;
            for sample in 0..SAMPLES {
                for turn in 0..STATES.len() {
                    // Another goes first each time.
                    let at = (turn + sample) % STATES.len();
                    let (answer, took) = ask(&demo, &mut clients[at], STATES[at], &question).await;
                    times[at].push(took);
                    let seen = view(answer);
                    let expected = first.get_or_insert_with(|| seen.clone());
                    assert_eq!(seen, *expected, "{version:?} {question:?}: {} differs", STATES[at]);
                    // What a certificate authority asks is not the sprite's, whatever it is.
                    let status = if question.1.contains("/acme-challenge/") { 404 } else { 401 };
                    assert_eq!(seen.0, status, "{version:?} {question:?} {}", STATES[at]);
                }
            }
            let medians: Vec<_> = times.iter_mut().map(|times| median(times)).collect();
            let (least, most) = (medians.iter().min().unwrap(), medians.iter().max().unwrap());
            assert!(*most - *least <= APART, "{version:?} {question:?}: {STATES:?} took {medians:?}");
        }
    }
    // What they were, they are: nobody has woken or tried any.
    for (name, state) in [("asleep", "asleep"), ("running", "running"), ("stopped", "stopped")] {
        assert_eq!(demo.row(name).await["state"], state);
    }
    for (name, wakes) in [("asleep", 0), ("running", 1), ("stopped", 0), ("failed", 1)] {
        assert_eq!(demo.receipts(name).await.len(), wakes, "{name}");
    }
}

#[tokio::test]
async fn no_handshake_tells_a_name_that_is_from_one_that_never_was() {
    let demo = world().await;
    for name in STATES {
        for version in [&b"http/1.1"[..], b"h2"] {
            let stream = demo.tls(name, version).await;
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(version), "{name}");
        }
        let mut client = demo.connect(Version::H1, &format!("9999--{name}")).await;
        let (answer, _) = ask(&demo, &mut client, &format!("9999--{name}"), &(Method::GET, "/", &[])).await;
        assert_eq!(answer.status, 401, "whatever ports it has: {name}");
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
