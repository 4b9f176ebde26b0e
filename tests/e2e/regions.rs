//! An edge of a fleet with several regions: it follows a store of each, writes to its own, and serves the sprites of all.

use harness::cluster::addresses;
use harness::fleet::Machine;
use harness::nats::Nats;
use harness::{Demo, until};
use router::access::Access;
use router::names::SpriteName;
use router::placement::Proof;
use router::route::{Generation, HostId};
use router::rows::{ROW_VERSION, SpriteRow};
use router::store::Engine;
use router::store::nats::NatsStore;
use router::wake::WakeRules;
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;

/// What one machine writes reaches the others in milliseconds; a busy one is slow to look.
const SOON: Duration = Duration::from_secs(30);
const LISTEN: &str = "[backhaul]\nlisten = \"127.0.0.1:0\"\n";

/// A region: a machine that keeps its store, and a worker host.
struct Region {
    name: &'static str,
    serve: SocketAddr,
    pin: String,
    keeper: Machine,
    host: Machine,
}

/// The word after another one.
fn after<'a>(text: &'a str, word: &str) -> &'a str {
    text.split(' ').skip_while(|next| *next != word).nth(1).unwrap()
}

impl Region {
    async fn new(name: &'static str, serve: SocketAddr, number: u32) -> Self {
        let keeper = Machine::pop(&format!("keeper-{name}"), &format!("[store.embedded]\nserve = \"{serve}\"\n"));
        let pin = after(keeper.fleet(&["keys"]).await["as_pop"].as_str().unwrap(), "--pin").to_owned();
        let host = format!("host-{name}");
        let sections = format!("[store]\n{}{LISTEN}", store(serve, &pin, "\n"));
        let region = Self { name, serve, pin, keeper, host: Machine::host(&host, &sections) };
        let keys = region.host.keys_with_endpoint().await;
        let (key, pin) = (after(&keys, "--key"), after(&keys, "--pin"));
        let add = ["host", "add", &host, "--key", key, "--pin", pin, "--endpoint", "127.0.0.1:9"];
        region.keeper.fleet(&[&add[..], &["--number", &number.to_string()]].concat()).await;
        region
    }

    /// For an edge whose region it is.
    fn as_own(&self) -> String {
        format!("[store]\n{}", store(self.serve, &self.pin, "\n"))
    }

    /// For one whose region it is not.
    fn as_other(&self) -> String {
        format!("[[region]]\nname = {:?}\nstore = {{ {} }}\n", self.name, store(self.serve, &self.pin, ", "))
    }

    async fn enrol(&self, pop: &Machine) {
        let keys = pop.fleet(&["keys"]).await;
        let keys = keys["as_pop"].as_str().unwrap().to_owned();
        let add = ["pop", "add", &pop.name, "--key", after(&keys, "--key"), "--pin", after(&keys, "--pin")];
        self.keeper.fleet(&add).await;
    }
}

fn store(serve: SocketAddr, pin: &str, between: &str) -> String {
    let end = if between == "\n" { "\n" } else { "" };
    format!("engine = \"primary\"{between}primary = {{ server = \"{serve}\", pin = \"{pin}\" }}{end}")
}

async fn answers(pop: &Demo, name: &str, status: u16) {
    until(&format!("{name} to be answered {status}"), SOON, async || {
        (pop.get(name, "/page").await.status == status).then_some(())
    })
    .await;
}

async fn explained(pop: &Demo, name: &str) -> Value {
    pop.admin(&["route", "explain", &pop.host(name)]).await
}

/// What `status` says of a region.
async fn region_of(pop: &Demo, name: &str) -> Value {
    let status = pop.admin(&["status"]).await;
    status["regions"].as_array().unwrap().iter().find(|region| region["name"] == name).unwrap().clone()
}

