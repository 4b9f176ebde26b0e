//! The DNS authority of a running edge, asked by `dig` and over bare sockets.

use harness::{Demo, Options, requires, until, within};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::Command;

/// Longest wait for what happens at once (a busy machine).
const SOON: Duration = Duration::from_secs(30);
/// `A a.sprites.test`, as it goes over TCP.
const QUESTION: &[u8] = b"\0\x20\x12\x34\0\0\0\x01\0\0\0\0\0\0\x01a\x07sprites\x04test\0\0\x01\0\x01";

/// An edge with DNS on 127.0.0.1 and these further settings of its section.
async fn start(port: u16, more: &str) -> (Demo, SocketAddr) {
    let config = format!(
        r#"
[dns]
listen = ["127.0.0.1:{port}"]
addresses = ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
name_servers = [
    {{ name = "ns1.sprites.test", addresses = ["192.0.2.53", "2001:db8::53"] }},
    {{ name = "ns2.elsewhere.example" }},
]
issuers = [{{ ca = "ca.example", account = "https://ca.example/acct/1" }}]
texts = [{{ name = "_psl.sprites.test", value = "https://example/1" }}]
{more}
"#
    );
    let options = Options { config: Some(config), suffix: Some("sprites.test".into()), ..Options::default() };
    let demo = Demo::start(options).await;
    let status = demo.admin(&["status"]).await;
    assert_eq!(status["dns"]["zones"][0], "sprites.test");
    let at = status["dns"]["listen"][0].as_str().expect("it says where").parse().expect("an address");
    (demo, at)
}

