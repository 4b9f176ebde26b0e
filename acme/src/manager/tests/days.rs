//! Forty-five days of many names, in virtual time: CAs that keep Let's Encrypt's limits and are away for days, windows that
//! are moved, managers that come and go. No limit is ever reached, and no certificate ends.

use super::{Fleet, HOUR, START, wish};
use crate::ca::{Class, Kind, Problem};
use crate::certificate::{CERT_PREFIX, CertRow, cert_key, sealed_as};
use crate::limits::Limits;
use crate::manager::Wish;
use crate::order::DAY;
use crate::order::sim::limits::Counted;
use crate::rows::Rows;
use crate::seal::Sealer;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use std::collections::BTreeMap;

const CAS: [&str; 2] = ["sim", "second"];
const DAYS: u64 = 45;
/// The share of the names in a row that have one registered domain: more than it may have certificates of in a week.
const OF_ONE_DOMAIN: usize = 60;

/// A certificate that was there before.
async fn issued_before(fleet: &Fleet, sealer: &Sealer, wish: &Wish, at: u64) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(wish.names.clone()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).unwrap();
    let ca = fleet.world.ca(&wish.cas[0].0);
    let (chain, issued) = {
        let mut state = ca.state.lock().unwrap();
        let (chain, _) = ca.sign(&mut state, request.der(), at);
        let leaf = crate::order::verify::leaf(&chain).unwrap();
        let issued = state.issued[&leaf].clone();
        (chain, issued)
    };
    let sealed = sealer.seal(&sealed_as(&wish.id), 1, &key.serialize_der()).unwrap();
    let row = CertRow {
        names: wish.names.clone(),
        ca: wish.cas[0].0.clone(),
        generation: 1,
        chain,
        sealed_key: STANDARD.encode(sealed),
        not_before: issued.not_before,
        not_after: issued.not_after,
        issued_at: at,
        ari: Some(issued.id),
        window: None,
        compromised: false,
        renew_asked: None,
        revocation: None,
    };
    fleet.world.rows.compare_and_set(&cert_key(&wish.id, 1), None, Some(&row.encode())).await.unwrap();
}

/// `count` names of customers, some of them under one domain, and wildcards of two CAs.
fn there_before(count: usize) -> Vec<Wish> {
    let name = |number: usize| match number % 10 {
        0 => format!("s{number}.platform{}.example", number / 10 / OF_ONE_DOMAIN),
        _ => format!("shop{number}.example"),
    };
    let customs = (0..count).map(|number| wish(&name(number), &CAS));
    let ours = (0..count.div_ceil(100)).flat_map(|number| {
        CAS.map(|ca| Wish {
            id: format!("wild.{ca}.r{number}.test"),
            names: vec![format!("*.r{number}.test"), format!("r{number}.test")],
            kind: Kind::Dns01,
            tenant: String::new(),
            cas: vec![(ca.to_owned(), String::new())],
        })
    });
    ours.chain(customs).collect()
}

/// No certificate has ended before the next one was there; how many there are of each generation.
async fn none_has_ended(fleet: &Fleet) -> BTreeMap<u64, usize> {
    let (now, mut last, mut newest) = (fleet.clock.now(), BTreeMap::new(), BTreeMap::new());
    for row in fleet.world.rows.scan(CERT_PREFIX).await.unwrap() {
        let (id, generation) = crate::certificate::parse_cert_key(&row.key).unwrap();
        let row: CertRow = serde_json::from_slice(&row.value).unwrap();
        newest.insert(id.to_owned(), generation);
        if let Some(ends) = last.insert(id.to_owned(), row.not_after) {
            assert!(row.issued_at < ends, "{id}: {} s late", row.issued_at - ends);
        }
    }
    let ended: Vec<_> = last.iter().filter(|(_, ends)| **ends <= now).collect();
    assert!(ended.is_empty(), "{ended:?}");
    // Older ones than the last two were taken away, and have been there.
    let mut counts = BTreeMap::new();
    for generation in newest.into_values().flat_map(|newest| 1..=newest) {
        *counts.entry(generation).or_default() += 1;
    }
    counts
}

