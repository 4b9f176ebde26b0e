//! What a CA's refusals lead to.

use super::{Fleet, HOUR, START, wish};
use crate::ca::{Class, Problem};
use crate::manager::{Manager, Pause};
use crate::order::DAY;
use crate::order::sim::ca::Call;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_gate_that_a_ca_closes_is_closed_for_every_manager_and_for_as_long_as_it_says() {
    let names: Vec<_> = (0..20).map(|number| format!("{number}.example")).collect();
    let all: Vec<_> = names.iter().map(|name| wish(name, &["sim"])).collect();
    let fleet = Fleet::new(vec![all[0].clone()]);
    let ca = fleet.ca();
    let wait = Some(Duration::from_secs(2 * HOUR));
    let no = Problem { retry_after: wait, ..Problem::new(Class::RateLimited, "too many") };
    ca.state.lock().unwrap().refuses.push(no);
    let one = fleet.manager("a").await;
    fleet.pass(5).await;
    let closed = ca.asked(|call| *call == Call::Refused);
    assert_eq!(closed.len(), 1);
    drop(one);
    // Another one, and much to do.
    fleet.tables.set(all);
    let _other = fleet.manager("b").await;
    fleet.until(closed[0] + 2 * HOUR - 1).await;
    assert_eq!(ca.asked(|_| true), closed);
    // They go on, more and more at once, and not one by one.
    fleet.pass(60).await;
    let issued = names.iter().filter(|name| fleet.newest(&format!("domain.{name}")).is_some());
    assert_eq!(issued.count(), names.len(), "{:?}", ca.state.lock().unwrap().calls);
}

/// Let's Encrypt counts certificates of a registered domain over all accounts: anybody could have used them up.
#[tokio::test(start_paused = true)]
async fn a_limit_of_one_orders_names_stops_that_order_alone() {
    let fleet = Fleet::new(vec![wish("shop.busy.example", &["sim"])]);
    let ca = fleet.ca();
    let said = "too many certificates (50) already issued for \"busy.example\" in the last 168h0m0s";
    let no = Problem { retry_after: Some(Duration::from_secs(30 * HOUR)), ..Problem::new(Class::RateLimited, said) };
    ca.state.lock().unwrap().refuses.push(no);
    let _manager = fleet.manager("a").await;
    fleet.pass(5).await;
    assert!(fleet.world.rows.all("gate/").is_empty());
    fleet.tables.set(vec![wish("shop.busy.example", &["sim"]), wish("shop.example", &["sim"])]);
    fleet.pass(60).await;
    assert!(fleet.newest("domain.shop.example").is_some());
    fleet.pass(29 * HOUR).await;
    assert_eq!(ca.placed().len(), 1, "it waits for as long as the CA says");
    fleet.pass(2 * HOUR).await;
    assert!(fleet.newest("domain.shop.busy.example").is_some());
}

#[tokio::test(start_paused = true)]
async fn of_two_words_about_the_gate_the_later_one_counts() {
    let fleet = Fleet::new(vec![]);
    let issuer = std::sync::Arc::new(fleet.world.process().await);
    let manager = Manager::new(issuer, std::sync::Arc::clone(&fleet.tables) as _, "a".into(), fleet.clock);
    for (said, holds) in [(5 * HOUR, 5 * HOUR), (HOUR, 5 * HOUR), (9 * HOUR, 9 * HOUR)] {
        manager.close_gate("sim", START + said).await.unwrap();
        let closed = manager.gate("sim").await;
        assert!(matches!(closed, Err(Pause::Closed { until, .. }) if until == START + holds), "{said}");
        assert!(manager.gate("second").await.is_ok());
    }
    fleet.until(START + 9 * HOUR).await;
    assert!(manager.gate("sim").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn another_ca_is_asked_after_two_failures_when_a_third_of_the_life_is_left_and_not_before() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim", "second"])]);
    let (first, second) = (fleet.ca(), fleet.world.add_ca("second"));
    first.state.lock().unwrap().ari = Some(6 * HOUR);
    first.state.lock().unwrap().says =
        Box::new(|issued| (issued.not_before + 20 * DAY, issued.not_before + 20 * DAY + 1));
    let _manager = fleet.manager("a").await;
    fleet.pass(60).await;
    let row = fleet.newest("domain.shop.example").unwrap();
    first.state.lock().unwrap().down = Some(Problem::new(Class::Unauthorized, "no"));
    let third = row.not_after - 15 * DAY;
    fleet.until(third - 1).await;
    let failures = first.asked(|call| *call == Call::Refused);
    assert!(failures.iter().filter(|at| **at >= row.not_before + 20 * DAY).count() > 5, "{failures:?}");
    assert!(second.asked(|_| true).is_empty());
    fleet.until(third + DAY + 120).await;
    let row = fleet.newest("domain.shop.example").unwrap();
    assert_eq!((row.ca.as_str(), row.generation), ("second", 2));
    // What the first one knows is not said to the second.
    assert_eq!(second.asked(|call| matches!(call, Call::Order { replaces: None, .. })).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_name_without_a_certificate_goes_to_the_next_ca_after_two_failures_not_one() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim", "second"])]);
    let (first, second) = (fleet.ca(), fleet.world.add_ca("second"));
    first.state.lock().unwrap().down = Some(Problem::new(Class::Unavailable, "no"));
    let _manager = fleet.manager("a").await;
    fleet.pass(59).await;
    assert_eq!(first.asked(|_| true).len(), 1);
    fleet.pass(10).await;
    assert_eq!((first.asked(|_| true).len(), second.asked(|_| true).len()), (2, 0));
    fleet.pass(150).await;
    assert_eq!(fleet.newest("domain.shop.example").unwrap().ca, "second");
    assert_eq!(first.asked(|_| true).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_waits_by_its_class() {
    for (class, waits) in [
        (Class::Unavailable, vec![60, 120, 240, 480, 960, 1920, 3600, 3600]),
        (Class::Unauthorized, vec![1, 720, 3600, DAY, DAY]),
        (Class::Dns, vec![HOUR; 5]),
        (Class::Rejected, vec![DAY; 3]),
        (Class::RateLimited, vec![HOUR; 3]),
        (Class::Account, vec![HOUR; 3]),
    ] {
        let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
        let ca = fleet.ca();
        ca.state.lock().unwrap().down = Some(Problem::new(class, "no"));
        let _manager = fleet.manager("a").await;
        fleet.pass(waits.iter().sum::<u64>() + 60).await;
        let asked = ca.asked(|_| true);
        let gaps: Vec<_> = asked.windows(2).map(|two| two[1] - two[0]).collect();
        let near = gaps.iter().zip(&waits).all(|(gap, wait)| (*wait..wait + 5).contains(gap));
        assert!(near && gaps.len() == waits.len(), "{class:?}: {gaps:?}");
        let reopened = fleet.tables.reopened.lock().unwrap().len();
        assert_eq!(reopened, if class == Class::Account { asked.len() } else { 0 }, "{class:?}");
    }
}
