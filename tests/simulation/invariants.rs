//! What must hold at every moment, at the end of each request, and in the end
//! (`wake.md` §10). I1 and I7 of the guests themselves are in `guests.rs`, I6 and I7 of a
//! request where it is opened (`world.rs`).

use super::guests::Life;
use super::world::{Ended, Request, World};
use std::collections::BTreeMap;
use std::time::Duration;
use wakeup::hold::HoldError;
use wakeup::spec::StateName;

/// How much later than its deadline a waiter may end (I3).
const LATE: Duration = Duration::from_millis(50);

/// After every step: I3 nobody is forgotten, I8 bounds.
pub(crate) fn anytime(world: &World) {
    let mut sprites = BTreeMap::<_, usize>::new();
    let mut clients = BTreeMap::<_, usize>::new();
    let mut edges = vec![0; world.edges.len()];
    for (id, request) in world.requests.iter().filter(|(_, request)| request.held) {
        let Request { edge, name, client, deadline, .. } = request;
        assert!(world.now <= *deadline + LATE, "I3: request {id} waits beyond its deadline");
        *sprites.entry((edge, name)).or_default() += 1;
        *clients.entry((edge, client)).or_default() += 1;
        edges[*edge] += 1;
    }
    for (at, edge) in world.edges.iter().enumerate() {
        assert_eq!(edge.held(), edges[at], "I3: edge {at} holds others than those who wait");
        assert!(edge.held() <= world.limits.per_process, "I8: {} held", edge.held());
        assert!(edge.flights() <= world.limits.flights, "I8: {} flights", edge.flights());
    }
    for (of, held) in sprites {
        assert!(held <= world.limits.per_sprite, "I8: {held} held for {of:?}");
    }
    for (of, held) in clients {
        assert!(held <= world.limits.per_client, "I8: {held} held for client {of:?}");
    }
}

/// When one request ends: I3 exactly once and in time, I4 at its own deadline and no other's.
pub(crate) fn at_the_end_of_a_request(world: &World, id: u64, how: &Ended) {
    let request = world.requests.get(&id).unwrap_or_else(|| panic!("I3: request {id} ended before: {how:?}"));
    let Ended::Refused(error) = how else { return };
    assert!(request.held, "I3: request {id} is refused after its release: {error}");
    assert!(world.now <= request.deadline + LATE, "I3: request {id} ended late: {error}");
    if matches!(error, HoldError::Deadline { .. }) {
        // Or after the ten seconds that are enough for a sprite whose wakes are short.
        let waited = world.now - request.arrived;
        let own = world.now >= request.deadline || waited >= Duration::from_secs(10);
        assert!(own, "I4: request {id} ended at another's deadline");
    }
}

/// Once clients are gone and time has passed: I5 nothing is held, nothing awake, nothing counted.
pub(crate) fn finally(world: &World) {
    assert!(world.requests.is_empty(), "I3: {} requests never ended", world.requests.len());
    for edge in &world.edges {
        assert_eq!((edge.held(), edge.flights(), edge.poll_timeout()), (0, 0, None), "I5: holds are left");
    }
    for status in world.owner.statuses(world.now) {
        assert_eq!(status.state, StateName::Asleep, "I5: {} is {:?}", status.name, status.state);
        assert_eq!((status.waiting, status.open), (0, 0), "I5: somebody waits for {}", status.name);
    }
    world.awake.finally();
    for (name, guest) in world.guests.all() {
        assert_ne!(guest.life, Life::Alive, "I5: run {} of {name} was left behind", guest.run);
    }
}
