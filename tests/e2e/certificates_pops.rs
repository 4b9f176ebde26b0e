//! Three PoPs and one CA: a PoP that hangs, a CA that has had enough, one that takes its time, and one PoP that asks for all.

use crate::certificates::{ISSUED, leaf, trusted};
use acme::ca::Window;
use acme::certificate::{CertRow, cert_key};
use harness::ca_proxy::{At, Endpoint, Extras, Fault, Told, When};
use harness::fleet::SUFFIX;
use harness::{CaFleet, until};
use std::time::{Duration, Instant, SystemTime};

/// From the moment a PoP hangs until the others serve all that is due (design: below 20 s).
const FAIL_OVER: Duration = Duration::from_secs(20);

/// Nothing is due for a day.
fn ahead(_: &[String], _: usize) -> Told {
    let (day, now) = (Duration::from_secs(86_400), SystemTime::now());
    Told { start: now + day, end: now + day * 2, retry_after: "21600".into() }
}

async fn started(extras: Extras, domains: &[String]) -> Option<CaFleet> {
    let mut fleet = CaFleet::start(extras).await?;
    fleet.lead_to(0, domains);
    for number in 0..3 {
        fleet.boot(number).await;
    }
    for number in 0..3 {
        trusted(fleet.pop(number), &fleet.roots, &format!("any.{SUFFIX}")).await;
    }
    Some(fleet)
}

/// Writes another window into a certificate's row, as its CA might have said it.
async fn tell(fleet: &CaFleet, id: &str, window: Window) {
    let key = cert_key(id, 1);
    until("the row to be written", ISSUED, async || {
        let found = fleet.store.get(&key).await.ok()??;
        let row: CertRow = serde_json::from_slice(&found.value).ok()?;
        // Not before the CA's own is there: it would be written over.
        row.window?;
        let row = CertRow { window: Some(window), ..row };
        fleet.store.compare_and_set(&key, Some(found.version), Some(&row.encode())).await.ok()
    })
    .await;
}

#[tokio::test]
async fn whatever_is_due_is_issued_in_time_while_a_pop_hangs() {
    let domains: Vec<_> = (0..6).map(|number| format!("due-{number}.example")).collect();
    let extras = Extras { renewal: Some(ahead), ..Extras::default() };
    let Some(fleet) = started(extras, &domains).await else { return };
    fleet.add_domains(0, &domains).await;
    // A name to ask for, a name in the order, and the id of the wish.
    let of_domain = |name: &String| (name.clone(), name.clone(), format!("domain.{name}"));
    let mut all: Vec<_> = domains.iter().map(of_domain).collect();
    all.push((format!("any.{SUFFIX}"), format!("*.{SUFFIX}"), format!("wild.first.{SUFFIX}")));
    let mut old = Vec::new();
    for (name, ..) in &all {
        old.push(trusted(fleet.pop(0), &fleet.roots, name).await);
    }

    // All are due at once, and each order is held where it is there for the CA and for nobody else.
    let hold = |(_, ordered, _): &(String, String, String)| {
        fleet.proxy.hold(At::both(Endpoint::NewOrder, ordered), 0, When::After)
    };
    let mut held: Vec<_> = all.iter().map(hold).collect();
    let due = Window { start: 1, end: 2, ask_again: u64::MAX };
    for (_, _, id) in &all {
        tell(&fleet, id, due).await;
    }
    let mut hangs = None;
    for held in &mut held {
        let seen = held.arrived("the order to be placed", ISSUED).await;
        assert!(seen.payload["replaces"].is_string(), "{seen:?}");
        hangs = hangs.or_else(|| Some(fleet.whose(&seen)));
    }
    let hangs = hangs.unwrap();
    fleet.pop(hangs).freeze();
    let since = Instant::now();
    let lives: Vec<_> = (0..3).filter(|number| *number != hangs).collect();
    fleet.lead_to(lives[0], &domains);
    held.into_iter().for_each(harness::ca_proxy::Held::release);

    let mut new = Vec::new();
    for ((name, ..), old) in all.iter().zip(&old) {
        let mut leaves = Vec::new();
        for number in &lives {
            let found = async || leaf(fleet.pop(*number), &fleet.roots, name).await.ok().filter(|leaf| leaf != old);
            leaves.push(until(&format!("another certificate of {name}"), ISSUED, found).await);
        }
        assert_eq!(leaves[0], leaves[1], "{name}");
        eprintln!("{name}: {:?}", since.elapsed());
        new.append(&mut leaves);
    }
    let failed_over = since.elapsed();

    // It comes back with all it believed, and does no harm.
    fleet.pop(hangs).thaw();
    for ((name, ..), new) in all.iter().zip(new.chunks(2)) {
        let found = async || leaf(fleet.pop(hangs), &fleet.roots, name).await.ok().filter(|leaf| *leaf == new[0]);
        until(&format!("the certificate of {name} where it hung"), ISSUED, found).await;
    }
    for (_, ordered, id) in &all {
        let placed = fleet.proxy.seen_of(Endpoint::NewOrder, ordered).len();
        assert!(placed <= 3, "{ordered}: {placed} orders for two certificates");
        assert!(fleet.value(&cert_key(id, 3)).await.is_none(), "{id}");
    }
    assert!(failed_over < FAIL_OVER, "{failed_over:?}");
    fleet.stop().await;
}

