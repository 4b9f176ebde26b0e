//! The world the cores live in: a clock, clients, and everything that may happen. All
//! chance comes from the seed. `acts.rs` does what the cores want done.

use super::awake::Awake;
use super::chances::Chances;
use super::guests::{Guests, Life};
use super::invariants;
use backhaul::owner::EdgeId;
use backhaul::wire::{ClientClass, EdgeMessage, Lease, Opened, WakeAnswer};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use router::names::SpriteName;
use router::route::{Generation, HostId, Tenant};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use wakeup::hold::core::{Arrival, Fared, FlightKey, Holds, OwnBounds};
use wakeup::hold::{HoldError, HoldLimits};
use wakeup::owner::core::{CoreSettings, CoreSpec, OwnerCore};
use wakeup::spec::{Depth, StateName};

pub(crate) const EDGES: usize = 3;
/// The one host.
pub(crate) const HOST: HostId = HostId(0);
const SPRITES: usize = 6;
const CLIENTS: u32 = 5;
/// A request is held at most twice more when its sprite sleeps on the way (`wake.md` §6).
const HOPS: u32 = 2;

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) edge: usize,
    pub(crate) name: SpriteName,
    pub(crate) client: u32,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Instant,
    /// It waits in the hold; otherwise it is on its way.
    pub(crate) held: bool,
    hops: u32,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ended {
    Served {
        run: u64,
    },
    Refused(HoldError),
    /// Its client left, or its edge died.
    Left,
    /// Its time was up on the way back from a sprite that slept.
    TooLate,
    /// The sprite slept again and again before the request arrived.
    HopBudget,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    NewRequest,
    Leave(u64),
    ToOwner(EdgeId, EdgeMessage),
    ToEdge(EdgeId, WakeAnswer),
    /// A released request arrives at the owner.
    Open(u64, Opened),
    /// The owner says it is asleep (or held: then true); the request is back at its edge.
    Asleep(u64, bool),
    Served(usize, SpriteName, u64),
    Started(SpriteName, u64),
    PortOpen(SpriteName, u64, u64),
    StartFailed(SpriteName, u64),
    Stopped(SpriteName, u64, Depth),
    Gate(SpriteName, u64, u64, Option<Depth>),
    Renew(usize),
    Sleep,
    Death,
    SessionLost,
    EdgeDies,
    Hold,
    Release(SpriteName),
    Stop,
    StartAgain(SpriteName),
    /// The owner notices that a session is over.
    EdgeGone(EdgeId),
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) edges: Vec<Holds>,
    pub(crate) owner: OwnerCore,
    pub(crate) guests: Guests,
    pub(crate) awake: Awake,
    /// Requests that have not ended.
    pub(crate) requests: BTreeMap<u64, Request>,
    pub(crate) ended: BTreeMap<u64, Ended>,
    /// I6: requests a guest has seen.
    pub(crate) delivered: BTreeSet<u64>,
    pub(crate) starts: u64,
    pub(crate) wakes_sent: u64,
    pub(crate) limits: HoldLimits,
    pub(crate) chances: Chances,
    /// Each loses the next message it likes.
    pub(crate) lose: Vec<fn(&Event) -> bool>,
    /// The session each edge has now.
    pub(super) sessions: Vec<EdgeId>,
    /// What each edge has open, by sprite and run.
    pub(super) leases: Vec<BTreeMap<(SpriteName, u64), u32>>,
    names: Vec<SpriteName>,
    heap: BinaryHeap<Reverse<(Instant, u64)>>,
    events: BTreeMap<u64, Event>,
    next: u64,
    pub(super) rng: SmallRng,
    open_for_business: bool,
}

