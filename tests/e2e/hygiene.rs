//! What passes between client and guest, what is ours, and what is nobody's.

use harness::client::{Client, VERSIONS, Version, empty};
use harness::{Demo, Raw, requires};
use http::{Method, Request};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn forwarded_headers_are_rebuilt_and_forged_ones_dropped() {
    let demo = Demo::new().await;
    demo.create_guest("seen").await;
    for version in VERSIONS {
        let mut client = demo.connect(version, "seen").await;
        let request = demo
            .request(Method::GET, "seen", "/head?a=b%20c")
            .header("x-forwarded-for", "6.6.6.6")
            .header("x-forwarded-proto", "gopher")
            .header("x-forwarded-host", "evil.example")
            .header("forwarded", "for=6.6.6.6")
            .header("x-real-ip", "6.6.6.6")
            .header("sprite-wake", "forged")
            .header("x-request-id", "forged")
            .header("x-app", "one")
            .header("x-app", "two")
            .header("cookie", "a=1")
            .body(empty())
            .unwrap();
        let answer = client.send(request).await;
        let seen = answer.json();

        assert_eq!(seen["line"], "GET /head?a=b%20c HTTP/1.1", "{version:?}");
        assert_eq!(all(&seen, "x-forwarded-for"), ["127.0.0.1"], "{seen}");
        assert_eq!(all(&seen, "x-forwarded-proto"), ["https"], "{seen}");
        assert_eq!(all(&seen, "x-forwarded-host"), [demo.authority("seen")], "{seen}");
        assert_eq!(all(&seen, "host"), [demo.authority("seen")], "{seen}");
        assert_eq!(all(&seen, "x-app"), ["one", "two"], "{seen}");
        assert_eq!(all(&seen, "cookie"), ["a=1"], "{seen}");
        assert_eq!(all(&seen, "forwarded").len(), 1, "{seen}");
        assert!(
            all(&seen, "forwarded")[0].contains("for=127.0.0.1") && all(&seen, "forwarded")[0].contains("proto=https"),
            "{seen}"
        );
        assert!(all(&seen, "via").iter().any(|via| via.ends_with("edge-proxy")), "{seen}");
        assert!(!seen.to_string().contains("6.6.6.6") && !seen.to_string().contains("forged"), "{seen}");
        let id = &all(&seen, "x-request-id")[0];
        assert_eq!(answer.header("x-request-id"), id, "one id for the guest, the client and the log");
        assert!(answer.header("via").ends_with("edge-proxy"), "{:?}", answer.headers);
    }
}

#[tokio::test]
async fn hop_by_hop_fields_stay_on_their_hop() {
    let demo = Demo::new().await;
    demo.create_guest("hops").await;
    let mut raw = Raw::connect(&demo, "hops").await;
    let lines = [
        "Connection: keep-alive, X-Drop",
        "X-Drop: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "TE: trailers, deflate",
        "Upgrade: h2c",
        "X-Keep: 1",
    ];
    raw.send_head(&demo, "hops", "GET /head", &lines).await;
    let head = raw.head().await;
    let seen: Value = serde_json::from_slice(&raw.body(&head).await.0).unwrap();
    for name in ["x-drop", "keep-alive", "proxy-connection", "upgrade"] {
        assert!(all(&seen, name).is_empty(), "{name} reached the guest: {seen}");
    }
    assert_eq!(all(&seen, "x-keep"), ["1"]);

    for version in VERSIONS {
        let mut client = demo.connect(version, "hops").await;
        let answer = client.get(&demo, "hops", "/hops").await;
        for name in ["x-hop", "keep-alive", "proxy-connection", "sprite-wake"] {
            assert_eq!(answer.header(name), "", "{version:?}: {name} reached the client");
        }
        assert_eq!(answer.header("x-app"), "kept");
    }
}

