//! ClientHellos that no library sends, byte by byte: each is answered as TLS says, in time, and takes nobody else down.

use crate::tls::{ALERT, HANDSHAKE, answer, demo, hello};
use harness::{Demo, requires, until, within};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

// Alerts (RFC 8446 §6.2).
const UNEXPECTED_MESSAGE: u8 = 10;
const RECORD_OVERFLOW: u8 = 22;
const HANDSHAKE_FAILURE: u8 = 40;
const ILLEGAL_PARAMETER: u8 = 47;
const DECODE_ERROR: u8 = 50;
const PROTOCOL_VERSION: u8 = 70;
const MISSING_EXTENSION: u8 = 109;
const UNRECOGNIZED_NAME: u8 = 112;

// Extensions.
const SERVER_NAME: u16 = 0;
const SUPPORTED_GROUPS: u16 = 10;
const PADDING: u16 = 21;
const SUPPORTED_VERSIONS: u16 = 43;
const KEY_SHARE: u16 = 51;

/// A ClientHello, taken apart.
struct Hello {
    /// All before the extensions.
    head: Vec<u8>,
    extensions: Vec<(u16, Vec<u8>)>,
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

impl Hello {
    fn new(name: &str) -> Self {
        let flight = hello(name);
        // Behind the heads of record and message: version, random, session, suites, compression.
        let body = &flight[9..];
        let session = 34 + 1 + usize::from(body[34]);
        let suites = session + 2 + number(&body[session..session + 2]);
        let (head, mut rest) = body.split_at(suites + 1 + usize::from(body[suites]));
        rest = &rest[2..];
        let mut extensions = Vec::new();
        while !rest.is_empty() {
            let (kind, end) = (u16::from_be_bytes([rest[0], rest[1]]), 4 + number(&rest[2..4]));
            extensions.push((kind, rest[4..end].to_vec()));
            rest = &rest[end..];
        }
        Self { head: head.to_vec(), extensions }
    }

    fn with(mut self, kind: u16, value: Vec<u8>) -> Self {
        self.extensions.retain(|(known, _)| *known != kind);
        self.extensions.push((kind, value));
        self
    }

    /// As [`SERVER_NAME`] says it (RFC 6066 §3).
    fn named(self, name: &[u8]) -> Self {
        let entry = [&[0][..], &sized(name)].concat();
        self.with(SERVER_NAME, sized(&entry))
    }

    /// The handshake message.
    fn message(&self) -> Vec<u8> {
        let of = |(kind, value): &(u16, Vec<u8>)| [&kind.to_be_bytes()[..], &sized(value)].concat();
        let extensions: Vec<u8> = self.extensions.iter().flat_map(of).collect();
        let body = [&self.head[..], &sized(&extensions)].concat();
        [&[1][..], &u32::try_from(body.len()).unwrap().to_be_bytes()[1..], &body].concat()
    }

    fn record(&self) -> Vec<u8> {
        record(HANDSHAKE, &self.message())
    }
}

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1][..], &sized(content)].concat()
}

/// What a flight is answered with, whatever the pieces it comes in.
async fn told(demo: &Demo, flight: &[u8]) -> (u8, Option<u8>) {
    let (kind, body) = answer(demo, flight, usize::MAX).await;
    (kind, body.get(1).copied())
}

const GOES_ON: (u8, Option<u8>) = (HANDSHAKE, None);

const fn ends_with(alert: u8) -> (u8, Option<u8>) {
    (ALERT, Some(alert))
}

#[tokio::test]
async fn a_name_is_taken_as_it_is_meant_or_refused() {
    let demo = demo("").await;
    let ours = demo.host("any");
    let ask = async |name: &[u8]| told(&demo, &Hello::new(&ours).named(name).record()).await;
    assert_eq!(ask(ours.as_bytes()).await, GOES_ON);
    assert_eq!(ask(format!("{ours}.").as_bytes()).await, GOES_ON, "the final dot of a name is no part of it");
    assert_eq!(ask(ours.to_uppercase().as_bytes()).await, GOES_ON);
    for name in [format!("{ours}.."), format!(".{ours}"), ".".into()] {
        assert_ne!(ask(name.as_bytes()).await, GOES_ON, "{name}");
    }
    // An address is none.
    assert_eq!(ask(b"192.0.2.1").await, ends_with(MISSING_EXTENSION));
    let longest = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
    assert_eq!((longest.len(), ask(longest.as_bytes()).await), (253, ends_with(UNRECOGNIZED_NAME)));
    for nonsense in [&b"any\0.sprites.test"[..], b"", b"a b", b"\xff\xfe", &[b'a'; 300]] {
        let (kind, alert) = ask(nonsense).await;
        let alert = alert.unwrap_or_default();
        assert_eq!(kind, ALERT, "{nonsense:?}");
        assert!([DECODE_ERROR, ILLEGAL_PARAMETER].contains(&alert), "{nonsense:?}: {alert}");
    }
    demo.stop().await;
}

