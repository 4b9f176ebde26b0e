use super::*;
use crate::hosts::HostTable;
use crate::papers;
use crate::pops::{EdgeProcess, PopRow, PopTable};
use crate::route::{HostId, HostRow};
use crate::rows::ROW_VERSION;
use crate::store::{Cursor, Entry, FeedEvent};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::collections::BTreeSet;
use std::net::Ipv6Addr;

const CURSOR: Cursor = Cursor { epoch: 1, version: 1 };

/// A host with this number and keys of its own.
fn row(number: u32, key: u8) -> HostRow {
    HostRow {
        name: format!("host-{key}"),
        number: HostId(number),
        wireguard_key: BASE64_STANDARD.encode([key; 32]),
        endpoint: ([192, 0, 2, key], 51820).into(),
        address: Ipv6Addr::from([0xfd00, 0, 0, 0, 0, 0, 0, key.into()]),
        spki_pins: vec!["0a".repeat(32)],
        papers: None,
    }
}

fn three() -> (Arc<Merged<HostRow>>, [Arc<HostTable>; 3]) {
    let tables = [(); 3].map(|()| Arc::new(HostTable::new()));
    let [own, ams, lhr] = tables.clone();
    (Merged::new(("fra".into(), own), vec![("lhr".into(), lhr), ("ams".into(), ams)]), tables)
}

fn keys(merged: &Merged<HostRow>) -> Vec<(u32, String)> {
    merged.all().all().iter().map(|row| (row.number.0, row.name.clone())).collect()
}

fn named(rows: &[(u32, u8)]) -> Vec<(u32, String)> {
    rows.iter().map(|(number, key)| (*number, format!("host-{key}"))).collect()
}

fn overruled(merged: &Merged<HostRow>) -> Vec<(String, u32, String)> {
    merged.overruled().iter().map(|row| (row.region.to_string(), row.id.0, row.by.to_string())).collect()
}

#[test]
fn one_region_is_its_own_registry() {
    let own = Arc::new(HostTable::new());
    let merged = Merged::new(("own".into(), Arc::clone(&own)), Vec::new());
    assert!(Arc::ptr_eq(merged.all(), &own) && Arc::ptr_eq(merged.own(), &own));
}

#[test]
fn what_a_region_loses_is_its_own_alone() {
    let (merged, [own, ams, _]) = three();
    own.apply_put(row(1, 1));
    ams.apply_put(row(21, 21));
    ams.apply_put(row(22, 22));
    assert_eq!(keys(&merged), named(&[(1, 1), (21, 21), (22, 22)]));
    let mut changes = merged.all().changes();
    changes.mark_unchanged();
    // Its store goes on without one of them; the others are not its to lose.
    let mut seen = BTreeSet::new();
    for event in [
        FeedEvent::SnapshotBegin { epoch: 1 },
        FeedEvent::Entry(Entry { key: "host/22".into(), value: row(22, 22).encode(), version: 1 }),
        FeedEvent::SnapshotEnd(CURSOR),
    ] {
        assert_eq!(keys(&merged), named(&[(1, 1), (21, 21), (22, 22)]), "not before the end");
        ams.handle(event, &mut seen);
    }
    assert_eq!(keys(&merged), named(&[(1, 1), (22, 22)]));
    assert!(changes.has_changed().unwrap());
    ams.handle(FeedEvent::Delete("host/1".into(), CURSOR), &mut seen);
    assert_eq!(keys(&merged), named(&[(1, 1), (22, 22)]), "it never had that one");
    own.handle(FeedEvent::Delete("host/1".into(), CURSOR), &mut seen);
    assert_eq!(keys(&merged), named(&[(22, 22)]));
    let put = Entry { key: "host/23".into(), value: row(23, 23).encode(), version: 1 };
    ams.handle(FeedEvent::Put(put, CURSOR), &mut seen);
    assert_eq!(keys(&merged), named(&[(22, 22), (23, 23)]));
}

