//! Handshakes while certificates are swapped, and what compression saves: real clients and servers, without sockets.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics where it stands")]

mod shake;

use acme::local_ca::LocalCa;
use acme::resolver::{CertResolver, Certificates, Slot};
use rustls::ClientConfig;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use shake::{handshake, server};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Handshakes while a certificate is swapped each millisecond; a million with `--full`.
fn handshakes() -> usize {
    let full = std::env::var_os("EDGE_PROXY_TEST_FULL").is_some_and(|full| full == "1");
    if full { 1_000_000 } else { 20_000 }
}

fn client(ca: &Path) -> ClientConfig {
    let mut client = shake::client(ca, rustls::DEFAULT_VERSIONS);
    client.resumption = rustls::client::Resumption::disabled();
    client
}

fn issue(ca: &LocalCa, names: &[&str]) -> Arc<CertifiedKey> {
    Arc::new(ca.issue(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap())
}

#[test]
fn no_handshake_fails_while_a_certificate_is_swapped_each_millisecond() {
    let dir = tempfile::tempdir().unwrap();
    let ca = LocalCa::load_or_create(dir.path()).unwrap();
    let client = Arc::new(client(&dir.path().join("ca.pem")));
    // Two of each: a chain that went out with the key of the other one would not verify.
    let whole = [issue(&ca, &["whole.example"]), issue(&ca, &["whole.example"])];
    let wildcard = [issue(&ca, &["*.own.example"]), issue(&ca, &["*.own.example"])];
    let others: Vec<_> = (0..10_000).map(|number| (format!("n{number}.example"), Arc::clone(&whole[0]))).collect();
    let set = |turn: usize| {
        let names = others.iter().cloned().chain([("whole.example".to_owned(), Arc::clone(&whole[turn % 2]))]);
        let suffixes = vec![("own.example".to_owned(), Arc::clone(&wildcard[turn % 2]))];
        Certificates { suffixes, names: names.collect(), fallback: None }
    };
    let resolver = CertResolver::new(set(0));
    let server = Arc::new(server(Arc::clone(&resolver) as _));
    let (over, done, swaps) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|threads| {
        let shakes: Vec<_> = (0..2)
            .map(|_| {
                threads.spawn(|| {
                    loop {
                        let number = done.fetch_add(1, Relaxed);
                        if number >= handshakes() {
                            return;
                        }
                        let name = if number % 2 == 0 { "whole.example" } else { "a.own.example" };
                        if let Err(error) = handshake(&client, &server, name) {
                            panic!("handshake {number} with {name}: {error}");
                        }
                    }
                })
            })
            .collect();
        threads.spawn(|| {
            while !over.load(Relaxed) {
                let turn = swaps.fetch_add(1, Relaxed);
                // At every hundredth everything is replaced.
                if turn % 100 == 0 {
                    resolver.replace(set(turn / 100));
                }
                let swapped = Slot::Loaded(Arc::clone(&whole[turn % 2]).into());
                resolver.change([("whole.example".to_owned(), Some(swapped))]);
                std::thread::park_timeout(Duration::from_millis(1));
            }
        });
        let outcomes: Vec<_> = shakes.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        over.store(true, Relaxed);
        assert!(outcomes.iter().all(Result::is_ok));
    });
    assert!(swaps.load(Relaxed) > 100, "{swaps:?} swaps");
}

#[test]
fn a_client_that_offers_compression_gets_fewer_bytes_and_another_one_what_it_can_read() {
    let dir = tempfile::tempdir().unwrap();
    let ca = LocalCa::load_or_create(dir.path()).unwrap();
    let key = issue(&ca, &["a.example"]);
    // As long as what a public CA sends: a leaf and an intermediate.
    let chain = vec![key.cert[0].clone(), CertificateDer::from_pem_file(dir.path().join("ca.pem")).unwrap()];
    let key = Arc::new(CertifiedKey::new(chain, Arc::clone(&key.key)));
    let names = [("a.example".to_owned(), key)].into();
    let resolver = CertResolver::new(Certificates { names, ..Certificates::default() });
    let mut compressing = server(resolver);
    acme::compression::enable(&mut compressing);
    let compressing = Arc::new(compressing);
    let offering = |offers: &[&'static dyn rustls::compress::CertDecompressor]| {
        let mut client = client(&dir.path().join("ca.pem"));
        client.cert_decompressors = offers.to_vec();
        let client = Arc::new(client);
        let (sent, _) = handshake(&client, &compressing, "a.example").unwrap();
        // The second one is from the cache, and the same but for the length of a signature.
        let (again, _) = handshake(&client, &compressing, "a.example").unwrap();
        assert!(sent.abs_diff(again) <= 4, "{sent} {again}");
        sent
    };
    let plain = offering(&[]);
    for offer in [rustls::compress::BROTLI_DECOMPRESSOR, rustls::compress::ZLIB_DECOMPRESSOR] {
        let sent = offering(&[offer]);
        println!("{:?}: {sent} bytes instead of {plain}", offer.algorithm());
        assert!(sent + 50 < plain, "{:?}: {sent} of {plain}", offer.algorithm());
    }
}
