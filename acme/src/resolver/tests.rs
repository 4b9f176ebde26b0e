use super::*;
use crate::local_ca::LocalCa;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

fn handshake(resolver: Arc<CertResolver>, ca: &std::path::Path, name: &'static str) -> Result<(), rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let client = client.unwrap().with_root_certificates(roots).with_no_client_auth();
    let server = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let server = server.unwrap().with_no_client_auth().with_cert_resolver(resolver);
    let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from(name).unwrap())?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}

#[test]
fn a_client_that_trusts_the_local_ca_reaches_one_label_under_the_suffix_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let ca = LocalCa::load_or_create(dir.path()).unwrap();
    let names = ["*.sprites.test".to_owned(), "sprites.test".to_owned()];
    let key = Arc::new(ca.issue(&names).unwrap());
    let resolver =
        CertResolver::new(Certificates { suffixes: vec![("sprites.test".into(), key)], ..Certificates::default() });
    let ca = dir.path().join("ca.pem");
    handshake(Arc::clone(&resolver), &ca, "hello.sprites.test").unwrap();
    handshake(Arc::clone(&resolver), &ca, "sprites.test").unwrap();
    for foreign in ["a.b.sprites.test", "xsprites.test", "example.com"] {
        assert!(handshake(Arc::clone(&resolver), &ca, foreign).is_err(), "{foreign}");
    }
}

#[test]
fn what_is_configured_answers_for_every_name_it_covers_and_for_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let ca = LocalCa::load_or_create(dir.path()).unwrap();
    let key = Arc::new(ca.issue(&["shop.example".into(), "*.wild.example".into()]).unwrap());
    let resolver = CertResolver::new(Certificates { fallback: Some(key), ..Certificates::default() });
    let ca = dir.path().join("ca.pem");
    handshake(Arc::clone(&resolver), &ca, "shop.example").unwrap();
    handshake(Arc::clone(&resolver), &ca, "a.wild.example").unwrap();
    for foreign in ["www.shop.example", "wild.example", "other.example"] {
        assert!(resolver.find(foreign).is_none(), "{foreign}");
    }
}

#[test]
fn the_ca_is_the_same_after_a_restart_and_its_key_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    LocalCa::load_or_create(dir.path()).unwrap();
    let first = std::fs::read(dir.path().join("ca.pem")).unwrap();
    let ca = LocalCa::load_or_create(dir.path()).unwrap();
    assert_eq!(std::fs::read(dir.path().join("ca.pem")).unwrap(), first);
    assert_eq!(std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
    let key = Arc::new(ca.issue(&["*.t.test".into()]).unwrap());
    let resolver =
        CertResolver::new(Certificates { suffixes: vec![("t.test".into(), key)], ..Certificates::default() });
    handshake(resolver, &dir.path().join("ca.pem"), "a.t.test").unwrap();
}

const DAY: i64 = 24 * 3600;

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// A certificate of the local CA, as if it ended in so many days.
fn ends_in(ca: &LocalCa, names: &[&str], days: i64) -> Certificate {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    Certificate { key: Arc::new(ca.issue(&names).unwrap()), not_after: now() + days * DAY }
}

fn ca() -> (tempfile::TempDir, LocalCa) {
    let dir = tempfile::tempdir().unwrap();
    let ca = LocalCa::load_or_create(dir.path()).unwrap();
    (dir, ca)
}

#[test]
fn a_certificate_knows_its_end() {
    let (_dir, ca) = ca();
    let certificate = Certificate::from(Arc::new(ca.issue(&["a.example".into()]).unwrap()));
    assert!((certificate.not_after - now() - 90 * DAY).abs() < 600, "what the local CA gives");
}

#[test]
fn an_expired_certificate_is_the_last_resort() {
    let (_dir, ca) = ca();
    let fallback = Arc::new(ca.issue(&["a.example".into()]).unwrap());
    let put = |resolver: &CertResolver, days| {
        let slot = Slot::Loaded(ends_in(&ca, &["a.example"], days));
        resolver.change([("a.example".to_owned(), Some(slot))]);
    };
    let alone = CertResolver::new(Certificates::default());
    put(&alone, -1);
    assert!(matches!(alone.look(Some("a.example")), Found::Expired(_)));
    let with = CertResolver::new(Certificates { fallback: Some(Arc::clone(&fallback)), ..Certificates::default() });
    put(&with, -1);
    let Found::Ready(better) = with.look(Some("a.example")) else { panic!("the other one is valid") };
    assert!(Arc::ptr_eq(&better.key, &fallback));
    put(&with, 1);
    let Found::Ready(own) = with.look(Some("a.example")) else { panic!("its own is valid") };
    assert!(!Arc::ptr_eq(&own.key, &fallback));
}

#[test]
fn who_names_nobody_gets_what_is_configured_or_nothing() {
    let (_dir, ca) = ca();
    let set = || Certificates { fallback: Some(ends_in(&ca, &["a.example"], 1).key), ..Certificates::default() };
    assert!(matches!(CertResolver::new(set()).look(None), Found::Unknown));
    let policy = Policy { default_name: Some("a.example".into()), refuse_expired: false };
    assert!(matches!(CertResolver::with(set(), policy, None).look(None), Found::Ready(_)));
}

