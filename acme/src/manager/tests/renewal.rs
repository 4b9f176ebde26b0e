//! When certificates are renewed.

use super::{Fleet, HOUR, START, wish};
use crate::ca::Kind;
use crate::certificate::{CERT_PREFIX, CertRow, cert_key};
use crate::manager::Manager;
use crate::order::issue::order_key;
use crate::order::sim::ca::Call;
use crate::order::{DAY, OrderRow};
use crate::rows::Rows;
use std::sync::Arc;

const ID: &str = "domain.shop.example";

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_at_its_due_point_where_the_ca_has_no_renewal_information() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
    let _manager = fleet.manager("a").await;
    while fleet.newest(ID).is_none() {
        fleet.pass(1).await;
    }
    // As a table tells of what it hears.
    fleet.tables.hears_of(ID);
    fleet.until(START + 60).await;
    let first = fleet.newest(ID).expect("no certificate after a minute");
    let due = first.due(ID);
    assert!((START + 28 * DAY..START + 30 * DAY + 60).contains(&due), "{}", due - START);
    fleet.until(due - 5).await;
    assert_eq!(fleet.newest(ID).unwrap().generation, 1);
    fleet.pass(30).await;
    let second = fleet.newest(ID).unwrap();
    assert_eq!(second.generation, 2);
    assert!((due..due + 10).contains(&second.issued_at), "{}", second.issued_at - due);
    // A CA that has heard of no windows is told of nothing it would not know, and is asked twice a day.
    let state = fleet.ca();
    let replaces = |call: &Call| matches!(call, Call::Order { replaces: Some(_), .. });
    assert!(state.asked(replaces).is_empty());
    let asked = state.asked(|call| matches!(call, Call::Window(_)));
    let gaps: Vec<_> = asked.windows(2).map(|two| two[1] - two[0]).collect();
    assert!((55..62).contains(&asked.len()), "{asked:?}");
    // The last one is of the new certificate.
    assert!(gaps[..gaps.len() - 1].iter().all(|gap| (12 * HOUR..12 * HOUR + 10).contains(gap)), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn a_window_is_asked_for_heeded_and_asked_for_again_when_the_ca_says() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
    let ca = fleet.ca();
    ca.state.lock().unwrap().ari = Some(6 * HOUR);
    let (start, end) = (START + 10 * DAY, START + 11 * DAY);
    ca.state.lock().unwrap().says = Box::new(move |_| (start, end));
    let _manager = fleet.manager("a").await;
    fleet.pass(60).await;
    let first = fleet.newest(ID).unwrap();
    assert_eq!(first.window.map(|window| (window.start, window.end)), Some((start, end)));
    let due = first.due(ID);
    assert!((start..end).contains(&due));
    fleet.until(due - 5).await;
    assert_eq!(fleet.newest(ID).unwrap().generation, 1);
    let asked = ca.asked(|call| matches!(call, Call::Window(_)));
    let gaps: Vec<_> = asked.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(gaps.len() >= 39 && gaps.iter().all(|gap| (6 * HOUR..6 * HOUR + 15).contains(gap)), "{gaps:?}");
    // From here on windows are what they were at first.
    ca.state.lock().unwrap().says = Box::new(|issued| (issued.not_before + 20 * DAY, issued.not_before + 21 * DAY));
    fleet.pass(60).await;
    let second = fleet.newest(ID).unwrap();
    assert!(second.generation == 2 && (due..due + 10).contains(&second.issued_at));
    let replaces = |call: &Call| matches!(call, Call::Order { replaces, .. } if *replaces == first.ari);
    assert_eq!(ca.asked(replaces).len(), 1, "{:?}", first.ari);
    // "Now": it is heard at the next time it is asked, and done at once.
    fleet.pass(DAY).await;
    let moved = fleet.clock.now();
    ca.state.lock().unwrap().says = Box::new(|issued| (issued.not_before, issued.not_before + 1));
    fleet.pass(6 * HOUR + 60).await;
    let third = fleet.newest(ID).unwrap();
    assert!(third.generation >= 3, "{:?}", third.generation);
    let placed = ca.asked(|call| matches!(call, Call::Order { .. }));
    assert!((moved..moved + 6 * HOUR + 30).contains(&placed[2]), "{placed:?}");
}

