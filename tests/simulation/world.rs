//! The world the cores live in: a clock, a network, drivers, clients. All chance comes
//! from the seed.

use super::invariants;
use backhaul::owner::EdgeId;
use backhaul::wire::{
    Accepted, ClientClass, EdgeMessage, Gone, Opened, Outcome, Progress, Refused, Unknown, WakeAnswer,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use router::names::SpriteName;
use router::route::{Generation, HostId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use wakeup::hold::core::{self as hold, Arrival, FlightKey, Holds};
use wakeup::hold::{HoldError, HoldLimits};
use wakeup::owner::core::CoreSpec;
use wakeup::owner::core::{self as owner, Activity, Answer, CoreSettings, OwnerCore, WakeRequest};
use wakeup::spec::{Depth, StateName};

pub(crate) const EDGES: usize = 3;

/// How likely things are, per thousand, and how long they take.
#[derive(Clone, Debug)]
pub(crate) struct Chances {
    pub(crate) lost: u32,
    pub(crate) doubled: u32,
    pub(crate) delay_ms: u64,
    pub(crate) start_fails: u32,
    pub(crate) never_listens: u32,
    pub(crate) client_leaves: u32,
    pub(crate) request_every_ms: u64,
    pub(crate) sleep_every_ms: u64,
    pub(crate) death_every_ms: u64,
}

impl Chances {
    pub(crate) const fn rough() -> Self {
        Self {
            lost: 50,
            doubled: 30,
            delay_ms: 300,
            start_fails: 50,
            never_listens: 20,
            client_leaves: 200,
            request_every_ms: 120,
            sleep_every_ms: 3_000,
            death_every_ms: 9_000,
        }
    }

    /// Nothing goes wrong by itself.
    pub(crate) const fn calm() -> Self {
        Self {
            lost: 0,
            doubled: 0,
            delay_ms: 0,
            start_fails: 0,
            never_listens: 0,
            client_leaves: 0,
            request_every_ms: 0,
            sleep_every_ms: 0,
            death_every_ms: 0,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) edge: usize,
    pub(crate) name: SpriteName,
    pub(crate) deadline: Instant,
    hops: u32,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ended {
    Served {
        run: u64,
    },
    Refused(HoldError),
    Left,
    /// Its time was up on the way back from a sprite that slept.
    TooLate,
    /// The sprite slept again and again before the request arrived.
    HopBudget,
}

#[derive(Clone, Debug)]
enum Event {
    NewRequest,
    Leave(u64),
    ToOwner(usize, EdgeMessage),
    ToEdge(usize, WakeAnswer),
    /// A released request arrives at the owner.
    Open(u64, Opened),
    /// The owner says it is asleep; the request is back at its edge.
    Asleep(u64),
    Served(SpriteName, u64),
    Started(SpriteName, u64),
    PortOpen(SpriteName, u64, u64),
    StartFailed(SpriteName, u64),
    Stopped(SpriteName, u64, Depth),
    Gate(SpriteName, u64, u64, Option<Depth>),
    Sleep,
    Death,
}

/// One guest as the drivers know it.
#[derive(Debug, Default)]
struct Guest {
    run: u64,
    /// Its port answers.
    listening: bool,
    open: u32,
    last: Option<Instant>,
    gate_closed: bool,
}

#[derive(Debug, Default)]
struct Guests(BTreeMap<SpriteName, Guest>);

impl Activity for Guests {
    fn activity(&self, name: &SpriteName, run: u64) -> (u32, Instant) {
        let guest = self.0.get(name).filter(|guest| guest.run == run).expect("the core asks for running sprites");
        (guest.open, guest.last.expect("a running guest has begun"))
    }
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) edges: Vec<Holds>,
    pub(crate) owner: OwnerCore,
    pub(crate) requests: BTreeMap<u64, Request>,
    pub(crate) ended: BTreeMap<u64, Ended>,
    /// Starts under way by sprite.
    pub(crate) starting: BTreeMap<SpriteName, u32>,
    pub(crate) starts: u64,
    pub(crate) limits: HoldLimits,
    pub(crate) chances: Chances,
    names: Vec<SpriteName>,
    guests: Guests,
    heap: BinaryHeap<Reverse<(Instant, u64)>>,
    events: BTreeMap<u64, Event>,
    next: u64,
    rng: SmallRng,
    open_for_business: bool,
}

impl World {
    pub(crate) fn new(seed: u64, chances: Chances) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let limits = HoldLimits { per_sprite: 128, per_client: 64, per_process: 256, flights: 64 };
        let now = Instant::now();
        let settings = CoreSettings {
            idle_timeout: Duration::from_secs(3),
            warm_for: Duration::from_secs(20),
            minimum_run: Duration::from_secs(1),
            abandoned_timeout: Duration::from_secs(1),
            port_wait: Duration::from_secs(5),
            start_slots: 2,
            seed,
        };
        let edges = (0..EDGES).map(|_| Holds::new(limits.clone(), rng.random())).collect();
        let mut world = Self {
            now,
            edges,
            owner: OwnerCore::new(settings),
            requests: BTreeMap::new(),
            ended: BTreeMap::new(),
            starting: BTreeMap::new(),
            starts: 0,
            limits,
            names: (0..6).map(|n| SpriteName::parse(&format!("s{n}")).expect("a name")).collect(),
            guests: Guests::default(),
            heap: BinaryHeap::new(),
            events: BTreeMap::new(),
            next: 0,
            rng,
            open_for_business: true,
            chances,
        };
        for name in world.names.clone() {
            world.owner.handle_upsert(now, &name, CoreSpec { generation: 1, idle_timeout: None, always: false });
        }
        for (every, event) in [
            (world.chances.request_every_ms, Event::NewRequest),
            (world.chances.sleep_every_ms, Event::Sleep),
            (world.chances.death_every_ms, Event::Death),
        ] {
            if every > 0 {
                world.after(every, event);
            }
        }
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
        let id = self.next;
        let deadline = self.now + patience;
        self.requests.insert(id, Request { edge, name: name.clone(), deadline, hops: 0 });
        self.hold(id, client);
        id
    }

    fn hold(&mut self, id: u64, client: u32) {
        let request = self.requests[&id].clone();
        let arrival = Arrival {
            id,
            key: FlightKey { name: request.name, generation: Generation(1), port: 0 },
            host: HostId(0),
            client: IpAddr::V4(Ipv4Addr::from_bits(client)),
            class: ClientClass::Anonymous,
            deadline: request.deadline,
            reason: "sim".into(),
        };
        self.edges[request.edge].handle_request(self.now, arrival);
        self.settle();
    }

    /// The client of a request leaves.
    pub(crate) fn leave(&mut self, id: u64) {
        let Some(request) = self.requests.get(&id) else { return };
        let edge = request.edge;
        self.edges[edge].handle_client_gone(id);
        self.end(id, Ended::Left);
        self.settle();
    }

    pub(crate) fn sleep(&mut self, name: &SpriteName, depth: Depth) {
        self.owner.handle_sleep(self.now, name, depth);
        self.settle();
    }

    pub(crate) fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(at) = self.next_time().filter(|at| *at <= end) {
            self.step(at);
        }
        self.now = end;
    }

    /// No more clients and no more faults; then everything must come to rest.
    pub(crate) fn quiesce(&mut self) {
        self.open_for_business = false;
        self.run_for(Duration::from_secs(120));
        invariants::finally(self);
    }

    fn next_time(&self) -> Option<Instant> {
        let cores = self.edges.iter().filter_map(Holds::poll_timeout).chain(self.owner.poll_timeout());
        cores.chain(self.heap.peek().map(|Reverse((at, _))| *at)).min()
    }

    fn step(&mut self, at: Instant) {
        self.now = self.now.max(at);
        let due = self.heap.peek().is_some_and(|Reverse((at, _))| *at <= self.now);
        let event = if due { self.heap.pop().and_then(|Reverse((_, id))| self.events.remove(&id)) } else { None };
        if let Some(event) = event {
            self.happen(event);
        }
        for edge in 0..EDGES {
            if self.edges[edge].poll_timeout().is_some_and(|at| at <= self.now) {
                self.edges[edge].handle_timeout(self.now);
            }
        }
        if self.owner.poll_timeout().is_some_and(|at| at <= self.now) {
            self.owner.handle_timeout(self.now, &self.guests);
        }
        self.settle();
        invariants::anytime(self);
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.next += 1;
        self.heap.push(Reverse((self.now + Duration::from_millis(ms), self.next)));
        self.events.insert(self.next, event);
    }

    fn chance(&mut self, per_thousand: u32) -> bool {
        per_thousand > 0 && self.rng.random_range(0..1000) < per_thousand
    }

    fn delay(&mut self) -> u64 {
        self.rng.random_range(0..=self.chances.delay_ms)
    }

    /// Sends a control message over the network.
    fn send(&mut self, event: &Event) {
        if self.chance(self.chances.doubled) {
            let delay = self.delay();
            self.after(delay, event.clone());
        }
        if !self.chance(self.chances.lost) {
            let delay = self.delay();
            self.after(delay, event.clone());
        }
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::NewRequest if self.open_for_business => self.new_request(),
            Event::Sleep if self.open_for_business => {
                let name = self.names[self.rng.random_range(0..self.names.len())].clone();
                let depth = if self.rng.random() { Depth::Warm } else { Depth::Cold };
                self.owner.handle_sleep(now, &name, depth);
                let every = self.chances.sleep_every_ms;
                self.after(every, Event::Sleep);
            }
            Event::Death if self.open_for_business => {
                let name = self.names[self.rng.random_range(0..self.names.len())].clone();
                if let Some(guest) = self.guests.0.get_mut(&name).filter(|guest| guest.listening) {
                    let run = guest.run;
                    guest.listening = false;
                    self.owner.handle_exited(now, &name, run, "killed by signal 9");
                }
                let every = self.chances.death_every_ms;
                self.after(every, Event::Death);
            }
            Event::NewRequest | Event::Sleep | Event::Death => {}
            Event::Leave(id) => self.leave(id),
            Event::ToOwner(edge, message) => self.at_owner(edge, message),
            Event::ToEdge(edge, answer) => self.edges[edge].handle_answer(now, answer),
            Event::Open(id, opened) => self.open(id, &opened),
            Event::Asleep(id) => self.again(id),
            Event::Served(name, run) => {
                if let Some(guest) = self.guests.0.get_mut(&name).filter(|guest| guest.run == run) {
                    guest.open = guest.open.saturating_sub(1);
                    guest.last = Some(now);
                }
            }
            Event::Started(name, token) => self.owner.handle_started(now, &name, token),
            Event::PortOpen(name, run, token) => {
                if let Some(guest) = self.guests.0.get_mut(&name).filter(|guest| guest.run == run) {
                    guest.listening = true;
                    guest.last = Some(now);
                }
                self.owner.handle_port_open(now, &name, token);
            }
            Event::StartFailed(name, run) => self.owner.handle_exited(now, &name, run, "exit status 1"),
            Event::Stopped(name, token, depth) => self.owner.handle_stopped(now, &name, token, depth),
            Event::Gate(name, run, token, force) => {
                let guest = self.guests.0.entry(name.clone()).or_default();
                let closed = force.is_some() || guest.run != run || guest.open == 0;
                guest.gate_closed = closed;
                self.owner.handle_gate(now, &name, token, closed, force);
            }
        }
    }

    fn new_request(&mut self) {
        let edge = self.rng.random_range(0..EDGES);
        let name = self.names[self.rng.random_range(0..self.names.len())].clone();
        let client = self.rng.random_range(0..5);
        let patience = Duration::from_millis(self.rng.random_range(500..15_000));
        let id = self.request(edge, &name, client, patience);
        if self.chance(self.chances.client_leaves) {
            let after = self.rng.random_range(0..2_000);
            self.after(after, Event::Leave(id));
        }
        let every = self.rng.random_range(1..=2 * self.chances.request_every_ms);
        self.after(every, Event::NewRequest);
    }

    fn at_owner(&mut self, edge: usize, message: EdgeMessage) {
        let from = EdgeId(edge as u64);
        let id = |high: u64, low: u64| (u128::from(high) << 64) | u128::from(low);
        match message {
            EdgeMessage::Wake(wake) => {
                let name = SpriteName::parse(&wake.sprite).expect("edges send names");
                let request = WakeRequest {
                    waiter: (from, id(wake.wake_id_high, wake.wake_id_low)),
                    name,
                    generation: wake.generation,
                    deadline: self.now + Duration::from_millis(wake.deadline_ms.into()),
                    reason: wake.reason,
                };
                self.owner.handle_wake(self.now, request);
            }
            EdgeMessage::Withdraw(withdraw) => {
                self.owner.handle_withdraw(self.now, (from, id(withdraw.wake_id_high, withdraw.wake_id_low)));
            }
            EdgeMessage::Leases(_) => {}
        }
    }

    /// A released request at the owner: served by the run it was released for, or asleep.
    fn open(&mut self, id: u64, opened: &Opened) {
        let Some(request) = self.requests.get(&id) else { return };
        let name = request.name.clone();
        let state = self.state(&name);
        let run = self.owner.status(&name, self.now).map_or(0, |status| status.run);
        let guest = self.guests.0.entry(name.clone()).or_default();
        let serves = guest.run == opened.run && guest.listening && !guest.gate_closed;
        if !serves {
            let delay = self.delay();
            return self.after(delay, Event::Asleep(id));
        }
        assert_eq!(run, opened.run, "I7: served by an older run");
        assert!(matches!(state, StateName::Running), "I7: served while {state:?}");
        guest.open += 1;
        let took = self.rng.random_range(0..2_000);
        self.after(took, Event::Served(name, opened.run));
        self.end(id, Ended::Served { run });
    }

    fn again(&mut self, id: u64) {
        let now = self.now;
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.hops += 1;
        if request.hops > 2 {
            return self.end(id, Ended::HopBudget);
        }
        if request.deadline <= now {
            return self.end(id, Ended::TooLate);
        }
        self.hold(id, 0);
    }

    fn end(&mut self, id: u64, how: Ended) {
        // What is on the network may be late; the hold itself is never.
        if matches!(how, Ended::Refused(_)) {
            invariants::at_the_end_of_a_request(self, id, &how);
        }
        self.requests.remove(&id);
        assert!(self.ended.insert(id, how).is_none(), "I3: request {id} ended twice");
    }

    /// Does what the cores want done until they want nothing more.
    fn settle(&mut self) {
        loop {
            let mut idle = true;
            for edge in 0..EDGES {
                while let Some(action) = self.edges[edge].poll_action() {
                    idle = false;
                    self.edge_acts(edge, action);
                }
            }
            while let Some(action) = self.owner.poll_action() {
                idle = false;
                self.owner_acts(action);
            }
            if idle {
                return;
            }
        }
    }

    fn edge_acts(&mut self, edge: usize, action: hold::Action) {
        match action {
            hold::Action::Wake(_, wake) => self.send(&Event::ToOwner(edge, EdgeMessage::Wake(wake))),
            hold::Action::Withdraw(_, withdraw) => self.send(&Event::ToOwner(edge, EdgeMessage::Withdraw(withdraw))),
            hold::Action::Release(id, opened) => {
                let delay = self.delay();
                self.after(delay, Event::Open(id, opened));
            }
            hold::Action::Refuse(id, error) => {
                assert!(self.requests.contains_key(&id), "I3: request {id} was refused after its end");
                self.end(id, Ended::Refused(error));
            }
        }
    }

    fn owner_acts(&mut self, action: owner::Action) {
        use owner::Action::{
            Answer, CloseGate, Continue, Cordon, End, Ended, Freeze, Probe, Receipt, ReopenGate, Running, Start,
        };
        match action {
            Start { name, run, token } => self.start(name, run, token, 400),
            Continue { name, run, token } => self.start(name, run, token, 5),
            Probe { name, token } => {
                let run = self.guests.0.get(&name).map_or(0, |guest| guest.run);
                self.after(10, Event::PortOpen(name, run, token));
            }
            CloseGate { name, run, token, force } => self.after(1, Event::Gate(name, run, token, force)),
            ReopenGate { name, .. } => self.guests.0.entry(name).or_default().gate_closed = false,
            Freeze { name, token, .. } => self.stop(name, token, Depth::Warm),
            End { name, token, .. } => self.stop(name, token, Depth::Cold),
            Answer { waiter: (edge, id), answer, .. } => {
                let answer = WakeAnswer {
                    wake_id_high: (id >> 64) as u64,
                    wake_id_low: id as u64,
                    outcome: Some(outcome(answer)),
                };
                self.send(&Event::ToEdge(edge.0 as usize, answer));
            }
            Running { name, .. } => drop(self.starting.insert(name, 0)),
            Ended { name, .. } => {
                self.starting.insert(name.clone(), 0);
                let guest = self.guests.0.entry(name).or_default();
                guest.listening = false;
                guest.open = 0;
            }
            Cordon { .. } | Receipt { .. } => {}
        }
    }

    fn start(&mut self, name: SpriteName, run: u64, token: u64, slow_ms: u64) {
        self.starts += 1;
        *self.starting.entry(name.clone()).or_default() += 1;
        let begun = Guest { run, last: Some(self.now), ..Guest::default() };
        self.guests.0.insert(name.clone(), begun);
        let took = self.rng.random_range(0..=slow_ms);
        if self.chance(self.chances.start_fails) {
            return self.after(took, Event::StartFailed(name, run));
        }
        self.after(took, Event::Started(name.clone(), token));
        if !self.chance(self.chances.never_listens) {
            let listens = took + self.rng.random_range(0..=slow_ms);
            self.after(listens, Event::PortOpen(name, run, token));
        }
    }

    fn stop(&mut self, name: SpriteName, token: u64, depth: Depth) {
        if let Some(guest) = self.guests.0.get_mut(&name) {
            guest.listening = false;
            guest.open = 0;
        }
        let took = self.rng.random_range(0..300);
        self.after(took, Event::Stopped(name, token, depth));
    }
}

fn outcome(answer: Answer) -> Outcome {
    match answer {
        Answer::Accepted { joined } => Outcome::Accepted(Accepted { joined }),
        Answer::Progress(phase) => Outcome::Progress(Progress { phase: phase.into() }),
        Answer::Ready(opened) => Outcome::Ready(opened),
        Answer::Refused { cause, retry_after, detail } => {
            let retry_after_ms = u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX);
            Outcome::Refused(Refused { cause: cause.into(), retry_after_ms, detail })
        }
        Answer::Gone { generation } => Outcome::Gone(Gone { generation }),
        Answer::Unknown { generation } => Outcome::Unknown(Unknown { my_generation: generation }),
    }
}
