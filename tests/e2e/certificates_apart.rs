//! A PoP that does not hear the store: it answers for challenges all the same.

use crate::certificates::{DOMAIN, ISSUED, trusted};
use crate::certificates_alpn::{CHALLENGE, shake};
use crate::certificates_fleet::KEK;
use crate::dns::{dig, short};
use acme::ca::{Challenge, Kind};
use harness::fleet::{Machine, SUFFIX};
use harness::late::Late;
use harness::nats::Nats;
use harness::pebble::{Moods, Pebble};
use harness::service::Service;
use harness::{Demo, DnsServer, cluster, tools, until};
use router::store::Store;
use router::store::nats::NatsStore;
use rustls::RootCertStore;
use rustls::version::TLS13;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Later than anybody's patience.
const NEVER: Duration = Duration::from_secs(600);
/// For what others are asked within 250 ms, on a busy machine (chosen).
const PULLED: Duration = Duration::from_secs(5);
/// When answers to challenges end by themselves.
const END: u64 = 4_000_000_000;

/// A way to the store that can become late.
async fn late(nats: &Nats) -> (Late, String) {
    let server = nats.settings().servers[0].strip_prefix("nats://").unwrap().parse().unwrap();
    let late = Late::start(server).await;
    let store = format!("[store]\nengine = \"nats\"\n[store.nats]\nservers = [\"nats://{}\"]\n", late.address());
    (late, store)
}

/// Where a PoP listens for whoever is not a visitor.
#[derive(Clone, Copy)]
struct At {
    dns: SocketAddr,
    http: SocketAddr,
}

async fn pop(number: usize, at: At, acme: &str, store: &str) -> Demo {
    machine(number, at, acme, store).await.start().await
}

async fn machine(number: usize, at: At, acme: &str, store: &str) -> Machine {
    let At { dns, http } = at;
    let sections = format!(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = [\"{http}\"]\n\
         [dns]\nlisten = [\"{dns}\"]\naddresses = [\"127.0.0.1\"]\nname_servers = [{{ name = \"ns.example.net\" }}]\n\
         {acme}{store}",
    );
    let machine = Machine::enrolled_pop(&format!("pop-{number}"), &sections).await;
    machine.with("peers = \"127.0.0.1:0\"\n")
}

fn kek() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kek");
    std::fs::write(&file, KEK).unwrap();
    let line = format!("kek_file = {file:?}\n");
    (folder, line)
}

async fn get(at: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {DOMAIN}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_challenge_it_has_not_heard_of_is_asked_of_two_others_before_it_says_that_there_is_none() {
    if !tools::requires(&["dig"]) {
        return;
    }
    let Some(nats) = Nats::start().await else { return };
    let (late, far) = late(&nats).await;
    let (_folder, kek) = kek();
    // Nobody is there: what is asked for stands in the store. With two CAs a token may be the other one's.
    let acme = format!(
        "[acme]\ndirectory = \"https://127.0.0.1:9/dir\"\n{kek}\
         [[acme.fallback]]\nname = \"other\"\ndirectory = \"https://127.0.0.1:9/other\"\n"
    );
    let all: Vec<_> = (0..3).map(|_| cluster::addresses(2)).map(|own| At { dns: own[0], http: own[1] }).collect();
    let near = nats.sections();
    let mut others = vec![pop(0, all[0], &acme, &near).await, pop(1, all[1], &acme, &near).await];
    let apart = pop(2, all[2], &acme, &far).await;
    until("it to reach the others", ISSUED, async || {
        (apart.log().matches("another PoP can be asked").count() >= 2).then_some(())
    })
    .await;
    late.delay(NEVER);

    let challenge = Challenge::new(DOMAIN.into(), Kind::TlsAlpn01, "token".into(), "thumb", false);
    let id = "0123456789abcdef0123456789abcdef";
    let ours = format!("_acme-challenge.{SUFFIX}");
    let delegated = format!("{id}.acme.{SUFFIX}");
    let store: Store = Arc::new(NatsStore::connect(&nats.settings()).await.unwrap());
    for (at, value) in [
        (format!("txt/{ours}"), "of-ours"),
        (format!("txt/{delegated}"), "of-theirs"),
        (format!("alpn/{DOMAIN}"), challenge.txt.as_str()),
        ("http/token".into(), challenge.key_authorization.as_str()),
    ] {
        let row = serde_json::json!([{ "value": value, "id": "x", "until": END }]).to_string();
        store.compare_and_set(&format!("chal/{at}"), None, Some(row.as_bytes())).await.unwrap();
    }
    until("the others to have heard", ISSUED, async || {
        let heard = async |at: &At| short(at.dns, &format!("{delegated} TXT")).await == ["\"of-theirs\""];
        (heard(&all[0]).await && heard(&all[1]).await).then_some(())
    })
    .await;

    // It has heard of none of them, and answers.
    let at = all[2];
    for (name, value) in [(&ours, "\"of-ours\""), (&delegated, "\"of-theirs\"")] {
        let known = apart.admin(&["dns", "query", name, "TXT"]).await;
        assert_eq!(known["answers"].as_array().map(Vec::len), Some(0), "{known}");
        for transport in ["+notcp", "+tcp"] {
            let began = Instant::now();
            assert_eq!(short(at.dns, &format!("{transport} {name} TXT")).await, [value], "{transport} {name}");
            assert!(began.elapsed() < PULLED, "{:?}", began.elapsed());
        }
    }
    let shown = shake(apart.https, DOMAIN, &[CHALLENGE], &TLS13).await.unwrap();
    assert_eq!(shown.protocol.as_deref(), Some(CHALLENGE));
    let answer = get(at.http, "/.well-known/acme-challenge/token").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("token.thumb"), "{answer}");

    // What nobody knows is said to be nowhere, and a flood of it keeps nobody else waiting.
    let unknown = dig(at.dns, &format!("{}.acme.{SUFFIX} TXT", "f".repeat(32))).await;
    assert!(unknown.contains("status: NXDOMAIN"), "{unknown}");
    assert!(shake(apart.https, "other.example", &[CHALLENGE], &TLS13).await.is_err());
    assert!(get(at.http, "/.well-known/acme-challenge/other").await.starts_with("HTTP/1.1 404 "));
    let flood = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for number in 0..400_u32 {
        let mut question = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in format!("{number:032x}.acme.{SUFFIX}").split('.') {
            question.push(u8::try_from(label.len()).unwrap());
            question.extend(label.as_bytes());
        }
        question.extend([0, 0, 16, 0, 1]);
        flood.send_to(&question, at.dns).await.unwrap();
    }
    assert_eq!(short(at.dns, &format!("+tcp any.{SUFFIX} A")).await, ["127.0.0.1"]);
    let answered = async || short(at.dns, &format!("+tcp {ours} TXT")).await == ["\"of-ours\""];
    until("the flood to be over", ISSUED, async || answered().await.then_some(())).await;

    // With one of the two it is as good.
    others.remove(0).crash();
    until("the other one to answer", ISSUED, async || answered().await.then_some(())).await;
    others.remove(0).crash();
    until("nobody to be left", ISSUED, async || (!answered().await).then_some(())).await;
    apart.stop().await;
}

