//! A fleet whose operators sign, of which one host and one edge are somebody else's: they write what they like into
//! the store, and gain no sprite.

use crate::fleet::{SOON, enrol_host, enrolled_pop, get, host, says, serves};
use backhaul::signing_file;
use harness::fleet::{Machine, Operator};
use harness::nats::Nats;
use harness::{Demo, until};
use router::access::Access;
use router::names::SpriteName;
use router::papers::{enrol, renew};
use router::placement::{Placement, Proof};
use router::pops::{EdgeProcess, PopRow};
use router::registry::RegistryRow;
use router::route::{Generation, HostId, HostRow};
use router::rows::{ROW_VERSION, SpriteRow};
use router::signing::{Operators, SigningKey};
use router::store::Engine;
use router::store::nats::NatsStore;

/// What the thief has: the store with all rights, and the key of its own host.
struct Thief {
    store: NatsStore,
    key: SigningKey,
    number: HostId,
}

impl Thief {
    /// Writes over a row, or deletes it, whatever is there.
    async fn write(&self, key: &str, value: Option<&[u8]>) {
        until("the write", SOON, async || {
            let version = self.store.get(key).await.ok()?.map(|entry| entry.version);
            self.store.compare_and_set(key, version, value).await.ok()
        })
        .await;
    }

    async fn read<R: RegistryRow>(&self, key: &str) -> R {
        let entry = self.store.get(key).await.unwrap().unwrap();
        R::decode(key, &entry.value).unwrap()
    }

    async fn sprite(&self, name: &SpriteName) -> SpriteRow {
        let key = SpriteRow::key(name);
        SpriteRow::decode(&key, &self.store.get(&key).await.unwrap().unwrap().value).unwrap().1
    }

    /// What it may try with the row of a sprite it had once and gave away.
    fn forgeries(&self, name: &SpriteName, now: &SpriteRow, before: &SpriteRow) -> Vec<(&'static str, SpriteRow)> {
        let signed = |mut row: SpriteRow| {
            row.seal(name, &self.key);
            row
        };
        let (highest, own) = (Generation(1 << 20), self.number);
        let mut given = SpriteRow { host: own, generation: highest, ..now.clone() };
        let chain = &mut given.proof.chain;
        let (last, key) = (chain.last().cloned(), self.key.public());
        let (from, tenant) = (Some(now.host), now.tenant.as_str());
        let placement = Placement { name, tenant, generation: highest, from, to: own, key };
        chain.push(placement.sign(last.as_ref(), &self.key));
        let mut placed = given.clone();
        placed.proof.chain = vec![Placement { from: None, ..placement }.sign(None, &self.key)];
        vec![
            ("unsigned", SpriteRow { host: own, generation: highest, proof: Proof::default(), ..now.clone() }),
            ("its own hand-over", signed(given)),
            ("its own placement", signed(placed)),
            ("when it had it", before.clone()),
            ("when it had it, newer", signed(SpriteRow { generation: highest, ..before.clone() })),
            ("a tombstone", signed(SpriteRow { deleted: true, generation: highest, ..now.clone() })),
            ("opened", signed(SpriteRow { access: Access::Public, ports: vec![22], ..now.clone() })),
        ]
    }
}

async fn quarantined(demo: &Demo) -> u64 {
    demo.admin(&["status"]).await["store"]["quarantined"].as_u64().unwrap()
}

/// Who serves it, by the table of an edge.
async fn is_on(pop: &Demo, name: &str, host: &str) {
    // Visitors may be told of a move before the table is.
    until("the table to say so", SOON, async || {
        let explained = pop.admin(&["route", "explain", &pop.host(name)]).await;
        (explained["route"]["host_name"] == host).then_some(())
    })
    .await;
    let answer = get(pop, name).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "<h1>page</h1>"), "{answer:?}");
}

