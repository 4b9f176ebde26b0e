//! What may wake a sprite, what the edge answers for one that sleeps, and refusals in the
//! words of who asked.

use harness::client::{Answer, Client, VERSIONS, Version, empty};
use harness::{Demo, Options, within};
use http::Method;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn ask(demo: &Demo, client: &mut Client, name: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = demo.request(Method::GET, name, path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.send(request.body(empty()).unwrap()).await
}

#[tokio::test]
async fn robots_and_favicons_of_a_sleeping_sprite_are_the_edges_and_of_a_running_one_its_own() {
    let demo = Demo::new().await;
    demo.create_guest("quiet").await;
    let mut client = demo.connect(Version::H2, "quiet").await;
    let robots = ask(&demo, &mut client, "quiet", "/robots.txt", &[]).await;
    assert_eq!((robots.status, robots.text().as_str()), (200, "User-agent: *\nDisallow: /\n"));
    assert_eq!(robots.header("cache-control"), "no-store");
    assert_eq!(ask(&demo, &mut client, "quiet", "/favicon.ico", &[]).await.status, 404);
    assert_eq!(demo.row("quiet").await["state"], "asleep");

    assert_eq!(ask(&demo, &mut client, "quiet", "/", &[]).await.status, 200);
    let own = ask(&demo, &mut client, "quiet", "/robots.txt", &[]).await;
    assert!(own.status == 200 && !own.text().contains("Disallow"), "{own:?}");
    demo.sleep_warm("quiet").await;
    demo.admin(&["sprite", "wake-rules", "quiet", "any", "--no-edge-paths"]).await;
    let own = ask(&demo, &mut client, "quiet", "/robots.txt", &[]).await;
    assert_eq!((own.status, own.header("sprite-wake")), (200, "warm"));
}

#[tokio::test]
async fn what_a_certificate_authority_asks_is_the_edges_alone_for_every_name_and_on_both_ports() {
    let arguments = vec!["--unknown-names".into(), "as-private".into()];
    let demo = Demo::start(Options { arguments, ..Options::default() }).await;
    let path = "/.well-known/acme-challenge/token";
    demo.create_guest("open").await;
    demo.admin(&["sprite", "create", "closed", "--command", &demo.guest_command()]).await;
    demo.admin(&["sprite", "wake", "open"]).await;
    for name in ["open", "closed", "nobody"] {
        for version in VERSIONS {
            let mut client = demo.connect(version, name).await;
            let answer = ask(&demo, &mut client, name, path, &[]).await;
            assert_eq!((answer.status, answer.text().as_str()), (404, "There is no such challenge.\n"), "{name}");
        }
        let mut plain = TcpStream::connect(demo.http()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", demo.host(name));
        plain.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within("the plain answer", Duration::from_secs(10), plain.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{name}: {answer}");
    }
    assert!(demo.receipts("closed").await.is_empty());
}

/// A kind of request: its name, its path, its headers.
type Kind = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const KINDS: [Kind; 5] = [
    ("program", "/", &[("accept", "*/*")]),
    ("person", "/", &[("accept", "text/html"), ("sec-fetch-mode", "navigate")]),
    ("crawler", "/", &[("accept", "text/html"), ("user-agent", "Examplebot/1.0")]),
    ("webhook", "/hooks/deploy", &[("accept", "*/*")]),
    ("owner", "/", &[("sprite-token", "TOKEN")]),
];

#[tokio::test]
async fn a_policy_says_who_wakes_a_sprite_and_keeps_nobody_from_a_running_one() {
    let demo = Demo::new().await;
    let command = demo.guest_command();
    for (policy, wakers) in [
        ("any", &["program", "person", "crawler", "webhook", "owner"][..]),
        ("people", &["person", "webhook", "owner"]),
        ("authenticated", &["owner"]),
        ("paths", &["webhook"]),
        ("never", &[]),
    ] {
        // Public to all but the owner's kind, which needs a token to bring.
        for private in [false, true] {
            let name = format!("{policy}-{private}");
            let access = if private { "--private" } else { "--public" };
            let create =
                ["sprite", "create", &name, access, "--command", &command, "--wake", policy, "--wake-path", "/hooks/"];
            let made = demo.admin(&create).await;
            let token = made["token"].as_str().unwrap_or("");
            let mut client = demo.connect(Version::H1, &name).await;
            for (kind, path, headers) in KINDS {
                if (kind == "owner") != private {
                    continue;
                }
                let headers: Vec<_> =
                    headers.iter().map(|(n, v)| (*n, if *v == "TOKEN" { token } else { *v })).collect();
                let answer = ask(&demo, &mut client, &name, path, &headers).await;
                if wakers.contains(&kind) {
                    assert_eq!(
                        (answer.status, answer.header("sprite-wake").is_empty()),
                        (200, false),
                        "{policy} {kind}"
                    );
                    demo.sleep_warm(&name).await;
                    continue;
                }
                assert_eq!((answer.status, answer.header("retry-after")), (503, "3600"), "{policy} {kind}");
                assert!(answer.text().contains("wake_not_allowed"), "{policy} {kind}: {answer:?}");
                assert_eq!(demo.row(&name).await["state"], "asleep", "{policy} {kind}");
            }
        }
        let name = format!("{policy}-false");
        demo.admin(&["sprite", "wake", &name]).await;
        // Woken by its operator, of which this edge was not told.
        let mut client = demo.connect(Version::H1, &name).await;
        for (kind, path, headers) in KINDS.iter().filter(|(kind, ..)| *kind != "owner") {
            assert_eq!(ask(&demo, &mut client, &name, path, headers).await.status, 200, "{policy} {kind}");
        }
    }
}

#[tokio::test]
async fn a_grpc_client_is_told_in_grpc() {
    let demo = Demo::new().await;
    let command = demo.guest_command();
    demo.admin(&["sprite", "create", "rpc-never", "--public", "--command", &command, "--wake", "never"]).await;
    demo.admin(&["sprite", "create", "rpc-private", "--command", &command]).await;
    let _gate = demo.create_gated("rpc-slow").await;
    for (name, status, pushback) in
        [("rpc-never", "14", "3600000"), ("rpc-private", "16", ""), ("rpc-slow", "4", "1000")]
    {
        let mut client = demo.connect(Version::H2, name).await;
        let request = demo
            .request(Method::POST, name, "/package.Service/Method")
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .header("grpc-timeout", "400m")
            .body(empty())
            .unwrap();
        let answer = client.send(request).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/grpc"), "{name}: {answer:?}");
        assert_eq!(
            (answer.header("grpc-status"), answer.header("grpc-retry-pushback-ms")),
            (status, pushback),
            "{name}"
        );
        assert!(!answer.header("grpc-message").is_empty() && answer.body.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn a_network_that_wakes_for_nothing_runs_out_of_wakes_and_others_do_not() {
    let demo = Demo::new().await;
    let python = harness::tools::python(&[]).expect("python3 is installed");
    let command = format!("echo found > page; exec {} -m http.server $PORT --bind 127.0.0.1", python.display());
    demo.create("doors", &command).await;
    let made = demo.admin(&["sprite", "create", "own", "--command", &command]).await;
    let token = made["token"].as_str().unwrap();
    let mut client = demo.connect(Version::H1, "doors").await;
    // Who finds something wastes nothing.
    for _ in 0..3 {
        assert_eq!(ask(&demo, &mut client, "doors", "/page", &[]).await.text(), "found\n");
        demo.sleep_warm("doors").await;
    }
    // The default bound is 20 an hour.
    for door in 0..20 {
        let answer = ask(&demo, &mut client, "doors", &format!("/door-{door}"), &[]).await;
        assert_eq!((answer.status, answer.header("sprite-wake")), (404, "warm"), "{door}");
        demo.sleep_warm("doors").await;
    }
    let refused = ask(&demo, &mut client, "doors", "/page", &[]).await;
    assert_eq!((refused.status, &refused.json()["code"]), (429, &"wake_budget".into()));
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((100..=180).contains(&wait), "one is earned in three minutes: {wait}");
    assert_eq!(demo.row("doors").await["state"], "asleep");
    // What runs serves it all the same, and its own people wake what is theirs.
    demo.admin(&["sprite", "wake", "doors"]).await;
    assert_eq!(ask(&demo, &mut client, "doors", "/page", &[]).await.status, 200);
    let mut own = demo.connect(Version::H1, "own").await;
    let answer = ask(&demo, &mut own, "own", "/nothing", &[("sprite-token", token)]).await;
    assert_eq!((answer.status, answer.header("sprite-wake")), (404, "cold"));
}
