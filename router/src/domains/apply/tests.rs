use super::super::row::tests::{claim, held};
use super::super::table::DomainLookup;
use super::*;
use crate::follow::Applier as _;
use crate::names::Suffix;
use crate::store::{Embedded, EmbeddedStore, Entry};
use std::collections::HashMap;
use std::time::Duration;

const FIRST: Cursor = Cursor { epoch: 1, version: 10 };

fn table() -> Arc<DomainTable> {
    Arc::new(DomainTable::new(HashMap::new(), &[Suffix::parse("sprites.dev").unwrap()], &[]))
}

fn domain(text: &str) -> DomainName {
    DomainName::parse(text).unwrap()
}

fn entry(name: &str, value: Vec<u8>) -> Entry {
    Entry { key: format!("{DOMAIN_PREFIX}{name}"), value, version: 1 }
}

fn act(applier: &mut Applier, event: FeedEvent) -> bool {
    applier.handle(event, Instant::now()) != After::Nothing
}

fn snapshot(applier: &mut Applier, names: &[String], end: Cursor) -> bool {
    act(applier, FeedEvent::SnapshotBegin { epoch: end.epoch });
    for name in names {
        act(applier, FeedEvent::Entry(entry(name, held("t", "a").encode())));
    }
    act(applier, FeedEvent::SnapshotEnd(end))
}

fn served(table: &DomainTable, name: &str) -> bool {
    matches!(table.lookup(name), DomainLookup::Sprite(_))
}

#[test]
fn a_poisoned_row_is_counted_and_leaves_what_it_would_replace() {
    let table = table();
    let mut applier = Applier::new(Arc::clone(&table), None);
    snapshot(&mut applier, &["a.example".into()], FIRST);
    act(&mut applier, FeedEvent::Put(entry("a.example", b"{\"version\":1,\"x\":1}".to_vec()), FIRST));
    assert!(served(&table, "a.example"));
    // Nor can the store hand out a name of ours.
    act(&mut applier, FeedEvent::Put(entry("b.sprites.dev", held("t", "a").encode()), FIRST));
    assert!(!served(&table, "b.sprites.dev"));
    assert_eq!((table.followed().quarantined(), table.len()), (2, 1));
    act(&mut applier, FeedEvent::SnapshotBegin { epoch: 1 });
    act(&mut applier, FeedEvent::Entry(entry("a.example", b"{}".to_vec())));
    act(&mut applier, FeedEvent::SnapshotEnd(FIRST));
    assert!(served(&table, "a.example"), "a snapshot that has it poisoned does not sweep it");
}

#[test]
fn a_snapshot_sweeps_what_it_lacks_and_a_delete_removes() {
    let table = table();
    let mut applier = Applier::new(Arc::clone(&table), None);
    snapshot(&mut applier, &["a.example".into(), "b.example".into()], FIRST);
    assert!(snapshot(&mut applier, &["b.example".into()], FIRST));
    assert!(!served(&table, "a.example") && served(&table, "b.example"));
    assert!(act(&mut applier, FeedEvent::Delete("domain/b.example".into(), FIRST)));
    assert_eq!(table.lookup("b.example"), DomainLookup::Unknown);
}

#[test]
fn a_store_that_lost_its_rows_takes_no_domain_away_and_many_do_not_vanish_at_once() {
    let table = table();
    let mut applier = Applier::new(Arc::clone(&table), Some(FIRST));
    let all: Vec<_> = (0..100).map(|number| format!("d{number}.example")).collect();
    snapshot(&mut applier, &all, FIRST);
    assert!(!snapshot(&mut applier, &[], Cursor { epoch: 2, version: 0 }));
    assert_eq!(table.len(), 100);
    snapshot(&mut applier, &all[..70], FIRST);
    assert_eq!((table.len(), table.followed().held_removals()), (100, 30));
    assert_eq!(applier.accept_removals(), After::Changed);
    assert_eq!((table.len(), table.followed().held_removals()), (70, 0));
    // Claims are no loss.
    let mut row = DomainRow::empty();
    assert!(row.claim(claim("t", "a")));
    for name in &all {
        act(&mut applier, FeedEvent::Put(entry(name, row.encode()), FIRST));
    }
    snapshot(&mut applier, &[], FIRST);
    assert_eq!((table.len(), table.followed().held_removals()), (0, 0));
}

#[tokio::test]
async fn the_table_follows_the_store_and_the_next_start_serves_before_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let (good, name) = (dir.path().join("domains.last-known-good"), domain("a.example"));
    let store: Store = Arc::new(Embedded(Arc::new(EmbeddedStore::open(&dir.path().join("s")).unwrap())));
    let table = table();
    let following = tokio::spawn(follow(Arc::clone(&store), Arc::clone(&table), good.clone()));
    publish(&*store, &name, &held("t", "a"), None).await.unwrap();
    let until = async |wanted: &dyn Fn() -> bool| {
        let found = async {
            while !wanted() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), found).await.expect("the applier stands still");
    };
    until(&|| served(&table, "a.example")).await;
    let loaded = || {
        let table = self::table();
        load_last_known_good(&table, &good).ok();
        table
    };
    until(&|| served(&loaded(), "a.example")).await;
    assert_eq!(loaded().lookup("b.example"), DomainLookup::NotReady);
    // Who comes second with what he read before is told so.
    let second = publish(&*store, &name, &held("u", "b"), None).await;
    assert!(matches!(second, Err(StoreError::Conflict { .. })));
    let version = store.get(&DomainRow::key(&name)).await.unwrap().unwrap().version;
    publish(&*store, &name, &DomainRow::empty(), Some(version)).await.unwrap();
    until(&|| table.lookup("a.example") == DomainLookup::Unknown).await;
    assert_eq!(store.get(&DomainRow::key(&name)).await.unwrap(), None);
    following.abort();
}
