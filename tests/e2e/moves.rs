//! Sprites move from host to host, and a host dies, while visitors at every edge ask all the time.
//!
//! What may fail, and nothing else: a request to a sprite on a host that was killed. Until its edge has noticed, such
//! a request may have reached the guest, so it ends (502 `sprite_reset`, 503 `host_unreachable`) and is never
//! sent again; from then on it is refused at once (503 `host_unreachable`), because only the table or the
//! owner's own word leads elsewhere (`wake.md` §4). Guests write down what reaches them: nothing twice.

mod load;

use harness::fleet::Machine;
use harness::late::Late;
use harness::nats::Nats;
use harness::{Demo, tools, until};
use load::{Load, Outcome};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// One machine's write reaches the others in milliseconds; a busy one is slow to look.
const SOON: Duration = Duration::from_secs(60);
/// How long a killed host is left dead (chosen: an edge that asks nothing new needs 7 s to notice).
const DEAD: Duration = Duration::from_secs(15);
/// How late the store's word is at the edges (chosen: three requests of a visitor), so that a move is always heard
/// from the host first.
const LATE: Duration = Duration::from_millis(300);
/// Later than anybody's patience.
const NEVER: Duration = Duration::from_secs(600);

/// A guest that writes down the body of each request before it answers.
const GUEST: &str = r#"
import os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Guest(BaseHTTPRequestHandler):
    protocol_version, wbufsize = "HTTP/1.1", 65536

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        os.write(log, body + b"\n")
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

class Server(ThreadingHTTPServer):
    request_queue_size = 128

log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
Server(("127.0.0.1", int(sys.argv[1])), Guest).serve_forever()
"#;

/// Copies a sprite's directory to the host of a name.
const HOOK: &str = r#"
set -e
to=$(cat "FOLDER/$SPRITE_TO")
rm -rf "$to/sprites/$SPRITE_NAME"
mkdir -p "$to/sprites"
cp -a "$SPRITE_DIRECTORY" "$to/sprites/"
"#;

struct Fleet {
    nats: Nats,
    folder: TempDir,
    machines: Vec<Machine>,
    hosts: Vec<Option<Demo>>,
}

impl Fleet {
    /// `count` hosts on a store of their own.
    async fn start(count: usize) -> Option<Self> {
        let (nats, folder) = (Nats::start().await?, tempfile::tempdir().unwrap());
        let hook = folder.path().join("hook");
        std::fs::write(&hook, HOOK.replace("FOLDER", folder.path().to_str().unwrap())).unwrap();
        std::fs::write(folder.path().join("guest.py"), GUEST).unwrap();
        let mut fleet = Self { nats, folder, machines: Vec::new(), hosts: Vec::new() };
        for number in 0..count {
            let line = format!("move_hook = \"sh {}\"\n", hook.display());
            let machine = Machine::enrolled_host(&host_name(number), &fleet.nats.sections(), &line).await;
            std::fs::write(fleet.folder.path().join(&machine.name), machine.data().to_str().unwrap()).unwrap();
            fleet.hosts.push(Some(machine.start().await));
            fleet.machines.push(machine);
        }
        Some(fleet)
    }

    /// `count` edges, with a switch of debug builds, and what can make the store's word late for them.
    async fn edges(&self, count: usize, switch: Option<&'static str>) -> (Vec<Arc<Demo>>, Late) {
        let server = self.nats.settings().servers[0].strip_prefix("nats://").unwrap().parse().unwrap();
        let late = Late::start(server).await;
        let store = format!("[store]\nengine = \"nats\"\n[store.nats]\nservers = [\"nats://{}\"]\n", late.address());
        let mut edges = Vec::new();
        for number in 0..count {
            let mut machine = Machine::enrolled_pop(&format!("pop-{number}"), &store).await;
            machine.switch = switch;
            edges.push(Arc::new(machine.start().await));
        }
        (edges, late)
    }

