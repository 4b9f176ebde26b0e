//! Bodies of any size pass unchanged, both ways, in little memory.

use aws_lc_rs::digest::{Context, SHA256, digest};
use bytes::Bytes;
use harness::client::{Client, VERSIONS, Version, empty, full, streamed, whole};
use harness::{Demo, binary, guest::shell, processes, tools, within};
use http::Method;
use http_body_util::BodyExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const GIB: u64 = 1 << 30;
/// Under it the edge, with the worker host in the same process, must stay.
const MEMORY: u64 = 100 << 20;
const PIECE: usize = 256 << 10;
/// 1 GiB each way through TLS and WireGuard, in a debug build on a busy machine.
const LIMIT: Duration = Duration::from_secs(600);

#[tokio::test]
async fn a_gibibyte_up_and_down_keeps_its_sha256_in_under_100_mib_over_h1() {
    a_gibibyte_both_ways(Version::H1).await;
}

#[tokio::test]
async fn a_gibibyte_up_and_down_keeps_its_sha256_in_under_100_mib_over_h2() {
    a_gibibyte_both_ways(Version::H2).await;
}

async fn a_gibibyte_both_ways(version: Version) {
    let _quiet = tools::quiet().await;
    let demo = Demo::new().await;
    demo.create("echo", &format!("exec {} sample echo", shell(&binary::edge_proxy()))).await;
    let mut client = demo.connect(version, "echo").await;
    let memory = Memory::watch(demo.pid());

    let began = Instant::now();
    let (sent, answer) = within("1 GiB up", LIMIT, upload(&demo, &mut client)).await;
    let up = began.elapsed();
    assert_eq!(answer, format!("{GIB} {sent}\n"), "length and SHA-256 at the guest");

    let began = Instant::now();
    let (length, sum) = within("1 GiB down", LIMIT, download(&demo, &mut client)).await;
    let down = began.elapsed();
    assert_eq!((length, sum), (GIB, pattern_sum()), "length and SHA-256 at the client");

    let peak = memory.end();
    println!(
        "{version:?}: 1 GiB up in {:.1} s, down in {:.1} s; edge and host at most {:.1} MiB resident (peak of their life {:.1} MiB)",
        up.as_secs_f64(),
        down.as_secs_f64(),
        mib(peak),
        mib(processes::peak_bytes(demo.pid()).unwrap())
    );
    assert!(peak < MEMORY, "the edge took {:.1} MiB", mib(peak));
}

/// Sends 1 GiB without a declared length; its SHA-256 and what the guest says of it.
async fn upload(demo: &Demo, client: &mut Client) -> (String, String) {
    let (sender, body) = streamed(4);
    let feed = tokio::spawn(async move {
        let mut sum = Context::new(&SHA256);
        let mut piece = vec![0; PIECE];
        for number in 0..GIB / PIECE as u64 {
            // Every piece differs, so that a lost, doubled or swapped one shows.
            piece[..8].copy_from_slice(&number.to_be_bytes());
            sum.update(&piece);
            sender.send(Bytes::copy_from_slice(&piece)).await.expect("the edge reads on");
        }
        hex(sum.finish().as_ref())
    });
    let request = demo.request(Method::POST, "echo", "/sink").body(body).unwrap();
    let answer = whole(client.try_send(request).await.unwrap()).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    (feed.await.unwrap(), answer.text())
}

/// Asks for 1 GiB; its length and SHA-256.
async fn download(demo: &Demo, client: &mut Client) -> (u64, String) {
    let request = demo.request(Method::GET, "echo", &format!("/bytes?n={GIB}")).body(empty()).unwrap();
    let mut answer = client.try_send(request).await.unwrap().into_body();
    let (mut length, mut sum) = (0, Context::new(&SHA256));
    while let Some(frame) = answer.frame().await {
        let piece = frame.expect("the answer goes on").into_data().unwrap_or_default();
        length += piece.len() as u64;
        sum.update(&piece);
    }
    (length, hex(sum.finish().as_ref()))
}

/// SHA-256 of what the sample sends: byte `i` is `i % 251`.
fn pattern_sum() -> String {
    let block: Vec<u8> = (0..251_u32 * 1024).map(|at| u8::try_from(at % 251).expect("below 251")).collect();
    let (mut sum, mut left) = (Context::new(&SHA256), usize::try_from(GIB).expect("64-bit machines"));
    while left > 0 {
        let count = left.min(block.len());
        sum.update(&block[..count]);
        left -= count;
    }
    hex(sum.finish().as_ref())
}

#[tokio::test]
async fn every_length_around_a_boundary_passes_unchanged() {
    let demo = Demo::new().await;
    demo.create_guest("lengths").await;
    let lengths = [0, 1, 1023, 16_383, 16_384, 16_385, 65_535, 65_536, 65_537, 1_048_577];
    for version in VERSIONS {
        let mut client = demo.connect(version, "lengths").await;
        for length in lengths {
            let content: Vec<u8> = (0..length).map(|at: usize| at.to_le_bytes()[0]).collect();
            let sum = hex(digest(&SHA256, &content).as_ref());
            // With its length declared, then without (chunked, or h2 frames alone).
            for declared in [true, false] {
                let body = if declared {
                    full(content.clone())
                } else {
                    let (sender, body) = streamed(64);
                    for piece in content.chunks(20_000) {
                        sender.send(Bytes::copy_from_slice(piece)).await.unwrap();
                    }
                    body
                };
                let request = demo.request(Method::POST, "lengths", "/sha").body(body).unwrap();
                let answer = client.send(request).await;
                let seen = answer.json();
                assert_eq!(answer.status, 200, "{version:?} {length} {declared}");
                assert_eq!(
                    (&seen["bytes"], &seen["sha256"]),
                    (&length.into(), &sum.clone().into()),
                    "{version:?} {declared}"
                );
            }
            let answer = client.get(&demo, "lengths", &format!("/bytes?{length}")).await;
            assert_eq!(answer.body.len(), length, "{version:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_to_head_has_a_length_and_no_content() {
    let demo = Demo::new().await;
    demo.create("files", "echo content > file; exec python3 -m http.server $PORT").await;
    for version in VERSIONS {
        let mut client = demo.connect(version, "files").await;
        for _ in 0..3 {
            let request = demo.request(Method::HEAD, "files", "/file").body(empty()).unwrap();
            let answer = client.send(request).await;
            assert_eq!(
                (answer.status, answer.header("content-length"), answer.body.len()),
                (200, "8", 0),
                "{version:?}"
            );
        }
        assert_eq!(client.get(&demo, "files", "/file").await.text(), "content\n", "{version:?}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Looks at a process's resident memory from another thread until told to end.
struct Memory {
    peak: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Memory {
    fn watch(pid: u32) -> Self {
        let (peak, end) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (peak, end) = (Arc::clone(&peak), Arc::clone(&end));
            move || {
                while !end.load(Ordering::Relaxed) {
                    peak.fetch_max(processes::resident_bytes(pid).unwrap_or(0), Ordering::Relaxed);
                    std::thread::park_timeout(Duration::from_millis(20));
                }
            }
        });
        Self { peak, end, thread }
    }

    fn end(self) -> u64 {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.peak.load(Ordering::Relaxed)
    }
}
