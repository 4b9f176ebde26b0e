//! Histories worth a name of their own.

use super::chances::Chances;
use super::mutations::Mutation;
use super::world::{Ended, Event, World};
use backhaul::wire::{EdgeMessage, Outcome};
use router::route::HostId;
use std::time::Duration;
use wakeup::hold::HoldError;
use wakeup::spec::{Depth, StateName};

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(super) fn served(world: &World, ids: &[u64]) -> usize {
    ids.iter().filter(|id| matches!(world.ended.get(id), Some(Ended::Served { .. }))).count()
}

pub(super) fn is_accepted(event: &Event) -> bool {
    matches!(event, Event::ToEdge(_, answer) if matches!(answer.outcome, Some(Outcome::Accepted(_))))
}

pub(super) fn is_ready(event: &Event) -> bool {
    matches!(event, Event::ToEdge(_, answer) if matches!(answer.outcome, Some(Outcome::Ready(_))))
}

#[test]
fn the_leader_leaves_in_any_phase_and_the_others_are_served_by_one_start() {
    // The start takes up to 800 ms, messages up to 40: every phase is among these moments.
    for leaves_after in (0..1_000).step_by(20) {
        the_leader_leaves(None, leaves_after);
    }
}

pub(super) fn the_leader_leaves(mutation: Option<Mutation>, after_ms: u64) {
    let mut world = World::mutant(1, Chances { delay_ms: 40, ..Chances::calm() }, mutation);
    let name = world.name(0);
    let ids: Vec<_> = (0..50).map(|n| world.request(0, &name, n, PATIENCE)).collect();
    world.run_for(ms(after_ms));
    world.leave(ids[0]);
    world.run_for(ms(1_500));
    assert_eq!(served(&world, &ids[1..]), 49, "the leader left after {after_ms} ms");
    assert_eq!(world.starts, 1);
    world.quiesce();
}

#[test]
fn those_who_waited_are_let_go_in_turns() {
    many_wait(None);
}

pub(super) fn many_wait(mutation: Option<Mutation>) {
    let mut world = World::mutant(15, Chances { delay_ms: 20, ..Chances::calm() }, mutation);
    let name = world.name(0);
    let ids: Vec<_> = (0..100).map(|n| world.request(0, &name, n, PATIENCE)).collect();
    world.run_for(ms(3_000));
    assert_eq!((served(&world, &ids), world.starts), (100, 1));
    world.quiesce();
}

#[test]
fn after_one_visit_it_sleeps() {
    one_visit(None);
}

pub(super) fn one_visit(mutation: Option<Mutation>) {
    // Its visit lasts for a second or two, so that its edge tells of it.
    let mut world = World::mutant(16, Chances::calm(), mutation);
    let name = world.name(0);
    let ids: Vec<_> = (0..10).map(|n| world.request(0, &name, n, PATIENCE)).collect();
    world.run_for(ms(2_500));
    assert_eq!(served(&world, &ids), 10);
    world.quiesce();
}

#[test]
fn two_edges_at_once_share_one_start() {
    let mut world = World::new(8, Chances { delay_ms: 150, ..Chances::calm() });
    let name = world.name(0);
    let ids: Vec<_> = (0..60_u32).map(|n| world.request((n % 3) as usize, &name, n, PATIENCE)).collect();
    world.run_for(ms(1_500));
    assert_eq!((served(&world, &ids), world.starts), (60, 1));
    world.quiesce();
}

#[test]
fn when_all_leave_before_the_start_nothing_runs() {
    all_leave_before_the_start(None);
}

