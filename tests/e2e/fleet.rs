//! Several machines: edges and worker hosts as processes of their own, which know each other by the store.

use harness::client::VERSIONS;
use harness::fleet::Machine;
use harness::nats::Nats;
use harness::{Answer, Demo, until};
use std::time::Duration;

/// What one machine writes reaches the others in milliseconds; a busy one is slow to look.
const SOON: Duration = Duration::from_secs(30);

/// A worker host that picks its port itself, and says at its start where it is.
fn host(name: &str, store: &str) -> Machine {
    Machine::host(name, &format!("{store}[backhaul]\nlisten = \"127.0.0.1:0\"\n"))
}

async fn enrolled(machine: Machine, arguments: &[&str]) -> Machine {
    let keys = machine.fleet(&["keys"]).await;
    let edge = keys["as_pop"].as_str().unwrap().to_owned();
    assert!(edge.starts_with(&format!("edge-proxy fleet pop add {} --key ", machine.name)), "{edge}");
    match arguments {
        [] => machine.enrol().await,
        // It has no address yet, and says so.
        arguments => {
            assert!(keys["as_host"].as_str().unwrap().contains("must say where edges reach"), "{keys}");
            machine.fleet(arguments).await;
        }
    }
    machine
}

/// Its key and pin as the registry wants them.
async fn host_keys(machine: &Machine) -> (String, String) {
    let own = Machine::keys_with_endpoint(machine).await;
    let word = |after: &str| own.split(' ').skip_while(|word| *word != after).nth(1).unwrap().to_owned();
    (word("--key"), word("--pin"))
}

async fn get(pop: &Demo, name: &str) -> Answer {
    pop.get(name, "/page").await
}

async fn serves(pop: &Demo, name: &str) -> Answer {
    until("the edge to serve it", SOON, async || {
        let answer = get(pop, name).await;
        (answer.status == 200).then_some(answer)
    })
    .await
}

async fn says(pop: &Demo, name: &str, status: u16, code: &str) {
    until("the edge to refuse it", SOON, async || {
        let answer = get(pop, name).await;
        (answer.status == status && answer.text().contains(code)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn edges_reach_the_sprites_of_every_host_and_only_enrolled_machines_speak() {
    let Some(nats) = Nats::start().await else { return };
    let store = nats.sections();
    let mut machines = Vec::new();
    for name in ["host-a", "host-b"] {
        let machine = host(name, &store);
        let (key, pin) = host_keys(&machine).await;
        let add = ["host", "add", name, "--key", &key, "--pin", &pin, "--endpoint", "127.0.0.1:9"];
        machines.push(enrolled(machine, &add).await);
    }
    let (first, second) = (machines[0].start().await, machines[1].start().await);
    let listed = machines[0].fleet(&["host", "list"]).await;
    assert_eq!((&listed[0]["number"], &listed[1]["number"]), (&1.into(), &2.into()));
    let pops = [enrolled(Machine::pop("pop-a", &store), &[]).await, enrolled(Machine::pop("pop-b", &store), &[]).await];
    let (near, far) = (pops[0].start().await, pops[1].start().await);

    first.create_guest("on-a").await;
    second.create_guest("on-b").await;
    for pop in [&near, &far] {
        for name in ["on-a", "on-b"] {
            serves(pop, name).await;
            for version in VERSIONS {
                let mut client = pop.connect(version, name).await;
                assert_eq!(client.get(pop, name, "/page").await.text(), "<h1>page</h1>", "{name} {version:?}");
            }
        }
    }
    // One wake each: the other edge found it running.
    assert_eq!((first.receipts("on-a").await.len(), second.receipts("on-b").await.len()), (1, 1));
    first.sleep_cold("on-a").await;
    let woken = get(&far, "on-a").await;
    assert_eq!((woken.status, woken.header("sprite-wake")), (200, "cold"), "{woken:?}");

    // An edge owns nothing, and says where to ask.
    let refused = near.try_admin(&["sprite", "list"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no worker host"), "{refused:?}");
    assert_eq!(near.admin(&["status"]).await["routes"], 2);

    // A host that is gone takes its own sprites with it and nobody else's; back, it is found again,
    // at another port than before.
    second.crash();
    says(&near, "on-b", 503, "host_unreachable").await;
    assert_eq!(get(&near, "on-a").await.status, 200);
    let second = machines[1].start().await;
    serves(&near, "on-b").await;
    serves(&far, "on-b").await;

    // An edge that was removed is a stranger to every host, at once; the other one goes on.
    pops[0].fleet(&["pop", "remove", "pop-b"]).await;
    says(&far, "on-a", 503, "host_unreachable").await;
    says(&far, "on-b", 503, "host_unreachable").await;
    assert_eq!((get(&near, "on-a").await.status, get(&near, "on-b").await.status), (200, 200));
    pops[1].enrol().await;
    serves(&far, "on-a").await;

    // A host is not let go with its sprites on it.
    let kept = machines[0].try_fleet(&["host", "remove", "host-a"]).await;
    assert!(kept.contains("1 sprites are placed on host host-a"), "{kept}");
    for machine in [near, far, first, second] {
        machine.stop().await;
    }
}

#[tokio::test]
async fn a_host_that_is_not_enrolled_says_how_it_is_and_ends() {
    let Some(nats) = Nats::start().await else { return };
    let machine = Machine::host("nobody", &format!("{}[backhaul]\nlisten = \"127.0.0.1:4500\"\n", nats.sections()));
    let said = machine.refused().await;
    assert!(said.contains("no host nobody in the registry") && said.contains("fleet host add nobody --key"), "{said}");
}
