//! What a ClientHello is answered with: a certificate, or an alert that says what was wrong.

use harness::client::{VERSIONS, Version, empty};
use harness::{Demo, Options};
use http::Method;
use rustls::pki_types::ServerName;
use rustls_pki_types::pem::PemObject;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) async fn demo(config: &str) -> Demo {
    Demo::start(Options { config: Some(config.into()), ..Options::default() }).await
}

/// The bytes of a ClientHello for `name`; an address is not sent (RFC 6066 §3).
pub(crate) fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut flight = Vec::new();
    tls.write_tls(&mut flight).unwrap();
    flight
}

/// The first record the edge answers with: its type, and all of it for an alert.
pub(crate) async fn answer(demo: &Demo, flight: &[u8], piece: usize) -> (u8, Vec<u8>) {
    let mut stream = TcpStream::connect(demo.https).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for piece in flight.chunks(piece) {
        stream.write_all(piece).await.unwrap();
    }
    let mut head = [0; 5];
    stream.read_exact(&mut head).await.unwrap();
    if head[0] != ALERT {
        return (head[0], Vec::new());
    }
    let mut body = vec![0; usize::from(head[4])];
    stream.read_exact(&mut body).await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "nothing comes after it");
    (ALERT, body)
}

pub(crate) const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;

async fn refused(demo: &Demo, reason: &str) -> u64 {
    let read = String::from_utf8(demo.try_admin(&["metrics"]).await.stdout).unwrap();
    let line = format!("tls_refused_total{{reason={reason:?}}} ");
    read.lines().find_map(|have| have.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn a_name_that_is_none_of_ours_and_a_client_that_names_nobody_are_told_so() {
    let demo = demo("").await;
    let ours = demo.host("any");
    for name in [ours.clone(), ours.to_uppercase(), format!("{ours}.")] {
        // The final dot is not sent; whatever the case, whatever the pieces.
        for piece in [usize::MAX, 1, 100] {
            assert_eq!(answer(&demo, &hello(&name), piece).await.0, HANDSHAKE, "{name}");
        }
    }
    let long = format!("{}.example", ["a"; 120].join("."));
    for (number, name) in ["example.com", "a.b.c.example", "xn--bcher-kva.example", &long].into_iter().enumerate() {
        let told = answer(&demo, &hello(name), usize::MAX).await;
        assert_eq!(told, (ALERT, vec![2, 112]), "unrecognized_name for {name}");
        assert_eq!(refused(&demo, "unknown_name").await, number as u64 + 1);
    }
    let told = answer(&demo, &hello("192.0.2.1"), usize::MAX).await;
    assert_eq!(told, (ALERT, vec![2, 109]), "missing_extension");
    assert_eq!(refused(&demo, "no_name").await, 1);
    // A name of two labels under the suffix is none a wildcard covers.
    assert_eq!(answer(&demo, &hello(&format!("a.{ours}")), usize::MAX).await, (ALERT, vec![2, 112]));
}

#[tokio::test]
async fn a_client_that_names_nobody_gets_the_certificate_that_is_configured_for_it() {
    let suffix = harness::fleet::SUFFIX;
    let demo = demo(&format!("[tls]\ndefault_name = \"any.{suffix}\"\n")).await;
    assert_eq!(answer(&demo, &hello("192.0.2.1"), usize::MAX).await.0, HANDSHAKE);
    assert_eq!(answer(&demo, &hello("example.com"), usize::MAX).await, (ALERT, vec![2, 112]));
}

#[tokio::test]
async fn the_edge_says_which_suite_and_prefers_the_group_that_no_quantum_computer_breaks() {
    use rustls::crypto::aws_lc_rs::{cipher_suite as suite, kx_group as group};
    let demo = demo("").await;
    let provider = rustls::crypto::CryptoProvider {
        // Ours the other way round.
        cipher_suites: vec![suite::TLS13_CHACHA20_POLY1305_SHA256, suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![group::X25519MLKEM768, group::X25519],
        ..rustls::crypto::aws_lc_rs::default_provider()
    };
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::CertificateDer::from_pem_file(demo.ca()).unwrap()).unwrap();
    let config = config.with_protocol_versions(&[&rustls::version::TLS13]).unwrap().with_root_certificates(roots);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config.with_no_client_auth()));
    let stream = TcpStream::connect(demo.https).await.unwrap();
    let tls = connector.connect(ServerName::try_from(demo.host("any")).unwrap(), stream).await.unwrap();
    let (_, session) = tls.get_ref();
    let group = session.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(session.negotiated_cipher_suite().unwrap().suite(), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
}

/// RFC 6797, for names of ours alone: whoever owns a domain says for himself what holds there.
#[tokio::test]
async fn browsers_are_told_to_stay_with_https_at_our_names_if_that_is_wanted() {
    let demo = demo("[tls]\nhsts = \"180days\"\n").await;
    demo.create_guest("kept").await;
    let plain = self::demo("").await;
    plain.create_guest("kept").await;
    for version in VERSIONS {
        for (edge, name, path, said) in [
            (&demo, "kept", "/head", "max-age=15552000"),
            (&demo, "kept", "/hsts", "max-age=7"),
            (&demo, "nobody", "/", "max-age=15552000"),
            (&plain, "kept", "/head", ""),
        ] {
            let mut client = edge.connect(version, name).await;
            let answer = client.send(edge.request(Method::GET, name, path).body(empty()).unwrap()).await;
            assert_eq!(answer.header("strict-transport-security"), said, "{version:?} {name}{path}: {answer:?}");
        }
    }
    demo.admin(&["domain", "add", "shop.example", "kept", "--proved"]).await;
    let mut client = demo.try_connect_host(Version::H1, "shop.example").await.unwrap();
    let request = http::Request::builder().uri("/head").header("host", "shop.example").body(empty()).unwrap();
    let answer = client.send(request).await;
    assert_eq!((answer.status, answer.header("strict-transport-security")), (200, ""), "{answer:?}");
    for edge in [demo, plain] {
        edge.stop().await;
    }
}