/// Three managers, of which one or two die now and then and come back after a while.
async fn come_and_go(fleet: &Fleet, mut random: SmallRng) {
    let mut alive = Vec::new();
    for starts in 0.. {
        while alive.len() < 3 {
            alive.push(fleet.manager(&format!("pop-{starts}-{}", alive.len())).await);
            fleet.pass(random.random_range(0..HOUR)).await;
        }
        fleet.pass(random.random_range(DAY / 2..3 * DAY)).await;
        for _ in 0..random.random_range(1..=3) {
            drop(alive.swap_remove(random.random_range(0..alive.len())));
        }
        fleet.pass(random.random_range(0..6 * HOUR)).await;
    }
}

/// What befalls the CAs.
async fn befalls(fleet: &Fleet) {
    let away = |ca: &str, away: bool| {
        let down = away.then(|| Problem::new(Class::Unavailable, "out of order"));
        fleet.world.ca(ca).state.lock().unwrap().down = down;
    };
    fleet.until(START + 8 * DAY).await;
    away("sim", true);
    fleet.until(START + 10 * DAY).await;
    away("sim", false);
    fleet.until(START + 15 * DAY).await;
    // A fifth of what is out is to be renewed now.
    fleet.ca().state.lock().unwrap().says = Box::new(|issued| {
        let third = (issued.not_after - issued.not_before) / 3;
        let revoked = issued.not_before < START + 15 * DAY && issued.id.bytes().map(u64::from).sum::<u64>() % 5 == 0;
        match revoked {
            true => (START + 14 * DAY, START + 14 * DAY + 1),
            false => (issued.not_after - third - DAY, issued.not_after - third + DAY),
        }
    });
    fleet.until(START + 20 * DAY).await;
    away("second", true);
    fleet.until(START + 22 * DAY).await;
    away("second", false);
    fleet.until(START + 30 * DAY).await;
    away("sim", true);
    fleet.until(START + 31 * DAY).await;
    away("sim", false);
    std::future::pending().await
}

async fn play(count: usize, seed: u64, ask_again: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let before = there_before(count);
    let fleet = Fleet::new(before.clone());
    fleet.world.add_ca("second");
    *fleet.world.limits.lock().unwrap() = CAS.map(|ca| (ca.to_owned(), Limits::LETS_ENCRYPT)).to_vec();
    for ca in CAS {
        let ca = fleet.world.ca(ca);
        let mut state = ca.state.lock().unwrap();
        (state.limits, state.notes) = (Some(Counted::default()), false);
    }
    // The second one has no renewal information.
    fleet.ca().state.lock().unwrap().ari = Some(ask_again);
    let sealer = fleet.world.process().await.sealer;
    for wish in &before {
        issued_before(&fleet, &sealer, wish, START - random.random_range(0..29 * DAY)).await;
    }
    // On the third day many come at once, and some of them have pointed nothing here.
    let arrived = START + 3 * DAY;
    let new: Vec<_> = (0..320 + count / 20).map(|number| wish(&format!("new{number}.example"), &CAS)).collect();
    let of_one = (0..OF_ONE_DOMAIN).map(|number| wish(&format!("t{number}.tower.example"), &CAS));
    let never: Vec<_> = (0..10).map(|number| wish(&format!("never{number}.example"), &CAS[..1])).collect();
    for name in never.iter().flat_map(|wish| &wish.names) {
        fleet.ca().state.lock().unwrap().unproved.insert(name.clone());
    }
    let all: Vec<_> = before.iter().cloned().chain(never).chain(of_one).chain(new.clone()).collect();
    let story = async {
        fleet.until(arrived).await;
        fleet.tables.set(all);
        fleet.until(START + DAYS * DAY).await;
    };
    tokio::select! {
        () = story => {}
        () = come_and_go(&fleet, random) => {}
        () = befalls(&fleet) => {}
    }
    let counts = none_has_ended(&fleet).await;
    // All but those that point nowhere have one.
    let wanted = before.len() + new.len() + OF_ONE_DOMAIN;
    let held = fleet.world.rows.scan(crate::order::ORDER_PREFIX).await.unwrap().len();
    assert_eq!(counts[&1], wanted, "seed {seed}, {held} orders open");
    assert!(counts.get(&2).is_some_and(|count| *count >= before.len()), "seed {seed}: {counts:?}");
    let mut told = Vec::new();
    for ca in CAS {
        let ca = fleet.world.ca(ca);
        let state = ca.state.lock().unwrap();
        let limits = state.limits.as_ref().unwrap();
        assert_eq!(limits.refused, [], "seed {seed}");
        told.push((limits.counted, limits.exempt));
    }
    assert!(told[0].1 > before.len() * 3 / 4, "{told:?}");
    eprintln!("{count} names, seed {seed}: certificates by generation {counts:?}; orders counted and exempt {told:?}");
}

