//! Sprites that ask their visitors for a certificate: who is let in, what the sprite is told, and that neither a connection
//! nor a ticket made under other rules leads past them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harness::client::{VERSIONS, Version, empty};
use harness::{Answer, Client, Demo};
use http::Method;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A CA of devices, and a device of it.
struct Devices {
    ca_pem: String,
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Devices {
    fn new() -> Self {
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["device-7".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Self { ca_pem: ca.pem(), certificate: certificate.der().clone(), key: key.serialize_der() }
    }

    /// As RFC 9440 writes it.
    fn header(&self) -> String {
        format!(":{}:", STANDARD.encode(&self.certificate))
    }
}

fn visitor(
    demo: &Demo,
    device: Option<&Devices>,
    version: &'static SupportedProtocolVersion,
    alpn: &[u8],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(demo.ca()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).unwrap();
    let config = config.with_root_certificates(roots);
    let mut config = match device {
        None => config.with_no_client_auth(),
        Some(device) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(device.key.clone()));
            config.with_client_auth_cert(vec![device.certificate.clone()], key).unwrap()
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

async fn connect(demo: &Demo, name: &str, config: &Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(demo.https).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
    connector.connect(ServerName::try_from(demo.host(name)).unwrap(), stream).await
}

/// GET /head by a visitor that claims to be somebody.
async fn ask(demo: &Demo, name: &str, device: Option<&Devices>, version: Version) -> Answer {
    let alpn: &[u8] = if version == Version::H1 { b"http/1.1" } else { b"h2" };
    let stream = connect(demo, name, &visitor(demo, device, &TLS13, alpn)).await.unwrap();
    let request = demo.request(Method::GET, name, "/head").header("client-cert", ":Zm9yZ2Vk:");
    let request = request.header("client_cert", "forged").header("client-cert-chain", ":Zm9yZ2Vk:");
    Client::over(version, stream).await.send(request.body(empty()).unwrap()).await
}

/// What the sprite was told of its visitor.
fn told(answer: &Answer) -> Vec<(String, String)> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let lines: Vec<(String, String)> = serde_json::from_value(answer.json()["headers"].clone()).unwrap();
    lines.into_iter().filter(|(name, _)| name.to_lowercase().replace('_', "-").starts_with("client-cert")).collect()
}

/// A whole visit over HTTP/1.1; the status, and how the handshake went. An error when it was refused.
async fn visit(demo: &Demo, name: &str, config: &Arc<ClientConfig>) -> std::io::Result<(String, HandshakeKind)> {
    let mut tls = connect(demo, name, config).await?;
    let request = format!("GET /head HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", demo.host(name));
    tls.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer).await?;
    let status = String::from_utf8_lossy(answer.get(9..12).unwrap_or_default()).into_owned();
    Ok((status, tls.get_ref().1.handshake_kind().unwrap()))
}

async fn rules(demo: &Demo, name: &str, mode: &str, ca: Option<&Devices>) {
    let mut arguments = vec!["sprite", "client-certificate", name, mode];
    let file = demo.data().join("devices.pem");
    if let Some(ca) = ca {
        std::fs::write(&file, &ca.ca_pem).unwrap();
        arguments.extend(["--ca", file.to_str().unwrap()]);
    }
    let shown = demo.admin(&arguments).await;
    assert_eq!(shown["client_certificate"].as_str().unwrap_or("none"), mode);
}

#[tokio::test]
async fn a_sprite_that_requires_a_certificate_is_neither_reached_nor_woken_without_one() {
    let config = "[hold]\nwake_at_client_hello = true\n";
    let demo = Demo::start(harness::Options { config: Some(config.into()), ..Default::default() }).await;
    let (ours, theirs) = (Devices::new(), Devices::new());
    demo.create_guest("safe").await;
    rules(&demo, "safe", "require", Some(&ours)).await;
    for version in [&TLS13, &TLS12] {
        for device in [None, Some(&theirs)] {
            let visited = visit(&demo, "safe", &visitor(&demo, device, version, b"http/1.1")).await;
            assert!(visited.is_err(), "{visited:?}");
        }
    }
    assert!(demo.receipts("safe").await.is_empty(), "nobody woke it");
    for version in VERSIONS {
        let answer = ask(&demo, "safe", Some(&ours), version).await;
        assert_eq!(told(&answer), [("client-cert".to_owned(), ours.header())], "{version:?}");
    }
    // The rules go with the row, and nobody else's are touched.
    rules(&demo, "safe", "none", None).await;
    assert!(told(&ask(&demo, "safe", None, Version::H1).await).is_empty());
}

#[tokio::test]
async fn a_sprite_is_told_of_the_certificate_and_by_nobody_but_the_edge() {
    let demo = Demo::new().await;
    let (ours, theirs) = (Devices::new(), Devices::new());
    demo.create_guest("asks").await;
    for version in VERSIONS {
        rules(&demo, "asks", "none", None).await;
        assert!(told(&ask(&demo, "asks", Some(&ours), version).await).is_empty(), "it does not ask");
        rules(&demo, "asks", "request", Some(&ours)).await;
        assert!(told(&ask(&demo, "asks", None, version).await).is_empty(), "whatever the visitor says");
        assert_eq!(told(&ask(&demo, "asks", Some(&ours), version).await)[0].1, ours.header());
        assert!(visit(&demo, "asks", &visitor(&demo, Some(&theirs), &TLS13, b"http/1.1")).await.is_err());
        rules(&demo, "asks", "pass", None).await;
        for device in [&ours, &theirs] {
            assert_eq!(told(&ask(&demo, "asks", Some(device), version).await)[0].1, device.header());
        }
    }
    let wrong = demo.data().join("wrong.pem");
    std::fs::write(&wrong, "nothing\n").unwrap();
    let refused = ["sprite", "client-certificate", "asks", "require", "--ca", wrong.to_str().unwrap()];
    assert!(!demo.try_admin(&refused).await.status.success());
}

#[tokio::test]
async fn no_connection_made_under_other_rules_leads_to_it() {
    let demo = Demo::new().await;
    let ours = Devices::new();
    demo.create_guest("safe").await;
    demo.create_guest("plain").await;
    for version in VERSIONS {
        rules(&demo, "safe", "none", None).await;
        let mut before = demo.connect(version, "safe").await;
        assert_eq!(before.get(&demo, "safe", "/page").await.status, 200);
        rules(&demo, "safe", "require", Some(&ours)).await;
        // One that was there before, and one that a browser would share.
        let mut shared = demo.connect(version, "plain").await;
        for client in [&mut before, &mut shared] {
            let answer = client.get(&demo, "safe", "/page").await;
            assert_eq!(answer.status, 421, "{version:?}: {answer:?}");
        }
        assert_eq!(shared.get(&demo, "plain", "/page").await.status, 200);
        // Nor is a sprite that does not ask told whom this one was shown.
        let alpn: &[u8] = if version == Version::H1 { b"http/1.1" } else { b"h2" };
        let stream = connect(&demo, "safe", &visitor(&demo, Some(&ours), &TLS13, alpn)).await.unwrap();
        let mut asked = Client::over(version, stream).await;
        assert_eq!(asked.get(&demo, "plain", "/page").await.status, 421, "{version:?}");
        assert_eq!(asked.get(&demo, "safe", "/page").await.status, 200, "{version:?}");
    }
}

#[tokio::test]
async fn no_ticket_made_under_other_rules_leads_past_them() {
    let demo = Demo::new().await;
    let (ours, theirs) = (Devices::new(), Devices::new());
    demo.create_guest("safe").await;
    for version in [&TLS13, &TLS12] {
        let both = Devices { ca_pem: format!("{}{}", ours.ca_pem, theirs.ca_pem), ..Devices::new() };
        let config = visitor(&demo, Some(&ours), version, b"http/1.1");
        let full = ("200".to_owned(), HandshakeKind::Full);
        let short = ("200".to_owned(), HandshakeKind::Resumed);
        for (mode, ca) in [("none", None), ("request", Some(&ours)), ("require", Some(&ours)), ("require", Some(&both))]
        {
            rules(&demo, "safe", mode, ca).await;
            assert_eq!(visit(&demo, "safe", &config).await.unwrap(), full, "{mode}");
            assert_eq!(visit(&demo, "safe", &config).await.unwrap(), short, "{mode}");
        }
        // Other CAs: the certificate in the ticket is of none of them.
        rules(&demo, "safe", "require", Some(&theirs)).await;
        assert!(visit(&demo, "safe", &config).await.is_err());
    }
}