#[test]
fn a_number_is_the_machines_of_whoever_comes_first() {
    let (merged, [own, ams, lhr]) = three();
    // First come is not first served.
    lhr.apply_put(row(1, 3));
    assert_eq!(keys(&merged), named(&[(1, 3)]));
    ams.apply_put(row(1, 2));
    assert_eq!(keys(&merged), named(&[(1, 2)]));
    own.apply_put(row(1, 1));
    assert_eq!(keys(&merged), named(&[(1, 1)]));
    let claims = |region: &str| (region.to_owned(), 1, "fra".to_owned());
    assert_eq!(overruled(&merged), [claims("ams"), claims("lhr")]);
    assert!(merged.counts("fra", &HostId(1)) && !merged.counts("ams", &HostId(1)) && !merged.counts("no", &HostId(1)));
    // Who has it no longer gives it to the next.
    own.apply_remove(&HostId(1));
    assert_eq!((keys(&merged), overruled(&merged)), (named(&[(1, 2)]), vec![("lhr".into(), 1, "ams".into())]));
    // The same machine, enrolled twice, is no dispute; the own region's word of it counts.
    own.apply_put(HostRow { endpoint: ([192, 0, 2, 9], 9).into(), ..row(1, 2) });
    assert_eq!(merged.all().lookup(HostId(1)).unwrap().endpoint.port(), 9);
    assert!(merged.counts("ams", &HostId(1)));
    assert_eq!(overruled(&merged), [("lhr".into(), 1, "fra".into())]);
}

#[test]
fn nobody_has_another_regions_keys_address_or_name_under_another_number() {
    let (merged, [own, ams, lhr]) = three();
    own.apply_put(row(1, 1));
    for thief in [
        HostRow { wireguard_key: row(1, 1).wireguard_key, ..row(40, 4) },
        HostRow { address: row(1, 1).address, ..row(40, 4) },
        HostRow { name: row(1, 1).name, ..row(40, 4) },
    ] {
        ams.apply_put(thief);
        assert_eq!(keys(&merged), named(&[(1, 1)]));
        assert_eq!(overruled(&merged), [("ams".into(), 40, "fra".into())]);
    }
    lhr.apply_put(row(40, 4));
    assert_eq!(keys(&merged), named(&[(1, 1), (40, 4)]), "what does not count is in nobody's way");
}

#[test]
fn a_machine_the_own_region_has_let_go_is_not_let_in_by_another_one() {
    use crate::signing::tests::key;
    let (operator, at) = (key(9), 1);
    let removed = |row: HostRow| papers::enrol(row, vec![key(1).public()], true, None, at, &operator);
    let (merged, [own, ams, lhr]) = three();
    own.apply_put(removed(row(1, 1)));
    ams.apply_put(row(1, 1));
    assert_eq!((keys(&merged), overruled(&merged)), (vec![], vec![("ams".into(), 1, "fra".into())]));
    // Of another region it says that that one has none.
    ams.apply_put(removed(row(2, 2)));
    lhr.apply_put(row(2, 3));
    assert_eq!(keys(&merged), named(&[(2, 3)]));
}

#[test]
fn a_pops_name_is_one_regions_too() {
    let pop = |name: &str, key: u8| PopRow {
        version: ROW_VERSION,
        name: name.into(),
        processes: vec![EdgeProcess {
            wireguard_key: BASE64_STANDARD.encode([key; 32]),
            address: Ipv6Addr::from([0xfd00, 0, 0, 0, 0, 0, 0, key.into()]),
            spki_pins: vec!["0a".repeat(32)],
        }],
        papers: None,
    };
    let (own, ams) = (Arc::new(PopTable::new()), Arc::new(PopTable::new()));
    own.apply_put(pop("a", 1));
    ams.apply_put(pop("a", 2));
    ams.apply_put(pop("b", 1));
    ams.apply_put(pop("c", 3));
    // What was known before they are put together counts.
    let merged = Merged::new(("fra".into(), own), vec![("ams".into(), ams)]);
    let names: Vec<_> = merged.all().all().iter().map(|row| row.name.clone()).collect();
    assert_eq!(names, ["a", "c"]);
    let disputed: Vec<_> = merged.overruled().iter().map(|row| row.id.clone()).collect();
    assert_eq!(disputed, ["a", "b"]);
}

#[test]
fn they_are_read_when_the_own_store_is() {
    let (merged, [own, ams, _]) = three();
    let mut seen = BTreeSet::new();
    ams.handle(FeedEvent::SnapshotEnd(CURSOR), &mut seen);
    assert!(!merged.all().is_read());
    own.handle(FeedEvent::SnapshotEnd(CURSOR), &mut seen);
    assert!(merged.all().is_read());
}
