//! A manager dies, and another one goes on.

use super::{Fleet, wish};
use crate::certificate::cert_key;
use crate::lease::TAKE;
use crate::order::sim::ca::Call;
use crate::rows::Rows;
use std::sync::atomic::Ordering;

const ID: &str = "domain.shop.example";

#[tokio::test(start_paused = true)]
async fn an_order_whose_manager_dies_is_finished_by_another_one_within_twenty_seconds_and_not_at_once() {
    // After the lease, the order's row, the key, that it is being placed, its URL, and that its answers are being given.
    for (at, placed) in [(1, 0), (3, 0), (5, 0), (7, 0), (11, 1), (13, 1)] {
        let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
        let ca = fleet.ca();
        let one = fleet.manager("a").await;
        fleet.world.stage.fuse.light(at);
        fleet.world.stage.fuse.blown().await;
        drop(one);
        fleet.world.stage.fuse.light(i64::MAX);
        assert_eq!(ca.placed().len(), placed, "{at}");
        let (died, calls) = (fleet.clock.now(), ca.asked(|_| true).len());
        let _other = fleet.manager("b").await;
        fleet.until(died + TAKE.as_secs() - 1).await;
        assert_eq!(ca.asked(|_| true).len(), calls, "{at}: the lease was another's");
        fleet.until(died + 20).await;
        assert_eq!(fleet.newest(ID).map(|row| row.generation), Some(1), "{at}");
        assert!(fleet.world.is_gone(ID).await);
        assert_eq!(ca.placed().len(), 1, "{at}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_has_not_heard_of_the_certificates_there_are_orders_none_anew() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
    let ca = fleet.ca();
    let one = fleet.manager("a").await;
    fleet.pass(60).await;
    assert_eq!((ca.placed().len(), fleet.newest(ID).map(|row| row.generation)), (1, Some(1)));
    drop(one);

    // Another PoP: its table has not been told of anything yet.
    fleet.tables.know(false);
    fleet.tables.blind.store(true, Ordering::Relaxed);
    fleet.tables.set(vec![wish("shop.example", &["sim"]), wish("new.example", &["sim"])]);
    let _other = fleet.manager("b").await;
    fleet.pass(3 * super::HOUR).await;
    assert_eq!(ca.placed().len(), 1, "nothing is begun before that");

    // Told of all but the last: the store knows better.
    fleet.tables.know(true);
    fleet.pass(60).await;
    assert_eq!(ca.placed(), [["shop.example"], ["new.example"]]);
    fleet.tables.blind.store(false, Ordering::Relaxed);
    fleet.pass(60).await;
    assert_eq!(ca.placed().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_no_certificates_is_stepped_over() {
    let fleet = Fleet::new(vec![wish("shop.example", &["sim"])]);
    // No table takes it, and nothing can be written over it.
    fleet.world.rows.compare_and_set(&cert_key(ID, 1), None, Some(b"{}")).await.unwrap();
    fleet.tables.blind.store(true, Ordering::Relaxed);
    let _manager = fleet.manager("a").await;
    fleet.pass(60).await;
    assert_eq!(fleet.ca().placed().len(), 1);
    fleet.tables.blind.store(false, Ordering::Relaxed);
    assert_eq!(fleet.newest(ID).map(|row| row.generation), Some(2));
}

#[tokio::test(start_paused = true)]
async fn two_managers_place_one_order_of_each_wish_and_ask_for_one_window() {
    let names: Vec<_> = (0..40).map(|number| format!("{number}.example")).collect();
    let fleet = Fleet::new(names.iter().map(|name| wish(name, &["sim"])).collect());
    fleet.ca().state.lock().unwrap().ari = Some(6 * super::HOUR);
    let (_one, _other) = (fleet.manager("a").await, fleet.manager("b").await);
    fleet.pass(3 * super::HOUR).await;
    let ca = fleet.ca();
    assert_eq!(ca.placed().len(), names.len());
    assert_eq!(ca.asked(|call| matches!(call, Call::Window(_))).len(), names.len());
    assert!(names.iter().all(|name| fleet.newest(&format!("domain.{name}")).is_some()));
}