#[tokio::test]
async fn a_request_for_another_name_than_the_handshakes_is_misdirected() {
    let demo = Demo::new().await;
    for version in VERSIONS {
        let mut client = demo.connect(version, "hello").await;
        let answer = client.get(&demo, "counter", "/").await;
        assert_eq!((answer.status, &answer.json()["code"]), (421, &"misdirected".into()), "{version:?}");
        let answer = client.get(&demo, "hello", "/").await;
        assert_eq!(answer.status, 200, "{version:?}: the connection serves its own name");
    }
    assert_eq!(demo.row("counter").await["run"], 0, "it woke nothing");
}

#[tokio::test]
async fn unknown_and_foreign_names_are_nobodys() {
    let demo = Demo::new().await;
    for version in VERSIONS {
        for name in ["nobody", "www", "12345", "xn--nothing"] {
            let Ok(_) = demo.try_tls(&demo.host(name), b"h2").await else { continue };
            let mut client = demo.connect(version, name).await;
            let answer = client.get(&demo, name, "/").await;
            assert_eq!((answer.status, &answer.json()["code"]), (404, &"no_such_sprite".into()), "{version:?} {name}");
        }
        // One label too deep is no name of ours, and no certificate covers it.
        assert!(demo.try_tls(&demo.host("a.hello"), b"h2").await.is_err());
    }
    let foreign = demo.try_tls("example.com", b"http/1.1").await;
    assert!(foreign.is_err(), "there is no certificate for a foreign name");
}

#[tokio::test]
async fn malformed_hosts_are_refused() {
    let demo = Demo::new().await;
    let host = demo.authority("hello");
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\n\r\n"), 400),
        (format!("GET / HTTP/1.1\r\nHost: user@{host}\r\n\r\n"), 400),
        (format!("GET / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"), 400),
        (format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n"), 501),
    ] {
        let mut raw = Raw::connect(&demo, "hello").await;
        raw.send(&request).await;
        assert_eq!(raw.head().await.status, status, "{request:?}");
    }
    assert_eq!(demo.row("hello").await["run"], 0, "none of them woke it");
}

#[tokio::test]
async fn two_framings_of_one_body_never_reach_a_guest() {
    let demo = Demo::new().await;
    demo.create_guest("framed").await;
    let mut raw = Raw::connect(&demo, "framed").await;
    let both = ["Content-Length: 3", "Transfer-Encoding: chunked"];
    raw.send_head(&demo, "framed", "POST /head", &both).await;
    raw.send("3\r\nabc\r\n0\r\n\r\nGET /head HTTP/1.1\r\n").await;
    let head = raw.head().await;
    // Refused, or read as the coding says with the length gone (RFC 9112 §6.1 allows both).
    if head.status != 400 {
        let seen: Value = serde_json::from_slice(&raw.body(&head).await.0).unwrap();
        assert_eq!((all(&seen, "transfer-encoding").len(), all(&seen, "content-length").len()), (1, 0), "{seen}");
    }
}