#[tokio::test]
async fn a_domain_is_proved_at_a_pop_that_has_lost_its_store() {
    let Some(nats) = Nats::start().await else { return };
    let (late, far) = late(&nats).await;
    let all: Vec<_> = (0..2).map(|_| cluster::addresses(2)).collect();
    let port = all[0][1].port();
    // Each PoP has an address of its own, and one port of both is where the CA comes to.
    let all = [0, 1].map(|number| At { dns: all[number][0], http: SocketAddr::from((all[number][1].ip(), port)) });
    let resolver = DnsServer::start().await;
    resolver.delegate(SUFFIX, all[0].dns);
    resolver.set_address(DOMAIN, all[1].http.ip());
    let Some(pebble) = Pebble::start(resolver.address, port, 1, Moods::default()).await else { return };
    let (_folder, kek) = kek();
    let acme = format!(
        "[domains]\nresolvers = [\"{}\"]\n[acme]\ndirectory = {:?}\nca_file = {:?}\n{kek}",
        resolver.address,
        pebble.directory(),
        pebble.ca_file(),
    );
    let owner = Machine::enrolled_host("host-a", &nats.sections(), "").await;
    let host = owner.start().await;
    let service = Service::start().await;
    let driver = owner.data().join("driver.toml");
    std::fs::write(&driver, service.driver()).unwrap();
    let works = pop(0, all[0], &acme, &nats.sections()).await;
    let far = machine(1, all[1], &acme, &far).await;
    let apart = far.start().await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pebble.root().await.as_bytes()).unwrap()).unwrap();
    let name = format!("any.{SUFFIX}");
    let wildcard = trusted(&works, &roots, &name).await;
    assert_eq!(trusted(&apart, &roots, &name).await, wildcard);

    // It hears nothing any more: not of the domain, nor of the order.
    late.delay(NEVER);
    host.admin(&["sprite", "create", "shop", "--public", "--driver", driver.to_str().unwrap()]).await;
    let added = until("the edge to know the sprite", ISSUED, async || {
        let output = works.try_admin(&["--json", "domain", "add", DOMAIN, "shop"]).await;
        output.status.success().then(|| serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap())
    })
    .await;
    resolver.set_txt(added["txt_name"].as_str().unwrap(), added["txt_value"].as_str().unwrap());
    works.admin(&["domain", "check", DOMAIN]).await;
    let own = trusted(&works, &roots, DOMAIN).await;
    assert_ne!(own, wildcard);
    assert!(!works.log().contains("has to wait"), "the first look was answered: {}", works.log());

    // Whoever asks is answered there and then: neither sent elsewhere nor passed on.
    let answers = async || {
        let answer = get(all[1].http, "/.well-known/acme-challenge/abc").await;
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 ") && !head.contains("location:"), "{answer}");
        assert!(text.starts_with("abc.") && text.len() == 4 + 43, "{text}");
    };
    answers().await;
    // After a start too.
    apart.crash();
    let apart = far.start().await;
    answers().await;
    assert_eq!(host.receipts("shop").await.len(), 0, "and nothing was woken");
    for pop in [works, apart] {
        pop.crash();
    }
    host.stop().await;
}
