//! The world the cores live in: a clock, and everything that may happen. All chance comes
//! from the seed. `acts.rs` does what the cores want done, `requests.rs` leads the requests.

use super::acts::Told;
use super::awake::Awake;
use super::chances::Chances;
use super::edges::Edge;
use super::feed::Place;
use super::invariants;
use super::mutations::Mutation;
use super::owners::Owner;
pub(crate) use super::requests::Request;
use backhaul::owner::EdgeId;
use backhaul::wire::{EdgeMessage, WakeAnswer};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use router::names::SpriteName;
use router::route::HostId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};
use wakeup::hold::core::Holds;
use wakeup::hold::{HoldError, HoldLimits};
use wakeup::owner::core::CoreSettings;
use wakeup::spec::{Depth, StateName};

pub(crate) const EDGES: usize = 3;
pub(crate) const OWNERS: usize = 2;
pub(crate) const SPRITES: usize = 6;
pub(super) const CLIENTS: u32 = 5;
/// Requests let go at once, to begin with.
pub(crate) const WINDOW: usize = 2;

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ended {
    Served {
        generation: u64,
        run: u64,
    },
    Refused(HoldError),
    /// Its client left, or its edge died.
    Left,
    /// Its time was up on the way back from a sprite that slept.
    TooLate,
    /// The sprite slept or moved again and again before the request arrived.
    HopBudget,
    /// Its edge knows that the sprite is no more.
    Gone,
    /// Its edge did not hear where the sprite went.
    FeedLate(HoldError),
    /// The host went away while it was on its way.
    Unreachable,
}

/// Where a request is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) host: HostId,
    pub(crate) generation: u64,
    pub(crate) run: u64,
}

/// Why it was not opened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply {
    Asleep { held: bool, uncommitted: bool },
    Elsewhere(u64),
    NoSession,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    NewRequest,
    Sleep,
    Death,
    SessionLost,
    EdgeDies,
    Hold,
    Stop,
    Move,
    Destroy,
    OwnerDies,
    Stall,
    Leave(u64),
    ToOwner(EdgeId, EdgeMessage),
    ToEdge(EdgeId, WakeAnswer),
    /// A request arrives at the owner.
    Open(u64, Sent),
    /// It is back at its edge.
    NotOpened(u64, Reply),
    Served(usize, HostId, SpriteName, u64),
    /// A driver reports to the owner of that life.
    Driver(HostId, u32, SpriteName, Told),
    Renew(usize),
    Release(SpriteName),
    StartAgain(SpriteName),
    MakeAgain(SpriteName),
    MoveOn(SpriteName, HostId, u32),
    Upserted(SpriteName, Place),
    Fed(usize, SpriteName, Place),
    /// The table has not told what was waited for.
    FeedLate(u64, u32),
    /// Every edge has answered the owner's cordon of that run.
    Cordoned(HostId, SpriteName, u64),
    /// The owner notices that a session is over.
    EdgeGone(HostId, EdgeId),
    HostDown(usize, HostId),
    OwnerBack(HostId),
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) edges: Vec<Edge>,
    pub(crate) owners: Vec<Owner>,
    pub(crate) awake: Awake,
    /// Where every sprite is.
    pub(crate) places: BTreeMap<SpriteName, Place>,
    /// Requests that have not ended.
    pub(crate) requests: BTreeMap<u64, Request>,
    pub(crate) ended: BTreeMap<u64, Ended>,
    /// I6: requests a guest has seen.
    pub(crate) delivered: BTreeSet<u64>,
    /// I7: the life that served last.
    pub(super) served: BTreeMap<SpriteName, (u64, u64)>,
    /// When the last request for each ended.
    pub(crate) left: BTreeMap<SpriteName, Instant>,
    pub(crate) starts: u64,
    pub(crate) wakes_sent: u64,
    pub(crate) limits: HoldLimits,
    pub(crate) chances: Chances,
    pub(super) settings: CoreSettings,
    pub(super) mutation: Option<Mutation>,
    /// Each loses the next message it likes.
    pub(crate) lose: Vec<fn(&Event) -> bool>,
    pub(super) names: Vec<SpriteName>,
    heap: BinaryHeap<Reverse<(Instant, u64)>>,
    events: BTreeMap<u64, Event>,
    pub(super) next: u64,
    pub(super) rng: SmallRng,
    open_for_business: bool,
}

impl World {
    pub(crate) fn new(seed: u64, chances: Chances) -> Self {
        Self::mutant(seed, chances, None)
    }

