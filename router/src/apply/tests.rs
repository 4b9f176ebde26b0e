use super::*;
use crate::access::Access;
use crate::follow::Applier as _;
use crate::route::{Generation, HostId};
use crate::rows::ROW_VERSION;
use crate::store::{Embedded, EmbeddedStore, Entry};

const FIRST: Cursor = Cursor { epoch: 1, version: 10 };

fn row(generation: u64) -> SpriteRow {
    SpriteRow {
        version: ROW_VERSION,
        tenant: "t".into(),
        generation: Generation(generation),
        host: HostId(1),
        ports: vec![8080],
        access: Access::Public,
        wake: crate::wake::WakeRules::default(),
        client_certificate: None,
        deleted: false,
        proof: crate::placement::Proof::default(),
    }
}

fn name(text: &str) -> SpriteName {
    SpriteName::parse(text).unwrap()
}

fn entry(text: &str, value: Vec<u8>) -> Entry {
    Entry { key: format!("{SPRITE_PREFIX}{text}"), value, version: 1 }
}

fn act(applier: &mut Applier, event: FeedEvent) -> After {
    applier.handle(event, Instant::now())
}

fn snapshot(applier: &mut Applier, rows: &[(&str, u64)], end: Cursor) -> After {
    act(applier, FeedEvent::SnapshotBegin { epoch: end.epoch });
    for (text, generation) in rows {
        act(applier, FeedEvent::Entry(entry(text, row(*generation).encode())));
    }
    act(applier, FeedEvent::SnapshotEnd(end))
}

/// An applier whose table came from a file that was written at `saved`.
fn restarted(routes: &[(&str, u64)], saved: Cursor) -> (Arc<RouteTable>, Applier) {
    let table = Arc::new(RouteTable::new());
    for (text, generation) in routes {
        table.apply_put(&name(text), row(*generation).route());
    }
    (Arc::clone(&table), Applier::new(table, Some(saved)))
}

fn generation(table: &RouteTable, text: &str) -> Option<u64> {
    match table.lookup(text) {
        Lookup::Found(route) => Some(route.generation.0),
        Lookup::Unknown => None,
        Lookup::NotReady => panic!("not ready"),
    }
}

#[test]
fn a_poisoned_row_is_counted_and_leaves_the_route_it_would_replace() {
    let (table, mut applier) = restarted(&[], FIRST);
    assert_eq!(snapshot(&mut applier, &[("a", 2)], FIRST), After::Synced);
    let jump = row(2 + GENERATION_JUMP_MAX + 1).encode();
    for (count, poison) in [b"{\"version\":1}".to_vec(), jump].into_iter().enumerate() {
        act(&mut applier, FeedEvent::Put(entry("a", poison.clone()), FIRST));
        assert_eq!(table.lookup("a"), Lookup::Found(row(2).route()));
        assert_eq!(table.followed().quarantined(), count as u64 * 2 + 1);
        // Nor does a snapshot that has it take the sprite away.
        act(&mut applier, FeedEvent::SnapshotBegin { epoch: 1 });
        act(&mut applier, FeedEvent::Entry(entry("a", poison)));
        act(&mut applier, FeedEvent::SnapshotEnd(FIRST));
        assert_eq!(generation(&table, "a"), Some(2));
    }
    act(&mut applier, FeedEvent::Put(entry("a", row(3).encode()), FIRST));
    assert_eq!(generation(&table, "a"), Some(3));
}

#[test]
fn a_change_is_told_when_it_is_in_effect_and_only_when_it_is_new() {
    let (table, mut applier) = restarted(&[], FIRST);
    let mut changes = table.changes();
    let put = |version, value| FeedEvent::Put(Entry { version, ..entry("a", value) }, FIRST);
    let mut told = move || changes.try_recv().ok().map(|change| change.version);
    snapshot(&mut applier, &[("a", 1), ("b", 1)], FIRST);
    assert_eq!(told(), None, "a snapshot is no news");
    act(&mut applier, put(11, row(2).encode()));
    assert_eq!((told(), generation(&table, "a")), (Some(11), Some(2)));
    act(&mut applier, put(12, b"{}".to_vec()));
    assert_eq!(told(), None, "it was set aside");
    // What was missed while the store was away was not asked for by anybody who still waits.
    table.mark_behind();
    act(&mut applier, put(13, row(3).encode()));
    assert_eq!(told(), None);
    act(&mut applier, FeedEvent::Current(FIRST));
    act(&mut applier, put(14, row(3).encode()));
    assert_eq!(told(), Some(14));
}

