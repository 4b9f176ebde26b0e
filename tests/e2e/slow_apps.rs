//! wake.md, test 6: apps that are slow to listen, that stop listening, that reset, that refuse
//! by themselves, that die on the way up. (`wake_fails.rs` has one that never listens.)

use harness::client::{VERSIONS, Version};
use harness::guest::shell;
use harness::{Answer, Demo, tools, until};
use std::time::{Duration, Instant};

/// `app.py PORT MODE SECONDS`. Beside `open` (a file) decides whether `flaky` listens.
const APP: &str = r#"
import os, signal, socket, struct, sys, time

port, mode, wait = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
busy = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 77\r\nX-App: tired\r\nContent-Length: 4\r\n\r\nbusy"
fine = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfine"

def listen():
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    return listener

def head(sock):
    seen = b""
    while b"\r\n\r\n" not in seen:
        piece = sock.recv(65536)
        if not piece:
            return False
        seen += piece
    return True

time.sleep(wait)
if mode == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
listener = listen()
if mode == "refuses":  # after its first answer
    while True:
        sock = listener.accept()[0]
        if head(sock):
            break
        sock.close()
    listener.close()
    sock.sendall(fine.encode())
    sock.close()
    while not os.path.exists("open"):
        time.sleep(0.02)
    listener = listen()
while True:
    sock = listener.accept()[0]
    heard = head(sock)
    if heard and mode == "resets":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif heard:
        sock.sendall((busy if mode == "busy" else fine).encode())
    sock.close()
"#;

async fn create(demo: &Demo, name: &str, mode: &str, seconds: f64) {
    let python = tools::python(&[]).expect("python3 is installed");
    let app = demo.script("app.py", APP);
    demo.create(name, &format!("exec {} {} $PORT {mode} {seconds}", shell(&python), shell(&app))).await;
}

async fn timed(demo: &Demo, version: Version, name: &str) -> (Answer, Duration) {
    let mut client = demo.connect(version, name).await;
    let asked = Instant::now();
    (client.get(demo, name, "/").await, asked.elapsed())
}

#[tokio::test]
async fn an_app_that_listens_late_is_waited_for() {
    let demo = Demo::new().await;
    let full = std::env::var_os("EDGE_PROXY_TEST_FULL").is_some_and(|full| full == "1");
    // From the interpreter's first line, so the last is within the port wait of 10 s by little.
    let mut waits = vec![0.0, 0.05, 1.0];
    waits.extend(full.then_some(9.0));
    let cases = waits.iter().flat_map(|wait| VERSIONS.map(|version| (*wait, version))).enumerate();
    let each = cases.map(async |(number, (wait, version))| {
        let name = format!("late-{number}");
        create(&demo, &name, "serves", wait).await;
        let (answer, took) = timed(&demo, version, &name).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "fine"), "{wait} s {version:?}: {answer:?}");
        assert_eq!(answer.header("sprite-wake"), "cold");
        assert!(took >= Duration::from_secs_f64(wait), "{wait} s {version:?} took {took:?}");
        assert_eq!(demo.receipts(&name).await.len(), 1);
    });
    futures_util::future::join_all(each).await;
    assert_eq!(demo.held().await, 0);
}

#[tokio::test]
async fn an_app_that_listened_and_refuses_is_a_closed_port_until_it_listens_again() {
    let demo = Demo::new().await;
    create(&demo, "shy", "refuses", 0.0).await;
    assert_eq!(demo.get("shy", "/").await.text(), "fine");
    demo.admin(&["sprite", "limits", "shy", "--port-wait", "1s"]).await;
    for version in VERSIONS {
        let (answer, took) = timed(&demo, version, "shy").await;
        assert_eq!((answer.status, &answer.json()["code"]), (502, &"port_closed".into()), "{version:?}: {answer:?}");
        assert!(took < Duration::from_secs(10), "{version:?} took {took:?}");
    }
    assert_eq!(demo.held().await, 0);
    std::fs::write(demo.data().join("sprites/shy/data/open"), b"").unwrap();
    until("the app that listens again", Duration::from_secs(10), async || {
        (demo.get("shy", "/").await.text() == "fine").then_some(())
    })
    .await;
    assert_eq!(demo.row("shy").await["run"], 1, "a closed port is no failed wake");
}

#[tokio::test]
async fn an_app_that_hears_a_request_and_resets_is_told_apart_from_one_that_sleeps() {
    let demo = Demo::new().await;
    create(&demo, "rude", "resets", 0.0).await;
    for version in VERSIONS {
        let (answer, took) = timed(&demo, version, "rude").await;
        assert_eq!((answer.status, &answer.json()["code"]), (502, &"sprite_reset".into()), "{version:?}: {answer:?}");
        assert!(took < Duration::from_secs(15), "{version:?} took {took:?}");
    }
    assert_eq!(demo.receipts("rude").await.len(), 1, "a reset wakes nothing anew");
    assert_eq!(demo.held().await, 0);
}

#[tokio::test]
async fn an_apps_own_503_is_its_own() {
    let demo = Demo::new().await;
    create(&demo, "tired", "busy", 0.0).await;
    for version in VERSIONS {
        for wake in ["cold", ""] {
            let wake = if version == Version::H1 { wake } else { "" };
            let (answer, _) = timed(&demo, version, "tired").await;
            assert_eq!((answer.status, answer.text().as_str()), (503, "busy"), "{version:?}: {answer:?}");
            assert_eq!((answer.header("retry-after"), answer.header("x-app")), ("77", "tired"));
            assert_eq!(answer.header("sprite-wake"), wake, "{version:?}");
            assert!(!answer.header("proxy-status").contains("error="), "{version:?}: {answer:?}");
        }
    }
    assert_eq!(demo.receipts("tired").await.len(), 1, "it is not asked twice");
}

#[tokio::test]
async fn an_app_that_dies_before_it_listens_is_told_when_it_dies() {
    let demo = Demo::new().await;
    for (number, version) in VERSIONS.into_iter().enumerate() {
        let name = format!("mortal-{number}");
        create(&demo, &name, "dies", 0.3).await;
        let (answer, took) = timed(&demo, version, &name).await;
        assert_eq!((answer.status, &answer.json()["code"]), (503, &"wake_failed".into()), "{version:?}: {answer:?}");
        assert!(took < Duration::from_secs(8), "not after the port wait of 10 s: {version:?} {took:?}");
        let cause = demo.why_it_failed(&name).await;
        assert!(cause.contains("signal 9"), "{cause}");
    }
    assert_eq!(demo.held().await, 0);
}