    pub(crate) fn mutant(seed: u64, chances: Chances, mutation: Option<Mutation>) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let tight = chances.tight;
        let bound = |tightly, widely| if tight { tightly } else { widely };
        let limits = HoldLimits {
            per_sprite: bound(24, 128),
            per_client: bound(16, 64),
            per_tenant: bound(32, 1_024),
            per_process: bound(40, 256),
            memory: bound(60_000, 384 << 20),
            flights: bound(5, 64),
            flights_per_host: bound(3, 64),
            release_window: if mutation == Some(Mutation::NoPacing) { usize::MAX } else { WINDOW },
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
            running_per_tenant: bound(2, 0),
            seed,
            ..CoreSettings::from(&config::Host::default())
        };
        let session = |edge: usize, host: usize| EdgeId(1 + (edge * OWNERS + host) as u64);
        let edge = |at: usize, seed| Edge {
            holds: Holds::new(limits.clone(), seed),
            judged: VecDeque::new(),
            sessions: [session(at, 0), session(at, 1)],
            leases: BTreeMap::new(),
            table: BTreeMap::new(),
            views: BTreeMap::new(),
            stands_until: now,
            turns: BTreeMap::new(),
        };
        let names: Vec<_> = (0..SPRITES).map(|n| SpriteName::parse(&format!("s{n}")).expect("a name")).collect();
        let mut world = Self {
            now,
            edges: (0..EDGES).map(|at| edge(at, rng.random())).collect(),
            owners: (0..OWNERS).map(|_| Owner::new(now, settings.clone())).collect(),
            awake: Awake::default(),
            places: BTreeMap::new(),
            requests: BTreeMap::new(),
            ended: BTreeMap::new(),
            delivered: BTreeSet::new(),
            served: BTreeMap::new(),
            left: BTreeMap::new(),
            starts: 0,
            wakes_sent: 0,
            limits,
            chances: chances.clone(),
            settings,
            mutation,
            lose: Vec::new(),
            names: names.clone(),
            heap: BinaryHeap::new(),
            events: BTreeMap::new(),
            next: 1_000,
            rng,
            open_for_business: true,
        };
        for (at, name) in names.iter().enumerate() {
            let host = HostId(u32::from(at >= SPRITES / 2));
            let place = Place { host, generation: 1, deleted: false };
            world.places.insert(name.clone(), place);
            for edge in &mut world.edges {
                edge.table.insert(name.clone(), place);
            }
            world.upsert(name, place);
        }
        let regular = [
            (chances.request_every_ms, Event::NewRequest),
            (chances.sleep_every_ms, Event::Sleep),
            (chances.death_every_ms, Event::Death),
            (chances.session_lost_every_ms, Event::SessionLost),
            (chances.edge_dies_every_ms, Event::EdgeDies),
            (chances.hold_every_ms, Event::Hold),
            (chances.stop_every_ms, Event::Stop),
            (chances.move_every_ms, Event::Move),
            (chances.destroy_every_ms, Event::Destroy),
            (chances.owner_dies_every_ms, Event::OwnerDies),
            (chances.stall_every_ms, Event::Stall),
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

    pub(super) fn tenant(&self, name: &SpriteName) -> &'static str {
        if self.names.iter().position(|known| known == name).is_some_and(|at| at % 2 == 0) { "even" } else { "odd" }
    }

    pub(crate) fn state(&self, name: &SpriteName) -> StateName {
        let owner = &self.owners[self.places[name].host.0 as usize];
        owner.core.status(name, self.now).expect("every sprite of the world is known").state
    }

    pub(crate) fn sleep(&mut self, name: &SpriteName, depth: Depth) {
        let (now, host) = (self.now, self.places[name].host);
        self.owner(host).core.handle_sleep(now, name, depth);
        self.settle();
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
        let edges = self.edges.iter().filter_map(|edge| Some(edge.holds.poll_timeout()?.max(edge.stands_until)));
        let owners = self.owners.iter().filter_map(|owner| Some(owner.core.poll_timeout()?.max(owner.stands_until)));
        edges.chain(owners).chain(self.heap.peek().map(|Reverse((at, _))| *at)).min()
    }

    fn step(&mut self, at: Instant) {
        self.now = self.now.max(at);
        // Which of the two a process sees first that stood still, chance says.
        if self.rng.random() {
            self.ring();
        }
        if self.heap.peek().is_some_and(|Reverse((at, _))| *at <= self.now)
            && let Some(event) = self.heap.pop().and_then(|Reverse((_, id))| self.events.remove(&id))
        {
            match self.stands_still(&event) {
                Some(until) => self.after_at(until, event),
                None => self.happen(event),
            }
            self.settle();
        }
        self.ring();
        invariants::anytime(self);
    }