#[tokio::test]
async fn an_edge_serves_every_regions_sprites_and_goes_on_without_a_regions_store() {
    let [fra, ams] = addresses(2)[..] else { unreachable!("two") };
    let (fra, ams) = (Region::new("fra", fra, 1).await, Region::new("ams", ams, 21).await);
    let machine = Machine::pop("pop-fra", &format!("{}{}", fra.as_own(), ams.as_other())).with("region = \"fra\"\n");
    for region in [&fra, &ams] {
        region.enrol(&machine).await;
    }
    let (fra_store, ams_store) = (fra.keeper.start().await, ams.keeper.start().await);
    let (near, far) = (fra.host.start().await, ams.host.start().await);
    near.create_guest("here").await;
    far.create_guest("there").await;
    let pop = machine.start().await;
    for name in ["here", "there"] {
        answers(&pop, name, 200).await;
    }
    answers(&pop, "nowhere", 404).await;
    let there = explained(&pop, "there").await;
    let route = (&there["route"]["region"], &there["route"]["host_name"]);
    assert_eq!(route, (&"ams".into(), &"host-ams".into()), "{there}");
    assert_eq!(explained(&pop, "here").await["route"]["region"], "fra");
    let metrics = pop.try_admin(&["metrics"]).await;
    let metrics = String::from_utf8(metrics.stdout).unwrap();
    for line in
        ["region_synced{region=\"ams\"} 1", "region_synced{region=\"fra\"} 1", "region_routes{region=\"ams\"} 1"]
    {
        assert!(metrics.contains(line), "{metrics}");
    }

    // What vanished is let go of by region; the own one when none is named.
    for (named, region) in [(&["--region", "ams"][..], "ams"), (&[], "fra")] {
        let accepted = pop.admin(&[&["accept-removals"], named].concat()).await;
        assert_eq!(accepted, serde_json::json!({ "accepted": 0, "region": region }));
    }
    assert!(!pop.try_admin(&["accept-removals", "--region", "lhr"]).await.status.success());

    // One that both have under the same generation is the own region's; made again in the other one it is led there.
    near.create_guest("nomad").await;
    answers(&pop, "nomad", 200).await;
    far.create_guest("nomad").await;
    let both = until("both regions' word", SOON, async || {
        let both = explained(&pop, "nomad").await;
        (both["regions"][1]["generation"] == 1).then_some(both)
    })
    .await;
    assert_eq!((&both["route"]["region"], &both["route"]["generation"]), (&"fra".into(), &1.into()), "{both}");
    far.admin(&["sprite", "delete", "nomad"]).await;
    far.create_guest("nomad").await;
    until("the higher generation to count", SOON, async || {
        let route = explained(&pop, "nomad").await["route"].take();
        (route["region"] == "ams" && route["deleted"] == false).then_some(())
    })
    .await;
    answers(&pop, "nomad", 200).await;
    assert_eq!((near.receipts("nomad").await.len(), far.receipts("nomad").await.len()), (1, 1), "each served once");

    // The other region's store is away: what it said is served on, and the own one's word is heard as ever.
    ams_store.crash();
    until("its silence to be noticed", SOON, async || region_of(&pop, "ams").await["stale_s"].is_u64().then_some(()))
        .await;
    assert!(region_of(&pop, "fra").await["stale_s"].is_null());
    near.create_guest("later").await;
    for name in ["there", "nomad", "later"] {
        answers(&pop, name, 200).await;
    }

    // A start without it: what the last run knew of it is there, and what nobody knows may be there.
    pop.stop().await;
    let pop = machine.start().await;
    for name in ["here", "there", "nomad"] {
        assert_eq!(pop.get(name, "/page").await.status, 200, "{name}");
    }
    assert_eq!(explained(&pop, "there").await["route"]["region"], "ams");
    answers(&pop, "nowhere", 503).await;
    until("its own store to be read", SOON, async || (pop.admin(&["status"]).await["synced"] == true).then_some(()))
        .await;
    assert_eq!(region_of(&pop, "ams").await["synced"], false);
    let ams_store = ams.keeper.start().await;
    answers(&pop, "nowhere", 404).await;
    for machine in [pop, near, far, fra_store, ams_store] {
        machine.stop().await;
    }
}

/// The regions `fra` and `ams` as two buckets: as the own store, and as another region's.
fn bucket(nats: &Nats, name: &str) -> (String, String) {
    let servers = nats.settings().servers;
    let own = format!("{}bucket = {name:?}\ncreate = true\n", nats.sections());
    let other = format!(
        "[[region]]\nname = {name:?}\n[region.store]\nengine = \"nats\"\n[region.store.nats]\nservers = {servers:?}\n\
         bucket = {name:?}\n"
    );
    (own, other)
}