#[tokio::test]
async fn a_host_and_an_edge_that_are_somebody_elses_gain_no_sprite() {
    let Some(nats) = Nats::start().await else { return };
    let (sections, operator) = (nats.sections(), Operator::new().await);
    let folder = tempfile::tempdir().unwrap();
    let (mut machines, hook) = (Vec::new(), folder.path().join("hook"));
    for name in ["thief", "honest"] {
        let hook = format!("sh {}", hook.display());
        let machine = host(name, &sections).with(&format!("move_hook = {hook:?}\n")).signed_by(&operator);
        enrol_host(&machine).await;
        machines.push(machine);
    }
    let to = machines[1].data().to_str().unwrap();
    let carries = format!("set -e\nmkdir -p {to}/sprites\ncp -a \"$SPRITE_DIRECTORY\" {to}/sprites/\n");
    std::fs::write(&hook, carries).unwrap();
    let (thief_host, honest) = (machines[0].start().await, machines[1].start().await);
    let near_machine = enrolled_pop(Machine::pop("near", &sections).signed_by(&operator)).await;
    let near = near_machine.start().await;

    machines[0].fleet(&["place", "prey", "--host", "thief"]).await;
    thief_host.create_guest("prey").await;
    serves(&near, "prey").await;
    let name = SpriteName::parse("prey").unwrap();
    let key = signing_file::load(&machines[0].data().join("keys/host.signing")).unwrap();
    let store = NatsStore::connect(&nats.settings()).await.unwrap();
    let thief = Thief { store, key, number: HostId(1) };
    let before = thief.sprite(&name).await;
    // It gives the sprite away, as everybody does; from then on the machine is somebody else's.
    thief_host.admin(&["sprite", "move", "prey", "--to", "honest"]).await;
    serves(&near, "prey").await;
    is_on(&near, "prey", "honest").await;

    // Rows of the sprite. Its visitors notice nothing, and its owner puts them right.
    let operators = Operators::new([operator.public().parse().unwrap()]);
    let now = thief.sprite(&name).await;
    assert_eq!((now.host, now.generation), (HostId(2), Generation(2)));
    for (what, forged) in thief.forgeries(&name, &now, &before) {
        thief.write(&SpriteRow::key(&name), Some(&forged.encode())).await;
        until(what, SOON, async || {
            is_on(&near, "prey", "honest").await;
            let row = thief.sprite(&name).await;
            (row.host == HostId(2) && row.check_proof(&name, None, &operators).is_ok()).then_some(())
        })
        .await;
        is_on(&near, "prey", "honest").await;
    }
    until("the edge to count them", SOON, async || (quarantined(&near).await > 0).then_some(())).await;

    // The owner's row in the registry, with the thief's keys in it: edges that begin anew have what they knew.
    let own: HostRow = thief.read("host/1").await;
    let theirs: HostRow = thief.read("host/2").await;
    let stolen = HostRow {
        wireguard_key: own.wireguard_key.clone(),
        endpoint: own.endpoint,
        address: own.address,
        spki_pins: own.spki_pins.clone(),
        ..theirs.clone()
    };
    let keys = vec![thief.key.public()];
    let rows = [
        HostRow { papers: None, ..stolen.clone() },
        renew(stolen.clone(), &thief.key),
        enrol(stolen, keys.clone(), false, theirs.papers.as_ref(), u64::from(u32::MAX), &thief.key),
    ];
    for row in rows {
        thief.write("host/2", Some(&row.encode())).await;
        assert_eq!(get(&near, "prey").await.status, 200);
    }
    thief.write("host/2", Some(&theirs.encode())).await;
    // And the rows of the PoPs: the host as an edge nobody has enrolled, in a row of its own and in that of another.
    let rogue_machine = Machine::pop("rogue", &sections).signed_by(&operator);
    std::fs::create_dir_all(rogue_machine.data().join("keys")).unwrap();
    for kind in ["key", "identity"] {
        let [from, to] = [&machines[0], &rogue_machine].map(|machine| machine.data().join("keys"));
        std::fs::copy(from.join(format!("host.{kind}")), to.join(format!("edge.{kind}"))).unwrap();
    }
    let rogue_keys = rogue_machine.fleet(&["keys"]).await;
    let printed = rogue_keys["as_pop"].as_str().unwrap().to_owned();
    let word = |after: &str| printed.split(' ').skip_while(|word| *word != after).nth(1).unwrap().to_owned();
    let wireguard: backhaul::keys::PublicKey = word("--key").parse().unwrap();
    let process = EdgeProcess {
        wireguard_key: wireguard.to_string(),
        address: wireguard.derived_address(),
        spki_pins: vec![word("--pin")],
    };
    let row =
        |name: &str| PopRow { version: ROW_VERSION, name: name.into(), processes: vec![process.clone()], papers: None };
    let true_pop: PopRow = thief.read("pop/near").await;
    for row in [
        row("rogue"),
        row("near"),
        enrol(row("rogue"), keys.clone(), false, None, u64::from(u32::MAX), &thief.key),
        renew(PopRow { processes: vec![process.clone()], ..true_pop.clone() }, &thief.key),
    ] {
        thief.write(&PopRow::key(&row.name), Some(&RegistryRow::encode(&row))).await;
    }
    // It knows where the sprite is, speaks to its host, and is not heard.
    let rogue = rogue_machine.start().await;
    says(&rogue, "prey", 503, "host_unreachable").await;
    is_on(&near, "prey", "honest").await;

    // Rows that vanish take nothing with them.
    for key in ["sprite/prey", "host/2", "pop/near"] {
        thief.write(key, None).await;
    }
    until("the edge to hold it", SOON, async || {
        (near.admin(&["status"]).await["store"]["held_removals"] == 1).then_some(())
    })
    .await;
    thief.write("sprite/prey", Some(&before.encode())).await;
    let data = near.leave().await;
    drop(data);
    let near = near_machine.start().await;
    serves(&near, "prey").await;
    is_on(&near, "prey", "honest").await;
    says(&rogue, "prey", 503, "host_unreachable").await;
    // The guest on the one is a script in the folder of the other.
    for machine in [near, rogue, honest, thief_host] {
        machine.stop().await;
    }
}

