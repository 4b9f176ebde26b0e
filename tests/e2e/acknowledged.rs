//! What is made is reachable at every PoP when its maker is told so, and what is taken away is gone there.

use harness::etcd::Etcd;
use harness::fleet::Machine;
use harness::late::Late;
use harness::nats::Nats;
use harness::service::Service;
use harness::{Demo, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What one machine writes reaches the others in milliseconds; a busy one is slow to look.
const SOON: Duration = Duration::from_secs(30);
/// From the order to the first answer at each PoP (`design.md`).
const EVERYWHERE: Duration = Duration::from_millis(1_500);
/// How much later than the others the third PoP hears of the store.
const LATE: Duration = Duration::from_millis(400);

async fn create(host: &Demo, name: &str, driver: &Path) -> Value {
    host.admin(&["sprite", "create", name, "--public", "--driver", driver.to_str().unwrap()]).await
}

/// The first answer of each PoP, asked at this moment.
async fn first_answers(pops: &[Demo; 3], name: &str) -> [u16; 3] {
    let get = async |pop: &Demo| pop.get(name, "/").await.status;
    tokio::join!(get(&pops[0]), get(&pops[1]), get(&pops[2])).into()
}

/// Two hosts and three PoPs on a store; of the last one's server what it says can be made late.
async fn fleet(engine: &str, store: &str, server: &str) -> (Late, [Machine; 5], PathBuf, Service) {
    let (scheme, address) = server.split_once("://").unwrap();
    let late = Late::start(address.parse().unwrap()).await;
    let servers = format!("servers = [\"{scheme}://{}\"]", late.address());
    let far = format!("[store]\nengine = \"{engine}\"\n[store.{engine}]\n{servers}\n");
    let machines = [
        Machine::enrolled_host("host-a", store, "").await,
        Machine::enrolled_host("host-b", store, "").await,
        Machine::enrolled_pop("pop-a", store).await,
        Machine::enrolled_pop("pop-b", store).await,
        Machine::enrolled_pop("pop-c", &far).await,
    ];
    let service = Service::start().await;
    let driver = machines[0].data().join("driver.toml");
    std::fs::write(&driver, service.driver()).unwrap();
    (late, machines, driver, service)
}

async fn on_nats() -> Option<(Nats, (Late, [Machine; 5], PathBuf, Service))> {
    let nats = Nats::start().await?;
    let all = fleet("nats", &nats.sections(), &nats.settings().servers[0]).await;
    Some((nats, all))
}

#[tokio::test]
async fn what_is_made_is_found_at_every_pop_at_once_and_what_is_taken_away_is_gone() {
    let Some((_nats, all)) = on_nats().await else { return };
    found_and_gone(all).await;
}

#[tokio::test]
async fn on_etcd_what_is_made_is_found_at_every_pop_at_once_and_what_is_taken_away_is_gone() {
    let Some(etcd) = Etcd::start().await else { return };
    found_and_gone(fleet("etcd", &etcd.sections(), &etcd.settings().servers[0]).await).await;
}

async fn found_and_gone((late, machines, driver, _service): (Late, [Machine; 5], PathBuf, Service)) {
    let [a, b, ..] = &machines;
    let hosts = [a.start().await, b.start().await];
    let pops = [machines[2].start().await, machines[3].start().await, machines[4].start().await];

    let mut took = Vec::new();
    for (number, host) in hosts.iter().cycle().take(6).enumerate() {
        let (name, began) = (format!("made-{number}"), Instant::now());
        let made = create(host, &name, &driver).await;
        assert_eq!(made["unacknowledged"], json!([]), "{name}");
        assert_eq!(first_answers(&pops, &name).await, [200; 3], "{name}");
        took.push(began.elapsed());
    }
    // A busy machine may be slow now and then.
    took.sort_unstable();
    assert!(took[3] < EVERYWHERE, "{took:?}");

    // One PoP hears of it later than the others: its maker waits for that.
    late.delay(LATE);
    let began = Instant::now();
    let made = create(&hosts[0], "waited-for", &driver).await;
    assert_eq!(made["unacknowledged"], json!([]));
    assert!(began.elapsed() >= LATE);
    assert_eq!(first_answers(&pops, "waited-for").await, [200; 3]);

    // Who closes it is told when it is closed everywhere.
    let closed = hosts[0].admin(&["sprite", "access", "waited-for", "private"]).await;
    assert_eq!(closed["unacknowledged"], json!([]));
    assert_eq!(first_answers(&pops, "waited-for").await, [401; 3]);
    let deleted = hosts[1].admin(&["sprite", "delete", "made-1"]).await;
    assert_eq!(deleted["unacknowledged"], json!([]));
    assert_eq!(first_answers(&pops, "made-1").await, [410; 3]);
    for machine in pops.into_iter().chain(hosts) {
        machine.stop().await;
    }
}

#[tokio::test]
async fn a_pop_that_is_away_is_named_and_delays_no_more_than_a_second() {
    let Some((_nats, (_late, machines, driver, _service))) = on_nats().await else { return };
    let host = machines[0].start().await;
    let pops = [machines[2].start().await, machines[3].start().await, machines[4].start().await];
    assert_eq!(create(&host, "first", &driver).await["unacknowledged"], json!([]));

    let frozen = Pid::from_raw(pops[2].pid().cast_signed()).unwrap();
    kill_process(frozen, Signal::STOP).unwrap();
    let began = Instant::now();
    assert_eq!(create(&host, "second", &driver).await["unacknowledged"], json!(["pop-c"]));
    let waited = began.elapsed();
    assert!(waited >= Duration::from_secs(1) && waited < Duration::from_secs(5), "{waited:?}");
    assert_eq!(pops[0].get("second", "/").await.status, 200);
    // It is waited for once.
    assert_eq!(create(&host, "third", &driver).await["unacknowledged"], json!(["pop-c"]));
    kill_process(frozen, Signal::CONT).unwrap();
    for name in ["second", "third"] {
        let found = async || (pops[2].get(name, "/").await.status == 200).then_some(());
        until("the edge that was away to know it", SOON, found).await;
    }
    // And from then on it is one of them.
    let mut number = 0;
    until("the edge that was away to be waited for", SOON, async || {
        number += 1;
        let made = create(&host, &format!("again-{number}"), &driver).await;
        (made["unacknowledged"] == json!([])).then_some(())
    })
    .await;

    // One that was removed is nobody's business.
    let [near, far, gone] = pops;
    gone.crash();
    let removed = machines[4].fleet(&["pop", "remove", "pop-c"]).await;
    assert!(removed.is_object(), "{removed}");
    until("the host to know of the removal", SOON, async || {
        number += 1;
        let made = create(&host, &format!("again-{number}"), &driver).await;
        (made["unacknowledged"] == json!([])).then_some(())
    })
    .await;
    for machine in [near, far, host] {
        machine.stop().await;
    }
}