/// Counts how often it is asked; answers when it may.
struct Counted {
    ca: LocalCa,
    asked: AtomicUsize,
    shut: Mutex<bool>,
    opens: Condvar,
}

impl SealedStore for Arc<Counted> {
    fn open(&self, handle: Handle) -> Result<Certificate, OpenError> {
        self.asked.fetch_add(1, SeqCst);
        drop(self.opens.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
        match handle.number() {
            0 => Err(OpenError::Store("broken".into())),
            number => Ok(ends_in(&self.ca, &[&format!("s{number}.example")], 1)),
        }
    }
}

fn with_store() -> (tempfile::TempDir, Arc<Counted>, Arc<CertResolver>) {
    let (dir, ca) = ca();
    let store = Arc::new(Counted { ca, asked: AtomicUsize::new(0), shut: Mutex::default(), opens: Condvar::new() });
    let resolver = CertResolver::with(Certificates::default(), Policy::default(), Some(Arc::new(Arc::clone(&store))));
    let sealed = |number| (format!("s{number}.example"), Some(Slot::Sealed(Handle::new(number).unwrap())));
    resolver.change((0..10).map(sealed));
    (dir, store, resolver)
}

#[tokio::test]
async fn a_sealed_certificate_is_opened_once_for_all_who_ask_and_then_stays_open() {
    let (dir, store, resolver) = with_store();
    let Found::Sealed(handle) = resolver.look(Some("s1.example")) else { panic!("nobody has opened it") };
    *store.shut.lock().unwrap() = true;
    let asks: Vec<_> = (0..100)
        .map(|_| {
            let resolver = Arc::clone(&resolver);
            tokio::spawn(async move { resolver.open(handle).await })
        })
        .collect();
    // One who has left does not take the others with him.
    asks[0].abort();
    tokio::task::yield_now().await;
    *store.shut.lock().unwrap() = false;
    store.opens.notify_all();
    for ask in asks.into_iter().skip(1) {
        ask.await.unwrap().unwrap();
    }
    assert_eq!(store.asked.load(SeqCst), 1);
    assert!(matches!(resolver.look(Some("s1.example")), Found::Ready(_)));
    handshake(Arc::clone(&resolver), &dir.path().join("ca.pem"), "s1.example").unwrap();
    assert_eq!((store.asked.load(SeqCst), resolver.opened()), (1, 1));
    // Another certificate of the name: what was open is forgotten.
    resolver.change([("s1.example".to_owned(), Some(Slot::Sealed(Handle::new(2).unwrap())))]);
    assert!(matches!(resolver.look(Some("s1.example")), Found::Sealed(_)));
    assert_eq!(resolver.opened(), 0);
}

#[tokio::test]
async fn what_cannot_be_opened_is_said_and_asked_for_again_the_next_time() {
    let (_dir, store, resolver) = with_store();
    let handle = Handle::new(0).unwrap();
    for asked in 1..=2 {
        assert!(matches!(resolver.open(handle).await, Err(OpenError::Store(_))));
        assert_eq!(store.asked.load(SeqCst), asked);
    }
}

#[test]
fn no_unknown_name_asks_the_store() {
    let (_dir, store, resolver) = with_store();
    for number in 10..10_000 {
        assert!(matches!(resolver.look(Some(&format!("s{number}.example"))), Found::Unknown));
    }
    assert_eq!((store.asked.load(SeqCst), resolver.names()), (0, 10));
}

#[test]
fn of_those_that_are_open_the_used_ones_stay() {
    let (_dir, ca) = ca();
    let certificate = ends_in(&ca, &["a.example"], 1);
    let opened = opened::Opened::new(4);
    let handle = |number| Handle::new(number).unwrap();
    for number in 0..4 {
        opened.add(handle(number), certificate.clone());
    }
    for number in 4..100 {
        assert!(opened.get(handle(1)).is_some(), "it is asked for again and again");
        opened.add(handle(number), certificate.clone());
        assert!(opened.len() <= 4);
    }
    assert!(opened.get(handle(0)).is_none());
    opened.forget(&[handle(1)]);
    assert!(opened.get(handle(1)).is_none());
}

#[test]
fn a_name_with_a_dot_before_it_stands_for_each_label_there_that_has_nothing_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let ca = LocalCa::load_or_create(dir.path()).unwrap();
    let issue = |name: &str| Arc::new(ca.issue(&[name.to_owned()]).unwrap());
    let (wild, own) = (issue("*.shop.example"), issue("own.shop.example"));
    let resolver = CertResolver::new(Certificates::default());
    let put = |key: &Arc<CertifiedKey>| Some(Slot::Loaded(Arc::clone(key).into()));
    resolver.change([(".shop.example".to_owned(), put(&wild)), ("own.shop.example".to_owned(), put(&own))]);
    let is = |name: &str, key: &Arc<CertifiedKey>| resolver.find(name).is_some_and(|found| Arc::ptr_eq(&found, key));
    assert!(is("any.shop.example", &wild) && is("own.shop.example", &own));
    for other in ["shop.example", "a.b.shop.example", "ashop.example", "example"] {
        assert!(resolver.find(other).is_none(), "{other}");
    }
    resolver.change([("own.shop.example".to_owned(), None)]);
    assert!(is("own.shop.example", &wild));
    resolver.change([(".shop.example".to_owned(), None)]);
    assert!(resolver.find("any.shop.example").is_none());
}
