use super::*;
use acme::local_ca::LocalCa;
use std::net::SocketAddr;
use std::sync::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use wakeup::ledger::{Entry, Event, LedgerSettings};

/// What a receiver heard: its head lines and its body.
type Heard = (Vec<String>, String);

/// A receiver that gives these answers, one after the other, then 204; what it hears.
struct Hook {
    address: SocketAddr,
    heard: mpsc::UnboundedReceiver<Heard>,
    connections: Arc<Mutex<u32>>,
}

impl Hook {
    async fn start(answers: &[&str], tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, heard) = mpsc::unbounded_channel();
        let mut answers: Vec<String> = answers.iter().rev().map(|answer| (*answer).to_owned()).collect();
        let connections = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                *counted.lock().unwrap() += 1;
                match &tls {
                    Some(acceptor) => {
                        if let Ok(tls) = acceptor.accept(tcp).await {
                            serve(tls, &mut answers, &told).await;
                        }
                    }
                    None => serve(tcp, &mut answers, &told).await,
                }
            }
        });
        Self { address, heard, connections }
    }

    async fn next(&mut self) -> Heard {
        tokio::time::timeout(Duration::from_secs(20), self.heard.recv()).await.expect("nothing is told").unwrap()
    }
}

async fn serve<S>(stream: S, answers: &mut Vec<String>, told: &mpsc::UnboundedSender<Heard>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            match line.trim() {
                "" => break,
                line => head.push(line.to_owned()),
            }
        }
        let mut body = vec![0; field(&head, "content-length").parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        told.send((head, String::from_utf8(body).unwrap())).unwrap();
        let answer = answers.pop().unwrap_or_else(|| "204 No Content".into());
        if answer == "close" {
            return;
        }
        stream.write_all(format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }
}

fn field<'a>(head: &'a [String], name: &str) -> &'a str {
    let of = |line: &'a String| line.split_once(": ").filter(|(field, _)| field.eq_ignore_ascii_case(name));
    head.iter().find_map(of).unwrap_or_else(|| panic!("no {name} in {head:?}")).1
}

struct Bench {
    directory: TempDir,
    ledger: Arc<Ledger>,
}

impl Bench {
    fn new() -> Self {
        Self::keeping(1 << 20, 0)
    }

    fn keeping(segment_bytes: u64, keep_bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = LedgerSettings { directory: directory.path().join("ledger"), segment_bytes, keep_bytes };
        let ledger = Arc::new(Ledger::open(settings).unwrap());
        Self { directory, ledger }
    }

    fn happens(&self, run: u64, event: Event) {
        let sprite = router::names::SpriteName::parse("a").unwrap();
        self.ledger.add(Entry { at_unix_ms: 1_700_000_000_000, sprite, generation: 1, run, event });
    }

    fn failed(&self, run: u64) {
        self.happens(run, Event::Failed { reason: "test".into(), detail: "exit status 1".into() });
    }

