//! A worker host changes its WireGuard key and its certificate while visitors come all the time.

use crate::fleet::{enrol_host, enrolled_pop, get, host, serves};
use harness::Demo;
use harness::client::{VERSIONS, full};
use harness::fleet::{Machine, Operator};
use harness::nats::Nats;
use std::time::{Duration, Instant};

/// How long the old keys are good for here.
const OLD_FOR: Duration = Duration::from_secs(4);
/// Edges look at the row each second.
const LOOKED: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_host_changes_its_keys_and_no_request_is_lost() {
    let Some(nats) = Nats::start().await else { return };
    let (store, operator) = (nats.sections(), Operator::new().await);
    let machine = host("host-a", &store).signed_by(&operator);
    enrol_host(&machine).await;
    let pops = [
        enrolled_pop(Machine::pop("pop-a", &store).signed_by(&operator)).await,
        enrolled_pop(Machine::pop("pop-b", &store).signed_by(&operator)).await,
    ];
    let first = machine.start().await;
    let (near, far) = (pops[0].start().await, pops[1].start().await);
    machine.fleet(&["place", "steady", "--host", "host-a"]).await;
    first.create_guest("steady").await;
    for pop in [&near, &far] {
        serves(pop, "steady").await;
    }
    let key = async || machine.fleet(&["host", "list"]).await[0]["wireguard_key"].as_str().unwrap().to_owned();
    let over = std::cell::Cell::new(false);
    let visit = async |pop: &Demo, version| {
        let mut client = pop.connect(version, "steady").await;
        let mut served = 0_u32;
        while !over.get() {
            // What has a body is sent once: nobody tries it again.
            let request = pop.request(http::Method::POST, "steady", "/sha").body(full("body")).unwrap();
            let answer = client.send(request).await;
            assert_eq!(answer.status, 200, "{version:?}, request {served}: {answer:?}");
            served += 1;
        }
        served
    };
    let changes = async {
        let mut keys = vec![key().await];
        for _ in 0..2 {
            let old_for = format!("{}s", OLD_FOR.as_secs());
            let begins = async {
                let changed = first.admin(&["rotate-keys", "--old-for", &old_for]).await;
                assert_eq!(changed["old_for_s"], OLD_FOR.as_secs(), "{changed}");
                let changed = Instant::now();
                keys.push(key().await);
                tokio::time::sleep_until((changed + LOOKED).into()).await;
                assert_eq!(get(&near, "steady").await.status, 200);
                near.get("steady", "/release").await;
                changed
            };
            // An answer that began on the old keys ends on them.
            let (events, changed) = tokio::join!(near.get("steady", "/events"), begins);
            assert_eq!((events.status, events.text().matches("data:").count()), (200, 2), "{events:?}");
            // The old keys end by the clock, and with them whoever still went by them.
            tokio::time::sleep_until((changed + OLD_FOR + Duration::from_secs(1)).into()).await;
        }
        over.set(true);
        keys
    };
    let (keys, served, ..) = tokio::join!(
        changes,
        visit(&near, VERSIONS[0]),
        visit(&near, VERSIONS[1]),
        visit(&far, VERSIONS[0]),
        visit(&far, VERSIONS[1]),
    );
    assert!(served > 10, "{served}");
    assert!(keys[0] != keys[1] && keys[1] != keys[2], "{keys:?}");
    // The sprite has run through it all: one wake.
    assert_eq!(first.receipts("steady").await.len(), 1);

    // Its files are the keys its row names.
    first.crash();
    let first = machine.start().await;
    assert_eq!(key().await, keys[2]);
    for pop in [&near, &far] {
        serves(pop, "steady").await;
    }
    for machine in [near, far, first] {
        machine.stop().await;
    }
}
