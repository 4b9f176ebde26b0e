//! Another key encryption key, and another data key, while two PoPs go on serving.

use crate::certificate_compromise::sections;
use crate::certificates::{ISSUED, leaf, trusted};
use acme::certificate::{CertRow, cert_key};
use acme::seal::Kek;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harness::fleet::{self, Machine};
use harness::nats::Nats;
use harness::pebble::{Moods, Pebble};
use harness::{Demo, DnsServer, cluster, until};
use router::store::Store;
use router::store::nats::NatsStore;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;

/// The id of a row's data key is behind its first byte.
fn data_key(row: &CertRow) -> String {
    let sealed = STANDARD.decode(&row.sealed_key).unwrap();
    sealed[1..9].iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Fleet {
    machines: Vec<Machine>,
    pops: Vec<Demo>,
    files: Vec<PathBuf>,
}

impl Fleet {
    /// Ends each PoP, one after the other, and starts it with these keys.
    async fn with(&mut self, lines: [&str; 2]) {
        for (number, lines) in lines.iter().enumerate() {
            std::fs::write(&self.files[number], lines).unwrap();
            self.pops.remove(number).stop().await;
            self.pops.insert(number, self.machines[number].start().await);
        }
    }

    /// What the first one says, as soon as it has heard of the other.
    async fn shown(&self, knows: [&[&String]; 2]) -> Value {
        until("both to say which keys they know", ISSUED, async || {
            let shown = self.pops[0].try_admin(&["cert", "kek", "show"]).await;
            let shown: Value = serde_json::from_slice(&shown.stdout).ok()?;
            let is = |number: usize| shown["pops"][format!("pop-{number}")] == serde_json::json!(knows[number]);
            (is(0) && is(1)).then_some(shown)
        })
        .await
    }
}

#[tokio::test]
async fn the_key_encryption_key_is_changed_while_everything_is_served() {
    let Some(nats) = Nats::start().await else { return };
    let addresses: Vec<_> = (0..2).map(|_| cluster::addresses(1)[0]).collect();
    let resolver = DnsServer::start().await;
    resolver.delegate(fleet::SUFFIX, addresses[0]);
    let Some(pebble) = Pebble::start(resolver.address, 1, 1, Moods::default()).await else { return };
    let folder = tempfile::tempdir().unwrap();
    let made = |name: &str| {
        let path = folder.path().join(name);
        let id = Kek::from_file_or_new(&path).unwrap().ids().remove(0);
        (std::fs::read_to_string(path).unwrap(), id)
    };
    let ((old, old_id), (new, new_id)) = (made("old"), made("new"));
    let (old_then_new, new_then_old) = (format!("{old}{new}"), format!("{new}{old}"));
    let mut all = Fleet { machines: Vec::new(), pops: Vec::new(), files: Vec::new() };
    for (number, dns) in addresses.iter().enumerate() {
        let file = folder.path().join(format!("kek-{number}"));
        std::fs::write(&file, &old).unwrap();
        let sections = sections(&pebble, &resolver, *dns, &file, &nats);
        let machine = Machine::enrolled_pop(&format!("pop-{number}"), &sections).await;
        all.pops.push(machine.start().await);
        all.machines.push(machine);
        all.files.push(file);
    }
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pebble.root().await.as_bytes()).unwrap()).unwrap();
    let name = format!("any.{}", fleet::SUFFIX);
    let first = trusted(&all.pops[0], &roots, &name).await;
    assert_eq!(trusted(&all.pops[1], &roots, &name).await, first);

    // One of them does not know it yet.
    all.with([&new_then_old, &old]).await;
    all.shown([&[&new_id, &old_id], &[&old_id]]).await;
    let refused = all.pops[0].try_admin(&["cert", "kek", "rewrap"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("pop-1") && said.contains(&new_id), "{said}");
    all.with([&new_then_old, &old_then_new]).await;
    let shown = all.shown([&[&new_id, &old_id], &[&old_id, &new_id]]).await;
    assert_eq!(shown["data_keys"][0]["wrapped_under"], old_id.as_str(), "{shown}");

    let said = all.pops[0].admin(&["cert", "kek", "rewrap", "--new-data-key"]).await;
    assert_eq!(said, serde_json::json!({ "kek": new_id, "rewrapped": 1, "data_keys": 2 }));
    // Nobody starts the other one again for it.
    until("the other one to use the new data key", ISSUED, async || {
        let shown = all.pops[1].admin(&["cert", "kek", "show"]).await;
        let keys = shown["data_keys"].as_array().unwrap().clone();
        keys.iter().any(|key| key["in_use"] == true && key["id"] != "0000000000000001").then_some(())
    })
    .await;
    all.with([&new, &new]).await;
    let shown = all.shown([&[&new_id], &[&new_id]]).await;
    let keys = shown["data_keys"].as_array().unwrap();
    assert!(keys.len() == 2 && keys.iter().all(|key| key["wrapped_under"] == new_id.as_str()), "{shown}");
    let in_use = keys.iter().find(|key| key["in_use"] == true).unwrap()["id"].as_str().unwrap();
    for pop in &all.pops {
        assert_eq!(trusted(pop, &roots, &name).await, first, "what was sealed before opens");
    }

    // And what comes next is sealed under the key that nobody has seen wrapped under the old one.
    all.pops[1].admin(&["cert", "renew", &name, "--wait"]).await;
    let next = leaf(&all.pops[0], &roots, &name).await.unwrap();
    assert_ne!(next, first);
    assert_eq!(leaf(&all.pops[1], &roots, &name).await.unwrap(), next);
    let store: Store = Arc::new(NatsStore::connect(&nats.settings()).await.unwrap());
    let row = async |generation| -> CertRow {
        let key = cert_key(&format!("wild.first.{}", fleet::SUFFIX), generation);
        serde_json::from_slice(&store.get(&key).await.unwrap().unwrap().value).unwrap()
    };
    assert_eq!((data_key(&row(1).await).as_str(), data_key(&row(2).await).as_str()), ("0000000000000001", in_use));
    for pop in all.pops {
        pop.stop().await;
    }
}
