//! Custom domains: nobody is served, and nothing is woken, under a name that is not proved.

use harness::client::{Answer, Client, VERSIONS, Version, empty};
use harness::dns::Mood;
use harness::{Demo, DnsServer, Options, until};
use http::{Method, Request};
use rcgen::{CertificateParams, KeyPair};
use router::domains::row::{CHALLENGE_BYTES, Claim, Holder};
use router::domains::{DomainName, DomainRow};
use router::names::SpriteName;
use router::store::EmbeddedStore;
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DOMAIN: &str = "shop.example";

fn asks(dns: &DnsServer) -> String {
    format!("[domains]\nresolvers = [\"{}\"]\naddresses = [\"192.0.2.7\"]\ncname = \"edge.example\"\n", dns.address)
}

async fn start(config: String) -> Demo {
    Demo::start(Options { config: Some(config), ..Options::default() }).await
}

async fn connect(demo: &Demo, version: Version) -> Client {
    demo.try_connect_host(version, DOMAIN).await.unwrap_or_else(|error| panic!("handshake for {DOMAIN}: {error}"))
}

async fn ask(demo: &Demo, client: &mut Client, host: &str) -> Answer {
    let url = format!("https://{host}:{}/", demo.https.port());
    client.send(Request::builder().method(Method::GET).uri(url).body(empty()).unwrap()).await
}

