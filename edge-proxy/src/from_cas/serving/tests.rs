use super::super::rows::StoreRows;
use super::super::table::CertificateRow;
use super::*;
use acme::certificate::{CertRow, cert_key, sealed_as};
use acme::resolver::{Certificates, Found, Policy};
use acme::rows::Rows;
use acme::seal::{Kek, Sealer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair};
use router::domains::DomainName;
use router::store::{Embedded, EmbeddedStore, Store};
use std::path::Path;

/// One machine on a store of its own.
struct Machine {
    dir: tempfile::TempDir,
    rows: Arc<StoreRows>,
    store: Store,
    sealed: Arc<SealedCertificates>,
    serving: Arc<DomainCertificates>,
    distrusted: Arc<Distrusted>,
    sealer: Arc<Sealer>,
    changed: tokio::sync::watch::Receiver<u64>,
}

fn kek(dir: &Path) -> Kek {
    Kek::from_file_or_new(&dir.join("kek")).unwrap()
}

impl Machine {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store: Store = Arc::new(Embedded(Arc::new(EmbeddedStore::open(&dir.path().join("store")).unwrap())));
        let rows = Arc::new(StoreRows(Arc::clone(&store)));
        let table = Arc::new(CertificateTable::open(&dir.path().join("certificates")).unwrap());
        tokio::spawn(Arc::clone(&table).follow(Arc::clone(&store)));
        let sealed = SealedCertificates::new(table);
        let sealer = sealed.unlock(kek(dir.path()), &rows).await.unwrap();
        let store_of = Some(Arc::clone(&sealed) as _);
        let serving = DomainCertificates::with(Certificates::default(), None, Policy::default(), store_of);
        let again = Arc::new(tokio::sync::Notify::new());
        let distrusted = Distrusted::follow(&store, dir.path().join("distrust")).unwrap();
        let serves = Serving::new(Arc::clone(&sealed), Arc::clone(&serving), Arc::default(), Arc::clone(&distrusted));
        tokio::spawn(serves.follow(Arc::clone(&again)));
        let known = move || again.notify_one();
        tokio::spawn(Arc::clone(&sealed).keep(Arc::clone(&sealer), Arc::clone(&rows), known));
        let changed = sealed.table().changes();
        Self { dir, rows, store, sealed, serving, distrusted, sealer, changed }
    }

    /// A certificate for `name` as `sealer` seals it; its serial number, to know it by.
    async fn issue(&self, wish: &str, name: &str, generation: u64, sealer: &Sealer) -> Vec<u8> {
        self.issue_by("first", wish, name, generation, sealer).await
    }

    async fn issue_by(&self, ca: &str, wish: &str, name: &str, generation: u64, sealer: &Sealer) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        let sealed_key = sealer.seal(&sealed_as(wish), generation, &key.serialize_der()).unwrap();
        let row = CertRow {
            names: vec![name.into()],
            ca: ca.into(),
            generation,
            chain: leaf.pem(),
            sealed_key: STANDARD.encode(sealed_key),
            not_before: 0,
            not_after: 4_000_000_000 + generation,
            issued_at: 0,
            ari: None,
            window: None,
            compromised: false,
            renew_asked: None,
            revocation: None,
        };
        self.rows.compare_and_set(&cert_key(wish, generation), None, Some(&row.encode())).await.unwrap();
        leaf.der().to_vec()
    }

    /// What the name is answered with, once that is this.
    async fn until(&self, name: &str, wanted: &[u8]) {
        let look = async {
            loop {
                let found = match self.serving.resolver().look(Some(name)) {
                    Found::Sealed(handle) => Some(self.serving.resolver().open(handle).await.unwrap()),
                    Found::Ready(certificate) => Some(certificate),
                    Found::Expired(_) | Found::Unknown => None,
                };
                if found.is_some_and(|found| found.key.cert[0].as_ref() == wanted) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), look).await.expect("served");
    }

    /// Waits until the table has this row.
    async fn heard(&mut self, wish: &str, generation: u64) {
        let heard = async {
            while self.sealed.table().newest_summary(wish).is_none_or(|(newest, _)| newest < generation) {
                self.changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), heard).await.expect("heard");
    }
}

#[tokio::test]
async fn a_domains_certificate_lies_sealed_until_somebody_asks_and_a_wildcard_is_open() {
    let machine = Machine::new().await;
    let (domain, wild) = ("shop.example", "wild.first.sprites.test");
    let wildcard = machine.issue(wild, "*.sprites.test", 1, &machine.sealer).await;
    let own = machine.issue("domain.shop.example", domain, 1, &machine.sealer).await;
    let name = DomainName::parse(domain).unwrap();
    let there = async {
        while !machine.serving.covers(&name) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), there).await.expect("there");
    let resolver = machine.serving.resolver();
    assert!(matches!(resolver.look(Some(domain)), Found::Sealed(_)) && resolver.opened() == 0);
    machine.until(domain, &own).await;
    assert!(matches!(resolver.look(Some(domain)), Found::Ready(_)) && resolver.opened() == 1);
    machine.until("any.sprites.test", &wildcard).await;
    assert_eq!(resolver.opened(), 1);
    // The next one takes its place, and what was open is let go.
    let next = machine.issue("domain.shop.example", domain, 2, &machine.sealer).await;
    machine.until(domain, &next).await;
    assert_eq!(resolver.opened(), 1);
    for generation in 1..3 {
        let key = cert_key("domain.shop.example", generation);
        let version = machine.rows.get(&key).await.unwrap().map(|row| row.version);
        machine.store.compare_and_set(&key, version, None).await.unwrap();
    }
    let gone = async {
        while machine.serving.covers(&name) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("gone");
}

