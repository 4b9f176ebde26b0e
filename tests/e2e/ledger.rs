//! The ledger of runs: it is whole after a crash, its numbers go on, and its sums are true;
//! who is told of it hears everything, in order, under one id, with a signature that fits.

use aws_lc_rs::hmac;
use harness::client::{Version, full};
use harness::{Demo, Options, binary, until, within};
use http::Method;
use serde_json::Value;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;

/// Until a record is on disk and shown (at most a second), and a little for a slow machine.
const SHOWN: Duration = Duration::from_secs(20);

/// The ledger, once it has as many records; the numbers are without a gap.
async fn ledger(demo: &Demo, count: usize) -> Vec<Value> {
    let records = until(&format!("{count} records"), SHOWN, async || {
        let records = demo.admin(&["ledger"]).await;
        let records = records.as_array().unwrap().clone();
        (records.len() >= count).then_some(records)
    })
    .await;
    let seqs: Vec<_> = records.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=records.len() as u64).collect::<Vec<_>>(), "{records:?}");
    let ids: BTreeSet<_> = records.iter().map(|record| record["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), records.len(), "an id is told twice");
    records
}

fn events(records: &[Value]) -> Vec<(&str, &str, u64)> {
    records
        .iter()
        .map(|record| {
            let what = record.get("kind").or_else(|| record.get("reason")).and_then(Value::as_str);
            (record["event"].as_str().unwrap(), what.unwrap_or(""), record["run"].as_u64().unwrap())
        })
        .collect()
}

async fn usage(demo: &Demo, name: &str) -> Value {
    demo.admin(&["sprite", "usage", name]).await
}

#[tokio::test]
async fn runs_are_told_with_their_reason_and_what_passed_through_them_on_both_links() {
    for link in ["userspace", "direct-insecure"] {
        let arguments = vec!["--link".into(), link.into()];
        let demo = Demo::start(Options { arguments, ..Options::default() }).await;
        demo.create_guest("metered").await;
        let mut client = demo.connect(Version::H1, "metered").await;
        let body = vec![b'x'; 100_000];
        let request = demo.request(Method::POST, "metered", "/sha").body(full(body)).unwrap();
        assert_eq!(client.send(request).await.json()["bytes"], 100_000);
        assert_eq!(client.get(&demo, "metered", "/bytes?200000").await.body.len(), 200_000);
        let open = usage(&demo, "metered").await;
        assert!(open["open_run_bytes_to_guest"].as_u64().unwrap() > 100_000, "{link}: {open}");
        demo.sleep_warm("metered").await;
        assert_eq!(demo.get("metered", "/page").await.status, 200);
        demo.sleep_cold("metered").await;
        demo.create("broken", "exit 3").await;
        assert_eq!(demo.get("broken", "/").await.status, 503);
        demo.admin(&["sprite", "delete", "broken"]).await;

        let records = ledger(&demo, 8).await;
        let of = |name: &str| -> Vec<Value> { records.iter().filter(|r| r["sprite"] == name).cloned().collect() };
        let metered = of("metered");
        assert_eq!(
            events(&metered),
            [("start", "cold", 1), ("stop", "asked", 1), ("start", "warm", 2), ("stop", "asked", 2)],
            "{link}"
        );
        assert_eq!(metered[0]["reason"], "http POST");
        let (up, down) = (&metered[1]["bytes_to_guest"], &metered[1]["bytes_from_guest"]);
        assert!((100_000..110_000).contains(&up.as_u64().unwrap()), "{link}: {up}");
        assert!((200_000..210_000).contains(&down.as_u64().unwrap()), "{link}: {down}");
        assert_eq!(metered[1]["wakes"], 1);
        let broken = of("broken");
        assert_eq!(
            events(&broken),
            [("start", "cold", 1), ("stop", "wake_failed", 1), ("failed", "http GET", 1), ("gone", "", 1)],
            "{link}"
        );
        assert_eq!(broken[2]["detail"], "exit status 3");

        let sum = usage(&demo, "metered").await;
        let total: u64 = [&metered[1], &metered[3]].iter().map(|stop| stop["awake_ms"].as_u64().unwrap()).sum();
        assert_eq!((&sum["awake_ms"], &sum["runs"], &sum["wakes"]), (&total.into(), &2.into(), &2.into()), "{sum}");
        assert_eq!(sum["awake_since"], Value::Null);
        let later = demo.admin(&["sprite", "usage", "metered", "--since", "0s"]).await;
        assert_eq!((&later["awake_ms"], &later["runs"]), (&0.into(), &0.into()));
        demo.stop().await;
    }
}

#[tokio::test]
async fn after_a_crash_numbers_go_on_and_the_time_awake_is_what_it_was() {
    let demo = Demo::new().await;
    demo.create_guest("kept").await;
    let begun = Instant::now();
    let mut asleep = Duration::ZERO;
    for _ in 0..3 {
        assert_eq!(demo.get("kept", "/page").await.status, 200);
        demo.sleep_warm("kept").await;
        let rested = Instant::now();
        tokio::time::sleep(Duration::from_millis(300)).await;
        asleep += rested.elapsed();
    }
    assert_eq!(demo.get("kept", "/page").await.status, 200);
    let before = ledger(&demo, 7).await;
    let run = before[6]["run"].as_u64().unwrap();
    assert_eq!((&before[6]["event"], run), (&"start".into(), 4));
    let data = demo.crash();

    // Its guest lives on until the next owner ends it, and that time counts.
    tokio::time::sleep(Duration::from_millis(700)).await;
    let demo = Demo::start(Options { data: Some(data), ..Options::default() }).await;
    let longest = begun.elapsed() - asleep;
    let after = ledger(&demo, 8).await;
    assert_eq!(after[..7], before[..], "what was told once stays as it was");
    let lost = &after[7];
    assert_eq!((&lost["event"], &lost["reason"], &lost["run"]), (&"stop".into(), &"owner_lost".into(), &4.into()));
    assert!(lost["awake_ms"].as_u64().unwrap() >= 700, "{lost}");
    let shortest: u64 = after.iter().filter_map(|record| record["awake_ms"].as_u64()).sum();
    let sum = usage(&demo, "kept").await;
    assert_eq!((&sum["awake_ms"], &sum["runs"]), (&shortest.into(), &4.into()), "{sum}");
    assert!(u128::from(shortest) <= longest.as_millis(), "{shortest} ms awake in {longest:?}");

    assert_eq!(demo.get("kept", "/page").await.status, 200);
    let again = ledger(&demo, 9).await;
    assert!(again[8]["run"].as_u64().unwrap() > run, "run numbers never go back: {}", again[8]);
    assert_eq!(demo.row("kept").await["run"], again[8]["run"]);
    let last = again[8]["run"].clone();

    // In order this time: its end is told, and the next run is the next number.
    let data = demo.keep_data();
    demo.stop().await;
    let demo = Demo::start(Options { data: Some(data), ..Options::default() }).await;
    demo.admin(&["sprite", "wake", "kept"]).await;
    let all = ledger(&demo, 11).await;
    assert_eq!((&all[9]["reason"], &all[9]["run"]), (&"owner_ended".into(), &last));
    assert_eq!(all[10]["run"], last.as_u64().unwrap() + 1);
    let page = demo.admin(&["ledger", "--after", "10", "--limit", "5"]).await;
    assert_eq!(page[0]["seq"], 11);
    let beyond = demo.try_admin(&["ledger", "--after", "1000"]).await;
    assert!(String::from_utf8_lossy(&beyond.stderr).contains("the last is 11"), "{beyond:?}");
}

#[tokio::test]
async fn who_follows_the_ledger_is_told_the_next_record_as_it_comes() {
    let demo = Demo::new().await;
    let get = async |query: &str| {
        let mut socket = UnixStream::connect(demo.data().join("admin.sock")).await.unwrap();
        let request = format!("GET /v1/ledger?{query} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(query, Duration::from_secs(50), socket.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    };
    let (head, body) = get("after=0&follow=1ms").await;
    assert!(head.starts_with("http/1.1 200") && head.contains("application/x-ndjson"), "{head}");
    assert!(head.contains("ledger-first-seq: 1") && head.contains("ledger-last-seq: 0") && body.is_empty(), "{head}");
    let wake = demo.admin(&["sprite", "wake", "hello"]);
    let ((_, body), _) = tokio::join!(get("after=0&follow=45s"), wake);
    let record: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&record["seq"], &record["event"], &record["sprite"]), (&1.into(), &"start".into(), &"hello".into()));
    for wrong in ["after=x", "limit=0", "limit=1001", "follow=61s", "from=1"] {
        let (head, body) = get(wrong).await;
        let field = wrong.split('=').next().unwrap();
        assert!(head.starts_with("http/1.1 400") && body.contains(field), "{wrong}: {head} {body}");
    }
}

/// `edge-proxy run` with a config file of the test.
struct Running {
    child: Child,
    directory: tempfile::TempDir,
}

impl Running {
    async fn start(directory: tempfile::TempDir) -> Self {
        let child = Command::new(binary::edge_proxy())
            .args(["run", "--config"])
            .arg(directory.path().join("edge.toml"))
            .stdin(Stdio::null())
            .spawn()
            .expect("the program starts");
        let running = Self { child, directory };
        until("the admin API", Duration::from_secs(60), async || running.try_admin(&["status"]).await).await;
        running
    }

    async fn try_admin(&self, arguments: &[&str]) -> Option<Value> {
        let socket = self.directory.path().join("data/admin.sock");
        let mut all = vec!["--admin", socket.to_str().unwrap(), "--json"];
        all.extend(arguments);
        let output = harness::admin::run(&all).await;
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    async fn admin(&self, arguments: &[&str]) -> Value {
        self.try_admin(arguments).await.unwrap_or_else(|| panic!("{arguments:?} failed"))
    }

    /// Ends it as a crash does.
    fn crash(mut self) -> tempfile::TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SIGTERM, so that it ends its guests.
        let pid = rustix::process::Pid::from_child(&self.child);
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

const SECRET: &[u8] = b"thirty-two bytes of pure chance!";

fn configure(directory: &Path, receiver: std::net::SocketAddr) {
    // The base64 of `SECRET`.
    let secret = directory.join("secret");
    std::fs::write(&secret, "whsec_dGhpcnR5LXR3byBieXRlcyBvZiBwdXJlIGNoYW5jZSE=").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (data, secret) = (directory.join("data"), secret.display().to_string());
    let config = format!(
        "data_dir = {data:?}\n[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\nworkers = 1\n\
         [webhook]\nurl = \"http://{receiver}/hook\"\nsecret_file = {secret:?}\nevents = [\"start\", \"stop\"]\n"
    );
    std::fs::write(directory.join("edge.toml"), config).unwrap();
}

/// Refuses every POST until it is open, then takes them; passes on what it took and refused.
async fn receive(listener: TcpListener, open: Arc<AtomicBool>, heard: mpsc::UnboundedSender<(bool, Value)>) {
    while let Ok((stream, _)) = listener.accept().await {
        let mut stream = BufReader::new(stream);
        while let Some((head, body)) = request(&mut stream).await {
            let field = |name: &str| head.iter().find_map(|(of, value)| (of == name).then_some(value.clone())).unwrap();
            let signed = format!("{}.{}.{body}", field("webhook-id"), field("webhook-timestamp"));
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, SECRET), signed.as_bytes());
            assert_eq!(field("webhook-signature"), format!("v1,{}", base64(tag.as_ref())));
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["data"]["id"], field("webhook-id"));
            let taken = open.load(Ordering::Relaxed);
            let status = if taken { "204 No Content" } else { "503 Service Unavailable" };
            stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            heard.send((taken, body["data"].clone())).unwrap();
        }
    }
}