/// What `dig` prints, its columns one space apart.
pub(crate) async fn dig(at: SocketAddr, question: &str) -> String {
    let mut command = Command::new("dig");
    let (server, port) = (format!("@{}", at.ip()), at.port().to_string());
    command
        .args([&server, "-p", &port, "+norecurse", "+tries=3", "+time=5"])
        .args(question.split(' '))
        .kill_on_drop(true);
    let output = within(&format!("dig {question}"), SOON, command.output()).await.expect("dig starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // It speaks up when something in an answer is against the rules.
    for complaint in ["WARNING", "malformed", "Got bad packet", "mismatch"] {
        assert!(!text.contains(complaint), "{text}");
    }
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}

/// The records `dig` prints for short.
pub(crate) async fn short(at: SocketAddr, question: &str) -> Vec<String> {
    let text = dig(at, &format!("+short {question}")).await;
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn dig_reads_every_kind_of_answer_over_both_transports() {
    if !requires(&["dig"]) {
        return;
    }
    let (demo, at) = start(0, "").await;
    for transport in ["+notcp", "+tcp"] {
        let short = async |question: &str| short(at, &format!("{transport} {question}")).await;
        assert_eq!(short("anything.sprites.test A").await, ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(short("SPRITES.test AAAA").await, ["2001:db8::1"]);
        assert_eq!(short("anything.sprites.test HTTPS").await, ["1 . alpn=\"h2\""]);
        assert_eq!(short("sprites.test NS").await, ["ns1.sprites.test.", "ns2.elsewhere.example."]);
        assert_eq!(short("ns1.sprites.test A").await, ["192.0.2.53"]);
        assert_eq!(short("_psl.sprites.test TXT").await, ["\"https://example/1\""]);
        let value = "\"ca.example; accounturi=https://ca.example/acct/1; validationmethods=dns-01\"";
        assert_eq!(short("sprites.test CAA").await, [format!("0 issue {value}"), format!("0 issuewild {value}")]);
        assert!(short("sprites.test ANY").await[0].contains("RFC8482"));
        for (question, says) in [
            ("anything.sprites.test A", "status: NOERROR"),
            ("anything.sprites.test CAA", "status: NOERROR"),
            ("anything.sprites.test CAA", "ANSWER: 0, AUTHORITY: 1"),
            ("acme.sprites.test A", "status: NOERROR"),
            ("x.ns1.sprites.test A", "status: NXDOMAIN"),
            ("x.ns1.sprites.test A", " 5 IN SOA ns1.sprites.test. hostmaster.sprites.test."),
            ("example.com A", "status: REFUSED"),
            ("sprites.test A +opcode=NOTIFY +noedns", "status: NOTIMP"),
            ("sprites.test A +opcode=UPDATE +noedns", "status: NOTIMP"),
            ("CH version.bind TXT", "status: REFUSED"),
            ("sprites.test A +edns=1 +noednsnegotiation", "status: BADVERS"),
            ("sprites.test A +bufsize=65535", "udp: 1232"),
            ("sprites.test A +noedns", "ADDITIONAL: 0"),
            ("sprites.test A +dnssec", "flags: do; udp: 1232"),
        ] {
            let text = dig(at, &format!("{transport} {question}")).await;
            assert!(text.contains(says), "{question}: {text}");
        }
    }
    assert!(dig(at, "sprites.test AXFR").await.contains("Transfer failed"));
    assert!(demo.stop().await.success());
}

#[tokio::test]
async fn a_challenge_is_answered_until_it_is_taken_away() {
    if !requires(&["dig"]) {
        return;
    }
    let (demo, at) = start(0, "").await;
    let id = "0123456789abcdef0123456789abcdef.acme.sprites.test";
    for name in ["_acme-challenge.sprites.test", id] {
        let question = format!("{name} TXT");
        assert_eq!(short(at, &question).await, [""; 0]);
        for value in ["one", "two"] {
            demo.admin(&["dns", "challenge", "add", name, value]).await;
        }
        assert_eq!(short(at, &question).await, ["\"one\"", "\"two\""]);
        demo.admin(&["dns", "challenge", "remove", name, "one"]).await;
        assert_eq!(short(at, &question).await, ["\"two\""]);
        assert!(dig(at, &question).await.contains(" 5 IN TXT "));
    }
    let refused = demo.try_admin(&["dns", "challenge", "add", "_acme-challenge.a.sprites.test", "x"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no challenge is looked for"), "{refused:?}");
    let refused = demo.try_admin(&["dns", "challenge", "remove", id, "one"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("has no such value"), "{refused:?}");
}

#[tokio::test]
async fn the_command_line_says_what_is_answered_and_the_metrics_what_was() {
    if !requires(&["dig"]) {
        return;
    }
    // Each of the last two bounds is met below.
    let (demo, at) = start(0, "answers_per_second = 4\ntcp_connections = 8").await;
    let said = demo.admin(&["dns", "query", "anything.sprites.test", "AAAA"]).await;
    assert_eq!(
        (&said["code"], &said["answers"][0]),
        (&"NOERROR".into(), &"anything.sprites.test. 60 IN AAAA 2001:db8::1".into())
    );
    let said = demo.admin(&["dns", "query", "x.ns1.sprites.test"]).await;
    assert_eq!((&said["code"], said["authority"].as_array().map(Vec::len)), (&"NXDOMAIN".into(), Some(1)));
    let refused = demo.try_admin(&["dns", "query", "a..b"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no domain name"), "{refused:?}");
    assert!(!metrics(&demo).await.contains("dns_questions_total{type=\"A\"} 1"), "to explain is not to answer");

    dig(at, "sprites.test CAA +notcp").await;
    dig(at, "example.com A +tcp").await;
    // A flood of a second's answers and as many again: the network is told to come by TCP, or nothing.
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for _ in 0..12 {
        socket.send_to(&QUESTION[2..], at).await.unwrap();
    }
    until("the limit to be met", SOON, async || {
        let metrics = metrics(&demo).await;
        let has = |line: &str| metrics.lines().any(|other| other == line);
        let counted = has("dns_questions_total{type=\"CAA\"} 1") && has("dns_answers_total{code=\"REFUSED\"} 1");
        let limited = ["cut", "dropped"].iter().all(|how| {
            let none = format!("dns_limited_total{{how=\"{how}\"}} 0");
            !has(&none) && metrics.contains(&format!("dns_limited_total{{how=\"{how}\"}}"))
        });
        (counted && limited && has("dns_connections_total 1") && has("dns_connections_refused_total 0")).then_some(())
    })
    .await;
}

async fn metrics(demo: &Demo) -> String {
    let output = demo.try_admin(&["metrics"]).await;
    String::from_utf8(output.stdout).expect("it is text")
}

/// A connection from a network of its own.
async fn connect(at: SocketAddr, network: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, network, 1), 0))).unwrap();
    within("a connection", SOON, socket.connect(at)).await.expect("it is taken, if only to be closed")
}

/// Whether a question on it is answered.
async fn answers(stream: &mut TcpStream) -> bool {
    let exchange = async {
        stream.write_all(QUESTION).await?;
        let length = stream.read_u16().await?;
        stream.read_exact(&mut vec![0; length.into()]).await
    };
    within("an answer or the end", SOON, exchange).await.is_ok()
}

#[tokio::test]
async fn connections_are_bounded_in_number_and_in_silence() {
    let (_demo, at) = start(0, "tcp_connections = 8").await;
    let mut open: Vec<TcpStream> = Vec::new();
    // None of them is silent for as long as would close it.
    let speak = async |open: &mut [TcpStream]| {
        for stream in open {
            assert!(answers(stream).await);
        }
    };
    for network in 0..4 {
        for _ in 0..2 {
            open.push(connect(at, network).await);
        }
        speak(&mut open).await;
        assert!(!answers(&mut connect(at, network).await).await, "a network has a quarter");
    }
    speak(&mut open).await;
    assert!(!answers(&mut connect(at, 9).await).await, "all are taken");
    let began = Instant::now();
    let mut last = open.pop().expect("eight of them");
    assert!(answers(&mut last).await);
    let end = within("the end of a silent connection", SOON, last.read(&mut [0; 1])).await;
    assert!(matches!(end, Ok(0) | Err(_)));
    assert!((Duration::from_secs(2)..SOON).contains(&began.elapsed()), "{:?}", began.elapsed());
    // The others were silent for as long; their places are free.
    let free = async || answers(&mut connect(at, 9).await).await.then_some(());
    until("a place to be free", SOON, free).await;
}

#[tokio::test]
async fn a_connection_takes_many_questions_at_once() {
    let (_demo, at) = start(0, "").await;
    let mut stream = connect(at, 0).await;
    stream.write_all(&QUESTION.repeat(100)).await.unwrap();
    for _ in 0..100 {
        let length = within("an answer", SOON, stream.read_u16()).await.unwrap();
        stream.read_exact(&mut vec![0; length.into()]).await.unwrap();
    }
}

#[tokio::test]
async fn a_restart_answers_again_on_the_same_port() {
    let (demo, at) = start(0, "").await;
    let mut before = connect(at, 0).await;
    assert!(answers(&mut before).await);
    assert!(demo.stop().await.success());
    assert!(matches!(before.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    assert!(TcpStream::connect(at).await.is_err());
    let (_demo, again) = start(at.port(), "").await;
    assert_eq!(again, at);
    assert!(answers(&mut connect(at, 0).await).await);
}

#[tokio::test]
async fn without_the_section_there_is_no_dns() {
    let demo = Demo::start(Options { config: Some(String::new()), ..Options::default() }).await;
    assert_eq!(demo.admin(&["status"]).await["dns"], Value::Null);
    let refused = demo.try_admin(&["dns", "query", "a.sprites.localhost"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("answers no DNS"), "{refused:?}");
}
