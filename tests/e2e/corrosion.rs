//! A fleet whose machines know each other by Corrosion alone: an agent of our own stands in for theirs.

use crate::fleet::{HOOK, enrol_host, enrolled_pop, get, host, serves};
use harness::corrosion::Agent;
use harness::fleet::{Machine, Operator};
use harness::until;
use std::time::Duration;

/// A store that is away is noticed within 20 s; a busy machine takes longer.
const NOTICED: Duration = Duration::from_secs(60);

#[tokio::test]
async fn an_edge_serves_what_hosts_have_written_and_goes_on_without_the_agent() {
    let mut agent = Agent::start().await;
    let store = agent.sections();
    // Without operators nobody could say whose a name is: it says so, and what to do.
    let said = Machine::host("host-a", &store).refused().await;
    assert!(said.contains("fleet.operators") && said.contains("no compare-and-set"), "{said}");

    let operator = Operator::new().await;
    let machine = host("host-a", &store).signed_by(&operator);
    enrol_host(&machine).await;
    let pop = enrolled_pop(Machine::pop("pop-a", &store).signed_by(&operator)).await;
    let (owner, edge) = (machine.start().await, pop.start().await);
    let place = async |name: &str| drop(machine.fleet(&["place", name, "--host", "host-a"]).await);
    place("web").await;
    owner.create_guest("web").await;
    serves(&edge, "web").await;
    let status = edge.admin(&["status"]).await;
    assert_eq!((&status["store"]["engine"], &status["routes"]), (&"corrosion".into(), &1.into()), "{status}");
    // Each wrote under its own name, and one row is left of each key.
    let rows =
        agent.query("SELECT name, owner FROM routes WHERE name LIKE 'sprite/%' OR name LIKE 'host/%' ORDER BY name");
    assert_eq!(rows, [["host/1", "host/host-a"], ["sprite/web", "host/host-a"]]);
    // A policy that changes reaches the edge by the same way.
    owner.admin(&["sprite", "access", "web", "private"]).await;
    until("the edge to ask who it is", NOTICED, async || (get(&edge, "web").await.status == 401).then_some(())).await;
    owner.admin(&["sprite", "access", "web", "public"]).await;
    serves(&edge, "web").await;
    // What Corrosion cannot say is refused, with what to do.
    let refused = edge.try_admin(&["domain", "add", "www.example.org", "web"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("custom domains need engine nats, etcd or primary"), "{said}");

    agent.crash();
    let stale = async |wanted: bool| {
        let status = edge.admin(&["status"]).await;
        (status["store"]["stale_s"].is_null() != wanted).then_some(())
    };
    until("the loss to be shown", NOTICED, async || stale(true).await).await;
    assert_eq!(get(&edge, "web").await.status, 200);
    agent.restart().await;
    until("the agent to be back", NOTICED, async || stale(false).await).await;
    place("new").await;
    owner.create_guest("new").await;
    serves(&edge, "new").await;
    edge.stop().await;
    owner.stop().await;
}

#[tokio::test]
async fn a_sprite_moves_with_its_visitors() {
    let agent = Agent::start().await;
    let (store, operator, folder) = (agent.sections(), Operator::new().await, tempfile::tempdir().unwrap());
    let hook = folder.path().join("hook");
    let mut hosts = Vec::new();
    for name in ["host-a", "host-b"] {
        let command = format!("REFUSE=/nowhere sh {}", hook.display());
        let machine = host(name, &store).with(&format!("move_hook = {command:?}\n")).signed_by(&operator);
        enrol_host(&machine).await;
        hosts.push(machine);
    }
    let [a, b] = [&hosts[0], &hosts[1]].map(|machine| machine.data().to_str().unwrap().to_owned());
    std::fs::write(&hook, HOOK.replace("DATA_A", &a).replace("DATA_B", &b)).unwrap();
    let pop = enrolled_pop(Machine::pop("pop-a", &store).signed_by(&operator)).await;
    let (first, second, edge) = (hosts[0].start().await, hosts[1].start().await, pop.start().await);
    hosts[0].fleet(&["place", "nomad", "--host", "host-a"]).await;
    first.create_guest("nomad").await;
    serves(&edge, "nomad").await;
    for (from, to, generation) in [(&first, "host-b", 2), (&second, "host-a", 3)] {
        let moved = from.admin(&["sprite", "move", "nomad", "--to", to]).await;
        assert_eq!((&moved["to"], &moved["generation"]), (&to.into(), &generation.into()), "{moved}");
        assert_eq!(get(&edge, "nomad").await.status, 200, "{to}");
        until("the edge to know where it is", NOTICED, async || {
            let explained = edge.admin(&["route", "explain", &edge.host("nomad")]).await;
            (explained["route"]["host_name"] == to).then_some(())
        })
        .await;
    }
    // Who moved it wrote last, and took the others' rows of it away.
    let rows = agent.query("SELECT owner FROM routes WHERE name = 'sprite/nomad'");
    assert_eq!(rows.len(), 1, "{rows:?}");
    for machine in [edge, first, second] {
        machine.stop().await;
    }
}
