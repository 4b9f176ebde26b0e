//! TLS-ALPN-01: a domain whose port 80 is dead has its certificate all the same, and what answers the CA answers nobody else.

use crate::certificates::{DOMAIN, Port80, Site, trusted};
use harness::blind::blind;
use harness::pebble::Moods;
use harness::{cluster, within};
use rustls::SupportedProtocolVersion;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// From a domain's proof to the CA at port 443, which it comes to after port 80.
const COMES: Duration = Duration::from_secs(60);
/// The extension `id-pe-acmeIdentifier` (RFC 8737 §6.1).
const ACME_IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";
pub(crate) const CHALLENGE: &[u8] = b"acme-tls/1";

/// A handshake's end: the leaf, the protocol, and bytes that came after it.
pub(crate) struct Shown {
    pub(crate) leaf: Vec<u8>,
    pub(crate) protocol: Option<Vec<u8>>,
    tickets: u32,
}

pub(crate) async fn shake(
    edge: SocketAddr,
    name: &str,
    protocols: &[&[u8]],
    version: &'static SupportedProtocolVersion,
) -> std::io::Result<Shown> {
    let mut config = blind(version);
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let stream = TcpStream::connect(edge).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let session = tls.get_ref().1;
    let leaf = session.peer_certificates().unwrap()[0].to_vec();
    let protocol = session.alpn_protocol().map(<[u8]>::to_vec);
    if protocol.as_deref() == Some(CHALLENGE) {
        // It says goodbye and nothing else.
        let mut rest = Vec::new();
        within("its end", COMES, tls.read_to_end(&mut rest)).await?;
        assert!(rest.is_empty(), "{rest:?}");
    }
    let tickets = tls.get_ref().1.tls13_tickets_received();
    Ok(Shown { leaf, protocol, tickets })
}

fn is_of_a_challenge(leaf: &[u8]) -> bool {
    let (_, parsed) = X509Certificate::from_der(leaf).unwrap();
    parsed.extensions().iter().any(|extension| extension.oid.to_id_string() == ACME_IDENTIFIER)
}

#[tokio::test]
async fn a_domain_whose_port_80_is_dead_is_proved_by_a_handshake_that_only_the_ca_is_given() {
    let early = "[hold]\nwake_at_client_hello = true\n";
    let Some(site) = Site::with(Moods::default(), Port80::Dead, early).await else { return };
    let roots = site.roots().await;
    let wildcard = trusted(&site.edge, &roots, "any.sprites.test").await;
    site.edge.create_guest("shop").await;
    // The CA reaches the domain through us, so that it waits while we look.
    let between = TcpListener::bind((cluster::addresses(1)[0].ip(), site.https.port())).await.unwrap();
    site.dns.clear(DOMAIN);
    site.dns.set_address(DOMAIN, between.local_addr().unwrap().ip());
    site.prove(DOMAIN, "shop").await;
    let (mut ca, _) = within("the CA to come to port 443", COMES, between.accept()).await.unwrap();

    for version in [&TLS13, &TLS12] {
        let shown = shake(site.https, "Shop.Example", &[CHALLENGE], version).await.unwrap();
        assert_eq!((shown.protocol.as_deref(), shown.tickets), (Some(CHALLENGE), 0), "{version:?}");
        let (_, leaf) = X509Certificate::from_der(&shown.leaf).unwrap();
        let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
        assert!(matches!(names[..], [GeneralName::DNSName(DOMAIN)]), "{names:?}");
        let extension = leaf.extensions().iter().find(|extension| extension.oid.to_id_string() == ACME_IDENTIFIER);
        let extension = extension.unwrap();
        assert!(extension.critical && extension.value.len() == 34 && extension.value.starts_with(&[4, 32]));
        // Beside another protocol it is nothing, nor under a name that has no challenge.
        for protocols in [&[b"h2", CHALLENGE][..], &[CHALLENGE, b"http/1.1"], &[b"http/1.1"], &[]] {
            let refused = shake(site.https, DOMAIN, protocols, version).await;
            assert!(refused.is_err(), "the domain has no certificate yet: {protocols:?}");
            let ours = shake(site.https, "any.sprites.test", protocols, version).await.unwrap();
            assert_eq!(ours.leaf, wildcard);
            assert_ne!(ours.protocol.as_deref(), Some(CHALLENGE));
        }
        for name in ["any.sprites.test", "sprites.test", "other.example", "x.shop.example"] {
            assert!(shake(site.https, name, &[CHALLENGE], version).await.is_err(), "{name}");
        }
    }
    // None of it is a request, and none of it a visitor who is about to ask.
    assert_eq!(site.edge.receipts("shop").await.len(), 0);

    let edge = site.https;
    let passes = tokio::spawn(async move {
        loop {
            let mut far = TcpStream::connect(edge).await.unwrap();
            // It comes several times, from several places.
            tokio::spawn(async move { copy_bidirectional(&mut ca, &mut far).await });
            (ca, _) = between.accept().await.unwrap();
        }
    });
    let own = trusted(&site.edge, &roots, DOMAIN).await;
    assert!(own != wildcard && !is_of_a_challenge(&own));
    passes.abort();
    let said = site.edge.log();
    assert!(said.contains("has to wait") && said.contains("connection refused"), "port 80 was tried first: {said}");
    // With the order the answer is gone.
    let over = async {
        while shake(site.https, DOMAIN, &[CHALLENGE], &TLS13).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the answer to be taken back", COMES, over).await;
    let said = String::from_utf8(site.edge.try_admin(&["metrics"]).await.stdout).unwrap();
    assert!(said.contains("tls_refused_total{reason=\"no_challenge\"}"), "{said}");
    site.edge.stop().await;
}

#[tokio::test]
async fn an_operator_who_says_so_has_port_443_looked_at_first() {
    let Some(site) = Site::with(Moods::default(), Port80::Dead, "challenge = \"tls-alpn-01\"\n").await else { return };
    let roots = site.roots().await;
    site.edge.create_guest("shop").await;
    site.prove(DOMAIN, "shop").await;
    trusted(&site.edge, &roots, DOMAIN).await;
    let said = site.edge.log();
    assert!(!said.contains("has to wait"), "{said}");
    site.edge.stop().await;
}