async fn refused(demo: &Demo, arguments: &[&str]) -> String {
    let output = demo.try_admin(arguments).await;
    assert_eq!(output.status.code(), Some(70), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The step of `domain explain`.
async fn step(demo: &Demo, name: &str) -> (Value, String) {
    let explained = demo.admin(&["domain", "explain", DOMAIN]).await;
    let steps = explained["steps"].as_array().unwrap();
    let step = steps.iter().find(|step| step["step"] == name).unwrap_or_else(|| panic!("no {name}: {explained}"));
    (step["done"].clone(), step["detail"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_domain_serves_and_wakes_once_its_record_is_there_and_no_more_when_it_is_removed() {
    let dns = DnsServer::start().await;
    let demo = start(asks(&dns)).await;
    demo.create_guest("shop").await;

    let added = demo.admin(&["domain", "add", "Shop.Example.", "shop"]).await;
    assert_eq!((&added["domain"], &added["state"]), (&DOMAIN.into(), &"claimed".into()));
    let (name, value) = (added["txt_name"].as_str().unwrap(), added["txt_value"].as_str().unwrap());
    assert_eq!(name, "_sprite-challenge.shop.example");
    let again = demo.admin(&["domain", "add", DOMAIN, "shop"]).await;
    assert_eq!(again["txt_value"], value, "who asks again keeps the record he may have set");
    assert!(demo.try_connect_host(Version::H2, DOMAIN).await.is_err(), "no certificate before the proof");
    for wrong in ["sprite-domain=x", &value.to_uppercase()] {
        dns.set_txt(name, wrong);
        assert_eq!(demo.admin(&["domain", "check", DOMAIN]).await["state"], "claimed", "{wrong}");
    }
    assert_eq!(demo.row("shop").await["state"], "asleep");
    assert_eq!(demo.receipts("shop").await.len(), 0);

    dns.set_txt(name, value);
    assert_eq!(demo.admin(&["domain", "check", DOMAIN]).await["state"], "proved");
    let mut clients = Vec::new();
    for version in VERSIONS {
        let mut client = connect(&demo, version).await;
        assert_eq!(ask(&demo, &mut client, "SHOP.example").await.status, 200, "{version:?}");
        // Another name than the handshake's, be it the same sprite's.
        for other in [demo.host("shop"), "other.example".into()] {
            assert_eq!(ask(&demo, &mut client, &other).await.status, 421, "{version:?} {other}");
        }
        clients.push(client);
    }
    assert_eq!(demo.receipts("shop").await.len(), 1, "the first request has woken it");
    let mut own = demo.connect(Version::H2, "shop").await;
    assert_eq!(own.get(&demo, "shop", "/").await.status, 200, "its own name is as it was");
    assert_eq!(ask(&demo, &mut own, DOMAIN).await.status, 421);

    let list = demo.admin(&["domain", "list"]).await;
    assert_eq!(
        (&list[0]["domain"], &list[0]["sprite"], list.as_array().unwrap().len()),
        (&DOMAIN.into(), &"shop".into(), 1)
    );
    demo.admin(&["domain", "remove", DOMAIN]).await;
    // On connections that were opened while it was served, too.
    for client in &mut clients {
        assert_eq!(ask(&demo, client, DOMAIN).await.status, 404);
    }
    until("its certificate to be gone", Duration::from_secs(20), async || {
        demo.try_connect_host(Version::H1, DOMAIN).await.is_err().then_some(())
    })
    .await;
    assert!(refused(&demo, &["domain", "check", DOMAIN]).await.contains("there is no domain"));
}

/// A configured certificate that covers the domain, so that a handshake does not depend on the proof.
fn certificate(data: &std::path::Path) -> String {
    let key = KeyPair::generate().unwrap();
    let names = vec!["*.sprites.localhost".to_owned(), DOMAIN.to_owned()];
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    let (chain, private) = (data.join("ca.pem"), data.join("own.key"));
    std::fs::write(&chain, certificate.pem()).unwrap();
    std::fs::write(&private, key.serialize_pem()).unwrap();
    format!("[tls]\ncertificate = {chain:?}\nkey = {private:?}\n")
}

#[tokio::test]
async fn before_the_proof_it_is_an_unknown_name_and_with_secret_names_a_private_one() {
    for (names, status) in [("", 404), ("unknown_names = \"as-private\"\n", 401)] {
        let dns = DnsServer::start().await;
        let data = Arc::new(tempfile::Builder::new().prefix("edge-e2e-").tempdir().unwrap());
        let config = format!("{names}{}{}", asks(&dns), certificate(data.path()));
        let demo = Demo::start(Options { config: Some(config), data: Some(data), ..Options::default() }).await;
        demo.create_guest("shop").await;
        let added = demo.admin(&["domain", "add", DOMAIN, "shop"]).await;
        let mut clients = Vec::new();
        for version in VERSIONS {
            let mut client = connect(&demo, version).await;
            assert_eq!(ask(&demo, &mut client, DOMAIN).await.status, status, "{version:?}");
            clients.push(client);
        }
        assert_eq!(demo.row("shop").await["state"], "asleep");
        assert_eq!(demo.receipts("shop").await.len(), 0, "nothing was woken");
        dns.set_txt(added["txt_name"].as_str().unwrap(), added["txt_value"].as_str().unwrap());
        demo.admin(&["domain", "check", DOMAIN]).await;
        for client in &mut clients {
            assert_eq!(ask(&demo, client, DOMAIN).await.status, 200);
        }
        // It answers as the sprite does, whatever that is.
        demo.admin(&["sprite", "delete", "shop"]).await;
        assert_eq!(ask(&demo, &mut clients[1], DOMAIN).await.status, 410);
    }
}

#[tokio::test]
async fn explain_says_what_is_missing_step_by_step() {
    let dns = DnsServer::start().await;
    let demo = start(asks(&dns)).await;
    demo.create_guest("shop").await;
    let (done, detail) = step(&demo, "claim").await;
    assert!(done == false && detail.contains("domain add"), "{detail}");

    let added = demo.admin(&["domain", "add", DOMAIN, "shop"]).await;
    let (name, value) = (added["txt_name"].as_str().unwrap(), added["txt_value"].as_str().unwrap());
    let explained = demo.admin(&["domain", "explain", DOMAIN]).await;
    assert_eq!(explained["missing"], serde_json::json!(["proof", "address", "certificate"]));
    let (done, detail) = step(&demo, "proof").await;
    assert!(done == false && detail.contains(name) && detail.contains(value), "{detail}");
    let (done, detail) = step(&demo, "address").await;
    assert!(done == false && detail.contains("192.0.2.7") && detail.contains("edge.example"), "{detail}");

    dns.set_txt(name, value);
    let (done, detail) = step(&demo, "proof").await;
    assert!(done == false && detail.contains("domain check"), "{detail}");
    dns.set_address(DOMAIN, "192.0.2.8".parse().unwrap());
    assert_eq!(step(&demo, "address").await.0, false, "not ours");
    dns.clear(DOMAIN);
    dns.set_address(DOMAIN, "192.0.2.7".parse().unwrap());
    assert_eq!(step(&demo, "address").await.0, true);
    dns.set_address(DOMAIN, "2001:db8::7".parse().unwrap());
    assert_eq!(step(&demo, "address").await.0, false, "one of them is not ours");
    dns.clear(DOMAIN);
    dns.set_cname(DOMAIN, "edge.example");
    assert_eq!(step(&demo, "address").await, (true.into(), "CNAME edge.example".into()));
    demo.admin(&["domain", "check", DOMAIN]).await;
    let explained = demo.admin(&["domain", "explain", DOMAIN]).await;
    assert_eq!((&explained["serves"], &explained["missing"]), (&true.into(), &serde_json::json!([])), "{explained}");

    // A server that fails says nothing, and takes nothing away.
    dns.set_mood(Mood::Fails);
    assert_eq!(step(&demo, "address").await.0, Value::Null);
    assert_eq!(demo.admin(&["domain", "check", DOMAIN]).await["state"], "proved");
    demo.admin(&["sprite", "delete", "shop"]).await;
    assert_eq!(step(&demo, "sprite").await.0, false);
}

#[tokio::test]
async fn what_can_be_nobodys_domain_is_refused() {
    let demo = start("[domains]\nreserved = [\"ns.example\"]\ncname = \"edge.example\"\n".into()).await;
    demo.create_guest("shop").await;
    for ours in ["sprites.localhost", "ns1.ns.example", "NS.example", "edge.example", "a.edge.example"] {
        assert!(!refused(&demo, &["domain", "add", ours, "shop"]).await.is_empty(), "{ours}");
    }
    for (wrong, says) in [
        ("shop", "nobody can own"),
        ("192.0.2.1", "nobody can own"),
        ("a b.example", "only letters"),
        ("x.local", "nobody"),
    ] {
        let said = refused(&demo, &["domain", "add", wrong, "shop"]).await;
        assert!(said.contains(says), "{wrong}: {said}");
    }
    let long = format!("{}.{}", ["a".repeat(63).as_str(); 3].join("."), "b".repeat(60));
    assert!(refused(&demo, &["domain", "add", &long, "shop"]).await.contains("longer than 253"));
    assert!(refused(&demo, &["domain", "add", DOMAIN, "nosuch"]).await.contains("no sprite nosuch"));
    assert_eq!(demo.admin(&["domain", "list"]).await, serde_json::json!([]));
}

#[tokio::test]
async fn an_operators_word_serves_at_once_and_plain_http_leads_there() {
    let demo = Demo::new().await;
    let added = demo.admin(&["domain", "add", DOMAIN, "hello", "--proved"]).await;
    assert_eq!(added["state"], "proved");
    let mut client = connect(&demo, Version::H2).await;
    assert_eq!(ask(&demo, &mut client, DOMAIN).await.status, 200);
    let plain = async |host: &str| {
        let mut stream = TcpStream::connect(demo.http()).await.unwrap();
        let request = format!("GET /a?b HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let there = plain(DOMAIN).await;
    assert!(there.starts_with("HTTP/1.1 308") && there.contains(&format!("https://{DOMAIN}:")), "{there}");
    assert!(plain("other.example").await.starts_with("HTTP/1.1 404"));
    // The next process knows it before it asks anybody.
    let data = demo.leave().await;
    let demo = Demo::start(Options { data: Some(data), ..Options::default() }).await;
    let mut client = connect(&demo, Version::H1).await;
    assert_eq!(ask(&demo, &mut client, DOMAIN).await.status, 200);
}

#[tokio::test]
async fn a_domain_of_the_config_file_is_served_and_can_be_neither_added_nor_removed() {
    let config = format!(
        "[[sprite]]\nname = \"site\"\ncommand = \"exec \\\"$EDGE_PROXY\\\" sample hello\"\ndomains = [\"{DOMAIN}\"]\n"
    );
    let demo = start(config).await;
    for version in VERSIONS {
        let mut client = connect(&demo, version).await;
        assert_eq!(ask(&demo, &mut client, "Shop.EXAMPLE").await.status, 200);
    }
    assert_eq!(demo.admin(&["domain", "list"]).await[0]["state"], "config");
    assert!(refused(&demo, &["domain", "add", DOMAIN, "site", "--proved"]).await.contains("name of ours"));
    assert!(refused(&demo, &["domain", "remove", DOMAIN]).await.contains("name of ours"));
}

/// Proves itself how the background looks: rows as they would be after days, under a process that starts then.
#[tokio::test]
async fn rows_that_are_due_are_looked_at_without_being_asked() {
    let dns = DnsServer::start().await;
    let demo = start(asks(&dns)).await;
    demo.create_guest("shop").await;
    let data = demo.leave().await;

    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let (minute, day) = (60, 24 * 3600);
    let claim = |claimed_at| Claim {
        tenant: "local".into(),
        sprite: SpriteName::parse("shop").unwrap(),
        challenge: "c".repeat(CHALLENGE_BYTES),
        claimed_at,
        wildcard: false,
    };
    let holder = |proved_at, missing_since| DomainRow {
        holder: Some(Holder { claim: claim(1), proved_at, missing_since, suspended_at: None }),
        ..DomainRow::empty()
    };
    let waiting = DomainRow { claims: vec![claim(now - 10 * minute)], ..DomainRow::empty() };
    let rows = [
        (DOMAIN, waiting),
        ("lost.example", holder(now - 34 * day, Some(now - 3 * day))),
        ("grace.example", holder(now - 32 * day, Some(now - 2 * day))),
        ("kept.example", holder(now - 31 * day, None)),
        ("young.example", holder(now - 29 * day, None)),
    ];
    let store = EmbeddedStore::open(&data.path().join("store.redb")).unwrap();
    for (name, row) in &rows {
        let name = DomainName::parse(name).unwrap();
        store.compare_and_set(&DomainRow::key(&name), None, Some(&row.encode())).unwrap();
        if ["shop.example", "kept.example"].contains(&name.as_str()) {
            let claim = row.claims.first().or_else(|| row.holder.as_ref().map(|holder| &holder.claim)).unwrap();
            dns.set_txt(&edge_proxy::domains::record_name(&name), &edge_proxy::domains::record_value(&name, claim));
        }
    }
    drop(store);

    let demo = Demo::start(Options { config: Some(asks(&dns)), data: Some(data), ..Options::default() }).await;
    // They are looked at together: the one that is lost comes last to light in the list.
    let list = until("every due row to be looked at", Duration::from_secs(60), async || {
        let list = demo.api(Method::GET, "/v1/domains").await;
        let of = |name: &str| list.as_array().unwrap().iter().find(|row| row["domain"] == name).unwrap().clone();
        let renewed = of("kept.example")["proved_unix_s"].as_u64().unwrap() >= now;
        let done = of(DOMAIN)["state"] == "proved" && of("lost.example")["state"] == "suspended" && renewed;
        done.then_some(list)
    })
    .await;
    let state =
        |name: &str| list.as_array().unwrap().iter().find(|row| row["domain"] == name).unwrap()["state"].clone();
    assert_eq!((state("grace.example"), state("young.example")), ("proved".into(), "proved".into()));
    // Its certificate goes a moment after its row.
    until("no handshake for what was lost", Duration::from_secs(60), async || {
        demo.try_connect_host(Version::H1, "lost.example").await.is_err().then_some(())
    })
    .await;
    // And comes a moment after it.
    let mut client = until("a handshake for what was proved", Duration::from_secs(60), async || {
        demo.try_connect_host(Version::H1, DOMAIN).await.ok()
    })
    .await;
    assert_eq!(ask(&demo, &mut client, DOMAIN).await.status, 200);
    assert!(dns.asked() >= 4);
}
