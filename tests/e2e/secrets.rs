//! Whatever is secret stays where it is: in no line of a log at its loudest, in no answer, no metric and no core file.

use crate::certificates::{ISSUED, trusted};
use acme::account::{AccountRow, account_key};
use acme::certificate::{CERT_PREFIX, CertRow, parse_cert_key, sealed_as};
use acme::rows::{Answer, Row, Rows, RowsError};
use acme::seal::{Kek, SEAL_PREFIX, Sealer};
use acme::tickets::{KeyRow, PREFIX, Policy};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use harness::client::{Version, empty};
use harness::nats::Nats;
use harness::pebble::{Moods, Pebble};
use harness::{Demo, DnsServer, Options, admin, binary, cluster, until};
use http::Method;
use router::store::Store;
use router::store::nats::NatsStore;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

const SUFFIX: &str = "sprites.test";
/// Bytes of a secret that betray it.
const TELLING: usize = 16;

/// What must not be seen, by what it is.
#[derive(Default)]
struct Secrets(Vec<(String, Vec<u8>)>);

impl Secrets {
    fn add(&mut self, what: &str, secret: &[u8]) {
        assert!(secret.len() >= TELLING, "{what}: {} bytes tell nothing", secret.len());
        self.0.push((what.to_owned(), secret.to_vec()));
    }

    /// The private number in a P-256 key (PKCS#8, RFC 5915): what is around it is no secret.
    fn add_key(&mut self, what: &str, key: &[u8]) {
        let at = key.windows(4).position(|bytes| bytes == [0x02, 0x01, 0x01, 0x04]).expect("an EC private key");
        self.add(what, &key[at + 5..at + 37]);
    }

    /// All that would betray them, and which one each is of.
    fn patterns(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        for (what, secret) in &self.0 {
            let mut add = |how: &str, pattern: Vec<u8>| all.push((format!("{what}, {how}"), pattern));
            // grep looks at lines.
            let lines = secret.split(|byte| *byte == b'\n').filter(|line| line.len() >= TELLING / 2);
            lines.for_each(|line| add("as it is", line.to_vec()));
            let mut hex = String::new();
            secret.iter().for_each(|byte| write!(hex, "{byte:02x}").unwrap());
            add("in hex", hex.to_uppercase().into());
            add("in hex", hex.into());
            add("as Rust prints bytes", format!("{:?}", &secret[..TELLING]).trim_matches(['[', ']']).into());
            add("escaped", secret.escape_ascii().to_string().into());
            // Whatever stands before it, in base64 it has one of three forms.
            for skip in 0..3 {
                let rest = &secret[skip..];
                let rest = &rest[..rest.len() - rest.len() % 3];
                add("in base64", STANDARD.encode(rest).into());
                add("in base64url", URL_SAFE_NO_PAD.encode(rest).into());
            }
        }
        all
    }

    /// Which of them are in the files of a folder.
    fn found_in(&self, folder: &Path) -> Vec<String> {
        let patterns = self.patterns();
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("patterns");
        let mut text = Vec::new();
        for (_, pattern) in &patterns {
            text.extend(pattern);
            text.push(b'\n');
        }
        std::fs::write(&file, text).unwrap();
        let mut grep = Command::new("grep");
        grep.env("LC_ALL", "C").args(["-r", "-a", "-o", "-h", "-F", "-f"]).arg(file).arg(folder);
        let found = grep.output().expect("grep is everywhere").stdout;
        let is_in = |pattern: &[u8]| found.split(|byte| *byte == b'\n').any(|line| line == pattern);
        patterns.into_iter().filter(|(_, pattern)| is_in(pattern)).map(|(what, _)| what).collect()
    }
}

/// A way to write bytes down.
type Written = fn(&[u8]) -> Vec<u8>;