impl World {
    pub(crate) fn new(seed: u64, chances: Chances) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let limits = HoldLimits {
            per_sprite: 128,
            per_client: 64,
            per_process: 256,
            flights: 64,
            release_window: 2,
            ..HoldLimits::from(&config::Hold::default())
        };
        let now = Instant::now();
        let settings = CoreSettings {
            idle_timeout: Duration::from_secs(3),
            warm_for: Duration::from_secs(20),
            minimum_run: Duration::from_secs(1),
            abandoned_timeout: Duration::from_secs(1),
            port_wait: Duration::from_secs(5),
            start_slots: 2,
            busy_idle_timeout: Duration::from_secs(6),
            seed,
            ..CoreSettings::from(&config::Host::default())
        };
        let mut world = Self {
            now,
            edges: (0..EDGES).map(|_| Holds::new(limits.clone(), rng.random())).collect(),
            owner: OwnerCore::new(settings),
            guests: Guests::default(),
            awake: Awake::default(),
            requests: BTreeMap::new(),
            ended: BTreeMap::new(),
            delivered: BTreeSet::new(),
            starts: 0,
            wakes_sent: 0,
            limits,
            lose: Vec::new(),
            sessions: (0..EDGES as u64).map(EdgeId).collect(),
            leases: vec![BTreeMap::new(); EDGES],
            names: (0..SPRITES).map(|n| SpriteName::parse(&format!("s{n}")).expect("a name")).collect(),
            heap: BinaryHeap::new(),
            events: BTreeMap::new(),
            next: 0,
            rng,
            open_for_business: true,
            chances,
        };
        for name in world.names.clone() {
            world.owner.handle_upsert(now, &name, CoreSpec::new(1));
        }
        let chances = &world.chances;
        let regular = [
            (chances.request_every_ms, Event::NewRequest),
            (chances.sleep_every_ms, Event::Sleep),
            (chances.death_every_ms, Event::Death),
            (chances.session_lost_every_ms, Event::SessionLost),
            (chances.edge_dies_every_ms, Event::EdgeDies),
            (chances.hold_every_ms, Event::Hold),
            (chances.stop_every_ms, Event::Stop),
        ];
        for (every, event) in regular.into_iter().filter(|(every, _)| *every > 0) {
            world.after(every, event);
        }
        (0..EDGES).for_each(|edge| world.after(1_000, Event::Renew(edge)));
        world
    }

    pub(crate) fn name(&self, at: usize) -> SpriteName {
        self.names[at].clone()
    }

    pub(crate) fn state(&self, name: &SpriteName) -> StateName {
        self.owner.status(name, self.now).expect("every sprite of the world is known").state
    }

    /// Lets a request arrive; its id.
    pub(crate) fn request(&mut self, edge: usize, name: &SpriteName, client: u32, patience: Duration) -> u64 {
        self.next += 1;
        let (id, arrived, deadline) = (self.next, self.now, self.now + patience);
        let request = Request { edge, name: name.clone(), client, arrived, deadline, held: false, hops: 0 };
        self.requests.insert(id, request);
        self.hold(id);
        id
    }

    fn hold(&mut self, id: u64) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.held = true;
        let arrival = Arrival {
            id,
            key: flight_of(&request.name),
            host: HOST,
            client: IpAddr::V4(Ipv4Addr::from_bits(request.client)),
            class: ClientClass::Anonymous,
            arrived: request.arrived,
            deadline: request.deadline,
            reason: "sim".into(),
            tenant: Tenant::default(),
            bytes: 1_000,
            own: OwnBounds::default(),
        };
        self.edges[request.edge].handle_request(self.now, arrival);
        self.settle();
    }

    /// The client of a request leaves. I4: that ends nobody else.
    pub(crate) fn leave(&mut self, id: u64) {
        let Some(request) = self.requests.get(&id) else { return };
        self.edges[request.edge].handle_client_gone(id);
        let before = self.ended.len();
        self.end(id, Ended::Left);
        self.settle();
        assert_eq!(self.ended.len(), before + 1, "I4: request {id} left and took others with it");
    }

    pub(crate) fn sleep(&mut self, name: &SpriteName, depth: Depth) {
        self.owner.handle_sleep(self.now, name, depth);
        self.settle();
    }

    /// The session of an edge breaks; both ends notice, the owner a little later.
    pub(crate) fn lose_session(&mut self, edge: usize) {
        self.new_session(edge);
        self.edges[edge].handle_host_down(self.now, HOST);
        self.settle();
    }

    /// An edge dies and comes back without its holds; its clients are gone.
    pub(crate) fn kill_edge(&mut self, edge: usize) {
        let lost: Vec<_> =
            self.requests.iter().filter(|(_, request)| request.edge == edge).map(|(id, _)| *id).collect();
        self.edges[edge] = Holds::new(self.limits.clone(), self.rng.random());
        self.leases[edge].clear();
        for id in lost {
            self.end(id, Ended::Left);
        }
        self.new_session(edge);
        self.settle();
    }

    fn new_session(&mut self, edge: usize) {
        let old = self.sessions[edge];
        self.sessions[edge] = EdgeId(old.0 + EDGES as u64);
        let noticed = self.delay();
        self.after(noticed, Event::EdgeGone(old));
    }

    pub(crate) fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(at) = self.next_time().filter(|at| *at <= end) {
            self.step(at);
        }
        self.now = end;
    }

    /// No more clients and no more deaths; then everything must come to rest.
    pub(crate) fn quiesce(&mut self) {
        self.open_for_business = false;
        // The longest minimum run of a sprite that napped too often is five minutes.
        self.run_for(Duration::from_secs(420));
        invariants::finally(self);
    }

    fn next_time(&self) -> Option<Instant> {
        let cores = self.edges.iter().filter_map(Holds::poll_timeout).chain(self.owner.poll_timeout());
        cores.chain(self.heap.peek().map(|Reverse((at, _))| *at)).min()
    }

    fn step(&mut self, at: Instant) {
        self.now = self.now.max(at);
        if self.heap.peek().is_some_and(|Reverse((at, _))| *at <= self.now)
            && let Some(event) = self.heap.pop().and_then(|Reverse((_, id))| self.events.remove(&id))
        {
            self.happen(event);
        }
        for edge in &mut self.edges {
            if edge.poll_timeout().is_some_and(|at| at <= self.now) {
                edge.handle_timeout(self.now);
                assert!(edge.poll_timeout().is_none_or(|at| at > self.now), "the timer of an edge does not move on");
            }
        }
        if self.owner.poll_timeout().is_some_and(|at| at <= self.now) {
            self.owner.handle_timeout(self.now, &self.guests);
        }
        self.settle();
        invariants::anytime(self);
    }

    pub(super) fn after(&mut self, ms: u64, event: Event) {
        self.next += 1;
        self.heap.push(Reverse((self.now + Duration::from_millis(ms), self.next)));
        self.events.insert(self.next, event);
    }

    pub(super) fn chance(&mut self, per_thousand: u32) -> bool {
        per_thousand > 0 && self.rng.random_range(0..1000) < per_thousand
    }

    pub(super) fn delay(&mut self) -> u64 {
        self.rng.random_range(0..=self.chances.delay_ms)
    }

    fn any_name(&mut self) -> SpriteName {
        let at = self.rng.random_range(0..self.names.len());
        self.names[at].clone()
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::NewRequest
            | Event::Sleep
            | Event::Death
            | Event::SessionLost
            | Event::EdgeDies
            | Event::Hold
            | Event::Stop => {
                if self.open_for_business {
                    self.happen_again(event);
                }
            }
            Event::Leave(id) => self.leave(id),
            Event::Release(name) => self.owner.handle_release(now, &name),
            Event::StartAgain(name) => self.owner.handle_start(&name),
            Event::ToOwner(session, message) => {
                // What was on its way in a session ends with it.
                if self.sessions.contains(&session) {
                    self.at_owner(session, message);
                }
            }
            Event::ToEdge(session, answer) => {
                if let Some(edge) = self.sessions.iter().position(|current| *current == session) {
                    self.edges[edge].handle_answer(now, HOST, answer);
                }
            }
            Event::Open(id, opened) => self.open(id, &opened),
            Event::Asleep(id, held) => self.again(id, held),
            Event::Served(edge, name, run) => {
                if let Some(guest) = self.guests.in_run(&name, run) {
                    guest.open = guest.open.saturating_sub(1);
                    guest.last = Some(now);
                }
                if let Some(open) = self.leases[edge].get_mut(&(name, run)) {
                    *open = open.saturating_sub(1);
                }
            }
            Event::Started(name, token) => {
                self.awake.begins(now, &name);
                self.owner.handle_started(now, &name, token);
            }
            Event::PortOpen(name, run, token) => {
                if let Some(guest) = self.guests.in_run(&name, run) {
                    guest.listening = true;
                    guest.last = Some(now);
                    self.owner.handle_port_open(now, &name, token);
                }
            }
            Event::StartFailed(name, run) => {
                self.guests.stop(&name, Life::Absent);
                self.owner.handle_exited(now, &name, run, "exit status 1");
            }
            Event::Stopped(name, token, depth) => {
                let life = if depth == Depth::Warm { Life::Frozen } else { Life::Absent };
                self.guests.stop(&name, life);
                self.awake.ends(now, &name);
                self.owner.handle_stopped(now, &name, token, depth);
            }
            Event::Gate(name, run, token, force) => {
                let guest = self.guests.of(&name);
                let closed = force.is_some() || guest.run != run || guest.open == 0;
                guest.gate_closed = closed;
                self.owner.handle_gate(now, &name, token, closed, force);
            }
            Event::Renew(edge) => self.renew(edge),
            Event::EdgeGone(session) => self.owner.handle_edge_gone(now, session),
        }
    }

    /// What goes on by itself as long as there are clients.
    fn happen_again(&mut self, event: Event) {
        let every = match event {
            Event::NewRequest => {
                self.new_request();
                self.rng.random_range(1..=2 * self.chances.request_every_ms)
            }
            Event::Sleep => {
                let name = self.any_name();
                let depth = if self.rng.random() { Depth::Warm } else { Depth::Cold };
                self.owner.handle_sleep(self.now, &name, depth);
                self.chances.sleep_every_ms
            }
            Event::Death => {
                let name = self.any_name();
                let guest = self.guests.of(&name);
                if guest.listening {
                    let run = guest.run;
                    self.guests.stop(&name, Life::Absent);
                    self.awake.ends(self.now, &name);
                    self.owner.handle_exited(self.now, &name, run, "killed by signal 9");
                }
                self.chances.death_every_ms
            }
            Event::Hold => {
                let name = self.any_name();
                let longest = self.rng.random_range(0..4_000);
                assert!(self.owner.handle_hold(self.now, &name, Duration::from_millis(longest)));
                // Some are never released and end by themselves.
                if self.rng.random() {
                    let after = self.rng.random_range(0..=longest);
                    self.after(after, Event::Release(name));
                }
                self.chances.hold_every_ms
            }
            Event::Stop => {
                let name = self.any_name();
                assert!(self.owner.handle_stop(self.now, &name));
                let after = self.rng.random_range(0..5_000);
                self.after(after, Event::StartAgain(name));
                self.chances.stop_every_ms
            }
            Event::SessionLost => {
                let edge = self.rng.random_range(0..EDGES);
                self.lose_session(edge);
                self.chances.session_lost_every_ms
            }
            _ => {
                let edge = self.rng.random_range(0..EDGES);
                self.kill_edge(edge);
                self.chances.edge_dies_every_ms
            }
        };
        self.after(every, event);
    }

    fn new_request(&mut self) {
        let edge = self.rng.random_range(0..EDGES);
        let name = self.any_name();
        let client = self.rng.random_range(0..CLIENTS);
        let (shortest, longest) = self.chances.patience_ms;
        let patience = Duration::from_millis(self.rng.random_range(shortest..longest));
        let id = self.request(edge, &name, client, patience);
        if self.chance(self.chances.client_leaves) {
            let after = self.rng.random_range(0..2_000);
            self.after(after, Event::Leave(id));
        }
    }

    /// An edge tells what it has open, once a second (`backhaul::wire::Leases`).
    fn renew(&mut self, edge: usize) {
        self.leases[edge].retain(|_, open| *open > 0);
        let leases: Vec<_> = self.leases[edge]
            .iter()
            .map(|((name, run), open)| Lease {
                sprite: name.as_str().into(),
                run: *run,
                open: *open,
                ..Lease::default()
            })
            .collect();
        if !leases.is_empty() {
            let message = EdgeMessage::Leases(backhaul::wire::Leases { leases });
            self.send(&Event::ToOwner(self.sessions[edge], message));
        }
        self.after(1_000, Event::Renew(edge));
    }

    /// A released request at the owner: served by the run it was released for, or asleep.
    fn open(&mut self, id: u64, opened: &Opened) {
        let Some(request) = self.requests.get(&id) else { return };
        let (edge, name) = (request.edge, request.name.clone());
        let status = self.owner.status(&name, self.now).expect("every sprite of the world is known");
        let now = self.now;
        let serves = self.guests.in_run(&name, opened.run).filter(|guest| guest.listening && !guest.gate_closed);
        let Some(guest) = serves else {
            let delay = self.delay();
            return self.after(delay, Event::Asleep(id, status.held));
        };
        assert_eq!(status.run, opened.run, "I7: request {id} is served by an older run");
        assert_eq!(status.state, StateName::Running, "I7: request {id} is served by a guest that does not run");
        guest.open += 1;
        guest.last = Some(now);
        assert!(self.delivered.insert(id), "I6: request {id} is delivered twice");
        *self.leases[edge].entry((name.clone(), opened.run)).or_default() += 1;
        self.edges[edge].handle_fared(now, &flight_of(&name), id, Fared::Well);
        let took = self.rng.random_range(0..2_000);
        self.after(took, Event::Served(edge, name, opened.run));
        self.end(id, Ended::Served { run: opened.run });
    }

    /// It slept before the request came: held once more, within the same deadline.
    fn again(&mut self, id: u64, held: bool) {
        let now = self.now;
        if let Some(Request { edge, name, .. }) = self.requests.get(&id) {
            self.edges[*edge].handle_fared(now, &flight_of(name), id, Fared::Asleep);
        }
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.hops += u32::from(!held);
        if request.hops > HOPS {
            return self.end(id, Ended::HopBudget);
        }
        if request.deadline <= now {
            return self.end(id, Ended::TooLate);
        }
        self.hold(id);
    }

    pub(super) fn end(&mut self, id: u64, how: Ended) {
        invariants::at_the_end_of_a_request(self, id, &how);
        self.requests.remove(&id);
        assert!(self.ended.insert(id, how).is_none(), "I3: request {id} ended twice");
    }
}

fn flight_of(name: &SpriteName) -> FlightKey {
    FlightKey { name: name.clone(), generation: Generation(1), port: 0 }
}
