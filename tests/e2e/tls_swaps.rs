//! Certificates that are swapped every millisecond while handshakes are made: none fails, and each has one certificate with
//! its key from its beginning to its end.

use acme::local_ca::LocalCa;
use acme::resolver::{CertResolver, Certificates, Slot};
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

const DOMAIN: &str = "shop.example";
/// Handshakes in CI, and with EDGE_PROXY_TEST_FULL=1.
const HANDSHAKES: (usize, usize) = (20_000, 1_000_000);

/// What the one has to say to the other.
fn pump(from: &mut Connection, to: &mut Connection) -> Result<(), rustls::Error> {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut left = bytes.as_slice();
    while !left.is_empty() {
        to.read_tls(&mut left).unwrap();
        to.process_new_packets()?;
    }
    Ok(())
}

/// A whole handshake; the leaf the client has verified.
fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, name: &str) -> Result<Vec<u8>, rustls::Error> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = Connection::from(ClientConnection::new(Arc::clone(client), name)?);
    let mut server = Connection::from(ServerConnection::new(Arc::clone(server))?);
    while client.is_handshaking() || server.is_handshaking() {
        pump(&mut client, &mut server)?;
        pump(&mut server, &mut client)?;
    }
    Ok(client.peer_certificates().unwrap()[0].to_vec())
}

#[test]
fn no_handshake_fails_while_certificates_are_swapped_every_millisecond() {
    let full = std::env::var_os("EDGE_PROXY_TEST_FULL").is_some_and(|full| full == "1");
    let wanted = if full { HANDSHAKES.1 } else { HANDSHAKES.0 };
    let dir = tempfile::tempdir().unwrap();
    let ca = LocalCa::load_or_create(dir.path()).unwrap();
    let two = |name: &str| [(); 2].map(|()| Arc::new(ca.issue(&[name.to_owned()]).unwrap()));
    let (wild, own) = (two("*.sprites.test"), two(DOMAIN));
    let resolver = CertResolver::new(Certificates::default());
    let swap = |at: usize| {
        resolver.put_suffix("sprites.test", Arc::clone(&wild[at % 2]));
        resolver.change([(DOMAIN.to_owned(), Some(Slot::Loaded(Arc::clone(&own[at % 2]).into())))]);
    };
    swap(0);

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let server = Arc::new(builder.with_cert_resolver(Arc::clone(&resolver) as _));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.path().join("ca.pem")).unwrap()).unwrap();
    let client = |version| {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(&[version]).unwrap();
        let mut config = builder.with_root_certificates(roots.clone()).with_no_client_auth();
        config.resumption = Resumption::disabled();
        Arc::new(config)
    };
    let clients = [client(&rustls::version::TLS13), client(&rustls::version::TLS12)];

    let (done, swaps, number) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let seen = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                swap(swaps.fetch_add(1, Ordering::Relaxed));
                std::thread::park_timeout(Duration::from_millis(1));
            }
        });
        let shake = || {
            let mut seen = HashSet::new();
            loop {
                let at = number.fetch_add(1, Ordering::Relaxed);
                if at >= wanted {
                    return seen;
                }
                let name = if at.is_multiple_of(2) { DOMAIN } else { "any.sprites.test" };
                let leaf = handshake(&clients[at / 2 % 2], &server, name);
                seen.insert(leaf.unwrap_or_else(|error| panic!("handshake {at} for {name}: {error}")));
            }
        };
        let shaking: Vec<_> = (0..2).map(|_| scope.spawn(shake)).collect();
        let seen: Vec<_> = shaking.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        seen.into_iter().flat_map(|seen| seen.expect("no handshake fails")).collect::<HashSet<_>>()
    });
    assert_eq!(seen.len(), 4, "each of the certificates was shown");
    println!("{wanted} handshakes, {} swaps", swaps.into_inner());
}
