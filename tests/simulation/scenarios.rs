//! Histories worth a name of their own.

use super::world::{Chances, Ended, World};
use std::time::Duration;
use wakeup::hold::HoldError;
use wakeup::spec::{Depth, StateName};

const PATIENCE: Duration = Duration::from_secs(30);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn served(world: &World, ids: &[u64]) -> usize {
    ids.iter().filter(|id| matches!(world.ended.get(id), Some(Ended::Served { .. }))).count()
}

#[test]
fn the_leader_leaves_in_any_phase_and_the_others_are_served_by_one_start() {
    for leaves_after in [0, 1, 50, 150, 400, 700] {
        let mut world = World::new(1, Chances::calm());
        let name = world.name(0);
        let ids: Vec<_> = (0..50).map(|n| world.request(0, &name, n, PATIENCE)).collect();
        world.run_for(ms(leaves_after));
        let before = served(&world, &ids[..1]);
        world.leave(ids[0]);
        world.run_for(ms(1_000));
        assert_eq!(served(&world, &ids[1..]), 49, "left after {leaves_after} ms");
        assert_eq!((world.starts, before <= 1), (1, true));
        world.quiesce();
    }
}

#[test]
fn when_all_leave_before_the_start_nothing_runs() {
    let mut world = World::new(2, Chances { delay_ms: 0, ..Chances::calm() });
    // Two starts fill the host's slots; the third sprite is queued.
    let (first, second, queued) = (world.name(0), world.name(1), world.name(2));
    world.request(0, &first, 1, PATIENCE);
    world.request(0, &second, 1, PATIENCE);
    world.run_for(ms(0));
    let ids: Vec<_> = (0..10).map(|n| world.request(1, &queued, n, PATIENCE)).collect();
    world.run_for(ms(0));
    assert_eq!(world.state(&queued), StateName::Waking);
    for id in ids {
        world.leave(id);
    }
    world.run_for(ms(0));
    assert_eq!(world.state(&queued), StateName::Asleep);
    assert_eq!(world.starts, 2);
    world.quiesce();
}

#[test]
fn when_all_leave_after_the_start_it_sleeps_again_soon() {
    let mut world = World::new(3, Chances::calm());
    let name = world.name(0);
    let id = world.request(0, &name, 1, PATIENCE);
    world.run_for(ms(1));
    world.leave(id);
    world.run_for(ms(800));
    assert_eq!(world.state(&name), StateName::Running);
    // The abandoned timeout of the world is 1 s, a stop takes up to 0.5 s with its cordon.
    world.run_for(ms(2_000));
    assert_eq!(world.state(&name), StateName::Asleep);
    world.quiesce();
}

#[test]
fn a_request_during_the_interruptible_stop_calls_it_off_without_a_new_run() {
    let mut world = World::new(4, Chances::calm());
    let name = world.name(0);
    let first = world.request(0, &name, 1, PATIENCE);
    while world.state(&name) != StateName::Stopping {
        world.run_for(ms(10));
    }
    let second = world.request(1, &name, 1, PATIENCE);
    world.run_for(ms(50));
    assert_eq!(world.state(&name), StateName::Running);
    assert_eq!(world.ended[&first], world.ended[&second], "the same run serves both");
    assert_eq!(world.starts, 1);
    world.quiesce();
}

#[test]
fn a_request_during_the_committed_stop_wakes_it_right_behind() {
    let mut world = World::new(5, Chances::calm());
    let name = world.name(0);
    world.request(0, &name, 1, PATIENCE);
    world.run_for(ms(3_000));
    world.sleep(&name, Depth::Cold);
    world.run_for(ms(2));
    assert_eq!(world.state(&name), StateName::Stopping);
    let id = world.request(1, &name, 1, PATIENCE);
    world.run_for(ms(2_000));
    assert_eq!(world.ended[&id], Ended::Served { run: 2 });
    assert_eq!(world.starts, 2);
    world.quiesce();
}

#[test]
fn a_herd_starts_it_once_and_every_one_over_the_bounds_is_told_why() {
    let mut world = World::new(6, Chances { delay_ms: 20, ..Chances::calm() });
    let name = world.name(0);
    let mut ids = Vec::new();
    for n in 0..10_000_u32 {
        ids.push(world.request((n % 3) as usize, &name, n % 500, PATIENCE));
        if n % 100 == 99 {
            world.run_for(ms(1));
        }
    }
    world.run_for(ms(3_000));
    assert_eq!(world.starts, 1);
    let held = served(&world, &ids);
    assert!(held >= 3 * 128, "{held} served");
    for id in &ids {
        let ended = &world.ended[id];
        let clean =
            matches!(ended, Ended::Served { .. } | Ended::Refused(HoldError::HoldFull | HoldError::ClientHoldFull));
        assert!(clean, "{ended:?}");
    }
    world.quiesce();
}

#[test]
fn messages_that_are_always_lost_end_in_host_unreachable_not_in_silence() {
    let mut world = World::new(7, Chances { lost: 1000, ..Chances::calm() });
    let name = world.name(0);
    let id = world.request(0, &name, 1, PATIENCE);
    world.run_for(ms(2_100));
    assert_eq!(world.ended[&id], Ended::Refused(HoldError::HostUnreachable));
    world.quiesce();
}
