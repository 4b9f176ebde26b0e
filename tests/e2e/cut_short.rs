//! A worker host that died in the middle of a move: its next start takes back what it had said to the other host.

use harness::cluster::addresses;
use harness::fleet::Machine;
use harness::until;
use router::handover::{HANDOVER_PREFIX, HandoverRow};
use router::names::SpriteName;
use router::registry::RegistryRow;
use router::route::{Generation, HostId};
use router::rows::ROW_VERSION;
use router::store::EmbeddedStore;
use std::time::Duration;

/// A busy machine is slow to look.
const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_start_leaves_no_move_of_a_former_process_behind() {
    let serve = addresses(1)[0];
    let sections = format!("[store.embedded]\nserve = \"{serve}\"\n");
    let machine = Machine::enrolled_host("host-a", &sections, "").await;
    let file = machine.data().join("store.redb");
    let row = |name: &str, from: u32, to: u32| HandoverRow {
        version: ROW_VERSION,
        name: SpriteName::parse(name).unwrap(),
        from: HostId(from),
        to: HostId(to),
        generation: Generation(2),
        ready: true,
        seal: None,
    };
    let left = |file: &std::path::Path| -> Vec<String> {
        let entries = EmbeddedStore::open(file).unwrap().scan(HANDOVER_PREFIX).unwrap();
        entries.into_iter().map(|entry| entry.key).collect()
    };
    // It died between the row for the other host and its own mark that the sprite may have left.
    let store = EmbeddedStore::open(&file).unwrap();
    for row in [row("cut", 1, 2), row("theirs", 2, 3)] {
        store.compare_and_set(&HandoverRow::key(&row.name), None, Some(&row.encode())).unwrap();
    }
    drop(store);
    let running = machine.start().await;
    until("it to be called off", SOON, async || running.log().contains("called off").then_some(())).await;
    running.stop().await;
    assert_eq!(left(&file), ["handover/theirs"]);
}
