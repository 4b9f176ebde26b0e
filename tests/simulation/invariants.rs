//! What must hold at every moment, at the end of each request, and in the end
//! (`wake.md` §10). I1 and I7 of the guests themselves are in `guests.rs`, I6, I7 and I10 of
//! a request where it is opened (`requests.rs`); I9 is about time and bytes, and not here.

use super::guests::Life;
use super::requests::flight_of;
use super::world::{Ended, Request, World};
use backhaul::wire::Wake;
use router::names::SpriteName;
use router::route::HostId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use wakeup::hold::HoldError;
use wakeup::spec::StateName;

/// How much later than its deadline a waiter may end (I3).
const LATE: Duration = Duration::from_millis(50);
/// How long a message may be on its way, twice, before nobody waits any more (I2).
const UNHEARD: Duration = Duration::from_millis(600);

/// One release as seen from outside: those let go of whom nothing was heard.
#[derive(Debug)]
pub(crate) struct Turns {
    began: Instant,
    window: usize,
    most: usize,
    out: BTreeSet<u64>,
}

impl Turns {
    pub(crate) const fn new(began: Instant, window: usize, most: usize) -> Self {
        Self { began, window, most, out: BTreeSet::new() }
    }

    /// I8: the window doubles each 25 ms, and after a second there is none (`wake.md` §6).
    pub(crate) fn let_go(&mut self, now: Instant, id: u64) {
        self.out.insert(id);
        let passed = now - self.began;
        let doublings = (passed.as_millis() / 25).min(32) as u32;
        let window = self.window.saturating_mul(1 << doublings).min(self.most).max(1);
        let on_their_way = self.out.len();
        let whole = passed >= Duration::from_secs(1);
        assert!(whole || on_their_way <= window, "I8: {on_their_way} let go with a window of {window}");
    }

    pub(crate) fn fared(&mut self, id: u64) {
        self.out.remove(&id);
    }
}

/// When an edge asks for a wake. I2: only for somebody whom it has admitted.
pub(crate) fn at_a_wake(world: &World, edge: usize, wake: &Wake) {
    let waits = world.requests.values().any(|request| {
        let same = request.edge == edge && request.name.as_str() == wake.sprite;
        same && request.held && request.place.generation == wake.generation
    });
    assert!(waits, "I2: edge {edge} wakes {} for nobody", wake.sprite);
}

/// When a guest is started. I2: the owner has somebody who waits, and where no message is
/// lost somebody does.
pub(crate) fn at_a_start(world: &World, host: HostId, name: &SpriteName, run: u64) {
    let status = world.owners[host.0 as usize].core.status(name, world.now).expect("who starts is known");
    assert!(!status.held, "run {run} of {name} begins while it is held");
    if world.chances.strict() {
        let waits = world.requests.values().any(|request| request.name == *name);
        let heard = world.left.get(name).is_some_and(|left| world.now < *left + UNHEARD);
        assert!(waits || heard, "I2: run {run} of {name} starts for nobody");
    }
}

/// After every step: I3 nobody is forgotten, I8 bounds.
pub(crate) fn anytime(world: &World) {
    let limits = &world.limits;
    let mut sprites = BTreeMap::<_, usize>::new();
    let mut clients = BTreeMap::<_, usize>::new();
    let mut tenants = BTreeMap::<_, usize>::new();
    let mut flights = BTreeSet::new();
    let (mut edges, mut bytes) = (vec![0; world.edges.len()], vec![0; world.edges.len()]);
    for (id, request) in &world.requests {
        let Request { edge, name, client, deadline, place, .. } = request;
        if !request.held && request.awaits.is_none() {
            continue;
        }
        let late = deadline.max(&world.edges[*edge].stands_until);
        assert!(
            world.now <= *late + LATE,
            "I3: request {id} waits beyond its deadline: {request:?} at {:?}",
            world.now
        );
        if request.held {
            *sprites.entry((edge, name)).or_default() += 1;
            *clients.entry((edge, client)).or_default() += 1;
            *tenants.entry((edge, world.tenant(name))).or_default() += 1;
            edges[*edge] += 1;
            bytes[*edge] += request.bytes;
            if !world.edges[*edge].turns.contains_key(&flight_of(name, place.generation)) {
                flights.insert((edge, place.host, name, place.generation));
            }
        }
    }
    let mut hosts = BTreeMap::<_, usize>::new();
    for (edge, host, ..) in flights {
        *hosts.entry((edge, host)).or_default() += 1;
    }
    for (at, edge) in world.edges.iter().enumerate() {
        let held = edge.holds.held();
        assert_eq!(held, edges[at], "I3: edge {at} holds others than those who wait");
        assert!(held <= limits.per_process, "I8: {held} held");
        assert!(bytes[at] <= limits.memory, "I8: {} bytes held", bytes[at]);
        assert!(edge.holds.flights() <= limits.flights, "I8: {} flights", edge.holds.flights());
    }
    for ((edge, name), held) in sprites {
        let most = world.own(name).held.unwrap_or(limits.per_sprite);
        assert!(held <= most, "I8: {held} held for {name} at edge {edge}");
    }
    for (of, held) in clients {
        assert!(held <= limits.per_client, "I8: {held} held for client {of:?}");
    }
    for (of, held) in tenants {
        assert!(held <= limits.per_tenant, "I8: {held} held for tenant {of:?}");
    }
    for (of, flights) in hosts {
        assert!(flights <= limits.flights_per_host, "I8: {flights} flights at {of:?}");
    }
}

/// When one request ends: I3 exactly once and in time, I4 at its own deadline and no other's.
pub(crate) fn at_the_end_of_a_request(world: &mut World, id: u64, how: &Ended) {
    let request = world.requests.get(&id).unwrap_or_else(|| panic!("I3: request {id} ended before: {how:?}"));
    world.left.insert(request.name.clone(), world.now);
    assert_eq!(matches!(how, Ended::Served { .. }), world.delivered.contains(&id), "I6: request {id}: {how:?}");
    let Ended::Refused(error) = how else { return };
    let late = request.deadline.max(world.edges[request.edge].stands_until);
    assert!(world.now <= late + LATE || !request.held, "I3: request {id} ended late: {error}");
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
        let holds = &edge.holds;
        assert_eq!((holds.held(), holds.flights(), holds.poll_timeout()), (0, 0, None), "I5: holds are left");
    }
    for owner in &world.owners {
        for status in owner.core.statuses(world.now) {
            assert_eq!(status.state, StateName::Asleep, "I5: {} is {:?}", status.name, status.state);
            assert_eq!((status.waiting, status.open), (0, 0), "I5: somebody waits for {}", status.name);
        }
        for (name, guest) in owner.guests.all() {
            assert_ne!(guest.life, Life::Alive, "I5: run {} of {name} was left behind", guest.run);
        }
    }
    world.awake.finally();
}