#[tokio::test]
async fn a_ca_that_has_had_enough_is_left_alone_by_every_pop_for_as_long_as_it_says() {
    let domains: Vec<_> = ["first.example", "second.example"].map(str::to_owned).into();
    let Some(fleet) = started(Extras::default(), &domains).await else { return };
    let wait = Duration::from_secs(8);
    let refusal = Fault::Refuse(429, "rateLimited", Some(wait.as_secs().to_string()));
    fleet.proxy.plan(At::both(Endpoint::NewOrder, &domains[0]), [refusal]);
    fleet.add_domains(0, &domains[..1]).await;
    let until_when = until("the gate to close", ISSUED, async || {
        String::from_utf8(fleet.value("gate/first").await?).ok()?.parse::<u64>().ok()
    })
    .await;
    // Whoever it falls to, it waits as well.
    fleet.add_domains(1, &domains[1..]).await;
    for name in &domains {
        for number in 0..3 {
            trusted(fleet.pop(number), &fleet.roots, name).await;
        }
    }
    let seen = fleet.proxy.seen();
    let refused = fleet.proxy.seen_of(Endpoint::NewOrder, &domains[0])[0].clone();
    let after = seen.iter().filter(|seen| seen.at > refused.at).map(|seen| seen.at - refused.at).min().unwrap();
    // Times of rows are whole seconds.
    assert!(after >= wait - Duration::from_secs(1), "asked after {after:?}");
    assert!(after < wait * 3, "asked after {after:?}");
    let closed = until_when - refused.time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!((7..=9).contains(&closed), "{closed}");
    assert_eq!(fleet.proxy.seen_of(Endpoint::NewOrder, &domains[0]).len(), 2);
    fleet.stop().await;
}

#[tokio::test]
async fn a_slow_ca_is_asked_by_one_pop_and_so_is_one_that_says_when_to_renew() {
    let domains = vec!["slow.example".to_owned()];
    let extras = Extras { renewal: Some(ahead), ..Extras::default() };
    let Some(fleet) = started(extras, &domains).await else { return };
    // Longer than a lease lasts that nobody writes.
    let slow = Fault::Slow(acme::lease::TAKE + Duration::from_secs(3));
    fleet.proxy.plan(At::both(Endpoint::NewOrder, &domains[0]), [slow]);
    fleet.add_domains(0, &domains).await;

    // It is time to ask about the wildcard again.
    let wildcard = format!("*.{SUFFIX}");
    let asked = || fleet.proxy.seen_of(Endpoint::RenewalInfo, &wildcard).len();
    until("the first question", ISSUED, async || (asked() == 1).then_some(())).await;
    let start = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 86_400;
    tell(&fleet, &format!("wild.first.{SUFFIX}"), Window { start, end: start + 1, ask_again: 0 }).await;
    until("the second question", ISSUED, async || (asked() == 2).then_some(())).await;

    trusted(fleet.pop(0), &fleet.roots, &domains[0]).await;
    assert_eq!(fleet.proxy.seen_of(Endpoint::NewOrder, &domains[0]).len(), 1, "one order");
    assert_eq!(asked(), 2, "one PoP asks");
    fleet.stop().await;
}