#[test]
fn a_secret_is_found_however_it_is_written() {
    let mut secrets = Secrets::default();
    let secret: [u8; 32] = rand::random();
    secrets.add("it", &secret);
    let written: [Written; 8] = [
        |secret| secret.to_vec(),
        |secret| secret.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(),
        |secret| secret.iter().map(|byte| format!("{byte:02X}")).collect::<String>().into(),
        |secret| format!("Some({secret:?})").into(),
        |secret| format!("b\"{}\"", secret.escape_ascii()).into(),
        |secret| STANDARD.encode(secret).into(),
        |secret| URL_SAFE_NO_PAD.encode([b"x", secret].concat()).into(),
        |secret| STANDARD.encode([b"xy", secret, b"z"].concat()).into(),
    ];
    for (at, write) in written.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let text = |secret: &[u8]| [b"before ", &*write(secret), b" after\n"].concat();
        std::fs::write(folder.path().join("log"), text(&rand::random::<[u8; 32]>())).unwrap();
        assert!(secrets.found_in(folder.path()).is_empty(), "{at}");
        std::fs::write(folder.path().join("log"), text(&secret)).unwrap();
        // A line that is cut in the middle of raw bytes may have too little of it.
        let told = !secrets.found_in(folder.path()).is_empty() || (at == 0 && secret.contains(&b'\n'));
        assert!(told, "{at}: {secret:?}");
    }
}

/// A store, as `acme` reads it.
struct Read(Store);

impl Rows for Read {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Row>> {
        Box::pin(async move { Ok(self.scan(key).await?.into_iter().find(|row| row.key == key)) })
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Row>> {
        Box::pin(async move {
            let found = self.0.scan(prefix).await.map_err(|error| RowsError::Unavailable(error.to_string()))?;
            Ok(found.into_iter().map(|row| Row { key: row.key, value: row.value, version: row.version }).collect())
        })
    }

    fn compare_and_set<'a>(&'a self, _: &'a str, _: Option<u64>, _: Option<&'a [u8]>) -> Answer<'a, u64> {
        Box::pin(async { Err(RowsError::Unavailable("read only".into())) })
    }
}

/// Every secret that lies sealed in the store.
async fn unseal(store: &Store, kek: &Path, ticket_kek: &Path, secrets: &mut Secrets) {
    let rows = Read(Arc::clone(store));
    let kek = Arc::new(Kek::from_file(kek).unwrap());
    let sealer = Sealer::load(&kek, &rows).await.unwrap();
    for row in rows.scan(SEAL_PREFIX).await.unwrap() {
        let wrapped: serde_json::Value = serde_json::from_slice(&row.value).unwrap();
        let wrapped = STANDARD.decode(wrapped["wrapped"].as_str().unwrap()).unwrap();
        secrets.add("the data key", &kek.open(&row.key, 0, &wrapped).unwrap());
    }
    for row in rows.scan(CERT_PREFIX).await.unwrap() {
        let (id, generation) = parse_cert_key(&row.key).unwrap();
        let cert: CertRow = serde_json::from_slice(&row.value).unwrap();
        let sealed = STANDARD.decode(&cert.sealed_key).unwrap();
        secrets.add_key("a certificate's key", &sealer.open(&sealed_as(id), generation, &sealed).unwrap());
    }
    let key = account_key("first");
    let account: AccountRow = serde_json::from_slice(&rows.get(&key).await.unwrap().unwrap().value).unwrap();
    let credentials = sealer.open(&key, account.generation, &STANDARD.decode(&account.sealed).unwrap()).unwrap();
    let credentials: serde_json::Value = serde_json::from_slice(&credentials).unwrap();
    let pkcs8 = URL_SAFE_NO_PAD.decode(credentials["key_pkcs8"].as_str().unwrap()).unwrap();
    secrets.add_key("the account's key", &pkcs8);
    let kek = Kek::from_file(ticket_kek).unwrap();
    let mut tickets = 0;
    for row in rows.scan(PREFIX).await.unwrap() {
        let Some(acme::tickets::About::Key(epoch)) = Policy::Normal.about(&row.key) else { continue };
        let sealed = serde_json::from_slice::<KeyRow>(&row.value).unwrap().sealed;
        secrets.add("a ticket key", &kek.open(&row.key, epoch, &STANDARD.decode(sealed).unwrap()).unwrap());
        tickets += 1;
    }
    assert!(tickets > 0);
}

