//! The PoP that works on orders dies between any two words to its CA, and others finish what it began.

use crate::certificates::{ISSUED, leaf};
use acme::certificate::{CERT_PREFIX, CertRow};
use acme::order::ORDER_PREFIX;
use harness::ca_proxy::{At, Endpoint, Extras, Held, When};
use harness::fleet::SUFFIX;
use harness::store_gate::Side;
use harness::{CaFleet, until};
use std::time::{Duration, Instant};

/// From the death of a PoP until the others serve all that it was at (design: below 20 s).
const FAIL_OVER: Duration = Duration::from_secs(20);
/// Orders of one round: a PoP works on 16 at once, and two are not held as the others are.
const ROUND: usize = 14;
/// One that is not held, and shows what an order consists of.
const PLAIN: &str = "plain.example";

/// Where the PoP dies: in the order for a name, so many requests later, before or after the CA has acted.
struct Arrow {
    name: String,
    at: At,
    passes: usize,
    when: When,
}

/// The first request at each endpoint.
fn first_of_each() -> Vec<Arrow> {
    let endpoints = [
        (Endpoint::NewOrder, "order"),
        (Endpoint::Order, "look"),
        (Endpoint::Authorization, "names"),
        (Endpoint::Challenge, "ask"),
        (Endpoint::Finalize, "finalise"),
        (Endpoint::Certificate, "fetch"),
    ];
    let arrow = |(endpoint, word), when| {
        let name = format!("{}-{word}.example", if when == When::Before { "before" } else { "after" });
        Arrow { at: At::both(endpoint, &name), name, passes: 0, when }
    };
    endpoints.into_iter().flat_map(|one| [When::Before, When::After].map(|when| arrow(one, when))).collect()
}

/// Each request of an order.
fn every(requests: usize) -> Vec<Arrow> {
    let arrow = |passes, when| {
        let name = format!("{}-{passes}.example", if when == When::Before { "before" } else { "after" });
        Arrow { at: At::name(&name), name, passes, when }
    };
    (0..requests).flat_map(|passes| [When::Before, When::After].map(|when| arrow(passes, when))).collect()
}

/// The other two PoPs come up, then the first one is killed, and the CA finds these domains at the second: when that was.
async fn others_come_and_it_dies(fleet: &mut CaFleet, domains: &[String]) -> Instant {
    for number in [1, 2] {
        fleet.boot(number).await;
        let here = format!("here/pop-{number}");
        until("another PoP to be there", ISSUED, async || fleet.value(&here).await).await;
    }
    fleet.pops[0].take().unwrap().crash();
    let died = Instant::now();
    fleet.lead_to(1, domains);
    died
}

/// One PoP is held at all of these, and killed; how many requests an order is.
async fn round(arrows: &[Arrow]) -> Option<usize> {
    assert!(arrows.len() <= ROUND);
    let mut fleet = CaFleet::start(Extras::default()).await?;
    let proxy = &fleet.proxy;
    let mut held: Vec<Held> =
        arrows.iter().map(|arrow| proxy.hold(arrow.at.clone(), arrow.passes, arrow.when)).collect();
    // The wildcard's answers must be given to every PoP, of which one has just died.
    let wildcard = format!("*.{SUFFIX}");
    held.push(proxy.hold(At::both(Endpoint::NewOrder, &wildcard), 0, When::After));
    let mut domains: Vec<_> = arrows.iter().map(|arrow| arrow.name.clone()).collect();
    domains.push(PLAIN.into());
    fleet.lead_to(0, &domains);
    fleet.boot(0).await;
    fleet.add_domains(0, &domains).await;
    for held in &mut held {
        let seen = held.arrived("a request to be held", ISSUED).await;
        assert_eq!(fleet.whose(&seen), 0);
    }
    until("an order that is not held", ISSUED, async || leaf(fleet.pop(0), &fleet.roots, PLAIN).await.ok()).await;
    let requests = fleet.proxy.seen().iter().filter(|seen| seen.is_for(PLAIN)).count();
    let died = others_come_and_it_dies(&mut fleet, &domains).await;
    drop(held);
    domains.push(format!("any.{SUFFIX}"));
    for name in &domains {
        let mut leaves = Vec::new();
        for number in [1, 2] {
            // Whoever shows a certificate has its key.
            let found = async || leaf(fleet.pop(number), &fleet.roots, name).await.ok();
            leaves.push(until(&format!("{name} to be served by pop-{number}"), ISSUED, found).await);
        }
        assert_eq!(leaves[0], leaves[1], "{name}");
        eprintln!("{name}: {:?}", died.elapsed());
    }
    let failed_over = died.elapsed();

    let placed = |name: &str| fleet.proxy.seen_of(Endpoint::NewOrder, name).len();
    for arrow in arrows {
        // Only an order whose URL was never heard is placed again.
        let most = if placed(PLAIN) == 1 && is_of_the_order(arrow) { 2 } else { 1 };
        assert!(placed(&arrow.name) <= most, "{}: {} orders", arrow.name, placed(&arrow.name));
    }
    assert!(placed(&wildcard) <= 2, "{} orders", placed(&wildcard));
    let rows = fleet.store.scan(CERT_PREFIX).await.unwrap();
    assert_eq!(rows.len(), domains.len(), "one certificate each");
    let first = |value: &[u8]| serde_json::from_slice::<CertRow>(value).unwrap().generation == 1;
    assert!(rows.iter().all(|row| first(&row.value)));
    until("the rows of orders to go", ISSUED, async || {
        fleet.store.scan(ORDER_PREFIX).await.unwrap().is_empty().then_some(())
    })
    .await;
    assert!(failed_over < FAIL_OVER, "{failed_over:?}");
    fleet.stop().await;
    Some(requests)
}

