//! Rows of a host whose machine is somebody else's: none of them moves a sprite, opens it or takes it away.

use super::*;
use crate::follow::saved_cursor;
use crate::placement::tests::{host_key, operators, row as signed};

/// A table of a fleet whose operators sign, which has followed the store since these rows.
fn following(rows: &[SpriteRow]) -> (Arc<RouteTable>, Applier) {
    let table = Arc::new(RouteTable::trusting(operators()));
    let mut applier = Applier::new(Arc::clone(&table), None);
    again(&mut applier, rows, FIRST);
    (table, applier)
}

fn again(applier: &mut Applier, rows: &[SpriteRow], end: Cursor) {
    act(applier, FeedEvent::SnapshotBegin { epoch: end.epoch });
    for row in rows {
        act(applier, FeedEvent::Entry(entry("a", row.encode())));
    }
    act(applier, FeedEvent::SnapshotEnd(end));
}

/// The next process: what the file had, in a new table.
fn restarted(table: &RouteTable) -> (Arc<RouteTable>, Applier) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("good");
    last_known_good::write(table, FIRST, &path).unwrap();
    let table = Arc::new(RouteTable::trusting(operators()));
    load_last_known_good(&table, &path).unwrap();
    (Arc::clone(&table), Applier::new(table, saved_cursor(&path)))
}

fn put(applier: &mut Applier, row: &SpriteRow) {
    act(applier, FeedEvent::Put(entry("a", row.encode()), FIRST));
}

fn found(table: &RouteTable) -> Route {
    match table.lookup("a") {
        Lookup::Found(route) => route,
        other => panic!("{other:?}"),
    }
}

/// What host 3, which had the sprite once (generation 1) and gave it to host 1 (generation 2), may write.
fn forgeries() -> Vec<(&'static str, SpriteRow)> {
    let highest = |mut row: SpriteRow, by: u32| {
        row.generation = Generation(1 << 20);
        row.seal(&name("a"), &host_key(by));
        row
    };
    let true_row = signed("a", &[(1, 3), (2, 1)], 2, 0);
    let mine = SpriteRow { host: HostId(3), ..true_row.clone() };
    let public = SpriteRow { ports: vec![22], ..true_row.clone() };
    let gone = SpriteRow { deleted: true, ..true_row.clone() };
    vec![
        ("its own name on it", SpriteRow { proof: crate::placement::Proof::default(), ..mine.clone() }),
        ("and the highest generation", highest(mine, 3)),
        ("the chain from when it had it", highest(signed("a", &[(1, 3)], 1, 0), 3)),
        ("the row from when it had it", signed("a", &[(1, 3)], 1, 0)),
        ("a second hand-over", signed("a", &[(1, 3), (3, 2)], 3, 0)),
        ("a port opened", highest(public.clone(), 3)),
        ("a port opened, the seal as it was", public),
        ("a tombstone", highest(gone, 3)),
    ]
}

#[tokio::test]
async fn no_row_of_another_host_is_believed() {
    let true_row = signed("a", &[(1, 3), (2, 1)], 2, 0);
    for (what, forged) in forgeries() {
        let (table, mut applier) = following(std::slice::from_ref(&true_row));
        assert_eq!((found(&table), table.followed().quarantined()), (true_row.route(), 0));
        put(&mut applier, &forged);
        assert_eq!((found(&table), table.followed().quarantined()), (true_row.route(), 1), "{what}");
        assert_eq!(table.forged().await, [name("a")], "{what}");
        // Nor when the store has nothing else any more.
        again(&mut applier, std::slice::from_ref(&forged), FIRST);
        assert_eq!((found(&table), table.followed().quarantined()), (true_row.route(), 2), "{what}");
        // Nor after a restart, whose table is from a file.
        let (table, mut applier) = restarted(&table);
        again(&mut applier, std::slice::from_ref(&forged), FIRST);
        assert_eq!((found(&table), table.followed().quarantined()), (true_row.route(), 1), "{what}");
        // The host that has it is heard as before.
        put(&mut applier, &signed("a", &[(1, 3), (2, 1)], 2, 1));
        assert_eq!(found(&table), true_row.route(), "{what}");
        put(&mut applier, &signed("a", &[(1, 3), (2, 1), (3, 2)], 3, 0));
        assert_eq!(found(&table).host, HostId(2), "{what}");
    }
}