#[tokio::test(start_paused = true)]
async fn in_forty_five_days_no_limit_is_reached_and_no_certificate_ends() {
    let full = std::env::var_os("EDGE_PROXY_TEST_FULL").is_some_and(|full| full == "1");
    // In a debug build a poll takes 40 µs, and there are three managers to each name.
    play(100, 0, DAY).await;
    if full {
        for seed in 1..10 {
            play(100, seed, DAY).await;
        }
        play(10_000, 10, 12 * HOUR).await;
    }
}

/// A wave of new names; what the CA refused, and how many have a certificate after six hours.
async fn wave(limits: Limits) -> (usize, usize) {
    let wishes: Vec<_> = (0..500).map(|number| wish(&format!("new{number}.example"), &CAS[..1])).collect();
    let fleet = Fleet::new(wishes.clone());
    *fleet.world.limits.lock().unwrap() = vec![("sim".to_owned(), limits)];
    fleet.ca().state.lock().unwrap().limits = Some(Counted::default());
    let _managers = (fleet.manager("a").await, fleet.manager("b").await);
    fleet.pass(6 * HOUR).await;
    let issued = wishes.iter().filter(|wish| fleet.newest(&wish.id).is_some()).count();
    let refused = fleet.ca().state.lock().unwrap().limits.as_ref().unwrap().refused.len();
    (refused, issued)
}

#[tokio::test(start_paused = true)]
async fn without_limits_of_our_own_the_ca_refuses_and_with_them_it_never_has_to() {
    let (refused, _) = wave(Limits::NONE).await;
    assert!(refused > 0);
    let (refused, issued) = wave(Limits::LETS_ENCRYPT).await;
    assert_eq!((refused, issued), (0, 500));
}

#[tokio::test(start_paused = true)]
async fn an_order_that_is_held_back_says_by_which_limit_and_until_when() {
    let wishes: Vec<_> = (0..280).map(|number| wish(&format!("new{number}.example"), &CAS[..1])).collect();
    let fleet = Fleet::new(wishes);
    *fleet.world.limits.lock().unwrap() = vec![("sim".to_owned(), Limits::LETS_ENCRYPT)];
    let manager = fleet.manager("a").await;
    fleet.pass(30).await;
    let open = fleet.world.rows.scan(crate::order::ORDER_PREFIX).await.unwrap();
    assert_eq!(open.len(), 10);
    let row: crate::order::OrderRow = serde_json::from_slice(&open[9].value).unwrap();
    let problem = row.last_problem.unwrap();
    assert_eq!((problem.class, row.failures, row.failures_here), (Class::Held, 0, 0));
    assert!(problem.detail.contains("limit/sim/orders is used up; at the earliest at Fri, 15 Jan 2027"), "{problem}");
    // They cost no more than one of them: each of the others waits in a queue.
    let versions = |rows: Vec<crate::rows::Row>| rows.into_iter().map(|row| row.version).collect::<Vec<_>>();
    let before = versions(open);
    fleet.pass(45).await;
    let after = versions(fleet.world.rows.scan(crate::order::ORDER_PREFIX).await.unwrap());
    assert!(after.iter().filter(|version| !before.contains(version)).count() <= 2, "{before:?} {after:?}");
    fleet.pass(HOUR).await;
    assert_eq!(fleet.world.rows.scan(crate::order::ORDER_PREFIX).await.unwrap().len(), 0);
    // What is full again is taken away.
    assert!(!fleet.world.rows.scan("limit/").await.unwrap().is_empty());
    fleet.pass(60 * DAY).await;
    let left = fleet.world.rows.scan("limit/").await.unwrap();
    let all_fresh = left.iter().all(|row| {
        let bucket: crate::limits::Bucket = serde_json::from_slice(&row.value).unwrap();
        bucket.full_at + DAY > fleet.clock.now()
    });
    assert!(all_fresh);
    drop(manager);
}
