//! What must hold at every moment, and what must hold in the end.

use super::world::{Ended, World};
use std::time::Duration;
use wakeup::spec::StateName;

/// How much later than its deadline a waiter may end (`wake.md` I3).
const LATE: Duration = Duration::from_millis(50);

/// After every step: I1 one start per sprite, I8 bounds.
pub(crate) fn anytime(world: &World) {
    for (name, starts) in &world.starting {
        assert!(*starts <= 1, "I1: {starts} starts of {name} at once");
    }
    for edge in &world.edges {
        assert!(edge.held() <= world.limits.per_process, "I8: {} held", edge.held());
    }
}

/// When one request ended: I3 exactly once, in time.
pub(crate) fn at_the_end_of_a_request(world: &World, id: u64, how: &Ended) {
    let request = world.requests.get(&id).unwrap_or_else(|| panic!("I3: request {id} ended twice: {how:?}"));
    assert!(world.now <= request.deadline + LATE, "I3: request {id} ended late: {how:?}");
}

/// Once clients are gone and time has passed: I5 nothing is held, nothing awake, nothing counted.
pub(crate) fn finally(world: &World) {
    assert!(world.requests.is_empty(), "I3: {} requests never ended", world.requests.len());
    for edge in &world.edges {
        assert_eq!((edge.held(), edge.flights()), (0, 0), "I5: holds are left");
    }
    for status in world.owner.statuses(world.now) {
        assert_eq!(status.state, StateName::Asleep, "I5: {} is {:?}", status.name, status.state);
        assert_eq!(status.waiting, 0, "I5: somebody waits for {}", status.name);
    }
}
