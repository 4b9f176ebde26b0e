//! Named histories of sprites that move, are destroyed, or lose their owner in between.

use super::chances::Chances;
use super::mutations::Mutation;
use super::scenarios::{PATIENCE, is_accepted, is_ready, ms, served};
use super::world::{Ended, World};
use router::route::HostId;
use wakeup::hold::HoldError;
use wakeup::spec::StateName;

const OTHER: HostId = HostId(1);

#[test]
fn a_move_in_the_middle_of_a_wake_costs_the_waiters_one_hop() {
    a_move_in_the_middle_of_a_wake(None);
}

pub(super) fn a_move_in_the_middle_of_a_wake(mutation: Option<Mutation>) {
    for moves_after in (0..1_200).step_by(40) {
        let mut world = World::mutant(20, Chances { delay_ms: 40, feed_ms: 500, ..Chances::calm() }, mutation);
        let name = world.name(0);
        let ids: Vec<_> = (0..30_u32).map(|n| world.request((n % 3) as usize, &name, n, PATIENCE)).collect();
        world.run_for(ms(moves_after));
        world.begin_move(&name, OTHER);
        world.run_for(ms(8_000));
        let failed = world.ended.values().find(|how| !matches!(how, Ended::Served { .. }));
        assert!(served(&world, &ids) == 30, "the move refused: {failed:?}, moved after {moves_after} ms");
        let late = world.request(2, &name, 9, PATIENCE);
        world.run_for(ms(4_000));
        assert!(matches!(world.ended[&late], Ended::Served { generation: 2, .. }), "{:?}", world.ended[&late]);
        world.quiesce();
    }
}

#[test]
fn a_route_that_changes_behind_a_hold_is_followed() {
    a_table_that_changes_behind_a_hold(None);
}

/// The owner says that it runs, the table says that it is elsewhere: the table is newer.
pub(super) fn a_table_that_changes_behind_a_hold(mutation: Option<Mutation>) {
    // Answers take up to 300 ms, the feed none: somewhere in here the table is first.
    for seed in 0..60 {
        let chances = Chances { delay_ms: 300, feed_ms: 0, start_ms: 100, ..Chances::calm() };
        let mut world = World::mutant(seed, chances, mutation);
        let name = world.name(0);
        let first = world.request(0, &name, 1, PATIENCE);
        while world.state(&name) != StateName::Running {
            world.run_for(ms(5));
        }
        world.move_awake(&name, OTHER);
        world.run_for(ms(6_000));
        assert_eq!(served(&world, &[first]), 1, "{:?}", world.ended.get(&first));
        world.quiesce();
    }
}

#[test]
fn a_destruction_in_the_middle_of_a_wake_tells_everybody_and_leaves_nothing() {
    for destroyed_after in (0..1_200).step_by(40) {
        let mut world = World::new(21, Chances { delay_ms: 40, ..Chances::calm() });
        let name = world.name(0);
        let ids: Vec<_> = (0..30_u32).map(|n| world.request((n % 3) as usize, &name, n, PATIENCE)).collect();
        world.run_for(ms(destroyed_after));
        world.destroy(&name);
        world.run_for(ms(5_000));
        for id in &ids {
            let ended = &world.ended[id];
            let told = matches!(ended, Ended::Served { .. } | Ended::Gone | Ended::Refused(HoldError::Gone { .. }));
            assert!(told || matches!(ended, Ended::FeedLate(_)), "{ended:?}");
        }
        world.quiesce();
    }
}

#[test]
fn one_that_is_made_again_in_the_middle_of_its_start_is_not_taken_for_the_old_one() {
    for again_after in (0..1_000).step_by(20) {
        let chances = Chances { delay_ms: 0, feed_ms: 0, start_ms: 800, ..Chances::calm() };
        let mut world = World::new(again_after, chances);
        let name = world.name(0);
        let old = world.request(0, &name, 1, PATIENCE);
        world.run_for(ms(10 + again_after / 4));
        world.destroy(&name);
        world.make_again(&name, HostId(0));
        world.run_for(ms(1));
        let new = world.request(1, &name, 1, PATIENCE);
        world.run_for(ms(5_000));
        assert!(world.ended.contains_key(&old));
        assert!(matches!(world.ended[&new], Ended::Served { generation: 3, .. }), "{:?}", world.ended[&new]);
        world.quiesce();
    }
}

#[test]
fn an_owner_that_restarts_between_accepted_and_ready_fails_its_waiters_soon_and_serves_the_next() {
    for guests_die in [true, false] {
        let mut world = World::new(22, Chances { start_ms: 3_000, ..Chances::calm() });
        let name = world.name(0);
        let waits = world.request(0, &name, 1, PATIENCE);
        world.run_for(ms(50));
        world.crash_owner(HostId(0), 500, Some(guests_die));
        world.run_for(ms(600));
        assert_eq!(world.ended[&waits], Ended::Refused(HoldError::HostUnreachable));
        world.run_for(ms(1_000));
        let next = world.request(0, &name, 1, PATIENCE);
        world.run_for(ms(9_000));
        let ended = &world.ended[&next];
        assert!(matches!(ended, Ended::Served { .. } | Ended::Refused(HoldError::Refused { .. })), "{ended:?}");
        world.quiesce();
    }
}

#[test]
fn an_edge_that_restarts_with_holders_joins_the_wake_it_had_asked_for() {
    let mut world = World::new(23, Chances { start_ms: 2_000, ..Chances::calm() });
    let name = world.name(0);
    world.request(0, &name, 1, PATIENCE);
    world.run_for(ms(10));
    world.kill_edge(0);
    let again = world.request(0, &name, 1, PATIENCE);
    world.run_for(ms(5_000));
    assert_eq!((served(&world, &[again]), world.starts), (1, 1));
    world.quiesce();
}

#[test]
fn two_edges_that_lose_their_answers_during_a_move_find_the_sprite() {
    let mut world = World::new(24, Chances { feed_ms: 1_000, ..Chances::calm() });
    world.lose = vec![is_accepted, is_ready, is_accepted];
    let name = world.name(0);
    let ids = [world.request(0, &name, 1, PATIENCE), world.request(1, &name, 2, PATIENCE)];
    world.run_for(ms(300));
    world.begin_move(&name, OTHER);
    world.run_for(ms(10_000));
    assert_eq!(served(&world, &ids), 2, "{:?}", world.ended);
    world.quiesce();
}