async fn request(stream: &mut BufReader<TcpStream>) -> Option<(Vec<(String, String)>, String)> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        // A crash of the sender is the end of the connection, however it ends.
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return None;
        }
        match line.trim().split_once(": ") {
            Some((name, value)) => head.push((name.to_ascii_lowercase(), value.to_owned())),
            None if line.trim().is_empty() => break,
            None => assert_eq!(line.trim(), "POST /hook HTTP/1.1"),
        }
    }
    let length = head.iter().find(|(name, _)| name == "content-length").unwrap().1.parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, String::from_utf8(body).unwrap()))
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let bits = part.iter().enumerate().map(|(at, byte)| u32::from(*byte) << (16 - 8 * at)).sum::<u32>();
        for at in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * at)) as usize & 63];
            text.push(if at <= part.len() { letter.into() } else { '=' });
        }
    }
    text
}

#[tokio::test]
async fn a_webhook_hears_every_event_in_order_and_a_refused_or_repeated_one_under_its_id() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    configure(directory.path(), listener.local_addr().unwrap());
    let (sender, mut heard) = mpsc::unbounded_channel();
    let open = Arc::new(AtomicBool::new(false));
    let receiver = tokio::spawn(receive(listener, Arc::clone(&open), sender));

    let running = Running::start(directory).await;
    let command = "exec \"$EDGE_PROXY\" sample hello";
    running.admin(&["sprite", "create", "hooked", "--public", "--command", command]).await;
    running.admin(&["sprite", "wake", "hooked"]).await;
    let next = async |heard: &mut mpsc::UnboundedReceiver<(bool, Value)>| {
        within("the next POST", Duration::from_secs(30), heard.recv()).await.unwrap()
    };
    let first = next(&mut heard).await;
    assert!(!first.0);
    let status = running.admin(&["status"]).await;
    assert_eq!((&status["webhook"]["lag"], &status["webhook"]["to"]), (&1.into(), &"127.0.0.1".into()), "{status}");
    // It is killed before anybody has taken the record.
    let running = Running::start(running.crash()).await;
    let second = next(&mut heard).await;
    assert!(!second.0);
    open.store(true, Ordering::Relaxed);
    for cold in [true, false] {
        running.admin(&["sprite", "wake", "hooked"]).await;
        let depth: &[&str] = if cold { &["--cold"] } else { &[] };
        running.admin(&[&["sprite", "sleep", "hooked"], depth].concat()).await;
    }

    let mut told = vec![first, second];
    let mut taken: Vec<Value> = Vec::new();
    while taken.last().is_none_or(|last| last["seq"].as_u64() < Some(6)) {
        let (took, record) = next(&mut heard).await;
        if took {
            taken.push(record.clone());
        }
        told.push((took, record));
    }
    taken.dedup_by_key(|record| record["seq"].clone());
    let of: Vec<_> =
        taken.iter().map(|record| (record["seq"].as_u64().unwrap(), record["event"].as_str().unwrap())).collect();
    assert_eq!(of, [(1, "start"), (2, "stop"), (3, "start"), (4, "stop"), (5, "start"), (6, "stop")]);
    assert_eq!(taken[1]["reason"], "owner_lost");
    for (_, record) in &told {
        let same = taken.iter().find(|other| other["seq"] == record["seq"]).unwrap();
        assert_eq!(record, same, "one record is one event, however often it is told");
    }
    assert!(told.iter().filter(|(_, record)| record["seq"] == 1).count() >= 3, "twice refused, then taken");
    until("no lag", SHOWN, async || {
        let status = running.admin(&["status"]).await;
        (status["webhook"]["lag"] == 0 && status["webhook"]["failures"] == 0).then_some(())
    })
    .await;
    drop(running);
    receiver.abort();
}