pub(super) fn all_leave_before_the_start(mutation: Option<Mutation>) {
    let mut world = World::mutant(2, Chances { start_ms: 4_000, ..Chances::calm() }, mutation);
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
    if mutation.is_none() {
        assert_eq!(world.state(&queued), StateName::Asleep);
        assert_eq!(world.starts, 2);
    }
    world.quiesce();
    assert_eq!(world.starts, 2);
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
fn a_lost_accepted_is_asked_for_again_and_starts_nothing_twice() {
    let mut world = World::new(9, Chances::calm());
    world.lose = vec![is_accepted, is_accepted];
    let name = world.name(0);
    let ids: Vec<_> = (0..20).map(|n| world.request(0, &name, n, PATIENCE)).collect();
    world.run_for(ms(1_500));
    assert_eq!((served(&world, &ids), world.starts), (20, 1));
    world.quiesce();
}

#[test]
fn a_lost_ready_is_told_again_within_the_pause_between_two_questions() {
    let mut world = World::new(10, Chances::calm());
    world.lose = vec![is_ready];
    let name = world.name(0);
    let ids: Vec<_> = (0..20).map(|n| world.request(0, &name, n, PATIENCE)).collect();
    world.run_for(ms(900));
    assert_eq!((world.state(&name), served(&world, &ids)), (StateName::Running, 0));
    world.run_for(ms(1_200));
    assert_eq!((served(&world, &ids), world.starts), (20, 1));
    world.quiesce();
}

#[test]
fn a_lost_longer_deadline_costs_the_patient_nothing() {
    let mut world = World::new(11, Chances { start_ms: 4_000, ..Chances::calm() });
    let name = world.name(0);
    let short = world.request(0, &name, 1, ms(400));
    world.lose = vec![|event| matches!(event, Event::ToOwner(_, EdgeMessage::Wake(_)))];
    let patient = world.request(0, &name, 2, PATIENCE);
    assert!(world.lose.is_empty(), "the longer deadline was told, and lost");
    world.run_for(ms(10_000));
    assert!(matches!(world.ended[&short], Ended::Refused(HoldError::Deadline { .. })));
    assert_eq!((&world.ended[&patient], world.starts), (&Ended::Served { generation: 1, run: 1 }, 1));
    world.quiesce();
}

#[test]
fn a_broken_session_fails_its_waiters_at_once_and_no_one_else_s() {
    let mut world = World::new(12, Chances { start_ms: 2_000, ..Chances::calm() });
    let name = world.name(0);
    let broken = world.request(0, &name, 1, PATIENCE);
    let other = world.request(1, &name, 1, PATIENCE);
    world.run_for(ms(10));
    world.lose_session(0, HostId(0));
    assert_eq!(world.ended[&broken], Ended::Refused(HoldError::HostUnreachable));
    world.run_for(ms(1_000));
    let back = world.request(0, &name, 1, PATIENCE);
    world.run_for(ms(4_000));
    assert_eq!((served(&world, &[other, back]), world.starts), (2, 1));
    world.quiesce();
}

#[test]
fn an_edge_that_dies_with_its_holders_leaves_nothing_awake() {
    let mut world = World::new(13, Chances { start_ms: 2_000, ..Chances::calm() });
    let name = world.name(0);
    for n in 0..20 {
        world.request(0, &name, n, PATIENCE);
    }
    world.run_for(ms(10));
    world.kill_edge(0);
    world.run_for(ms(6_000));
    assert_eq!((world.state(&name), world.starts), (StateName::Asleep, 1));
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
    assert_eq!(world.ended[&id], Ended::Served { generation: 1, run: 2 });
    assert_eq!(world.starts, 2);
    world.quiesce();
}

#[test]
fn a_request_at_any_moment_around_the_sleep_is_served() {
    for arrives_after in 0..600 {
        let mut world = World::new(14, Chances { delay_ms: 20, ..Chances::calm() });
        let name = world.name(0);
        world.request(0, &name, 1, PATIENCE);
        world.run_for(ms(5_000));
        world.sleep(&name, Depth::Warm);
        world.run_for(ms(arrives_after));
        let id = world.request(1, &name, 1, PATIENCE);
        world.run_for(ms(3_000));
        assert_eq!(served(&world, &[id]), 1, "arrived {arrives_after} ms after the sleep: {:?}", world.ended.get(&id));
        assert_eq!(world.starts, 1, "one start, the rest is continued");
    }
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
    assert!(world.wakes_sent <= 3, "{} wakes for three edges", world.wakes_sent);
    world.run_for(ms(3_000));
    assert_eq!(world.starts, 1);
    let held = served(&world, &ids);
    assert_eq!(held, 3 * world.limits.per_sprite, "every place was used, and no more");
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
    assert_eq!(world.wakes_sent, 3);
    world.quiesce();
}