#[test]
fn an_old_policy_does_not_come_back_not_even_after_a_restart() {
    let open = signed("a", &[(1, 1)], 1, 0);
    let (table, mut applier) = following(std::slice::from_ref(&open));
    let mut closed = signed("a", &[(1, 1)], 1, 1);
    closed.ports = vec![];
    closed.seal(&name("a"), &host_key(1));
    put(&mut applier, &closed);
    put(&mut applier, &open);
    assert_eq!((&found(&table).ports[..], table.followed().quarantined()), (&[][..], 1));
    let (table, mut applier) = restarted(&table);
    again(&mut applier, std::slice::from_ref(&open), FIRST);
    assert_eq!((&found(&table).ports[..], table.followed().quarantined()), (&[][..], 1));
    again(&mut applier, std::slice::from_ref(&closed), FIRST);
    assert_eq!((found(&table), table.followed().quarantined()), (closed.route(), 1));
}

#[test]
fn a_row_that_vanishes_takes_no_sprite_with_it_and_a_tombstone_does() {
    let had = signed("a", &[(1, 3), (2, 1)], 2, 0);
    let (table, mut applier) = following(&[had]);
    act(&mut applier, FeedEvent::Delete("sprite/a".into(), FIRST));
    assert_eq!((generation(&table, "a"), table.followed().held_removals()), (Some(2), 1));
    // Who had it once does not find an empty place.
    put(&mut applier, &signed("a", &[(1, 3)], 1, 0));
    again(&mut applier, &[], FIRST);
    assert_eq!((found(&table).host, table.followed().held_removals()), (HostId(1), 1));
    let mut gone = signed("a", &[(1, 3), (2, 1)], 3, 0);
    gone.deleted = true;
    gone.seal(&name("a"), &host_key(1));
    put(&mut applier, &gone);
    assert!(found(&table).deleted);
    // Nor is the tombstone forgotten.
    act(&mut applier, FeedEvent::Delete("sprite/a".into(), FIRST));
    assert!(found(&table).deleted);
    // An operator may say that it is right.
    assert_eq!(applier.accept_removals(), After::Changed);
    assert_eq!(generation(&table, "a"), None);
}

#[test]
fn another_history_begins_with_an_operators_word() {
    let (table, mut applier) = following(&[signed("a", &[(1, 1), (7, 2)], 7, 0)]);
    let anew = Cursor { epoch: 2, version: 1 };
    // Its generations count from another beginning, but nobody makes it his own.
    let mut mine = signed("a", &[(1, 1)], 1, 0);
    mine.host = HostId(3);
    mine.seal(&name("a"), &host_key(3));
    again(&mut applier, &[mine], anew);
    assert_eq!((found(&table).host, table.followed().quarantined()), (HostId(2), 1));
    again(&mut applier, &[signed("a", &[(1, 1)], 1, 0)], Cursor { epoch: 3, version: 1 });
    assert_eq!((found(&table).host, found(&table).generation), (HostId(1), Generation(1)));
}

#[test]
fn what_the_table_has_costs_no_signature() {
    let row = signed("a", &[(1, 1)], 1, 0);
    let (table, mut applier) = following(std::slice::from_ref(&row));
    // A seal nobody made would be found out if it were looked at.
    let mut torn = row.clone();
    torn.seal(&name("a"), &host_key(3));
    again(&mut applier, &[torn], FIRST);
    assert_eq!((found(&table), table.followed().quarantined()), (row.route(), 0));
}

/// Another region's table, with what its store says of the sprite.
fn elsewhere(row: &SpriteRow) -> Vec<Arc<RouteTable>> {
    let table = Arc::new(RouteTable::trusting(operators()));
    table.apply_put(&name("a"), row.route());
    table.set_serial(&name("a"), row.proof.serial);
    vec![table]
}

#[test]
fn what_was_given_away_to_another_region_is_not_taken_back_in_the_own_one() {
    let had = signed("a", &[(1, 3)], 1, 0);
    let given = signed("a", &[(1, 3), (2, 1)], 2, 0);
    let (table, applier) = following(std::slice::from_ref(&had));
    let mut applier = Applier { others: elsewhere(&given), ..applier };
    // A second hand-over, of which this region's own history knows nothing.
    put(&mut applier, &signed("a", &[(1, 3), (3, 2)], 3, 0));
    assert_eq!((found(&table), table.followed().quarantined()), (had.route(), 1));
    // What takes nobody's place may stand here as it did.
    put(&mut applier, &signed("a", &[(1, 3)], 1, 1));
    assert_eq!(table.followed().quarantined(), 1);
    // What the other region's host hands over may come back, and is not asked about again.
    let back = signed("a", &[(1, 3), (2, 1), (3, 2)], 3, 0);
    put(&mut applier, &back);
    assert_eq!((found(&table), table.followed().quarantined()), (back.route(), 1));
    again(&mut applier, std::slice::from_ref(&back), FIRST);
    assert_eq!((found(&table), table.followed().quarantined()), (back.route(), 1));
}
