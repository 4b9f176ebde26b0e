//! Another key for the account at a CA: nothing is lost wherever it is cut short, and names are proved with the new one.

use crate::certificates::{DOMAIN, SUFFIX, Site, leaf, trusted};
use acme::account::{self, Ca, account_key};
use acme::ca::client::Http;
use acme::ca::{Authority, NewOrder};
use acme::rows::{Answer, Row, Rows, RowsError};
use acme::seal::{Kek, Sealer};
use harness::DnsServer;
use harness::pebble::{Moods, Pebble};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// A store in memory.
#[derive(Default)]
struct Table(Mutex<(u64, BTreeMap<String, Row>)>);

impl Table {
    fn set(&self, key: &str, value: Option<&[u8]>) -> u64 {
        let mut table = self.0.lock().unwrap();
        table.0 += 1;
        let version = table.0;
        match value {
            Some(value) => {
                table.1.insert(key.into(), Row { key: key.into(), value: value.to_vec(), version });
            }
            None => drop(table.1.remove(key)),
        }
        version
    }

    fn row(&self, key: &str) -> Option<Row> {
        self.0.lock().unwrap().1.get(key).cloned()
    }
}

impl Rows for Table {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Row>> {
        Box::pin(async move { Ok(self.row(key)) })
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Row>> {
        let rows = self.0.lock().unwrap().1.values().filter(|row| row.key.starts_with(prefix)).cloned().collect();
        Box::pin(async move { Ok(rows) })
    }

    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64> {
        Box::pin(async move {
            match self.row(key).map(|row| row.version) == expected {
                true => Ok(self.set(key, value)),
                false => Err(RowsError::Conflict),
            }
        })
    }
}

#[tokio::test]
async fn a_change_of_the_accounts_key_loses_no_account_wherever_it_is_cut_short() {
    let resolver = DnsServer::start().await;
    let moods = Moods { refuses_nonces: 5, ..Moods::default() };
    let Some(pebble) = Pebble::start(resolver.address, 1, 1, moods).await else { return };
    let (rows, folder) = (Table::default(), tempfile::tempdir().unwrap());
    let kek = Arc::new(Kek::from_file_or_new(&folder.path().join("kek")).unwrap());
    let sealer = Sealer::load(&kek, &rows).await.unwrap();
    let http = Http::new(router::trust::trusting(&pebble.ca_file()).unwrap());
    let ca = Ca { name: "first".into(), directory: pebble.directory(), contact: Vec::new(), external: None, http };
    let key = account_key("first");
    assert!(account::finish_roll_over(&ca, &rows, &sealer).await.is_err(), "there is no account yet");
    let first = account::open(&ca, &rows, &sealer).await.unwrap();
    let mut known = first.thumbprint().to_owned();
    let works = async |thumbprint: &str| {
        let client = account::open(&ca, &rows, &sealer).await.unwrap();
        assert_eq!(client.thumbprint(), thumbprint);
        let names = ["a.example".to_owned()];
        client.order(NewOrder { names: &names, profile: "", replaces: None }).await.unwrap();
    };

    // Cut short after the next key was written: the present one is good until another process goes on.
    account::begin_roll_over(&ca, &rows, &sealer).await.unwrap();
    works(&known).await;
    let begun = rows.row(&key).unwrap();
    account::begin_roll_over(&ca, &rows, &sealer).await.unwrap();
    assert_eq!(rows.row(&key).unwrap(), begun, "one that was begun is gone on with");
    let row = account::finish_roll_over(&ca, &rows, &sealer).await.unwrap();
    assert_eq!((row.generation, row.next.is_none()), (2, true));
    assert_ne!(row.thumbprint, known);
    known = row.thumbprint;
    works(&known).await;

    // After the CA has taken the key, and before that was written.
    rows.set(&key, Some(&begun.value));
    let again = account::finish_roll_over(&ca, &rows, &sealer).await.unwrap();
    assert_eq!((again.generation, &again.thumbprint), (2, &known), "the same key, and the CA is not told another");
    works(&known).await;

    // Two PoPs at once.
    account::begin_roll_over(&ca, &rows, &sealer).await.unwrap();
    let finish = || account::finish_roll_over(&ca, &rows, &sealer);
    let (one, other) = tokio::join!(finish(), finish());
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!((one.generation, &one), (3, &other));
    works(&one.thumbprint).await;
    // One account in all.
    let log = pebble.log();
    assert!(log.contains("now 1 accounts") && !log.contains("now 2 accounts"), "{log}");
}

#[tokio::test]
async fn names_are_proved_with_the_new_key_at_once() {
    let Some(site) = Site::start(Moods::default()).await else { return };
    let (roots, edge) = (site.roots().await, &site.edge);
    let before = trusted(edge, &roots, SUFFIX).await;
    let changed = edge.admin(&["cert", "account", "roll-over"]).await;
    assert_eq!((&changed["ca"], &changed["generation"]), (&"first".into(), &2.into()));
    let no = edge.try_admin(&["cert", "account", "roll-over", "--ca", "nobody"]).await;
    assert!(String::from_utf8_lossy(&no.stderr).contains("no CA is called"), "{no:?}");

    edge.create_guest("shop").await;
    let added = edge.admin(&["domain", "add", DOMAIN, "shop"]).await;
    site.dns.set_txt(added["txt_name"].as_str().unwrap(), added["txt_value"].as_str().unwrap());
    edge.admin(&["domain", "check", DOMAIN]).await;
    trusted(edge, &roots, DOMAIN).await;
    edge.admin(&["cert", "renew", SUFFIX, "--wait"]).await;
    assert_ne!(leaf(edge, &roots, SUFFIX).await.unwrap(), before);
    let said = site.edge.log();
    assert!(!said.contains("key_pkcs8"), "{said}");
    site.edge.stop().await;
}