#[tokio::test(start_paused = true)]
async fn renewal_information_that_does_not_come_keeps_no_certificate_from_its_renewal() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
    let ca = fleet.ca();
    ca.state.lock().unwrap().ari = Some(6 * HOUR);
    let _manager = fleet.manager("a").await;
    fleet.pass(4).await;
    let no = crate::ca::Problem::new(crate::ca::Class::Unavailable, "away");
    let wait = Some(std::time::Duration::from_secs(40 * DAY));
    ca.state.lock().unwrap().down = Some(crate::ca::Problem { retry_after: wait, ..no });
    // The window's point by its life, when it is not said otherwise.
    fleet.pass(DAY).await;
    let first = fleet.newest(ID).unwrap();
    let due = first.due(ID);
    fleet.until(due - 60).await;
    ca.state.lock().unwrap().down = None;
    fleet.pass(120).await;
    assert_eq!(fleet.newest(ID).unwrap().generation, 2);
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_takes_its_time_to_look_is_told_once_whatever_it_shows_meanwhile() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
    let ca = fleet.ca();
    ca.state.lock().unwrap().looks_for = 40;
    let _manager = fleet.manager("a").await;
    fleet.pass(35).await;
    assert!(fleet.newest(ID).is_none());
    fleet.pass(25).await;
    assert_eq!(fleet.newest(ID).unwrap().generation, 1);
    let told = || ca.asked(|call| *call == Call::Ask).len();
    assert_eq!((told(), ca.placed().len()), (1, 1));
    // One that has forgotten it is told again after two minutes.
    ca.state.lock().unwrap().looks_for = 150;
    fleet.tables.set(vec![wish("other.example", &["sim"])]);
    fleet.pass(110).await;
    assert_eq!(told(), 2);
    fleet.pass(60).await;
    assert_eq!((told(), fleet.newest("domain.other.example").unwrap().generation), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn too_many_questions_for_windows_stop_them_all_and_no_order() {
    let names = ["a.example", "b.example", "c.example", "d.example"];
    let fleet = Fleet::new(names.iter().map(|name| wish(name, &["sim"])).collect());
    let ca = fleet.ca();
    ca.state.lock().unwrap().ari = Some(6 * HOUR);
    let _manager = fleet.manager("a").await;
    fleet.pass(HOUR).await;
    let windows = || ca.asked(|call| matches!(call, Call::Window(_))).len();
    assert_eq!(windows(), names.len());
    let many = crate::ca::Problem::new(crate::ca::Class::RateLimited, "too many requests");
    let wait = Some(std::time::Duration::from_secs(10 * HOUR));
    ca.state.lock().unwrap().down = Some(crate::ca::Problem { retry_after: wait, ..many });
    fleet.pass(6 * HOUR).await;
    assert!(fleet.world.rows.get("gate/sim").await.unwrap().is_none(), "of orders nothing was said");
    ca.state.lock().unwrap().down = None;
    let mut wishes: Vec<_> = names.iter().map(|name| wish(name, &["sim"])).collect();
    wishes.push(wish("shop.example", &["sim"]));
    fleet.tables.set(wishes);
    fleet.pass(60).await;
    assert!(fleet.newest(ID).is_some(), "orders go on");
    assert_eq!(windows(), names.len(), "nothing is asked, of the new one either");
    fleet.pass(10 * HOUR).await;
    assert_eq!(windows(), names.len() * 2 + 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_ca_says_of_the_next_time_is_believed_between_a_minute_and_a_day() {
    for (said, least) in [(0, 60), (1, 60), (40 * DAY, DAY)] {
        let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
        let ca = fleet.ca();
        ca.state.lock().unwrap().ari = Some(said);
        let _manager = fleet.manager("a").await;
        fleet.pass(3 * DAY).await;
        let asked = ca.asked(|call| matches!(call, Call::Window(_)));
        let gaps: Vec<_> = asked.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(gaps.len() >= 2 && gaps.iter().all(|gap| (least..least + 15).contains(gap)), "{said}: {gaps:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_compromised_certificate_is_replaced_as_soon_as_it_is_known_to_be_and_stays_marked() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
    fleet.ca().state.lock().unwrap().ari = Some(6 * HOUR);
    let _manager = fleet.manager("a").await;
    fleet.pass(DAY).await;
    let first = fleet.newest(ID).unwrap();
    let key = cert_key(ID, 1);
    let found = fleet.world.rows.get(&key).await.unwrap().unwrap();
    let marked = CertRow { compromised: true, ..(*first).clone() };
    fleet.world.rows.compare_and_set(&key, Some(found.version), Some(&marked.encode())).await.unwrap();
    fleet.tables.set(vec![wish("shop.example", &["sim"])]);
    fleet.pass(15).await;
    assert_eq!(fleet.newest(ID).unwrap().generation, 2);
    let found = fleet.world.rows.get(&key).await.unwrap().unwrap();
    assert!(serde_json::from_slice::<CertRow>(&found.value).unwrap().compromised);
}

#[tokio::test(start_paused = true)]
async fn a_wish_with_other_names_is_ordered_anew_whatever_was_begun() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
    let ca = fleet.ca();
    let _manager = fleet.manager("a").await;
    fleet.pass(60).await;
    // With a certificate.
    let more = |name: &str| {
        let mut wish = wish("shop.example", &["sim"]);
        wish.names.push(name.to_owned());
        wish
    };
    fleet.tables.set(vec![more("www.shop.example")]);
    fleet.pass(30).await;
    let second = fleet.newest(ID).unwrap();
    assert_eq!((second.generation, second.names.len()), (2, 2));
    // With an order that waits for a day.
    ca.state.lock().unwrap().down = Some(crate::ca::Problem::new(crate::ca::Class::Rejected, "never"));
    fleet.tables.set(vec![more("m.shop.example")]);
    fleet.pass(HOUR).await;
    assert_eq!(fleet.newest(ID).unwrap().generation, 2);
    ca.state.lock().unwrap().down = None;
    fleet.tables.set(vec![more("w.shop.example")]);
    fleet.pass(30).await;
    let third = fleet.newest(ID).unwrap();
    assert_eq!((third.generation, third.names.last().unwrap().as_str()), (3, "w.shop.example"));
    assert!(fleet.world.is_gone(ID).await);
    // One that is wanted no more is renewed no more.
    fleet.tables.set(vec![]);
    let placed = ca.placed().len();
    fleet.pass(40 * DAY).await;
    assert_eq!(ca.placed().len(), placed);
    // And is gone a month after its end, not before.
    let ends = third.not_after;
    let rows = || fleet.world.rows.all(&format!("{CERT_PREFIX}{ID}/")).len();
    fleet.until(ends + 29 * DAY).await;
    assert!(rows() > 0);
    fleet.until(ends + 32 * DAY).await;
    assert_eq!(rows(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_order_that_nobody_would_look_at_again_is_gone_soon() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
    let _manager = fleet.manager("a").await;
    fleet.pass(60).await;
    assert!(fleet.world.is_gone(ID).await);
    // As a PoP leaves it that dies between its certificate and the end of its order; and one of a wish that is no more.
    let row = |generation, began| OrderRow {
        generation,
        began,
        ..OrderRow::new(vec!["shop.example".into()], "sim", Kind::Http01, 1, START)
    };
    let put = async |id: &str, row: OrderRow| {
        fleet.world.rows.compare_and_set(&order_key(id), None, Some(&row.encode())).await.unwrap();
    };
    put(ID, row(1, START)).await;
    put("domain.gone.example", row(1, START)).await;
    fleet.pass(11 * 60).await;
    assert!(fleet.world.is_gone(ID).await);
    assert!(!fleet.world.is_gone("domain.gone.example").await, "it may be wanted again");
    fleet.pass(DAY).await;
    assert!(fleet.world.is_gone("domain.gone.example").await);
    // And of one that is not due any more, however long it would have waited.
    put(ID, OrderRow { next_try: START + 9 * DAY, ..row(2, START + DAY) }).await;
    fleet.pass(11 * 60).await;
    assert!(fleet.world.is_gone(ID).await);
    assert_eq!(fleet.ca().placed().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_ended_and_is_still_wanted_stays() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
    let _manager = fleet.manager("a").await;
    fleet.pass(60).await;
    let ends = fleet.newest(ID).unwrap().not_after;
    fleet.ca().state.lock().unwrap().down =
        Some(crate::ca::Problem::new(crate::ca::Class::Unavailable, "away for months"));
    fleet.until(ends + 40 * DAY).await;
    assert_eq!(fleet.newest(ID).unwrap().generation, 1, "for want of another one: `tls.expired`");
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_this_pop_has_not_heard_of_is_not_overwritten_by_a_window() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
    let running = fleet.manager("a").await;
    fleet.pass(60).await;
    drop(running);
    let stale = fleet.newest(ID).unwrap();
    let found = fleet.world.rows.get(&cert_key(ID, 1)).await.unwrap().unwrap();
    let marked = CertRow { compromised: true, ..(*stale).clone() };
    fleet.world.rows.compare_and_set(&found.key, Some(found.version), Some(&marked.encode())).await.unwrap();
    fleet.ca().state.lock().unwrap().ari = Some(6 * HOUR);
    let issuer = Arc::new(fleet.world.process().await);
    let manager = Manager::new(issuer, Arc::clone(&fleet.tables) as _, "b".into(), fleet.clock);
    assert!(manager.ask_window(&wish("shop.example", &["sim"]), &stale).await.is_ok());
    let row = fleet.newest(ID).unwrap();
    assert!(row.compromised && row.window.is_some(), "{row:?}");
}

/// What was taken from the buckets of each kind.
async fn taken(fleet: &Fleet) -> Vec<(String, u64)> {
    let rows = fleet.world.rows.scan("limit/sim/").await.unwrap();
    let of = |row: crate::rows::Row| {
        let bucket: crate::limits::Bucket = serde_json::from_slice(&row.value).unwrap();
        let kind = row.key["limit/sim/".len()..].split('.').next().unwrap().to_owned();
        (kind, bucket.taken)
    };
    rows.into_iter().map(of).collect()
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_counted_once_by_each_limit_a_renewal_the_ca_knows_by_none_and_a_proof_until_it_is_met() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
    *fleet.world.limits.lock().unwrap() = vec![("sim".to_owned(), crate::limits::Limits::LETS_ENCRYPT)];
    fleet.ca().state.lock().unwrap().ari = Some(6 * HOUR);
    fleet.ca().state.lock().unwrap().says = Box::new(|issued| (issued.not_before + HOUR, issued.not_before + HOUR + 1));
    let _manager = fleet.manager("a").await;
    fleet.pass(HOUR / 2).await;
    let kinds = ["domain", "failures", "orders", "proofs", "set"];
    let counts = |counts: [u64; 5]| kinds.into_iter().map(str::to_owned).zip(counts).collect::<Vec<_>>();
    // Nothing was asked twice, and the proof was met.
    assert_eq!(taken(&fleet).await, counts([1, 0, 1, 0, 1]));
    fleet.pass(HOUR).await;
    assert_eq!(fleet.newest(ID).unwrap().generation, 2);
    assert_eq!(taken(&fleet).await, counts([1, 0, 1, 0, 1]));
    // One that fails stays counted.
    fleet.ca().state.lock().unwrap().unproved.insert("shop.example".into());
    fleet.pass(HOUR + 60).await;
    let order = fleet.world.rows.get(&order_key(ID)).await.unwrap().unwrap();
    let failures = u64::from(serde_json::from_slice::<OrderRow>(&order.value).unwrap().failures);
    let taken = taken(&fleet).await;
    assert!(failures > 0 && taken[1].1 == failures && taken[3].1 == failures, "{failures}: {taken:?}");
}

#[tokio::test(start_paused = true)]
async fn what_came_before_the_certificate_before_is_taken_away_unless_it_is_still_to_be_revoked() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
    let _manager = fleet.manager("a").await;
    fleet.pass(60).await;
    let generations = async || {
        let rows = fleet.world.rows.scan(&format!("cert/{ID}/")).await.unwrap();
        rows.iter().map(|row| serde_json::from_slice::<CertRow>(&row.value).unwrap().generation).collect::<Vec<_>>()
    };
    fleet.pass(60 * DAY).await;
    assert_eq!(generations().await, [2, 3]);
    // The older of them is somebody else's too, and nobody has revoked it yet.
    let found = fleet.world.rows.get(&cert_key(ID, 2)).await.unwrap().unwrap();
    let row: CertRow = serde_json::from_slice(&found.value).unwrap();
    let far = row.not_after + 400 * DAY;
    let row = CertRow { revocation: Some(crate::revoke::Revocation::new(1)), not_after: far, ..row };
    fleet.world.rows.compare_and_set(&found.key, Some(found.version), Some(&row.encode())).await.unwrap();
    fleet.pass(60 * DAY).await;
    assert_eq!(generations().await, [2, 4, 5]);
}