/// Whether it is the order's URL that the dead PoP did not hear of.
fn is_of_the_order(arrow: &Arrow) -> bool {
    arrow.passes == 0 && (arrow.name.ends_with("-order.example") || arrow.name.ends_with("-0.example"))
}

#[tokio::test]
async fn whoever_is_left_finishes_what_a_dead_pop_was_at_wherever_it_died() {
    let Some(requests) = round(&first_of_each()).await else { return };
    if std::env::var_os("EDGE_PROXY_TEST_FULL").is_some_and(|full| full == "1") {
        for arrows in every(requests).chunks(ROUND) {
            round(arrows).await;
        }
    }
}

/// What an order writes, as [`PLAIN`] shows below: each arrow of its states, and no more.
const WRITES: usize = 10;

/// One PoP is cut off at each write of an order, each of another name, and killed.
async fn round_of_writes(side: Side) -> Option<()> {
    let mut fleet = CaFleet::start(Extras::default()).await?;
    let name = |passes| format!("write-{passes}.example");
    let mut domains: Vec<_> = (0..WRITES).map(name).collect();
    let cut: Vec<_> = (0..WRITES).map(|passes| fleet.gate.close(&name(passes), passes, side)).collect();
    domains.push(PLAIN.into());
    fleet.gate.watch(PLAIN);
    fleet.lead_to(0, &domains);
    fleet.boot(0).await;
    fleet.add_domains(0, &domains).await;
    for (passes, cut) in cut.into_iter().enumerate() {
        harness::within(&format!("write {passes}"), ISSUED, cut).await.unwrap();
    }
    until("an order that is not cut off", ISSUED, async || leaf(fleet.pop(0), &fleet.roots, PLAIN).await.ok()).await;
    until("its end", ISSUED, async || (fleet.gate.writes(PLAIN).len() >= WRITES).then_some(())).await;
    let died = others_come_and_it_dies(&mut fleet, &domains).await;
    fleet.proxy.open();
    for name in &domains {
        for number in [1, 2] {
            let found = async || leaf(fleet.pop(number), &fleet.roots, name).await.ok();
            until(&format!("{name} to be served by pop-{number}"), ISSUED, found).await;
        }
        eprintln!("{name}: {:?}", died.elapsed());
    }
    let failed_over = died.elapsed();
    let writes = fleet.gate.writes(PLAIN);
    assert_eq!(writes.len(), WRITES, "{writes:?}: no more than those it was cut off at");
    for (passes, name) in domains.iter().enumerate() {
        let orders = fleet.proxy.seen_of(Endpoint::NewOrder, name).len();
        // The write of the order's URL, which nobody has then.
        let most = if passes == 3 && side == Side::Before { 2 } else { 1 };
        assert_eq!(orders, most, "{name}");
    }
    let rows = fleet.store.scan(CERT_PREFIX).await.unwrap();
    let first = |value: &[u8]| serde_json::from_slice::<CertRow>(value).unwrap().generation == 1;
    assert!(rows.iter().all(|row| first(&row.value)), "one certificate each");
    // The last write takes the order's row away, and nobody needs that before the next look for such rows.
    let last = name(if side == Side::Before { WRITES - 1 } else { WRITES - 2 });
    let left = async || {
        let rows = fleet.store.scan(ORDER_PREFIX).await.unwrap();
        rows.into_iter().map(|row| row.key).collect::<Vec<_>>()
    };
    let may_stay = [format!("{ORDER_PREFIX}domain.{last}")];
    until("the rows of orders to go", ISSUED, async || {
        left().await.iter().all(|key| may_stay.contains(key)).then_some(())
    })
    .await;
    let explained = fleet.pop(1).admin(&["cert", "explain", &last]).await["certificates"][0]["explained"].clone();
    assert_eq!(explained["cause"], "served", "{explained}");
    assert!(failed_over < FAIL_OVER, "{failed_over:?}");
    fleet.stop().await;
    Some(())
}

#[tokio::test]
async fn an_order_that_was_cut_off_at_any_of_its_writes_is_finished() {
    if round_of_writes(Side::Before).await.is_none() {
        return;
    }
    if std::env::var_os("EDGE_PROXY_TEST_FULL").is_some_and(|full| full == "1") {
        round_of_writes(Side::After).await;
    }
}
