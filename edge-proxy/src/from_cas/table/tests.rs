use super::*;
use router::store::{Embedded, EmbeddedStore};
use std::os::unix::fs::PermissionsExt;

fn row(wish: &str, generation: u64, chain: &str) -> Entry {
    let row = CertRow {
        names: vec![format!("{wish}.test")],
        ca: "first".into(),
        generation,
        chain: chain.into(),
        sealed_key: "sealed".into(),
        not_before: 1_800_000_000,
        not_after: 1_807_776_000,
        issued_at: 1_800_000_000,
        ari: None,
        window: None,
        compromised: false,
        renew_asked: None,
        revocation: None,
    };
    Entry { key: cert_key(wish, generation), value: row.encode(), version: 1 }
}

fn at(version: u64) -> Cursor {
    Cursor { epoch: 1, version }
}

fn snapshot(entries: Vec<Entry>, version: u64) -> Vec<FeedEvent> {
    let begin = FeedEvent::SnapshotBegin { epoch: 1 };
    let entries = entries.into_iter().map(FeedEvent::Entry);
    [begin].into_iter().chain(entries).chain([FeedEvent::SnapshotEnd(at(version))]).collect()
}

fn wishes(table: &CertificateTable) -> Vec<(String, u64)> {
    table.all().iter().map(|found| (found.wish.clone(), found.row.generation)).collect()
}

#[test]
fn what_was_heard_is_there_after_a_start_with_the_place_to_go_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("certificates");
    {
        let table = CertificateTable::open(&path).unwrap();
        assert!(table.newest("domain.a").is_none() && !table.is_whole());
        let changed = table.changed_wishes();
        assert_eq!(changed.take(), None, "whoever looks first looks at all");
        table.apply(snapshot(vec![row("domain.a", 1, "one"), row("domain.b", 1, "two")], 7), &mut Snapshot::default());
        assert!(changed.take().unwrap().iter().map(|wish| &**wish).eq(["domain.a", "domain.b"]));
        assert!(table.is_whole());
        let (generation, summary) = table.newest_summary("domain.b").unwrap();
        table.checked("domain.b", generation, summary.number);
        table.apply(vec![FeedEvent::Put(row("domain.a", 2, "three"), at(8))], &mut Snapshot::default());
        assert!(CertificateTable::open(&path).is_err(), "one process alone");
    }
    let table = CertificateTable::open(&path).unwrap();
    assert_eq!(table.disk.cursor().unwrap(), Some(at(8)));
    assert_eq!(wishes(&table), [("domain.a".into(), 1), ("domain.a".into(), 2), ("domain.b".into(), 1)]);
    assert_eq!(table.newest("domain.a").unwrap().chain, "three");
    assert_eq!(table.generations("domain.a").iter().map(|(_, one)| one.checked).collect::<Vec<_>>(), [false, false]);
    assert!(table.newest_summary("domain.b").unwrap().1.checked);
    assert!(!table.is_whole(), "the store may have more by now");
    table.apply(vec![FeedEvent::Current(at(8))], &mut Snapshot::default());
    assert!(table.is_whole());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_chain_keeps_its_number_and_another_one_has_another() {
    let dir = tempfile::tempdir().unwrap();
    let table = CertificateTable::open(&dir.path().join("c")).unwrap();
    let say = |entry: Entry| table.apply(vec![FeedEvent::Put(entry, at(2))], &mut Snapshot::default());
    say(row("x", 1, "one"));
    let (_, first) = table.newest_summary("x").unwrap();
    table.checked("x", 1, first.number);
    let changed = table.changed_wishes();
    let _ = changed.take();
    say(row("x", 1, "one"));
    assert_eq!(changed.take(), Some(BTreeSet::new()), "nothing has changed");
    // Its CA names another window: the same chain, another time.
    let mut later: CertRow = serde_json::from_slice(&row("x", 1, "one").value).unwrap();
    (later.ari, later.window) = (Some("id".into()), Some(acme::ca::Window { start: 5, end: 6, ask_again: 9 }));
    say(Entry { value: later.encode(), ..row("x", 1, "one") });
    let (_, moved) = table.newest_summary("x").unwrap();
    assert_eq!((moved.number, moved.checked, moved.due, moved.ask), (first.number, true, 5, 9));
    assert_eq!(changed.take().unwrap().len(), 1);
    // Somebody writes another chain over it.
    say(row("x", 1, "two"));
    let (_, other) = table.newest_summary("x").unwrap();
    assert!(other.number != first.number && !other.checked, "{other:?}");
    assert!(table.row(first.number).is_none(), "what it was is gone");
    table.checked("x", 1, first.number);
    assert!(!table.newest_summary("x").unwrap().1.checked, "that was said of the other chain");
}