#[test]
fn a_snapshot_sweeps_what_it_lacks_and_a_delete_removes() {
    let (table, mut applier) = restarted(&[("a", 1), ("b", 1), ("c", 1)], FIRST);
    assert_eq!(table.lookup("z"), Lookup::NotReady);
    assert_eq!(snapshot(&mut applier, &[("a", 1), ("b", 1)], FIRST), After::Synced);
    assert_eq!((generation(&table, "b"), generation(&table, "c")), (Some(1), None));
    assert_eq!(act(&mut applier, FeedEvent::Delete("sprite/b".into(), FIRST)), After::Changed);
    assert_eq!(generation(&table, "b"), None);
}

#[test]
fn a_generation_the_store_has_spoken_of_never_goes_back() {
    let (table, mut applier) = restarted(&[], FIRST);
    snapshot(&mut applier, &[("a", 5)], FIRST);
    act(&mut applier, FeedEvent::Put(entry("a", row(4).encode()), FIRST));
    assert_eq!(generation(&table, "a"), Some(5));
    snapshot(&mut applier, &[("a", 4)], FIRST);
    assert_eq!(generation(&table, "a"), Some(5));
}

#[test]
fn the_store_overrules_the_file_even_with_lower_generations() {
    // The same store, one made anew, one brought back from an older copy.
    for end in [FIRST, Cursor { epoch: 2, version: 3 }, Cursor { epoch: 1, version: 9 }] {
        let (table, mut applier) = restarted(&[("a", 7), ("b", 7)], FIRST);
        assert_eq!(snapshot(&mut applier, &[("a", 1)], end), After::Synced);
        assert_eq!((generation(&table, "a"), generation(&table, "b")), (Some(1), None));
    }
}

#[test]
fn a_store_that_lost_its_rows_does_not_take_the_routes_with_it() {
    let empty = Cursor { epoch: 2, version: 0 };
    let (table, mut applier) = restarted(&[("a", 7), ("b", 7)], FIRST);
    assert_eq!(snapshot(&mut applier, &[], empty), After::Nothing);
    assert_eq!((generation(&table, "a"), generation(&table, "z")), (Some(7), None));
    assert_eq!(applier.cursor, None, "the file is not written over");
    // A resync changes nothing of that.
    assert_eq!(snapshot(&mut applier, &[], empty), After::Nothing);
    assert_eq!(generation(&table, "a"), Some(7));
    // A sprite made again counts from the start, and is served.
    let next = Cursor { epoch: 2, version: 1 };
    assert_eq!(act(&mut applier, FeedEvent::Put(entry("a", row(1).encode()), next)), After::Changed);
    assert_eq!((generation(&table, "a"), generation(&table, "b")), (Some(1), Some(7)));
    assert_eq!(applier.cursor, Some(next));
}

#[test]
fn a_store_that_was_emptied_row_by_row_is_believed() {
    let (table, mut applier) = restarted(&[("a", 7)], FIRST);
    assert_eq!(snapshot(&mut applier, &[], Cursor { version: 11, ..FIRST }), After::Synced);
    assert_eq!(generation(&table, "a"), None);
}

async fn until(table: &RouteTable, wanted: impl Fn(&RouteTable) -> bool) {
    let found = async {
        while !wanted(table) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.expect("the applier stands still");
}

#[tokio::test]
async fn the_table_follows_the_store_and_the_next_start_serves_before_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let (good, a) = (dir.path().join("good"), name("a"));
    let store: Store = Arc::new(Embedded(Arc::new(EmbeddedStore::open(&dir.path().join("s")).unwrap())));
    let version = publish(&*store, &a, &row(7), None).await.unwrap();
    let table = Arc::new(RouteTable::new());
    let applier = tokio::spawn(follow(Arc::clone(&store), Arc::clone(&table), good.clone()));
    assert!(table.followed().stale_for().is_some());
    until(&table, |table| table.followed().is_synced() && generation(table, "a") == Some(7)).await;
    assert_eq!(table.followed().stale_for(), None);
    let version = publish(&*store, &a, &row(8), Some(version)).await.unwrap();
    let loaded = || {
        let table = RouteTable::new();
        load_last_known_good(&table, &good).unwrap();
        table
    };
    // Written once it is quiet, while the applier runs. What it has may be newer than its cursor, never older.
    until(&table, |_| last_known_good::cursor(&good).unwrap().is_some_and(|cursor| cursor.version == version)).await;
    // The bounds of its tenant are his from the first request on.
    assert_eq!(loaded().lookup("a"), Lookup::Found(row(8).route()));
    assert_eq!(loaded().lookup("b"), Lookup::NotReady);
    store.compare_and_set("sprite/a", Some(version), None).await.unwrap();
    until(&table, |table| generation(table, "a").is_none()).await;
    applier.abort();
}

