//! A key that was stolen: another certificate everywhere, then the old one revoked, then every ticket void.

use crate::certificates::{ISSUED, SUFFIX, Site, leaf, trusted};
use harness::fleet::{self, Machine};
use harness::nats::Nats;
use harness::pebble::{Moods, Pebble};
use harness::{Demo, DnsServer, cluster, until};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A minute until the next look, and what a busy machine needs.
const LOOKED: Duration = Duration::from_secs(120);

/// From the word to the revocation, every PoP serving another key by then (design: 30 s and the CA's time).
const REPLACED: Duration = Duration::from_secs(30);

/// A connection and a request on it, to its end, so that a ticket has come.
async fn visit(edge: &Demo, client: &Arc<ClientConfig>, name: &str) -> HandshakeKind {
    let stream = TcpStream::connect(edge.https).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(client));
    let mut tls = connector.connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer).await.unwrap();
    tls.get_ref().1.handshake_kind().unwrap()
}

#[tokio::test]
async fn a_stolen_key_is_replaced_then_revoked_and_tickets_are_void() {
    let Some(site) = Site::start(Moods::default()).await else { return };
    let (roots, edge) = (site.roots().await, &site.edge);
    let name = "any.sprites.test";
    let stolen = trusted(edge, &roots, name).await;
    let client = Arc::new(ClientConfig::builder().with_root_certificates(roots.clone()).with_no_client_auth());
    assert_eq!(visit(edge, &client, name).await, HandshakeKind::Full);
    assert_eq!(visit(edge, &client, name).await, HandshakeKind::Resumed);
    assert_eq!(site.pebble.status(&stolen).await.0, "Valid");

    let said = edge.admin(&["cert", "compromise", SUFFIX, "--wait"]).await;
    assert_eq!(said, serde_json::json!([{ "id": "wild.first.sprites.test", "generation": 1 }]));
    let next = leaf(edge, &roots, name).await.unwrap();
    assert_ne!(next, stolen);
    assert_eq!(site.pebble.status(&stolen).await, ("Revoked".into(), Some(1)), "keyCompromise");
    assert_eq!(site.pebble.status(&next).await.0, "Valid");
    assert_eq!(visit(edge, &client, name).await, HandshakeKind::Full, "a ticket of before is worth nothing");

    let list = edge.admin(&["cert", "list"]).await;
    let said: Vec<_> = list.as_array().unwrap().iter().map(|one| (&one["generation"], &one["state"])).collect();
    assert_eq!(said, [(&1.into(), &"revoked".into()), (&2.into(), &"served".into())]);
    // Once is enough for a key: the present one is another.
    let revoked = edge.admin(&["cert", "explain", SUFFIX]).await["certificates"][0]["revocations"].clone();
    assert_eq!((revoked.as_array().unwrap().len(), &revoked[0]["tickets_void"]), (1, &true.into()));
    site.edge.stop().await;
}

#[tokio::test]
async fn nothing_is_revoked_that_a_pop_still_serves() {
    let Some(nats) = Nats::start().await else { return };
    let addresses: Vec<_> = (0..2).map(|_| cluster::addresses(1)[0]).collect();
    let resolver = DnsServer::start().await;
    resolver.delegate(fleet::SUFFIX, addresses[0]);
    let Some(pebble) = Pebble::start(resolver.address, 1, 1, Moods::default()).await else { return };
    let shared = tempfile::tempdir().unwrap();
    let kek = shared.path().join("kek");
    acme::seal::Kek::from_file_or_new(&kek).unwrap();
    let mut pops = Vec::new();
    for (number, dns) in addresses.iter().enumerate() {
        let sections = sections(&pebble, &resolver, *dns, &kek, &nats);
        pops.push(Machine::enrolled_pop(&format!("pop-{number}"), &sections).await.start().await);
    }
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pebble.root().await.as_bytes()).unwrap()).unwrap();
    let name = format!("any.{}", fleet::SUFFIX);
    let stolen = trusted(&pops[0], &roots, &name).await;
    assert_eq!(trusted(&pops[1], &roots, &name).await, stolen);
    until("both to say that they serve it", ISSUED, async || {
        let explained = pops[0].admin(&["cert", "explain", &name]).await;
        let serving = &explained["certificates"][0]["serving"];
        (serving["pop-0"] == 1 && serving["pop-1"] == 1).then_some(())
    })
    .await;

    let began = Instant::now();
    pops[0].admin(&["cert", "compromise", &name]).await;
    until("it to be revoked", ISSUED, async || (pebble.status(&stolen).await.1 == Some(1)).then_some(())).await;
    let took = began.elapsed();
    assert!(took < REPLACED, "{took:?}");
    let next = leaf(&pops[0], &roots, &name).await.unwrap();
    assert_ne!(next, stolen);
    assert_eq!(leaf(&pops[1], &roots, &name).await.unwrap(), next, "the other one had it before");
    // Each of them says so.
    for pop in &pops {
        until("the end of it", ISSUED, async || {
            let explained = pop.admin(&["cert", "explain", &name]).await;
            let revocation = &explained["certificates"][0]["revocations"][0];
            (revocation["over"] == true && revocation["served_by"] == serde_json::json!([])).then_some(())
        })
        .await;
    }
    // Each minute one looks at what the other one shows: here of a CA that no visitor has heard of.
    until("a look of one at the other", LOOKED, async || {
        let shown = pops[0].admin(&["cert", "explain", &name]).await["shown"]["pop-1"].clone();
        (shown["faults"] == serde_json::json!(["untrusted"])).then_some(())
    })
    .await;
    for pop in pops {
        pop.stop().await;
    }
}

pub(crate) fn sections(
    pebble: &Pebble,
    resolver: &DnsServer,
    dns: SocketAddr,
    kek: &std::path::Path,
    nats: &Nats,
) -> String {
    format!(
        "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = []\n\
         [dns]\nlisten = [\"{dns}\"]\naddresses = [\"127.0.0.1\"]\nname_servers = [{{ name = \"ns.example.net\" }}]\n\
         [domains]\nresolvers = [\"{}\"]\n\
         [acme]\ndirectory = {:?}\nca_file = {:?}\nkek_file = {kek:?}\n{}",
        resolver.address,
        pebble.directory(),
        pebble.ca_file(),
        nats.sections(),
    )
}
