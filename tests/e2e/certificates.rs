//! Certificates from a real CA: Pebble proves our wildcard by our DNS, and a custom domain by our port 80.

use harness::pebble::{Moods, Pebble};
use harness::{Demo, DnsServer, Options, cluster, until};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub(crate) const SUFFIX: &str = "sprites.test";
pub(crate) const DOMAIN: &str = "shop.example";
/// From the start to a certificate: a second for Pebble, more on a busy machine.
pub(crate) const ISSUED: Duration = Duration::from_secs(60);

/// A machine whose zone and ports the CA knows.
pub(crate) struct Site {
    pub(crate) pebble: Pebble,
    pub(crate) dns: DnsServer,
    pub(crate) http: SocketAddr,
    /// Where the CA looks for HTTPS.
    pub(crate) https: SocketAddr,
    config: String,
    data: Arc<TempDir>,
    pub(crate) edge: Demo,
}

/// Which port the CA takes for 80.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port80 {
    Ours,
    /// Nobody is there.
    Dead,
}

impl Site {
    pub(crate) async fn start(moods: Moods) -> Option<Self> {
        Self::with(moods, Port80::Ours, "").await
    }

    /// With more sections, and perhaps nobody where the CA looks for HTTP.
    pub(crate) async fn with(moods: Moods, port_80: Port80, more: &str) -> Option<Self> {
        Self::build(moods, port_80, async |_, _, _| Some(more.to_owned())).await
    }

    /// With a second CA, called `second`.
    pub(crate) async fn with_two_cas() -> Option<(Self, Pebble)> {
        let mut second = None;
        let more = async |resolver, port_80, port_443| {
            let pebble = Pebble::start(resolver, port_80, port_443, Moods::default()).await?;
            let (directory, ca_file) = (pebble.directory(), pebble.ca_file());
            second = Some(pebble);
            Some(format!("[[acme.fallback]]\nname = \"second\"\ndirectory = {directory:?}\nca_file = {ca_file:?}\n"))
        };
        let site = Self::build(Moods::default(), Port80::Ours, more).await?;
        Some((site, second?))
    }

    /// `more` is told what a CA needs: its resolver, and our ports.
    async fn build(
        moods: Moods,
        port_80: Port80,
        more: impl AsyncFnOnce(SocketAddr, u16, u16) -> Option<String>,
    ) -> Option<Self> {
        let own = cluster::addresses(4);
        let (dns, http, https, dead) = (own[0], own[1], own[2], own[3]);
        let resolver = DnsServer::start().await;
        resolver.delegate(SUFFIX, dns);
        resolver.set_address(DOMAIN, http.ip());
        let port_80 = if port_80 == Port80::Ours { http } else { dead };
        let pebble = Pebble::start(resolver.address, port_80.port(), https.port(), moods).await?;
        let more = more(resolver.address, port_80.port(), https.port()).await?;
        let data = Arc::new(tempfile::Builder::new().prefix("edge-e2e-").tempdir().unwrap());
        let roots = data.path().join("visitors.pem");
        std::fs::write(&roots, pebble.root().await).unwrap();
        let config = config(&pebble, &resolver, [dns, http, https], moods, &data);
        let config = format!("{config}visitor_roots = {roots:?}\n{more}");
        let edge = start(&config, &data).await;
        Some(Self { pebble, dns: resolver, http, https, config, data, edge })
    }

    /// Claims a domain for a sprite, sets the record that proves it, and has it looked at.
    pub(crate) async fn prove(&self, domain: &str, sprite: &str) -> serde_json::Value {
        let added = self.edge.admin(&["domain", "add", domain, sprite]).await;
        self.dns.set_txt(added["txt_name"].as_str().unwrap(), added["txt_value"].as_str().unwrap());
        self.edge.admin(&["domain", "check", domain]).await;
        added
    }

    /// Whom visitors trust.
    pub(crate) async fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pebble.root().await.as_bytes()).unwrap()).unwrap();
        roots
    }
}

fn config(
    pebble: &Pebble,
    resolver: &DnsServer,
    [dns, http, https]: [SocketAddr; 3],
    moods: Moods,
    data: &TempDir,
) -> String {
    // What it needs to start is not gone with its CA.
    let (binding, ca_file) = (data.path().join("binding"), data.path().join("pebble.pem"));
    std::fs::copy(pebble.ca_file(), &ca_file).unwrap();
    std::fs::write(&binding, pebble.binding()).unwrap();
    let eab = match moods.wants_binding {
        true => format!("eab_id = \"kid-1\"\neab_key_file = {binding:?}\n"),
        false => String::new(),
    };
    format!(
        "[listen]\nhttps = [\"127.0.0.1:0\", \"{https}\"]\nhttp = [\"{http}\"]\n\
         [dns]\nlisten = [\"{dns}\"]\naddresses = [\"127.0.0.1\"]\nname_servers = [{{ name = \"ns.example.net\" }}]\n\
         [domains]\nresolvers = [\"{}\"]\n\
         [acme]\ndirectory = {:?}\nca_file = {:?}\ncontact = [\"mailto:ops@example.org\"]\n{eab}",
        resolver.address,
        pebble.directory(),
        ca_file,
    )
}

