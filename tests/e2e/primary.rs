//! A fleet without a store of its own: one machine serves its file, the others follow it.

use harness::cluster::addresses;
use harness::fleet::Machine;
use harness::{Demo, until};
use std::time::Duration;

/// What one machine writes reaches the others in milliseconds; a busy one is slow to look.
const SOON: Duration = Duration::from_secs(30);

/// The pin and the key in the command a machine prints of itself.
async fn own(machine: &Machine, as_what: &str) -> (String, String) {
    let keys = match as_what {
        "as_host" => machine.keys_with_endpoint().await,
        _ => machine.fleet(&["keys"]).await[as_what].as_str().unwrap().to_owned(),
    };
    let word = |after: &str| keys.split(' ').skip_while(|word| *word != after).nth(1).unwrap().to_owned();
    (word("--key"), word("--pin"))
}

async fn serves(pop: &Demo, name: &str) {
    until("the edge to serve it", SOON, async || (pop.get(name, "/page").await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn a_fleet_follows_the_file_of_one_machine_and_goes_on_without_it() {
    let serve = addresses(1)[0];
    let listen = "[backhaul]\nlisten = \"127.0.0.1:0\"\n";
    let primary = Machine::host("host-a", &format!("[store.embedded]\nserve = \"{serve}\"\n{listen}"));
    // Nobody has the file open yet.
    let (key, pin) = own(&primary, "as_host").await;
    let enrol = ["host", "add", "host-a", "--key", &key, "--pin", &pin, "--endpoint", "127.0.0.1:9"];
    primary.fleet(&enrol).await;
    let first = primary.start().await;
    first.create_guest("on-a").await;

    // From now on the process has it, and is asked.
    let store = format!("[store]\nengine = \"primary\"\n[store.primary]\nserver = \"{serve}\"\npin = \"{pin}\"\n");
    let pop = Machine::pop("pop-a", &store);
    let (edge_key, edge_pin) = own(&pop, "as_pop").await;
    primary.fleet(&["pop", "add", "pop-a", "--key", &edge_key, "--pin", &edge_pin]).await;
    let second = Machine::host("host-b", &format!("{store}{listen}"));
    let (host_key, host_pin) = own(&second, "as_host").await;
    let add = ["host", "add", "host-b", "--key", &host_key, "--pin", &host_pin, "--endpoint", "127.0.0.1:9"];
    primary.fleet(&add).await;
    let (edge, other) = (pop.start().await, second.start().await);
    other.create_guest("on-b").await;
    serves(&edge, "on-a").await;
    serves(&edge, "on-b").await;

    // A machine that is enrolled as a host enrols nobody.
    let said = second.try_fleet(&["pop", "add", "pop-x", "--key", &edge_key, "--pin", &edge_pin]).await;
    assert!(said.contains("a worker host does not write pop/pop-x"), "{said}");

    // Without the primary everybody goes on, and may even start.
    first.stop().await;
    serves(&edge, "on-b").await;
    edge.stop().await;
    let edge = pop.start().await;
    assert_eq!(edge.get("on-b", "/page").await.status, 200);
    let refused = other.try_admin(&["sprite", "create", "late", "--command", "true"]).await;
    assert!(!refused.status.success(), "nothing is written without the primary");

    // It comes back, and what is new then is heard.
    let first = primary.start().await;
    first.create_guest("new").await;
    serves(&edge, "new").await;

    // Who is let go hears no more.
    primary.fleet(&["pop", "remove", "pop-a"]).await;
    until("it to be told", SOON, async || first.log().contains("its connection to the store ends").then_some(())).await;
    for machine in [edge, other, first] {
        machine.stop().await;
    }
}

#[tokio::test]
async fn a_stranger_gets_nothing_of_the_file() {
    let serve = addresses(1)[0];
    let primary = Machine::host(
        "host-a",
        &format!("[store.embedded]\nserve = \"{serve}\"\n[backhaul]\nlisten = \"127.0.0.1:0\"\n"),
    );
    let (key, pin) = own(&primary, "as_host").await;
    primary.fleet(&["host", "add", "host-a", "--key", &key, "--pin", &pin, "--endpoint", "127.0.0.1:9"]).await;
    let running = primary.start().await;
    let engine =
        |pin: &str| format!("[store]\nengine = \"primary\"\n[store.primary]\nserver = \"{serve}\"\npin = \"{pin}\"\n");
    // One that is not enrolled, and one that takes the primary for somebody else.
    for sections in [engine(&pin), engine(&"0".repeat(64))] {
        let stranger = Machine::host("host-x", &sections);
        let said = stranger.try_fleet(&["host", "list"]).await;
        assert!(said.contains("does not answer"), "{said}");
    }
    running.stop().await;
}