#[tokio::test]
async fn the_plain_port_only_sends_people_to_https() {
    let demo = Demo::new().await;
    let mut stream = TcpStream::connect(demo.http()).await.unwrap();
    let request = format!(
        "GET /deep/path?a=1 HTTP/1.1\r\nHost: {}:{}\r\nConnection: close\r\n\r\n",
        demo.host("hello"),
        demo.http().port()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    harness::within("the redirect", std::time::Duration::from_secs(10), stream.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    let wanted = format!("location: {}", demo.url("hello", "/deep/path?a=1"));
    assert!(answer.lines().any(|line| line.eq_ignore_ascii_case(&wanted)), "{wanted:?} is not in {answer}");
    assert_eq!(demo.row("hello").await["state"], "asleep", "a redirect wakes nothing");
}

#[tokio::test]
async fn only_the_port_and_declared_ports_are_reachable() {
    let demo = Demo::new().await;
    let python = harness::tools::python(&[]).expect("python3 is installed");
    // Two free ports: one is declared, one is not.
    let free = [free_port(), free_port()];
    let serve = |port: &str| format!("{} -m http.server {port} --bind 127.0.0.1", python.display());
    let command =
        format!("{} & {} & exec {}", serve(&free[0].to_string()), serve(&free[1].to_string()), serve("$PORT"));
    let declared = free[0].to_string();
    demo.admin(&["sprite", "create", "ports", "--public", "--command", &command, "--port", &declared]).await;

    assert_eq!(demo.get("ports", "/").await.status, 200);
    let open = demo.get(&format!("{}--ports", free[0]), "/").await;
    assert_eq!(open.status, 200, "{open:?}");
    let closed = demo.get(&format!("{}--ports", free[1]), "/").await;
    assert_eq!((closed.status, &closed.json()["code"]), (404, &"no_such_port".into()));
    let silly = demo.get("99999--ports", "/").await;
    assert_eq!(silly.status, 404);
}

#[tokio::test]
async fn failures_are_problem_json_for_programs_and_a_page_for_people() {
    let demo = Demo::new().await;
    let mut client = demo.connect(Version::H2, "nobody").await;
    let program = ask(&mut client, &demo, &[("accept", "*/*")]).await;
    assert_eq!(program.header("content-type"), "application/problem+json");
    let problem = program.json();
    assert_eq!((&problem["status"], &problem["code"]), (&404.into(), &"no_such_sprite".into()));
    assert_eq!(problem["request_id"], program.header("x-request-id"));
    assert_eq!(program.header("cache-control"), "no-store");
    assert!(program.header("proxy-status").starts_with("edge-proxy; error="), "{:?}", program.headers);

    let person = ask(&mut client, &demo, &[("accept", "text/html,*/*;q=0.8"), ("sec-fetch-mode", "navigate")]).await;
    assert!(person.header("content-type").starts_with("text/html"), "{:?}", person.headers);
    assert!(person.text().contains("404") && person.text().contains("no_such_sprite"), "{}", person.text());
    assert_eq!(person.header("x-robots-tag"), "noindex");

    let script = ask(&mut client, &demo, &[("accept", "text/html"), ("sec-fetch-mode", "cors")]).await;
    assert_eq!(script.header("content-type"), "application/problem+json");
}

#[tokio::test]
async fn a_guests_own_failure_passes_untouched() {
    if !requires(&["curl"]) {
        return;
    }
    let demo = Demo::new().await;
    demo.create("files", "exec python3 -m http.server $PORT").await;
    let answer = demo.curl("files", "/missing", &["--http1.1"]).await;
    assert_eq!(answer.status, 404);
    assert!(answer.text().contains("Error response"), "the guest's own page: {}", answer.text());
}

#[tokio::test]
async fn a_request_in_circles_is_refused() {
    let demo = Demo::new().await;
    let mut client = demo.connect(Version::H1, "hello").await;
    let line = "edge-proxy, edge-proxy, edge-proxy, edge-proxy";
    let request = demo.request(Method::GET, "hello", "/").header("cdn-loop", line).body(empty()).unwrap();
    assert_eq!(client.send(request).await.status, 508);
    assert_eq!(demo.row("hello").await["run"], 0);
}

async fn ask(client: &mut Client, demo: &Demo, lines: &[(&str, &str)]) -> harness::Answer {
    let mut request: Request<_> = demo.request(Method::GET, "nobody", "/").body(empty()).unwrap();
    for (name, value) in lines {
        request.headers_mut().insert(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    client.send(request).await
}

/// All values of a header line as the guest saw them.
fn all(seen: &Value, name: &str) -> Vec<String> {
    let lines = seen["headers"].as_array().unwrap_or_else(|| panic!("no headers: {seen}"));
    lines.iter().filter(|line| line[0] == name).map(|line| line[1].as_str().unwrap().to_owned()).collect()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