    fn webhook(&self, url: &str, ca: &Path) -> Webhook {
        use std::os::unix::fs::PermissionsExt;
        let secret_file = self.directory.path().join("secret");
        std::fs::write(&secret_file, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        std::fs::set_permissions(&secret_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let events = vec!["failed".to_owned()];
        let config = config::Webhook { url: url.into(), secret_file, ca_file: ca.into(), events, ..Default::default() };
        Webhook::load(&config, Arc::clone(&self.ledger), self.directory.path()).unwrap().unwrap()
    }

    async fn until(&self, status: &Status, what: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let shown = status.shown(*self.ledger.durable().borrow());
            if what(&shown) {
                return shown;
            }
            assert!(tokio::time::Instant::now() < end, "{shown}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn each_record_is_told_in_order_signed_and_under_one_id_until_it_is_taken() {
    let bench = Bench::new();
    let mut hook = Hook::start(&["500 Oops", "302 Found", "204 No Content"], None).await;
    let webhook = bench.webhook(&format!("http://{}/hook?key=k", hook.address), Path::new(""));
    let (verifier, status) = (webhook.secret.clone(), Arc::clone(webhook.status()));
    let told = tokio::spawn(webhook.run());
    bench.failed(1);
    bench.happens(1, Event::Gone);
    bench.failed(2);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let (head, body) = hook.next().await;
        assert_eq!(head[0], "POST /hook?key=k HTTP/1.1");
        let (id, at) = (field(&head, "webhook-id").to_owned(), field(&head, "webhook-timestamp").parse().unwrap());
        assert_eq!(field(&head, "webhook-signature"), verifier.sign_at(&id, at, body.as_bytes()).signature);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&body["type"], &body["data"]["id"]), (&"sprite.failed".into(), &id.clone().into()));
        seen.push((body["data"]["run"].as_u64().unwrap(), id));
    }
    assert_eq!(seen.iter().map(|(run, _)| *run).collect::<Vec<_>>(), [1, 1, 1, 2], "twice refused, then taken");
    assert!(seen[0].1 == seen[1].1 && seen[1].1 == seen[2].1 && seen[2].1 != seen[3].1);
    let shown = bench.until(&status, |shown| shown["lag"] == 0).await;
    assert_eq!((&shown["seq"], &shown["failures"], &shown["to"]), (&3.into(), &0.into(), &"127.0.0.1".into()));
    assert_eq!(*hook.connections.lock().unwrap(), 1, "the connection is kept");
    told.abort();
}

#[tokio::test]
async fn a_restart_in_the_middle_tells_the_same_record_under_the_same_id() {
    let bench = Bench::new();
    let mut hook = Hook::start(&["503 Busy"], None).await;
    let url = format!("http://{}/", hook.address);
    let told = tokio::spawn(bench.webhook(&url, Path::new("")).run());
    bench.failed(1);
    let (first, _) = hook.next().await;
    told.abort();
    let _ = told.await;
    let webhook = bench.webhook(&url, Path::new(""));
    let status = Arc::clone(webhook.status());
    let told = tokio::spawn(webhook.run());
    let (second, _) = hook.next().await;
    assert_eq!(field(&first, "webhook-id"), field(&second, "webhook-id"));
    bench.until(&status, |shown| shown["seq"] == 1).await;
    told.abort();
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_costs_no_pause_and_410_ends_it() {
    let bench = Bench::new();
    let mut hook = Hook::start(&["200 OK", "close", "410 Gone"], None).await;
    let webhook = bench.webhook(&format!("http://{}/", hook.address), Path::new(""));
    let status = Arc::clone(webhook.status());
    let told = tokio::spawn(webhook.run());
    bench.failed(1);
    hook.next().await;
    bench.until(&status, |shown| shown["seq"] == 1).await;
    bench.failed(2);
    let (broken, again) = (hook.next().await, hook.next().await);
    assert_eq!(field(&broken.0, "webhook-id"), field(&again.0, "webhook-id"));
    let shown = bench.until(&status, |shown| shown["stopped"] == true).await;
    assert_eq!((&shown["lag"], &shown["failures"]), (&1.into(), &0.into()));
    tokio::time::timeout(Duration::from_secs(5), told).await.expect("it has ended").unwrap();
}

#[tokio::test]
async fn over_tls_the_receiver_must_have_a_certificate_of_a_known_root() {
    let bench = Bench::new();
    let ca = LocalCa::load_or_create(bench.directory.path()).unwrap();
    let key = Arc::new(ca.issue(&["localhost".into()]).unwrap());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let mut hook = Hook::start(&[], Some(acceptor)).await;
    let url = |host: &str| format!("https://{host}:{}/", hook.address.port());
    let ca = bench.directory.path().join("ca.pem");
    // A name the certificate does not have.
    let wrong = bench.webhook(&url("127.0.0.1"), &ca);
    let status = Arc::clone(wrong.status());
    let told = tokio::spawn(wrong.run());
    bench.failed(1);
    let shown = bench.until(&status, |shown| shown["failures"] != 0).await;
    assert!(shown["last_error"].as_str().unwrap().contains("certificate"), "{shown}");
    told.abort();
    let _ = told.await;
    let right = bench.webhook(&url("localhost"), &ca);
    let status = Arc::clone(right.status());
    let told = tokio::spawn(right.run());
    assert!(hook.next().await.1.contains("sprite.failed"));
    bench.until(&status, |shown| shown["lag"] == 0).await;
    told.abort();
}

#[tokio::test]
async fn what_was_dropped_before_it_was_told_is_left_out_and_the_rest_is_told() {
    let bench = Bench::keeping(1_000, 2_000);
    std::fs::write(bench.directory.path().join("webhook.cursor"), r#"{"seq":0}"#).unwrap();
    (1..=30).for_each(|run| bench.failed(run));
    let mut durable = bench.ledger.durable();
    tokio::time::timeout(Duration::from_secs(20), durable.wait_for(|last| *last == 30)).await.unwrap().unwrap();
    let mut hook = Hook::start(&[], None).await;
    let webhook = bench.webhook(&format!("http://{}/", hook.address), Path::new(""));
    let status = Arc::clone(webhook.status());
    let told = tokio::spawn(webhook.run());
    bench.until(&status, |shown| shown["lag"] == 0).await;
    let mut seqs = Vec::new();
    while let Ok((_, body)) = hook.heard.try_recv() {
        seqs.push(serde_json::from_str::<serde_json::Value>(&body).unwrap()["data"]["seq"].as_u64().unwrap());
    }
    assert!(seqs[0] > 1, "{seqs:?}");
    assert_eq!(seqs, (seqs[0]..=30).collect::<Vec<_>>());
    told.abort();
}

#[test]
fn pauses_grow_to_the_longest_and_stay_in_their_bounds() {
    let (min, max) = (Duration::from_secs(1), Duration::from_secs(300));
    let pauses: Vec<_> = (1..=12).map(|failures| pause(min, max, failures, 100).as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    assert_eq!(pause(min, max, 1, 80), min);
    assert_eq!(pause(min, max, u32::MAX, 120), max);
}

#[test]
fn a_url_that_cannot_be_used_is_named() {
    for (url, says) in [("https:///x", "webhook.url"), ("https://u:p@example.com/", "user name")] {
        let Err(error) = Receiver::new(url, Path::new(""), Duration::from_secs(1)) else { panic!("{url}") };
        assert!(format!("{error:#}").contains(says) && !format!("{error:#}").contains("u:p"), "{error:#}");
    }
    let Err(error) = Receiver::new("https://a/", Path::new("/nowhere.pem"), Duration::from_secs(1)) else { panic!() };
    assert!(format!("{error:#}").contains("webhook: ca_file /nowhere.pem"), "{error:#}");
}