#[test]
fn a_store_that_is_made_anew_while_it_is_followed_is_another_history() {
    let (table, mut applier) = restarted(&[], FIRST);
    snapshot(&mut applier, &[("a", 7), ("b", 7)], FIRST);
    let anew = |version| Cursor { epoch: 2, version };
    // Empty: it has lost its rows, they are served on.
    assert_eq!(snapshot(&mut applier, &[], anew(0)), After::Nothing);
    assert_eq!((generation(&table, "a"), generation(&table, "b")), (Some(7), Some(7)));
    // What is written to it counts from its own beginning; what it lacks is gone with its next snapshot.
    assert_eq!(snapshot(&mut applier, &[("a", 1)], anew(1)), After::Synced);
    assert_eq!((generation(&table, "a"), generation(&table, "b")), (Some(1), None));
    // Within one history a generation never goes back, whatever was lost of it.
    snapshot(&mut applier, &[("a", 5)], anew(5));
    snapshot(&mut applier, &[("a", 4)], anew(4));
    assert_eq!(generation(&table, "a"), Some(5));
}

/// A fleet of a hundred, and the names from the 71st on.
fn fleet() -> (Vec<String>, Vec<String>) {
    let all: Vec<String> = (0..100).map(|number| format!("s{number}")).collect();
    (all.clone(), all[70..].to_vec())
}

fn rows(names: &[String]) -> Vec<(&str, u64)> {
    names.iter().map(|name| (name.as_str(), 1)).collect()
}

#[test]
fn a_third_of_all_routes_does_not_vanish_at_once() {
    let (table, mut applier) = restarted(&[], FIRST);
    let (all, third) = fleet();
    snapshot(&mut applier, &rows(&all), FIRST);
    assert_eq!(snapshot(&mut applier, &rows(&all[..70]), FIRST), After::Synced);
    assert_eq!((table.len(), table.followed().held_removals()), (100, 30));
    // One comes back: it is held no longer, and is not taken with the others.
    act(&mut applier, FeedEvent::Put(entry(&third[0], row(2).encode()), FIRST));
    assert_eq!(table.followed().held_removals(), 29);
    assert_eq!(applier.accept_removals(), After::Changed);
    assert_eq!((table.len(), table.followed().held_removals()), (71, 0));
    assert_eq!(generation(&table, &third[0]), Some(2));
}

#[test]
fn what_is_held_of_another_history_gives_way_to_a_lower_generation() {
    let (table, mut applier) = restarted(&[], FIRST);
    let (all, third) = fleet();
    snapshot(&mut applier, &rows(&all).into_iter().map(|(name, _)| (name, 7)).collect::<Vec<_>>(), FIRST);
    let anew = Cursor { epoch: 2, version: 1 };
    assert_eq!(snapshot(&mut applier, &[("new", 1)], anew), After::Synced);
    assert_eq!((table.len(), table.followed().held_removals()), (101, 100));
    act(&mut applier, FeedEvent::Put(entry(&third[0], row(1).encode()), anew));
    assert_eq!((generation(&table, &third[0]), generation(&table, &third[1])), (Some(1), Some(7)));
}

#[test]
fn nor_one_by_one_but_a_few_do_and_tombstones_are_believed() {
    let (table, mut applier) = restarted(&[], FIRST);
    let (all, third) = fleet();
    snapshot(&mut applier, &rows(&all), FIRST);
    for name in &third {
        act(&mut applier, FeedEvent::Delete(format!("sprite/{name}"), FIRST));
    }
    assert_eq!((table.len(), table.followed().held_removals()), (100 - 16, 30 - 16));
    for name in &all[..70] {
        let tombstone = SpriteRow { deleted: true, ..row(2) }.encode();
        act(&mut applier, FeedEvent::Put(entry(name, tombstone), FIRST));
        assert!(matches!(table.lookup(name.as_str()), Lookup::Found(route) if route.deleted));
    }
    assert_eq!(table.followed().held_removals(), 14);
    // Their rows may go later: nobody is served by them.
    assert_eq!(snapshot(&mut applier, &rows(&third[16..]), FIRST), After::Synced);
    assert_eq!((table.len(), table.followed().held_removals()), (14, 0));
}