#[tokio::test]
async fn a_fleet_begins_to_sign_changes_its_operators_key_and_lets_machines_go_for_good() {
    let Some(nats) = Nats::start().await else { return };
    let sections = nats.sections();
    let (machine, pop) = (host("host-a", &sections), Machine::pop("near", &sections));
    enrol_host(&machine).await;
    let pop = enrolled_pop(pop).await;
    let (first, near) = (machine.start().await, pop.start().await);
    first.create_guest("old").await;
    serves(&near, "old").await;

    // Nobody has signed anything so far. Every machine is enrolled again, and what is there is signed as it stands.
    let (one, two) = (Operator::new().await, Operator::new().await);
    let (machine, pop) = (machine.signed_by(&one), pop.signed_by(&one));
    let said = machine.try_fleet(&["sign", "--all", "--unsigned"]).await;
    assert!(
        said.contains("not enrolled with a signing key") && said.contains("host/1: nobody who may has written it"),
        "{said}"
    );
    enrol_host(&machine).await;
    pop.enrol().await;
    assert!(machine.try_fleet(&["sign", "old"]).await.contains("nobody has signed it"));
    machine.fleet(&["sign", "--all", "--unsigned"]).await;
    first.stop().await;
    let first = machine.start().await;
    // A host says once more where it is, since the operator did not know.
    near.stop().await;
    let near = pop.start().await;
    serves(&near, "old").await;
    // What changes from now on is signed too.
    machine.fleet(&["place", "new", "--host", "host-a"]).await;
    first.create_guest("new").await;
    serves(&near, "new").await;
    first.admin(&["sprite", "access", "new", "private"]).await;
    says(&near, "new", 401, "unauthorized").await;
    assert_eq!(near.admin(&["status"]).await["store"]["quarantined"], 0);

    // Another key: signed with it first, then asked for alone.
    let (machine, pop) = (machine.signed_by_any(&two, &[&one, &two]), pop.signed_by_any(&two, &[&one, &two]));
    for (one, other) in [(first, &machine), (near, &pop)] {
        one.stop().await;
        other.start().await.stop().await;
    }
    machine.fleet(&["sign", "--all"]).await;
    let (machine, pop) = (machine.signed_by(&two), pop.signed_by(&two));
    let (first, near) = (machine.start().await, pop.start().await);
    serves(&near, "old").await;
    says(&near, "new", 401, "unauthorized").await;
    // A machine that knew nothing before has all from the store, by the new key alone.
    let stranger = enrolled_pop(Machine::pop("stranger", &sections).signed_by(&two)).await;
    let far = stranger.start().await;
    serves(&far, "old").await;
    assert_eq!(far.admin(&["status"]).await["store"]["quarantined"], 0);
    let said = pop.try_fleet(&["place", "old", "--host", "host-a"]).await;
    assert!(said.contains("old is on host-a already"), "{said}");

    // Its owner puts back what the new operator has signed, and not what it signed itself before.
    let store = NatsStore::connect(&nats.settings()).await.unwrap();
    let key = signing_file::load(&stranger.data().join("keys/edge.signing")).unwrap();
    let thief = Thief { store, key, number: HostId(0) };
    let name = SpriteName::parse("new").unwrap();
    let now = thief.sprite(&name).await;
    thief.write("sprite/new", Some(&SpriteRow { host: HostId(9), ..now }.encode())).await;
    let operators = Operators::new([two.public().parse().unwrap()]);
    until("the owner to put it right", SOON, async || {
        thief.sprite(&name).await.check_proof(&name, None, &operators).ok()
    })
    .await;

    // It is let go, and its old row does not bring it back.
    let row: PopRow = thief.read("pop/stranger").await;
    stranger.fleet(&["pop", "remove", "stranger"]).await;
    says(&far, "old", 503, "host_unreachable").await;
    assert_eq!(stranger.fleet(&["pop", "list"]).await.as_array().unwrap().len(), 1);
    for row in [row.clone(), renew(row, &thief.key)] {
        thief.write("pop/stranger", Some(&RegistryRow::encode(&row))).await;
    }
    says(&far, "old", 503, "host_unreachable").await;
    serves(&near, "old").await;
    // An operator may enrol it anew.
    stranger.enrol().await;
    serves(&far, "old").await;
    for machine in [near, far, first] {
        machine.stop().await;
    }
}