#[test]
fn what_a_whole_snapshot_has_not_is_gone_unless_it_has_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let table = CertificateTable::open(&dir.path().join("c")).unwrap();
    let whole = |entries, version| table.apply(snapshot(entries, version), &mut Snapshot::default());
    whole(vec![row("a", 1, "one"), row("b", 1, "one"), row("c", 1, "one")], 3);
    // In parts, as big ones come.
    let mut parts = Snapshot::default();
    for event in snapshot(vec![row("a", 1, "one"), row("c", 1, "one")], 4) {
        table.apply(vec![event], &mut parts);
    }
    assert_eq!(wishes(&table), [("a".into(), 1), ("c".into(), 1)]);
    // One that is wrong is no proof that it is gone.
    let wrong = Entry { value: b"{}".to_vec(), ..row("a", 1, "one") };
    whole(vec![wrong, row("c", 1, "one")], 5);
    assert_eq!(wishes(&table).len(), 2);
    whole(vec![], 6);
    assert_eq!(wishes(&table).len(), 2, "the store has lost them");
    table.apply(vec![FeedEvent::Delete(cert_key("a", 1), at(7))], &mut Snapshot::default());
    assert_eq!(wishes(&table), [("c".into(), 1)]);
    assert_eq!(table.wishes("c"), BTreeSet::from(["c".into()]));
    assert!(table.wishes("d").is_empty());
}

#[tokio::test]
async fn it_follows_a_store_and_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store: Store = Arc::new(Embedded(Arc::new(EmbeddedStore::open(&dir.path().join("store")).unwrap())));
    let path = dir.path().join("certificates");
    let put = async |entry: &Entry| store.compare_and_set(&entry.key, None, Some(&entry.value)).await.unwrap();
    put(&row("a", 1, "one")).await;
    for generation in 2..4 {
        let table = Arc::new(CertificateTable::open(&path).unwrap());
        let mut changes = table.changes();
        let following = tokio::spawn(Arc::clone(&table).follow(Arc::clone(&store)));
        put(&row("a", generation, "next")).await;
        let heard = async {
            while table.generations("a").len() as u64 != generation {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), heard).await.expect("heard");
        following.abort();
        let _ = following.await;
        // What writes to the disk ends by itself, and only then may another one open the file.
        let ended = async {
            while Arc::strong_count(&table) > 1 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), ended).await.expect("ended");
    }
}

#[test]
fn a_page_of_wishes_goes_on_behind_the_last_one_and_each_is_shown_once() {
    let table = CertificateTable::new();
    let put = |wish: &str, generation| {
        table.apply(vec![FeedEvent::Put(row(wish, generation, "c"), at(2))], &mut Snapshot::default())
    };
    for wish in ["domain.a", "domain.ab", "domain.b", "wild.c"] {
        put(wish, 1);
        put(wish, 2);
    }
    let after = |last: Option<&str>, most| {
        table.wishes_after("domain.", last, most).iter().map(|wish| wish.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(after(None, 2), ["domain.a", "domain.ab"]);
    assert_eq!(after(Some("domain.ab"), 2), ["domain.b"]);
    assert!(after(Some("domain.b"), 2).is_empty() && after(None, 0).is_empty());
    assert_eq!(after(Some("domain.aa"), 9), ["domain.ab", "domain.b"], "that one is gone meanwhile");
}

#[test]
fn what_is_waited_for_is_found_among_what_has_changed_and_what_was_waited_for() {
    let table = CertificateTable::new();
    let put = |wish: &str, ca: &str| {
        let found: CertRow = serde_json::from_slice(&row(wish, 1, "c").value).unwrap();
        let value = CertRow { ca: ca.into(), ..found }.encode();
        table.apply(vec![FeedEvent::Put(Entry { value, ..row(wish, 1, "c") }, at(2))], &mut Snapshot::default());
    };
    let first = ca_number("first");
    let waited =
        || table.waited_for(|one| one.ca == first).into_iter().map(|(wish, ..)| wish.to_string()).collect::<Vec<_>>();
    put("a", "first");
    put("b", "second");
    assert_eq!(waited(), ["a"]);
    put("c", "first");
    put("d", "second");
    assert_eq!(waited(), ["a", "c"]);
    put("a", "second");
    assert_eq!((waited(), waited()), (vec!["c".into()], vec!["c".into()]));
    put("a", "first");
    table.apply(vec![FeedEvent::Delete(cert_key("c", 1), at(3))], &mut Snapshot::default());
    assert_eq!(waited(), ["a"]);
    assert_eq!(table.waited.lock().unwrap().as_ref().map(BTreeSet::len), Some(1));
}
