//! Several machines: edges and worker hosts as processes of their own, which know each other by the store.

use harness::client::VERSIONS;
use harness::fleet::{Machine, Operator};
use harness::nats::Nats;
use harness::{Answer, Demo, until};
use std::time::Duration;

/// What one machine writes reaches the others in milliseconds; a busy one is slow to look.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// A worker host that picks its port itself, and says at its start where it is.
pub(crate) fn host(name: &str, store: &str) -> Machine {
    Machine::host(name, &format!("{store}[backhaul]\nlisten = \"127.0.0.1:0\"\n"))
}

pub(crate) async fn enrolled_pop(machine: Machine) -> Machine {
    let keys = machine.fleet(&["keys"]).await;
    let edge = keys["as_pop"].as_str().unwrap().to_owned();
    assert!(edge.starts_with(&format!("edge-proxy fleet pop add {} --key ", machine.name)), "{edge}");
    machine.enrol().await;
    machine
}

/// Enrols a host by its keys, at an address it corrects when it starts.
pub(crate) async fn enrol_host(machine: &Machine) {
    let own = Machine::keys_with_endpoint(machine).await;
    let word = |after: &str| own.split(' ').skip_while(|word| *word != after).nth(1).unwrap().to_owned();
    let (key, pin, signing) = (word("--key"), word("--pin"), word("--signing"));
    // It has no address yet, and says so.
    let keys = machine.fleet(&["keys"]).await;
    assert!(keys["as_host"].as_str().unwrap().contains("must say where edges reach"), "{keys}");
    let name = &machine.name;
    let add = ["--key", &key, "--pin", &pin, "--signing", &signing, "--endpoint", "127.0.0.1:9"];
    machine.fleet(&[&["host", "add", name], &add[..]].concat()).await;
}

pub(crate) async fn get(pop: &Demo, name: &str) -> Answer {
    pop.get(name, "/page").await
}

pub(crate) async fn serves(pop: &Demo, name: &str) -> Answer {
    until("the edge to serve it", SOON, async || {
        let answer = get(pop, name).await;
        (answer.status == 200).then_some(answer)
    })
    .await
}

pub(crate) async fn says(pop: &Demo, name: &str, status: u16, code: &str) {
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
        enrol_host(&machine).await;
        machines.push(machine);
    }
    let said = machines[0].check().await;
    assert!(said.contains("# fleet.operators: none. Whoever may write to the store may move every sprite"), "{said}");
    let (first, second) = (machines[0].start().await, machines[1].start().await);
    let listed = machines[0].fleet(&["host", "list"]).await;
    assert_eq!((&listed[0]["number"], &listed[1]["number"]), (&1.into(), &2.into()));
    let pops = [enrolled_pop(Machine::pop("pop-a", &store)).await, enrolled_pop(Machine::pop("pop-b", &store)).await];
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

    // What an edge believes, in words, without asking anybody.
    let explained = near.admin(&["route", "explain", &near.host("on-b")]).await;
    assert_eq!(
        (&explained["route"]["host_name"], &explained["session"]),
        (&"host-b".into(), &"up".into()),
        "{explained}"
    );
    assert!(explained["would"].as_str().unwrap().starts_with("forward at once to run "), "{explained}");
    let nobody = near.admin(&["route", "explain", &near.host("nobody")]).await;
    assert!(nobody["would"].as_str().unwrap().starts_with("404 no_such_sprite"), "{nobody}");

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

/// Copies a sprite's directory to the host of a name; refuses once.
pub(crate) const HOOK: &str = r#"
set -e
case "$SPRITE_TO" in host-a) to=DATA_A;; host-b) to=DATA_B;; *) exit 1;; esac
[ ! -e "$REFUSE" ] || { echo "the disk is full" >&2; exit 7; }
rm -rf "$to/sprites/$SPRITE_NAME"
mkdir -p "$to/sprites"
cp -a "$SPRITE_DIRECTORY" "$to/sprites/"
"#;