    /// Every timer that is due, of those who do not stand still.
    fn ring(&mut self) {
        let now = self.now;
        for edge in self.edges.iter_mut().filter(|edge| edge.stands_until <= now) {
            if edge.holds.poll_timeout().is_some_and(|at| at <= now) {
                edge.holds.handle_timeout(now);
                let next = edge.holds.poll_timeout();
                assert!(next.is_none_or(|at| at > now), "the timer of an edge does not move on");
            }
        }
        for owner in self.owners.iter_mut().filter(|owner| owner.stands_until <= now) {
            if owner.core.poll_timeout().is_some_and(|at| at <= now) {
                owner.core.handle_timeout(now, &owner.guests);
            }
        }
        self.settle();
    }

    /// Until when the process stands still that this would happen to.
    fn stands_still(&self, event: &Event) -> Option<Instant> {
        let edge = |at: usize| self.edges[at].stands_until;
        let owner = |host: HostId| self.owners[host.0 as usize].stands_until;
        let home = |name: &SpriteName| owner(self.places[name].host);
        let of = |id: &u64| Some(edge(self.requests.get(id)?.edge));
        let until = match event {
            Event::Leave(id) | Event::NotOpened(id, _) | Event::FeedLate(id, _) => of(id)?,
            Event::ToOwner(session, _) => owner(self.session(*session)?.1),
            Event::ToEdge(session, _) => edge(self.session(*session)?.0),
            Event::Open(_, sent) => owner(sent.host),
            Event::Driver(host, ..) | Event::EdgeGone(host, _) | Event::Cordoned(host, ..) => owner(*host),
            Event::Renew(at) | Event::Fed(at, ..) | Event::HostDown(at, _) => edge(*at),
            Event::Upserted(_, place) => owner(place.host),
            Event::Release(name) | Event::StartAgain(name) | Event::MoveOn(name, ..) => home(name),
            _ => return None,
        };
        (until > self.now).then_some(until)
    }

    pub(super) fn after(&mut self, ms: u64, event: Event) {
        self.after_at(self.now + Duration::from_millis(ms), event);
    }

    fn after_at(&mut self, at: Instant, event: Event) {
        self.next += 1;
        self.heap.push(Reverse((at, self.next)));
        self.events.insert(self.next, event);
    }

    pub(super) fn chance(&mut self, per_thousand: u32) -> bool {
        per_thousand > 0 && self.rng.random_range(0..1000) < per_thousand
    }

    pub(super) fn up_to(&mut self, ms: u64) -> u64 {
        self.rng.random_range(0..=ms)
    }

    pub(super) fn delay(&mut self) -> u64 {
        self.up_to(self.chances.delay_ms)
    }

    fn happen(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Leave(id) => self.leave(id),
            Event::Release(name) => {
                let host = self.places[&name].host;
                self.owner(host).core.handle_release(now, &name);
            }
            Event::StartAgain(name) => self.owners.iter_mut().for_each(|owner| owner.core.handle_start(&name)),
            Event::MakeAgain(name) => self.make_again_anywhere(&name),
            Event::MoveOn(name, to, looks) => self.go_on_moving(&name, to, looks),
            Event::Upserted(name, place) => self.upsert(&name, place),
            Event::Fed(edge, name, place) => self.fed(edge, &name, place),
            Event::FeedLate(id, hops) => self.feed_late(id, hops),
            Event::ToOwner(session, message) => {
                // What was on its way in a session ends with it.
                if let Some((_, host)) = self.session(session).filter(|(_, host)| !self.owners[host.0 as usize].down) {
                    self.at_owner(host, session, message);
                }
            }
            Event::ToEdge(session, answer) => {
                if let Some((edge, host)) = self.session(session) {
                    self.edges[edge].holds.handle_answer(now, host, answer);
                }
            }
            Event::Open(id, sent) => self.open(id, sent),
            Event::NotOpened(id, reply) => self.not_opened(id, reply),
            Event::Served(edge, host, name, run) => {
                if let Some(guest) = self.owner(host).guests.in_run(&name, run) {
                    guest.open = guest.open.saturating_sub(1);
                    guest.last = Some(now);
                }
                if let Some(open) = self.edges[edge].leases.get_mut(&(host, name, run)) {
                    *open = open.saturating_sub(1);
                }
            }
            Event::Driver(host, epoch, name, told) => {
                if self.owner(host).epoch == epoch {
                    self.driver_told(host, &name, told);
                }
            }
            Event::Renew(edge) => self.renew(edge),
            Event::Cordoned(host, name, run) => self.owner(host).core.handle_cordoned(now, &name, run),
            Event::EdgeGone(host, session) => self.owner(host).core.handle_edge_gone(now, session),
            Event::HostDown(edge, host) => self.edges[edge].holds.handle_host_down(now, host),
            Event::OwnerBack(host) => self.owner_back(host),
            regular => {
                if self.open_for_business {
                    self.happen_again(regular);
                }
            }
        }
    }
}