    fn host(&self, number: usize) -> &Demo {
        self.hosts[number].as_ref().expect("it lives")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("reached-{name}"))
    }

    async fn create(&self, name: &str, host: usize) {
        let python = tools::python(&[]).expect("python3 is installed");
        let (guest, log) = (self.folder.path().join("guest.py"), self.log(name));
        let command = format!("exec {} {} $PORT {}", python.display(), guest.display(), log.display());
        self.host(host).create(name, &command).await;
    }

    async fn give(&self, name: &str, from: usize, to: usize) -> Value {
        self.host(from).admin(&["sprite", "move", name, "--to", &host_name(to)]).await
    }

    /// How often each request reached a guest of the sprite.
    fn reached(&self, name: &str) -> Reached {
        Reached(std::fs::read_to_string(self.log(name)).unwrap_or_default().lines().map(str::to_owned).collect())
    }

    async fn stop(self) {
        for host in self.hosts.into_iter().flatten() {
            host.stop().await;
        }
    }
}

fn host_name(number: usize) -> String {
    format!("host-{number}")
}

struct Reached(Vec<String>);

impl Reached {
    fn times(&self, outcome: &Outcome) -> usize {
        self.0.iter().filter(|id| **id == outcome.id).count()
    }
}

/// Every one was answered by its guest, once.
fn all_served(fleet: &Fleet, outcomes: &[Outcome]) {
    for name in names(outcomes) {
        let reached = fleet.reached(&name);
        for outcome in outcomes.iter().filter(|outcome| outcome.sprite == name) {
            let times = reached.times(outcome);
            assert_eq!((outcome.status, outcome.text.as_str()), (200, outcome.id.as_str()), "{times} {outcome:?}");
            assert_eq!(times, 1, "{outcome:?}");
        }
    }
}

/// When each request began and how it fared, for who reads a failure.
fn timeline(outcomes: &[Outcome], since: Instant) -> String {
    let line = |outcome: &Outcome| {
        let began = outcome.began.saturating_duration_since(since).as_millis();
        let took = (outcome.ended - outcome.began).as_millis();
        let text: String = outcome.text.chars().take(40).collect();
        format!("\n{} +{began} ms, {took} ms: {} {text}", outcome.sprite, outcome.status)
    };
    outcomes.iter().map(line).collect()
}

fn names(outcomes: &[Outcome]) -> std::collections::BTreeSet<String> {
    outcomes.iter().map(|outcome| outcome.sprite.clone()).collect()
}

#[tokio::test]
async fn nothing_fails_that_reached_no_guest_while_sprites_move_and_a_host_dies() {
    let Some(mut fleet) = Fleet::start(3).await else { return };
    let (edges, late) = fleet.edges(3, None).await;
    let sprites = ["a0", "a1", "b0", "b1", "c0", "c1"];
    for (at, name) in sprites.iter().enumerate() {
        fleet.create(name, at / 2).await;
    }

    // Each sprite goes to the next host.
    let load = Load::start(&edges, &sprites);
    load.until_served(1).await;
    late.delay(LATE);
    for (at, name) in sprites.iter().enumerate() {
        let (from, to) = (at / 2, (at / 2 + 1) % 3);
        let moved = fleet.give(name, from, to).await;
        assert_eq!(moved["generation"], 2, "{moved}");
    }
    load.until_served(1).await;
    let outcomes = load.stop().await;
    all_served(&fleet, &outcomes);

    // b0 and b1 are on the last host, which dies; the others go on moving between the two that live.
    let load = Load::start(&edges, &sprites);
    load.until_served(1).await;
    let killed = Instant::now();
    fleet.hosts[2].take().expect("it lives").crash();
    for (name, from, to, generation) in [("a0", 1, 0, 3), ("c0", 0, 1, 3), ("a1", 1, 0, 3), ("c1", 0, 1, 3)] {
        let moved = fleet.give(name, from, to).await;
        assert_eq!(moved["generation"], generation, "{moved}");
    }
    tokio::time::sleep_until((killed + DEAD).into()).await;
    let restarted = Instant::now();
    fleet.hosts[2] = Some(fleet.machines[2].start().await);
    // From here on nothing fails any more.
    load.until_served(3).await;
    let back = load.until_served(1).await;
    let outcomes = load.stop().await;

    let (dead, alive): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|outcome| outcome.sprite.starts_with('b'));
    all_served(&fleet, &alive);
    let (before, rest): (Vec<_>, Vec<_>) = dead.into_iter().partition(|outcome| outcome.ended < killed);
    all_served(&fleet, &before);
    let (after, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(|outcome| outcome.began > back);
    all_served(&fleet, &after);
    let mut refused = 0;
    for name in ["b0", "b1"] {
        let reached = fleet.reached(name);
        for outcome in rest.iter().filter(|outcome| outcome.sprite == name) {
            let times = reached.times(outcome);
            match outcome.status {
                200 => assert_eq!(times, 1, "{outcome:?}"),
                502 => assert!(outcome.text.contains("sprite_reset") && times <= 1, "{outcome:?} {times}"),
                503 => assert!(outcome.text.contains("host_unreachable") && times <= 1, "{outcome:?} {times}"),
                _ => panic!("{outcome:?}"),
            }
            if outcome.began > killed && outcome.ended < restarted {
                assert_eq!(times, 0, "nobody was there: {outcome:?}");
                refused += usize::from(outcome.status == 503);
            }
        }
    }
    assert!(refused > 0, "nobody asked while it was dead: {}", timeline(&rest, killed));
    for edge in edges {
        Arc::into_inner(edge).expect("its visitors are gone").stop().await;
    }
    fleet.stop().await;
}