/// A sprite on host 1.
fn row() -> SpriteRow {
    SpriteRow {
        version: ROW_VERSION,
        tenant: "t".into(),
        generation: Generation(1),
        host: HostId(1),
        ports: Vec::new(),
        access: Access::Public,
        wake: WakeRules::default(),
        client_certificate: None,
        deleted: false,
        proof: Proof::default(),
    }
}

#[tokio::test]
async fn hosts_let_in_other_regions_edges_and_a_number_is_one_regions() {
    let Some(nats) = Nats::start().await else { return };
    let ((fra, to_fra), (ams, to_ams)) = (bucket(&nats, "fra"), bucket(&nats, "ams"));
    let region = |name: &str| format!("region = {name:?}\n");
    let near = Machine::enrolled_host("host-fra", &fra, &region("fra")).await;
    // Numbered beyond every host of both regions.
    let far = Machine::enrolled_host("host-ams", &format!("{ams}{to_fra}"), &region("ams")).await;
    let pop = Machine::pop("pop-fra", &format!("{fra}{to_ams}")).with(&region("fra"));
    pop.enrol().await;
    let listed = pop.fleet(&["host", "list"]).await;
    let shown =
        |at: usize| (listed[at]["number"].clone(), listed[at]["region"].clone(), listed[at]["overruled_by"].clone());
    assert_eq!(shown(0), (1.into(), "fra".into(), Value::Null), "{listed}");
    assert_eq!(shown(1), (2.into(), "ams".into(), Value::Null), "{listed}");
    let (first, second, edge) = (near.start().await, far.start().await, pop.start().await);
    first.create_guest("here").await;
    second.create_guest("there").await;
    for name in ["here", "there"] {
        answers(&edge, name, 200).await;
    }

    // Its host waits for the word of the other region's edge too, and hears it.
    let command = second.guest_command();
    let made = second.admin(&["sprite", "create", "known", "--public", "--command", &command]).await;
    assert_eq!(made["unacknowledged"], serde_json::json!([]), "{made}");

    // Who asks both regions takes no other one's number; who asks his own alone gets no other one's host.
    let keys = far.keys_with_endpoint().await;
    let pin = after(&keys, "--pin");
    let key = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    let thief = ["host", "add", "thief", "--key", key, "--pin", pin, "--endpoint", "127.0.0.1:9", "--number", "1"];
    assert!(far.try_fleet(&thief).await.contains("1 is another host's"));
    Machine::pop("operator", &ams).fleet(&thief).await;
    until("the claim to be seen", SOON, async || {
        (region_of(&edge, "ams").await["overruled_hosts"] == serde_json::json!([1])).then_some(())
    })
    .await;
    let listed = pop.fleet(&["host", "list"]).await;
    let claims = listed.as_array().unwrap().iter().find(|row| row["name"] == "thief").unwrap();
    assert_eq!((&claims["region"], &claims["overruled_by"]), (&"ams".into(), &"fra".into()), "{listed}");
    assert!(edge.log().contains("it does not count"));
    // A route of that region to that number leads to a machine which has never heard of it.
    let config = config::NatsStore { bucket: "ams".into(), ..nats.settings() };
    let bucket = NatsStore::connect(&config).await.unwrap();
    let stray = SpriteName::parse("stray").unwrap();
    bucket.compare_and_set(&SpriteRow::key(&stray), None, Some(&row().encode())).await.unwrap();
    let would = until("the route to be known", SOON, async || {
        let explained = explained(&edge, "stray").await;
        explained["route"].is_object().then(|| explained["would"].as_str().unwrap().to_owned())
    })
    .await;
    assert!(would.contains("host 1, which is another machine than host 1 of ams"), "{would}");
    assert_eq!(edge.get("stray", "/page").await.status, 503);
    first.sleep_cold("here").await;
    answers(&edge, "here", 200).await;
    for machine in [edge, first, second] {
        machine.stop().await;
    }
}