#[tokio::test]
async fn a_sprite_moves_with_its_data_and_links_while_its_visitors_wait() {
    let Some(nats) = Nats::start().await else { return };
    let store = nats.sections();
    let (mut hosts, folder) = (Vec::new(), tempfile::tempdir().unwrap());
    let operator = Operator::new().await;
    let (hook, refuse) = (folder.path().join("hook"), folder.path().join("refuse"));
    for name in ["host-a", "host-b"] {
        let hook = format!("REFUSE={} sh {}", refuse.display(), hook.display());
        let machine = host(name, &store).with(&format!("move_hook = {hook:?}\n"));
        let machine = machine.signed_by(&operator);
        enrol_host(&machine).await;
        hosts.push(machine);
    }
    let [a, b] = [&hosts[0], &hosts[1]].map(|machine| machine.data().to_str().unwrap().to_owned());
    std::fs::write(&hook, HOOK.replace("DATA_A", &a).replace("DATA_B", &b)).unwrap();
    let pop = |name: &str| Machine::pop(name, &store).signed_by(&operator);
    let pops = [enrolled_pop(pop("pop-a")).await, enrolled_pop(pop("pop-b")).await];
    let (near, far) = (pops[0].start().await, pops[1].start().await);
    let (first, second) = (hosts[0].start().await, hosts[1].start().await);
    assert!(!hosts[0].check().await.contains("# fleet.operators"));
    // Nobody but an operator says where a sprite begins.
    let command = first.guest_command();
    let refused = first.try_admin(&["sprite", "create", "nomad", "--command", &command, "--public"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no operator has placed nomad"), "{refused:?}");
    for name in ["nomad", "secret"] {
        hosts[0].fleet(&["place", name, "--host", "host-a"]).await;
    }
    let refused = second.try_admin(&["sprite", "create", "nomad", "--command", &command, "--public"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no operator has placed nomad"), "{refused:?}");
    first.create_guest("nomad").await;
    let command = first.guest_command();
    let secret = first.admin(&["sprite", "create", "secret", "--command", &command]).await;
    let token = secret["token"].as_str().unwrap();
    let link = first.admin(&["sprite", "share", "secret"]).await;
    for pop in [&near, &far] {
        serves(pop, "nomad").await;
    }
    let starts = |data: &str, name: &str| {
        std::fs::read_to_string(format!("{data}/sprites/{name}/data/starts")).map_or(0, |text| text.lines().count())
    };
    assert_eq!(starts(&a, "nomad"), 1);

    // What cannot be brought there stays, and goes on.
    std::fs::write(&refuse, "").unwrap();
    let refused = first.try_admin(&["sprite", "move", "nomad", "--to", "host-b"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("exit status: 7") && said.contains("the disk is full") && said.contains("stays"), "{said}");
    std::fs::remove_file(&refuse).unwrap();
    assert_eq!(get(&near, "nomad").await.status, 200);
    for (to, says) in [("host-a", "is on host-a already"), ("host-c", "no host host-c")] {
        let refused = first.try_admin(&["sprite", "move", "nomad", "--to", to]).await;
        assert!(String::from_utf8_lossy(&refused.stderr).contains(says), "{refused:?}");
    }

    // There and back, with visitors at both edges all the while: each is served.
    let before = starts(&a, "nomad");
    for (from, to, generation) in [(&first, "host-b", 2), (&second, "host-a", 3)] {
        let over = std::cell::Cell::new(false);
        let visit = async |pop: &Demo, version| {
            let mut client = pop.connect(version, "nomad").await;
            let mut served = 0;
            while !over.get() || served == 0 {
                let answer = client.get(pop, "nomad", "/page").await;
                assert_eq!(answer.status, 200, "{to}: {answer:?}");
                served += 1;
            }
            // Once more when all is over.
            assert_eq!(client.get(pop, "nomad", "/page").await.status, 200, "{to}");
            served
        };
        let moves = async {
            let moved = from.admin(&["sprite", "move", "nomad", "--to", to]).await;
            over.set(true);
            moved
        };
        let (moved, ..) = tokio::join!(
            moves,
            visit(&near, VERSIONS[0]),
            visit(&near, VERSIONS[1]),
            visit(&far, VERSIONS[0]),
            visit(&far, VERSIONS[1])
        );
        assert_eq!((&moved["to"], &moved["generation"]), (&to.into(), &generation.into()), "{moved}");
        // Visitors may be told of it before the table is.
        until("the table to say so", SOON, async || {
            let explained = near.admin(&["route", "explain", &near.host("nomad")]).await;
            (explained["route"]["host_name"] == to).then_some(())
        })
        .await;
    }
    // Its data went with it: every start since the first is written in one file.
    assert_eq!(starts(&a, "nomad"), before + 2);
    assert!(!std::path::Path::new(&format!("{a}/sprites/nomad/handover.json")).exists());

    // Who may ask may ask there too, with the old link; and nobody else.
    first.admin(&["sprite", "move", "secret", "--to", "host-b"]).await;
    let listed = first.admin(&["sprite", "list"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    let mut client = near.connect(VERSIONS[0], "secret").await;
    let ask = |near: &Demo, token: &str| {
        let request = near.request(http::Method::GET, "secret", "/page").header("sprite-token", token);
        request.body(harness::client::empty()).unwrap()
    };
    assert_eq!(client.send(ask(&near, token)).await.status, 200);
    assert_eq!(client.send(ask(&near, "wrong")).await.status, 401);
    let again = second.admin(&["sprite", "share", "secret"]).await;
    let query = |link: &serde_json::Value| link["url"].as_str().unwrap().split_once('?').unwrap().1.to_owned();
    for link in [query(&link), query(&again)] {
        let answer = near.get("secret", &format!("/page?{link}")).await;
        assert_eq!(answer.status, 302, "the links are of one seed: {answer:?}");
    }
    // A host that starts again has what is its own.
    second.crash();
    let second = hosts[1].start().await;
    assert_eq!(second.admin(&["sprite", "list"]).await[0]["name"], "secret");
    for machine in [near, far, first, second] {
        machine.stop().await;
    }
}
