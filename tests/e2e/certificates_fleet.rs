//! Certificates of a fleet: one order for all PoPs, and another PoP that finishes it when the first one dies.

use crate::certificates::{DOMAIN, ISSUED, leaf, trusted};
use acme::certificate::CERT_PREFIX;
use acme::lease::{LEASE_PREFIX, LeaseRow, shard};
use acme::order::{ORDER_PREFIX, OrderRow, Step};
use harness::fleet::{Machine, SUFFIX};
use harness::nats::Nats;
use harness::pebble::{Moods, Pebble};
use harness::service::Service;
use harness::{Demo, DnsServer, cluster, until};
use router::store::Store;
use router::store::nats::NatsStore;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::from_slice;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// From the death of the PoP that held the lease to the certificate (design: fail-over below 20 s; measured 13 to 15; what
/// is more is a busy machine's).
const FAIL_OVER: Duration = Duration::from_secs(40);
/// A KEK that is nobody's secret.
pub(crate) const KEK: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n";

async fn value(store: &Store, key: &str) -> Option<Vec<u8>> {
    Some(store.get(key).await.ok()??.value)
}

#[tokio::test]
async fn one_order_serves_all_pops_and_when_the_pop_that_works_on_one_dies_another_finishes_it() {
    let Some(nats) = Nats::start().await else { return };
    // Each PoP has an address of its own, and one port of all is where the CA comes to.
    let addresses: Vec<_> = (0..3).map(|_| cluster::addresses(1)[0]).collect();
    let port = addresses[0].port();
    let resolver = DnsServer::start().await;
    resolver.delegate(SUFFIX, addresses[0]);
    let Some(pebble) = Pebble::start(resolver.address, port, 1, Moods::default()).await else { return };
    let shared = tempfile::tempdir().unwrap();
    let kek = shared.path().join("kek");
    std::fs::write(&kek, KEK).unwrap();
    let (directory, ca_file) = (pebble.directory(), pebble.ca_file());

    let machine = Machine::enrolled_host("host-a", &nats.sections(), "").await;
    let host = machine.start().await;
    let service = Service::start().await;
    let driver = machine.data().join("driver.toml");
    std::fs::write(&driver, service.driver()).unwrap();
    let (mut machines, mut pops): (Vec<_>, Vec<Option<Demo>>) = Default::default();
    for (number, dns) in addresses.iter().enumerate() {
        let http = SocketAddr::from((dns.ip(), port));
        let sections = format!(
            "[listen]\nhttps = [\"127.0.0.1:0\"]\nhttp = [\"{http}\"]\n[tls]\nhandshake_timeout = \"5s\"\n\
             [dns]\nlisten = [\"{dns}\"]\naddresses = [\"127.0.0.1\"]\nname_servers = [{{ name = \"ns.example.net\" }}]\n\
             [domains]\nresolvers = [\"{}\"]\n\
             [acme]\ndirectory = {directory:?}\nca_file = {ca_file:?}\nkek_file = {kek:?}\n{}",
            resolver.address,
            nats.sections(),
        );
        // Where the first one's HTTP would be is its DNS.
        let sections =
            if number == 0 { sections.replace(&format!("http = [\"{http}\"]"), "http = []") } else { sections };
        let machine = Machine::enrolled_pop(&format!("pop-{number}"), &sections).await;
        pops.push(Some(machine.start().await));
        machines.push(machine);
    }
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pebble.root().await.as_bytes()).unwrap()).unwrap();

    // One certificate, the same at all of them.
    let name = format!("any.{SUFFIX}");
    let mut leaves = Vec::new();
    for pop in pops.iter().flatten() {
        leaves.push(trusted(pop, &roots, &name).await);
    }
    assert!(leaves.iter().all(|leaf| *leaf == leaves[0]));
    let store: Store = Arc::new(NatsStore::connect(&nats.settings()).await.unwrap());
    assert_eq!(store.scan(CERT_PREFIX).await.unwrap().len(), 1);

    // A custom domain is proved while the CA hangs.
    let made = host.admin(&["sprite", "create", "shop", "--public", "--driver", driver.to_str().unwrap()]).await;
    assert_eq!(made["name"], "shop");
    let first = pops[0].as_ref().unwrap();
    let added = until("the edge to know the sprite", ISSUED, async || {
        let output = first.try_admin(&["--json", "domain", "add", DOMAIN, "shop"]).await;
        output.status.success().then(|| from_slice::<serde_json::Value>(&output.stdout).unwrap())
    })
    .await;
    resolver.set_txt(added["txt_name"].as_str().unwrap(), added["txt_value"].as_str().unwrap());
    pebble.freeze();
    first.admin(&["domain", "check", DOMAIN]).await;
    let id = format!("domain.{DOMAIN}");
    until("the order to be on its way", ISSUED, async || {
        let order: OrderRow = from_slice(&value(&store, &format!("{ORDER_PREFIX}{id}")).await?).ok()?;
        (order.step == Step::Ordering).then_some(())
    })
    .await;
    let lease = value(&store, &format!("{LEASE_PREFIX}{}", shard(&id))).await.expect("somebody works on it");
    let lease: LeaseRow = from_slice(&lease).unwrap();
    let holder: usize = lease.holder["pop-".len()..].split('-').next().unwrap().parse().unwrap();

    // Whoever works on it dies; the CA comes back, and finds the name at a PoP that lives.
    pops[holder].take().unwrap().crash();
    let died = Instant::now();
    let lives = if holder == 2 { 1 } else { 2 };
    resolver.set_address(DOMAIN, addresses[lives].ip());
    pebble.thaw();
    let mut served = Vec::new();
    for pop in pops.iter().flatten() {
        let found = async || leaf(pop, &roots, DOMAIN).await.ok();
        served.push(until("the other PoPs to finish the order", FAIL_OVER, found).await);
    }
    eprintln!("fail-over {:?}", died.elapsed());
    assert!(served.len() == 2 && served[0] == served[1]);
    assert_eq!(store.scan(CERT_PREFIX).await.unwrap().len(), 2);
    // It goes after its certificate has come.
    let gone = async || store.scan(ORDER_PREFIX).await.unwrap().is_empty().then_some(());
    until("the order's row to go", FAIL_OVER, gone).await;
    for pop in pops.into_iter().flatten() {
        pop.stop().await;
    }
    host.stop().await;

    // A PoP that starts while the store is away serves what it had.
    drop(nats);
    let alone = machines[lives].start().await;
    assert_eq!(trusted(&alone, &roots, &name).await, leaves[0]);
    assert_eq!(trusted(&alone, &roots, DOMAIN).await, served[0]);
    alone.stop().await;
}