#[tokio::test]
async fn a_certificate_that_does_not_open_never_takes_an_older_ones_place() {
    let mut machine = Machine::new().await;
    let stranger = tempfile::tempdir().unwrap();
    let elsewhere: Store = Arc::new(Embedded(Arc::new(EmbeddedStore::open(&stranger.path().join("s")).unwrap())));
    let strange = Sealer::load(&Arc::new(kek(stranger.path())), &StoreRows(elsewhere)).await.unwrap();
    for (wish, name) in [("domain.shop.example", "shop.example"), ("wild.first.sprites.test", "any.sprites.test")] {
        let first = machine.issue(wish, name, 1, &machine.sealer).await;
        machine.until(name, &first).await;
        machine.issue(wish, name, 2, &strange).await;
        machine.heard(wish, 2).await;
        let third = "domain.other.example";
        // A round later: it was looked at.
        let other = machine.issue(third, "other.example", u64::from(wish.starts_with('w')) + 1, &machine.sealer).await;
        machine.until("other.example", &other).await;
        machine.until(name, &first).await;
        let last = machine.issue(wish, name, 3, &machine.sealer).await;
        machine.until(name, &last).await;
    }
    assert!(machine.dir.path().join("certificates").exists());
}

#[test]
fn the_best_is_the_newest_of_the_ca_that_lasts_longest_and_one_with_a_stolen_key_is_the_last_resort() {
    const NOW: u64 = 1_800_000_000;
    let table = CertificateTable::new();
    let wishes: Vec<Box<str>> = ["a", "b"].map(|ca| format!("wild.{ca}.sprites.test").into()).into();
    let put = |ca: &str, generation, not_after, compromised| {
        let row = CertRow {
            names: vec!["*.sprites.test".into()],
            ca: ca.into(),
            generation,
            chain: format!("{ca} {generation}"),
            sealed_key: String::new(),
            not_before: NOW - 1000,
            not_after,
            issued_at: NOW - 1000,
            ari: None,
            window: None,
            compromised,
            renew_asked: None,
            revocation: None,
        };
        table.apply_put(CertificateRow { wish: format!("wild.{ca}.sprites.test"), row: Arc::new(row) });
        let ranked = ranked(&table, &wishes, &[], NOW);
        let all: Vec<_> = ranked.iter().map(|one| format!("{}{}", &one.wish[5..6], one.generation)).collect();
        all.join(" ")
    };
    assert_eq!(put("a", 1, NOW + 100, false), "a1");
    assert_eq!(put("a", 2, NOW + 90, false), "a2 a1");
    assert_eq!(put("a", 1, NOW + 100, true), "a2 a1");
    // Nothing else is there, so it is served on.
    assert_eq!(put("a", 2, NOW + 90, true), "a2 a1");
    assert_eq!(put("b", 7, NOW + 10, false), "b7 a2 a1");
    assert_eq!(put("a", 3, NOW + 80, false), "a3 b7 a2 a1");
    assert_eq!(put("b", 8, NOW + 200, false), "b8 a3 b7 a2 a1");
    assert_eq!(put("b", 8, NOW - 1, false), "a3 b7 b8 a2 a1");
}

#[tokio::test]
async fn a_ca_that_is_trusted_no_more_gives_way_at_once_and_is_the_last_resort() {
    let machine = Machine::new().await;
    let sealer = &machine.sealer;
    let first = machine.issue_by("first", "wild.first.sprites.test", "*.sprites.test", 2, sealer).await;
    let second = machine.issue_by("second", "wild.second.sprites.test", "*.sprites.test", 1, sealer).await;
    // It lasts longest.
    machine.until("any.sprites.test", &first).await;
    let shop = "domain.shop.example";
    let before = machine.issue_by("second", shop, "shop.example", 1, sealer).await;
    let after = machine.issue_by("first", shop, "shop.example", 2, sealer).await;
    let only = machine.issue_by("first", "domain.only.example", "only.example", 1, sealer).await;
    machine.until("shop.example", &after).await;
    Distrusted::set(&machine.rows, "first").await;
    machine.until("any.sprites.test", &second).await;
    machine.until("shop.example", &before).await;
    machine.until("only.example", &only).await;
    assert!(machine.distrusted.is("first") && !machine.distrusted.is("second"));
    let version = machine.rows.get("distrust/first").await.unwrap().map(|row| row.version);
    machine.rows.compare_and_set("distrust/first", version, None).await.unwrap();
    machine.until("any.sprites.test", &first).await;
    machine.until("shop.example", &after).await;
}