async fn start(config: &str, data: &Arc<TempDir>) -> Demo {
    let (config, suffix, data) = (Some(config.to_owned()), Some(SUFFIX.to_owned()), Some(Arc::clone(data)));
    Demo::start(Options { config, suffix, data, ..Options::default() }).await
}

/// The leaf a visitor gets for a name, if it is one to trust.
pub(crate) async fn leaf(edge: &Demo, roots: &RootCertStore, name: &str) -> std::io::Result<Vec<u8>> {
    let config = rustls::ClientConfig::builder().with_root_certificates(roots.clone()).with_no_client_auth();
    let stream = TcpStream::connect(edge.https).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].to_vec())
}

pub(crate) async fn trusted(edge: &Demo, roots: &RootCertStore, name: &str) -> Vec<u8> {
    until("a certificate to trust", ISSUED, async || leaf(edge, roots, name).await.ok()).await
}

#[tokio::test]
async fn a_machine_with_nothing_but_a_directory_has_a_wildcard_and_custom_domains_soon() {
    let Some(site) = Site::start(Moods { refuses_nonces: 30, ..Moods::default() }).await else { return };
    let roots = site.roots().await;
    let wildcard = trusted(&site.edge, &roots, "anything.sprites.test").await;
    assert_eq!(trusted(&site.edge, &roots, SUFFIX).await, wildcard);
    assert!(leaf(&site.edge, &roots, "a.b.sprites.test").await.is_err());

    // A custom domain, as soon as it is proved to be somebody's.
    site.edge.create_guest("shop").await;
    assert!(leaf(&site.edge, &roots, DOMAIN).await.is_err());
    site.prove(DOMAIN, "shop").await;
    let own = trusted(&site.edge, &roots, DOMAIN).await;
    assert_ne!(own, wildcard);

    // No sprite's name was ever in an order, and nothing the CA asked has woken one.
    let log = site.pebble.log();
    assert!(!log.contains("anything."), "{log}");
    assert_eq!(site.edge.receipts("shop").await.len(), 0);

    // Without its CA, its DNS and its store's goodwill it serves the same again.
    let Site { pebble, dns, config, data, edge, .. } = site;
    drop((pebble, dns));
    assert!(edge.stop().await.success());
    let edge = start(&config, &data).await;
    assert_eq!(trusted(&edge, &roots, "anything.sprites.test").await, wildcard);
    assert_eq!(trusted(&edge, &roots, DOMAIN).await, own);
    edge.stop().await;
}

#[tokio::test]
async fn a_ca_that_wants_to_know_its_customer_is_told() {
    let Some(site) = Site::start(Moods { wants_binding: true, ..Moods::default() }).await else { return };
    let roots = site.roots().await;
    trusted(&site.edge, &roots, "a.sprites.test").await;
    // Secrets are in no log, and in no file but their own.
    let said = site.edge.log();
    assert!(!said.contains(site.pebble.binding()) && !said.contains("PRIVATE KEY"), "{said}");
    site.edge.stop().await;
}

#[tokio::test]
async fn a_challenge_is_answered_to_whoever_asks_and_is_never_a_mirror() {
    let Some(site) = Site::start(Moods::default()).await else { return };
    let roots = site.roots().await;
    trusted(&site.edge, &roots, "a.sprites.test").await;
    let ask = async |token: &str| {
        let mut stream = TcpStream::connect(site.http).await.unwrap();
        let path = format!("/.well-known/acme-challenge/{token}");
        let request = format!("GET {path} HTTP/1.1\r\nhost: {DOMAIN}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = ask("abc-DEF_1").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("x-content-type-options: nosniff"), "{answer}");
    let (_, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(text.starts_with("abc-DEF_1.") && text.len() == 10 + 43, "{text}");
    for token in ["%3Cscript%3E", "a.b", &"x".repeat(129)] {
        let answer = ask(token).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{token}: {answer}");
    }
    site.edge.stop().await;
}

/// Let's Encrypt shows nothing of it that it looks, and counts what fails.
#[tokio::test]
async fn a_ca_that_takes_its_time_is_told_to_look_once_for_each_name() {
    let moods = Moods { looks_s: 5, ..Moods::default() };
    let Some(site) = Site::with(moods, Port80::Ours, "limits = \"letsencrypt\"\n").await else { return };
    let roots = site.roots().await;
    trusted(&site.edge, &roots, "any.sprites.test").await;
    assert_eq!(site.pebble.requests("/chalZ/"), 2, "the suffix, and all below it");
    // What was proved costs nothing of what is for failures.
    let explained = site.edge.admin(&["cert", "explain", SUFFIX]).await;
    let limits = explained["limits"].as_object().unwrap();
    assert!(limits.keys().all(|bucket| !bucket.contains("proofs.")), "{limits:?}");
    site.edge.stop().await;
}
