//! A process ends at every point of an order, and another one goes on.

use super::sim::World;
use super::{OrderRow, verify};
use crate::ca::{Class, Kind, Problem};
use crate::certificate::{CERT_PREFIX, sealed_as};
use crate::clock::Clock;
use crate::rows::Rows;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::sync::Arc;

const ID: &str = "wild.sprites.test";

fn wanted() -> OrderRow {
    let names = vec!["*.sprites.test".to_owned(), "sprites.test".to_owned()];
    OrderRow::new(names, "sim", Kind::Dns01, 1, now())
}

fn now() -> u64 {
    Clock::system().now()
}

/// There is one certificate, its key opens and fits, and nothing is left over.
async fn is_whole(world: &Arc<World>, what: &str) {
    let found = world.rows.scan(CERT_PREFIX).await.unwrap();
    assert_eq!(found.len(), 1, "{what}");
    let row: crate::certificate::CertRow = serde_json::from_slice(&found[0].value).unwrap();
    let sealer = world.process().await.sealer;
    let key = sealer.open(&sealed_as(ID), 1, &STANDARD.decode(&row.sealed_key).unwrap()).unwrap();
    verify::verify(&row.chain, &key, &row.names, now()).unwrap();
    assert!(world.is_gone(ID).await, "{what}");
}

#[tokio::test]
async fn whoever_comes_after_a_crash_at_any_point_finishes_the_order() {
    let world = World::new(Clock::system());
    let process = world.process().await;
    world.stage.fuse.light(i64::MAX);
    world.finish(&process, ID, &wanted(), &mut now()).await;
    is_whole(&world, "without a crash").await;
    let points = world.stage.fuse.burnt();
    assert!(points > 20, "{points}");

    let mut extra = 0;
    for at in 0..points {
        let world = World::new(Clock::system());
        let process = world.process().await;
        world.stage.fuse.light(at);
        let (wanted, mut began) = (wanted(), now());
        tokio::select! {
            _ = world.finish(&process, ID, &wanted, &mut began) => panic!("point {at} was not reached"),
            () = world.stage.fuse.blown() => {}
        }
        world.stage.fuse.light(i64::MAX);
        let next = world.process().await;
        world.finish(&next, ID, &wanted, &mut now()).await;
        is_whole(&world, &format!("crash at point {at}")).await;
        let placed = world.ca("sim").placed().len();
        assert!(placed <= 2, "crash at point {at}: {placed} orders");
        extra += placed - 1;
    }
    // An order whose URL was never heard is the only one that is placed twice.
    assert!(extra <= 2, "{extra} of {points}");
}

#[tokio::test]
async fn two_that_work_on_one_order_do_not_undo_each_other() {
    let world = World::new(Clock::system());
    let (one, other) = (world.process().await, world.process().await);
    let mut stale = one.begin(ID, wanted()).await.unwrap();
    world.finish(&other, ID, &wanted(), &mut now()).await;
    let ca = world.ca("sim");
    let error = one.step(&mut stale, &*ca, now()).await.unwrap_err();
    assert!(error.to_string().contains("somebody else has written the row"), "{error}");
    is_whole(&world, "the other's").await;
    assert_eq!(world.ca("sim").placed().len(), 1);
}

#[tokio::test]
async fn what_a_ca_refuses_is_tried_again_in_its_time() {
    let began = now();
    for (class, least, orders) in [
        (Class::BadNonce, 0, 1),
        (Class::Unavailable, 60, 1),
        (Class::Lost, 2, 1),
        (Class::Unready, 2, 1),
        (Class::RateLimited, 3600, 1),
        (Class::Dns, 3600, 2),
        (Class::Unauthorized, 720, 2),
    ] {
        let world = World::new(Clock::system());
        let process = world.process().await;
        let mut order = process.begin(ID, wanted()).await.unwrap();
        let ca = world.ca("sim");
        // The key, then the order; the third thing is refused.
        for _ in 0..2 {
            process.step(&mut order, &*ca, began).await.unwrap();
        }
        ca.state.lock().unwrap().refuses.push(Problem::new(class, "no"));
        let mut time = began;
        world.finish(&process, ID, &wanted(), &mut time).await;
        is_whole(&world, &format!("{class:?}")).await;
        assert!((least..least + 10).contains(&(time - began)), "{class:?}: {}", time - began);
        assert_eq!(world.ca("sim").placed().len(), orders, "{class:?}");
    }
}

#[tokio::test]
async fn an_order_that_is_not_ready_is_not_placed() {
    let world = World::new(Clock::system());
    let process = world.process().await;
    *world.stage.undelegated.lock().unwrap() = vec![Problem::new(Class::Undelegated, "no CNAME"); 2];
    let began = now();
    let mut time = began;
    let issued = world.finish(&process, ID, &wanted(), &mut time).await;
    assert_eq!(issued.names, wanted().names);
    assert_eq!((time - began, world.ca("sim").placed().len()), (60 + 120 + 1, 1));
}
