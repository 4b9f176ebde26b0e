//! What it does by itself when time passes, with the clock of the test.

use crate::{app, owner};
use backhaul::owner::{EdgeId, Owner};
use backhaul::wire::{Gone, Moved, Open, Reply, Unknown, VERSION};
use router::names::SpriteName;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_lost_guard_is_found_by_the_owner_within_two_minutes_and_a_live_one_is_left_alone() {
    let (owner, _directory) = owner().await;
    owner.upsert(app(1)).await;
    let open = Open { version: VERSION, sprite: "app".into(), generation: 1, ..Open::default() };
    let run = owner.open(EdgeId(1), open).await.unwrap().activity;
    let (_stream, _guard) = (run.stream(), run.begin().unwrap());
    std::mem::forget(run.begin());
    tokio::time::sleep(Duration::from_secs(119)).await;
    assert_eq!((run.open(), owner.lease_mismatches()), (2, 0));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((run.open(), owner.lease_mismatches()), (1, 1));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!((run.open(), owner.lease_mismatches()), (1, 1));
    owner.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_knows_more_than_the_owner_is_served_when_the_owner_has_heard_too() {
    let (owner, _directory) = owner().await;
    owner.upsert(app(1)).await;
    let open = Open { version: VERSION, sprite: "app".into(), generation: 2, ..Open::default() };
    let opened = tokio::spawn(owner.open(EdgeId(1), open.clone()));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!opened.is_finished(), "it waits");
    owner.upsert(app(2)).await;
    assert_eq!(opened.await.unwrap().unwrap().opened.generation, 2);
    let in_vain = Open { generation: 3, ..open };
    let refused = owner.open(EdgeId(1), in_vain).await.unwrap_err();
    assert_eq!(refused, Reply::Unknown(Unknown { my_generation: 2 }));
    owner.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_for_a_sprite_that_is_not_here_is_told_what_became_of_it() {
    let (owner, _directory) = owner().await;
    let name = SpriteName::parse("app").unwrap();
    let open = |generation| {
        let open = Open { version: VERSION, sprite: "app".into(), generation, ..Open::default() };
        let opened = owner.open(EdgeId(1), open);
        async { opened.await.unwrap_err() }
    };
    assert_eq!(open(1).await, Reply::Unknown(Unknown { my_generation: 0 }));
    owner.upsert(app(1)).await;
    owner.moved(&name, "h2", 2).await;
    let moved = Reply::Moved(Moved { host: "h2".into(), generation: 2 });
    assert_eq!((open(1).await, open(2).await), (moved.clone(), moved));
    assert_eq!(open(3).await, Reply::Unknown(Unknown { my_generation: 2 }));
    owner.upsert(app(3)).await;
    owner.remove(&name).await;
    assert_eq!(open(3).await, Reply::Gone(Gone { generation: 3 }));
}