/// The first line of the answer to a request for `host` on a connection for `name`, which OpenSSL sends as it is.
async fn asked(demo: &Demo, name: &str, host: &str) -> String {
    let address = demo.https.to_string();
    let mut client = tokio::process::Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &address, "-servername", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("tests/run installs openssl");
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    client.stdin.as_mut().unwrap().write_all(request.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    within("an answer", Duration::from_secs(60), lines.next_line()).await.unwrap().unwrap_or_default()
}

#[tokio::test]
async fn a_final_dot_is_no_part_of_a_name_in_a_request_either() {
    if !requires(&["openssl"]) {
        return;
    }
    let demo = demo("").await;
    let ours = demo.host("nobody");
    for (name, host) in [("", ""), (".", ""), ("", "."), (".", ".")] {
        let line = asked(&demo, &format!("{ours}{name}"), &format!("{ours}{host}")).await;
        assert!(line.starts_with("HTTP/1.1 404"), "{name:?} {host:?}: {line}");
    }
    let other = demo.host("other");
    assert!(asked(&demo, &format!("{ours}."), &other).await.starts_with("HTTP/1.1 421"));
    demo.stop().await;
}

#[tokio::test]
async fn records_are_put_together_and_bounded() {
    let demo = demo("").await;
    let ours = demo.host("any");
    let plain = Hello::new(&ours);
    let each_byte: Vec<u8> = plain.message().iter().flat_map(|byte| record(HANDSHAKE, &[*byte])).collect();
    assert_eq!(told(&demo, &each_byte).await, GOES_ON, "a record for each byte");
    let large = Hello::new(&ours).with(PADDING, vec![0; 15_000]).message();
    assert_eq!(told(&demo, &record(HANDSHAKE, &large)).await, GOES_ON, "16 KiB");
    let huge = Hello::new(&ours).with(PADDING, vec![0; 65_000]).message();
    let pieces: Vec<u8> = huge.chunks(16_384).flat_map(|piece| record(HANDSHAKE, piece)).collect();
    let (kind, _) = told(&demo, &pieces).await;
    assert_eq!(kind, HANDSHAKE, "64 KiB");
    // RFC 8446 §5.1: 2^14 bytes of plaintext, and none that is empty.
    let overflow = [&[HANDSHAKE, 3, 1][..], &(16_384u16 + 2_048 + 1).to_be_bytes(), &[1; 32]].concat();
    // rustls says the more general of the two alerts.
    assert!([ends_with(RECORD_OVERFLOW), ends_with(DECODE_ERROR)].contains(&told(&demo, &overflow).await));
    let (kind, alert) = told(&demo, &record(HANDSHAKE, &[])).await;
    assert!(kind == ALERT && [Some(DECODE_ERROR), Some(UNEXPECTED_MESSAGE)].contains(&alert), "{alert:?}");
    demo.stop().await;
}

#[tokio::test]
async fn what_is_no_hello_of_ours_is_told_so() {
    let demo = demo("").await;
    let ours = demo.host("any");
    let cases = [
        ("no version we speak", Hello::new(&ours).with(SUPPORTED_VERSIONS, vec![2, 3, 2]), PROTOCOL_VERSION),
        (
            "no group we speak",
            Hello::new(&ours).with(SUPPORTED_GROUPS, vec![0, 2, 0xfe, 0xfe]).with(KEY_SHARE, vec![0, 0]),
            HANDSHAKE_FAILURE,
        ),
    ];
    for (what, hello, alert) in cases {
        assert_eq!(told(&demo, &hello.record()).await, ends_with(alert), "{what}");
    }
    let mut twice = Hello::new(&ours);
    let first = twice.extensions[0].clone();
    twice.extensions.push(first);
    let (kind, alert) = told(&demo, &twice.record()).await;
    assert!(kind == ALERT && [Some(DECODE_ERROR), Some(ILLEGAL_PARAMETER)].contains(&alert), "{alert:?}");
    // Application data, a heartbeat, and what is no TLS at all: an alert at most, and the end.
    let page = b"GET / HTTP/1.1\r\nhost: any.sprites.test\r\n\r\n".to_vec();
    for flight in [record(23, &[1; 16]), record(24, &[1; 16]), page] {
        let mut stream = TcpStream::connect(demo.https).await.unwrap();
        stream.write_all(&flight).await.unwrap();
        let mut heard = Vec::new();
        // A reset is an end as well: not all was read.
        let _ = within("the end", Duration::from_secs(60), stream.read_to_end(&mut heard)).await;
        assert!(heard.is_empty() || (heard[0] == ALERT && heard.len() == 7), "{heard:?}");
    }
    // And all that has troubled nobody.
    assert_eq!(told(&demo, &Hello::new(&ours).record()).await, GOES_ON);
    demo.stop().await;
}

#[tokio::test]
async fn who_takes_his_time_for_a_hello_is_let_go() {
    let demo = demo("[tls]\nhandshake_timeout = \"1s\"\n").await;
    let flight = Hello::new(&demo.host("any")).record();
    let began = Instant::now();
    let mut stream = TcpStream::connect(demo.https).await.unwrap();
    let mut sent = 0;
    // A byte each tenth of a second, which is never idle, and never done.
    let mut heard = [0; 64];
    loop {
        tokio::select! {
            read = stream.read(&mut heard) => {
                assert!(matches!(read, Ok(0) | Err(_)), "it says nothing before it hangs up: {read:?}");
                break;
            }
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                sent += 1;
                // Whether it has hung up, the read says.
                let _ = stream.write_all(&flight[sent - 1..sent]).await;
            }
        }
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(1) && sent < flight.len(), "{took:?}, {sent} bytes");
    drop(stream);
    until("nothing of it to be left", Duration::from_secs(10), async || {
        let read = String::from_utf8(demo.try_admin(&["metrics"]).await.stdout).ok()?;
        let open = read.lines().find_map(|line| line.strip_prefix("client_connections ")?.parse::<u64>().ok())?;
        (open == 0).then_some(())
    })
    .await;
    demo.stop().await;
}