#[tokio::test]
async fn no_secret_is_in_any_log_at_its_loudest_nor_in_any_answer() {
    let Some(nats) = Nats::start_with_users().await else { return };
    let own = cluster::addresses(2);
    let resolver = DnsServer::start().await;
    resolver.delegate(SUFFIX, own[0]);
    let moods = Moods { refuses_nonces: 10, wants_binding: true, ..Moods::default() };
    let Some(pebble) = Pebble::start(resolver.address, own[1].port(), 1, moods).await else { return };
    let (planted, said) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut secrets = Secrets::default();
    let mut plant = |what: &str, secret: &[u8], text: String| {
        let file = planted.path().join(what);
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        secrets.add(what, secret);
        file
    };
    let random = || rand::random::<[u8; 32]>();
    let (kek, ticket_kek, webhook, orchestrator) = (random(), random(), random(), random());
    let kek = plant("kek", &kek, STANDARD.encode(kek));
    let ticket_kek = plant("ticket-kek", &ticket_kek, STANDARD.encode(ticket_kek));
    let binding = plant("binding", &URL_SAFE_NO_PAD.decode(pebble.binding()).unwrap(), pebble.binding().into());
    let webhook = plant("webhook", &webhook, format!("whsec_{}", STANDARD.encode(webhook)));
    let orchestrator = plant("orchestrator", &orchestrator, format!("whsec_{}", STANDARD.encode(orchestrator)));
    let credentials = nats.credentials("edge", &[">"], &[">"]);
    let seed = std::fs::read_to_string(&credentials).unwrap();
    let seed = seed.lines().find(|line| line.starts_with("SU")).expect("a user's seed").to_owned();
    secrets.add("the store's seed", seed.as_bytes());

    let config = format!(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = [\"{}\"]\n\
         [dns]\nlisten = [\"{}\"]\naddresses = [\"127.0.0.1\"]\nname_servers = [{{ name = \"ns.example.net\" }}]\n\
         [tls]\nkek = {ticket_kek:?}\n\
         [acme]\ndirectory = {:?}\nca_file = {:?}\nkek_file = {kek:?}\neab_id = \"kid-1\"\neab_key_file = {binding:?}\n\
         [webhook]\nurl = \"http://127.0.0.1:9/hook\"\nsecret_file = {webhook:?}\n\
         [drivers.http]\nsecret_file = {orchestrator:?}\nwake_timeout = \"2s\"\n\
         {}credentials_file = {credentials:?}\n",
        own[1],
        own[0],
        pebble.directory(),
        pebble.ca_file(),
        nats.sections(),
    );
    let log = Some(("trace", said.path().join("log")));
    let suffix = Some(SUFFIX.to_owned());
    let edge = Demo::start(Options { config: Some(config), suffix, log, ..Options::default() }).await;
    let root = pebble.root().await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
    std::fs::write(edge.ca(), root).unwrap();
    trusted(&edge, &roots, &format!("any.{SUFFIX}")).await;

    // A private sprite, with all that opens it; and one that cannot be woken.
    let made = edge.admin(&["sprite", "create", "private", "--command", &edge.guest_command()]).await;
    let token = made["token"].as_str().unwrap().to_owned();
    let shared = edge.admin(&["sprite", "share", "private"]).await;
    let link = shared["url"].as_str().unwrap().split_once("sprite-share=").unwrap().1.to_owned();
    secrets.add("the token", token.as_bytes());
    secrets.add("the link", link.as_bytes());
    let driver = edge.data().join("driver.toml");
    std::fs::write(&driver, "[http]\nurl = \"http://127.0.0.1:9/machines\"\n").unwrap();
    let driver = driver.to_str().unwrap();
    edge.admin(&["sprite", "create", "broken", "--public", "--driver", driver]).await;
    for version in harness::client::VERSIONS {
        for (name, path, header, status) in [
            ("private", "/".to_owned(), Some(("authorization", format!("Bearer {token}"))), 200),
            ("private", "/head".to_owned(), Some(("sprite-token", token.clone())), 200),
            ("private", "/".to_owned(), Some(("authorization", format!("Bearer x{token}"))), 401),
            ("private", format!("/?sprite-share={link}"), None, 302),
            ("private", "/".to_owned(), Some(("cookie", format!("__Host-sprite-share={link}"))), 200),
            ("broken", "/".to_owned(), None, 502),
        ] {
            let mut client = edge.connect(version, name).await;
            let mut request = edge.request(Method::GET, name, &path).header("sec-fetch-mode", "navigate");
            if let Some((name, value)) = header {
                request = request.header(name, value);
            }
            let answer = client.send(request.body(empty()).unwrap()).await;
            assert!(answer.status == status || (name == "broken" && answer.status >= 500), "{name}{path}: {answer:?}");
        }
    }
    let mut client = edge.connect(Version::H1, "private").await;
    drop(client.send(edge.request(Method::GET, "private", "/").body(empty()).unwrap()).await);

    // All that it says when it is asked.
    let (config, socket) = (edge.data().join("edge.toml"), edge.data().join("admin.sock"));
    let (config, socket) = (config.to_str().unwrap(), socket.to_str().unwrap());
    let mut answers = 0;
    for command in [
        vec!["check", "--config", config],
        vec!["--json", "check", "--config", config],
        vec!["--help"],
        vec!["run", "--help"],
        vec!["metrics"],
        vec!["status"],
        vec!["--json", "status"],
        vec!["sprite", "list"],
        vec!["sprite", "show", "private"],
        vec!["--json", "sprite", "show", "private"],
        vec!["sprite", "show", "private", "--why"],
        vec!["sprite", "receipts", "private"],
        vec!["--json", "sprite", "receipts", "broken"],
        vec!["route", "explain", &format!("private.{SUFFIX}")],
        vec!["domain", "list"],
        vec!["dns", "query", SUFFIX, "TXT"],
        vec!["ticket", "list"],
        vec!["--json", "ticket", "list"],
        vec!["cert", "list"],
        vec!["--json", "cert", "explain", SUFFIX],
        vec!["cert", "kek", "show"],
        vec!["cert", "kek", "rewrap"],
        vec!["ledger"],
        vec!["--json", "ledger"],
    ] {
        let output = admin::run(&[&["--admin", socket][..], &command].concat()).await;
        assert!(output.status.success(), "{command:?}: {output:?}");
        std::fs::write(said.path().join(format!("answer-{answers}")), [output.stdout, output.stderr].concat()).unwrap();
        answers += 1;
    }
    // What is wrong with a secret is said without it.
    let wrong = planted.path().join("wrong");
    std::fs::write(&wrong, format!("{token}\n{}", STANDARD.encode(random()))).unwrap();
    let refused = Kek::from_file(&wrong).unwrap_err().to_string();
    assert!(!refused.contains(&token), "{refused}");

    let store: Store = {
        let credentials_file = nats.credentials("test", &[">"], &[">"]);
        Arc::new(NatsStore::connect(&config::NatsStore { credentials_file, ..nats.settings() }).await.unwrap())
    };
    unseal(&store, &kek, &ticket_kek, &mut secrets).await;
    let keys = std::fs::read_dir(edge.data().join("keys")).unwrap().flatten().map(|entry| entry.path());
    for file in keys.filter(|file| file.extension().is_some_and(|extension| extension == "key")) {
        let text = std::fs::read(&file).unwrap();
        let text = text.trim_ascii();
        let secret = STANDARD.decode(text).unwrap_or_else(|_| text.to_vec());
        secrets.add(&file.file_name().unwrap().to_string_lossy(), &secret);
    }
    edge.stop().await;
    assert!(secrets.0.len() >= 14, "{:?}", secrets.0.iter().map(|(what, _)| what).collect::<Vec<_>>());
    let log = std::fs::metadata(said.path().join("log")).unwrap().len();
    assert!(log > 100_000, "a loud log has more than {log} bytes");
    eprintln!("a log of {log} bytes and {answers} answers, {} secrets", secrets.0.len());
    assert_eq!(secrets.found_in(said.path()), Vec::<String>::new());
}

/// Whether a process that aborts leaves a core, with this line in its config file.
async fn leaves_a_core(line: &str) -> bool {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("edge.toml");
    let text = format!("data_dir = {:?}\n{line}\n[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n", data.path());
    std::fs::write(&file, text).unwrap();
    let mut shell = tokio::process::Command::new("sh");
    let mut child = shell
        .args(["-c", "ulimit -c unlimited; exec \"$0\" run --config \"$1\""])
        .arg(binary::edge_proxy())
        .arg(&file)
        .current_dir(data.path())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let socket = data.path().join("admin.sock");
    until("the admin socket", ISSUED, async || socket.exists().then_some(())).await;
    let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::ABORT).unwrap();
    let status = child.wait().await.unwrap();
    assert_eq!(status.signal(), Some(rustix::process::Signal::ABORT.as_raw()), "{status}");
    status.core_dumped()
}

#[tokio::test]
async fn a_crash_leaves_no_core_file_unless_it_is_wanted() {
    assert!(!leaves_a_core("").await);
    // Not every machine writes cores; one that does writes it when it is wanted.
    let data = tempfile::tempdir().unwrap();
    let abort = ["-c", "ulimit -c unlimited; kill -ABRT $$"];
    let machine = Command::new("sh").args(abort).current_dir(data.path()).status().unwrap().core_dumped();
    assert_eq!(leaves_a_core("core_dumps = true").await, machine);
}