#[test]
fn many_routes_that_change_at_once_wait_and_follow_what_the_store_says_meanwhile() {
    const DELAY: Duration = Duration::from_secs(60);
    let (table, applier) = restarted(&[], FIRST);
    let mut applier = Applier { bulk: Bulk::new(DELAY), ..applier };
    let (all, third) = fleet();
    snapshot(&mut applier, &rows(&all), FIRST);
    let host = |name: &str| match table.lookup(name) {
        Lookup::Found(route) => route.host.0,
        other => panic!("{name}: {other:?}"),
    };
    let now = Instant::now();
    let moved = |applier: &mut Applier, name: &str, generation, host| {
        let row = SpriteRow { host: HostId(host), ..row(generation) };
        applier.handle(FeedEvent::Put(entry(name, row.encode()), FIRST), now)
    };
    for name in &third {
        moved(&mut applier, name, 2, 9);
    }
    assert_eq!((host(&third[15]), host(&third[16]), table.followed().delayed_changes()), (9, 1, 14));
    // One is taken back, one is deleted from the store, another is led elsewhere.
    moved(&mut applier, &third[16], 3, 1);
    applier.handle(FeedEvent::Delete(format!("sprite/{}", third[17]), FIRST), now);
    moved(&mut applier, &third[18], 3, 8);
    assert_eq!(table.followed().delayed_changes(), 12);
    assert_eq!(applier.turn(now + DELAY / 2), After::Nothing);
    assert_eq!(applier.turn(now + DELAY), After::Changed);
    assert_eq!(table.followed().delayed_changes(), 0);
    assert_eq!((host(&third[16]), host(&third[18]), host(&third[19])), (1, 8, 9));
    assert_eq!(generation(&table, &third[17]), None);
    // What the last run's file has is no measure of what is many.
    let (_, applier) = restarted(&rows(&all), FIRST);
    let mut applier = Applier { bulk: Bulk::new(DELAY), ..applier };
    snapshot(&mut applier, &all.iter().map(|name| (name.as_str(), 5)).collect::<Vec<_>>(), FIRST);
    assert_eq!(applier.bulk.len(), 0);
}

#[test]
fn a_row_too_far_beyond_what_another_region_says_is_set_aside() {
    let there = Arc::new(RouteTable::new());
    there.apply_put(&name("a"), row(2).route());
    there.apply_put(&name("c"), row(2).route());
    let (table, applier) = restarted(&[], FIRST);
    let mut applier = Applier { others: vec![there], ..applier };
    let far = 2 + GENERATION_JUMP_MAX + 1;
    snapshot(&mut applier, &[("a", far), ("b", far), ("c", 1)], FIRST);
    assert_eq!(generation(&table, "c"), Some(1), "it takes nobody's place");
    assert_eq!((generation(&table, "a"), generation(&table, "b")), (None, Some(far)));
    assert_eq!(table.followed().quarantined(), 1);
    act(&mut applier, FeedEvent::Put(entry("a", row(far - 1).encode()), FIRST));
    assert_eq!(generation(&table, "a"), Some(far - 1));
}

#[test]
fn a_region_whose_store_loses_everything_holds_its_own_back_and_nobody_elses() {
    let (own, mut here) = restarted(&[], FIRST);
    let (other, mut there) = restarted(&[], FIRST);
    let (all, third) = fleet();
    snapshot(&mut here, &rows(&all), FIRST);
    snapshot(&mut there, &rows(&all), FIRST);
    snapshot(&mut there, &[], FIRST);
    assert_eq!((own.followed().held_removals(), other.followed().held_removals()), (0, 100));
    for name in &third[..5] {
        act(&mut here, FeedEvent::Delete(format!("sprite/{name}"), FIRST));
    }
    assert_eq!((own.len(), own.followed().held_removals()), (95, 0), "its brake has counted nothing");
}

mod forgeries;