/// The mutation: edges that do not follow a host's word that a sprite has moved.
#[tokio::test]
async fn without_the_correction_of_stale_routes_the_same_moves_fail_requests() {
    let Some(fleet) = Fleet::start(2).await else { return };
    let (edges, late) = fleet.edges(1, Some("EDGE_PROXY_TEST_UNCORRECTED")).await;
    fleet.create("a0", 0).await;
    let load = Load::start(&edges, &["a0"]);
    load.until_served(1).await;
    late.delay(NEVER);
    fleet.give("a0", 0, 1).await;
    load.until_failed().await;
    let outcomes = load.stop().await;
    let reached = fleet.reached("a0");
    for outcome in outcomes.iter().filter(|outcome| outcome.status != 200) {
        assert!(outcome.status == 503 && outcome.text.contains("hop_budget"), "{outcome:?}");
        assert_eq!(reached.times(outcome), 0, "{outcome:?}");
    }
    for edge in edges {
        Arc::into_inner(edge).expect("its visitors are gone").stop().await;
    }
    fleet.stop().await;
}

#[tokio::test]
async fn an_edge_that_is_behind_follows_the_word_of_the_host_a_sprite_was_on() {
    let Some(fleet) = Fleet::start(2).await else { return };
    let (edges, late) = fleet.edges(1, None).await;
    let edge = &edges[0];
    fleet.create("a0", 0).await;
    let ask = async |id: &str| edge.post("a0", "/", id.to_owned()).await;
    assert_eq!(ask("1").await.status, 200);
    let explain = async || edge.admin(&["route", "explain", &edge.host("a0")]).await;
    assert_eq!((&explain().await["route"]["host_name"], &explain().await["hint"]), (&"host-0".into(), &Value::Null));

    // Its table hears of the move long after everybody's patience.
    late.delay(NEVER);
    fleet.give("a0", 0, 1).await;
    assert_eq!(ask("2").await.status, 200);
    let explained = explain().await;
    let (route, hint) = (&explained["route"], &explained["hint"]);
    assert_eq!((&route["host_name"], &route["generation"]), (&"host-0".into(), &1.into()), "{explained}");
    assert_eq!((&hint["host_name"], &hint["generation"]), (&"host-1".into(), &2.into()), "{explained}");
    assert!(hint["for_s"].as_u64().unwrap() < 30, "{explained}");
    assert!(explained["would"].as_str().unwrap().starts_with("forward at once to run "), "{explained}");

    // The store's own word ends the hint.
    late.delay(Duration::ZERO);
    until("the table to know of the move", SOON, async || {
        let explained = explain().await;
        (explained["route"]["host_name"] == "host-1" && explained["hint"].is_null()).then_some(())
    })
    .await;
    assert_eq!(ask("3").await.status, 200);
    assert_eq!(fleet.reached("a0").0, ["1", "2", "3"]);
    for edge in edges {
        Arc::into_inner(edge).expect("nobody else has it").stop().await;
    }
    fleet.stop().await;
}
