//! The way of one request: its edge's table, the hold, the owner, and back when it was led
//! to the wrong place; all within one deadline and one budget of hops (`wake.md` §6).

use super::feed::Place;
use super::invariants::{self, Turns};
use super::mutations::Mutation;
use super::world::{Ended, Event, Reply, Sent, World};
use backhaul::wire::{ClientClass, Opened};
use rand::Rng;
use router::names::SpriteName;
use router::route::{Generation, Tenant};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use wakeup::hold::HoldError;
use wakeup::hold::core::{Action, Arrival, Fared, FlightKey, OwnBounds};
use wakeup::spec::StateName;

/// A request goes another way at most twice (`wake.md` §6).
const HOPS: u32 = 2;
/// How long an edge waits for its own table to hear what an owner knows already.
const FEED_WAIT: Duration = Duration::from_secs(3);

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) edge: usize,
    pub(crate) name: SpriteName,
    pub(crate) client: u32,
    pub(crate) class: ClientClass,
    pub(crate) bytes: usize,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Instant,
    /// Where its edge believes the sprite to be.
    pub(crate) place: Place,
    /// It waits in the hold; otherwise it is on its way.
    pub(crate) held: bool,
    /// It waits for its edge to hear of this placement, and ends with this if it does not.
    pub(crate) awaits: Option<(u64, HoldError)>,
    hops: u32,
    /// Hops it owes to a stop that was not committed (I10).
    uncommitted: u32,
}

impl World {
    /// Lets a request arrive; its id. It asks, whatever its edge believes to run.
    pub(crate) fn request(&mut self, edge: usize, name: &SpriteName, client: u32, patience: Duration) -> u64 {
        let id = self.arrive(edge, name, client, patience, ClientClass::Anonymous);
        self.hold(id);
        id
    }

    pub(super) fn arrive(
        &mut self,
        edge: usize,
        name: &SpriteName,
        client: u32,
        patience: Duration,
        class: ClientClass,
    ) -> u64 {
        self.next += 1;
        let (id, arrived, deadline) = (self.next, self.now, self.now + patience);
        let place = self.edges[edge].table[name];
        let request = Request {
            edge,
            name: name.clone(),
            client,
            class,
            bytes: self.rng.random_range(500..3_000),
            arrived,
            deadline,
            place,
            held: false,
            awaits: None,
            hops: 0,
            uncommitted: 0,
        };
        self.requests.insert(id, request);
        id
    }

    /// Without asking, if its edge believes that it runs.
    pub(super) fn warm(&mut self, id: u64) -> bool {
        let Some(Request { edge, name, place, .. }) = self.requests.get(&id).cloned() else { return false };
        let view = self.edges[edge].views.get(&name).filter(|(generation, _)| *generation == place.generation);
        let Some((generation, run)) = view.copied() else { return false };
        if place.deleted {
            return false;
        }
        let delay = self.delay();
        self.after(delay, Event::Open(id, Sent { host: place.host, generation, run }));
        true
    }

    pub(super) fn hold(&mut self, id: u64) {
        let now = self.now;
        let Some(request) = self.requests.get_mut(&id) else { return };
        let place = self.edges[request.edge].table[&request.name];
        request.place = place;
        request.awaits = None;
        if place.deleted {
            return self.end(id, Ended::Gone);
        }
        if request.deadline <= now {
            return self.end(id, Ended::TooLate);
        }
        request.held = true;
        let request = request.clone();
        let arrival = Arrival {
            id,
            key: flight_of(&request.name, place.generation),
            host: place.host,
            client: IpAddr::V4(Ipv4Addr::from_bits(request.client)),
            class: request.class,
            arrived: request.arrived,
            deadline: request.deadline,
            reason: "sim".into(),
            tenant: Tenant::from(self.tenant(&request.name)),
            bytes: request.bytes,
            own: self.own(&request.name),
        };
        self.edges[request.edge].holds.handle_request(now, arrival);
        self.settle();
    }

    /// Bounds of its own has the first sprite of a tight world.
    pub(super) fn own(&self, name: &SpriteName) -> OwnBounds {
        match self.chances.tight && *name == self.name(0) {
            true => OwnBounds { held: Some(12), window: Some(1), concurrency: Some(3) },
            false => OwnBounds::default(),
        }
    }

    /// The client of a request leaves. I4: that ends nobody else.
    pub(crate) fn leave(&mut self, id: u64) {
        let Some(request) = self.requests.get(&id).cloned() else { return };
        let before = self.ended.len();
        if request.held {
            self.edges[request.edge].holds.handle_client_gone(id);
        } else {
            self.fared(id, Fared::Well);
        }
        self.end(id, Ended::Left);
        if self.mutated(Mutation::LeaderEndsAll) {
            self.end_followers(id, &request);
        }
        assert_eq!(self.ended.len(), before + 1, "I4: request {id} left and took others with it");
        // Judged before it is followed: whoever has the turn that is free now may find his own end on his way.
        let edge = &mut self.edges[request.edge];
        edge.judged.extend(std::iter::from_fn(|| edge.holds.poll_action()));
        let refused = edge.judged.iter().find(|action| matches!(action, Action::Refuse(..)));
        assert!(refused.is_none(), "I4: request {id} left and another was refused: {refused:?}");
        self.settle();
    }

    fn end_followers(&mut self, leader: u64, of: &Request) {
        let same = |request: &Request| request.held && (request.edge, &request.name) == (of.edge, &of.name);
        let all: Vec<_> = self.requests.iter().filter(|(_, request)| same(request)).map(|(id, _)| *id).collect();
        if of.held && all.iter().all(|id| *id > leader) {
            for id in all {
                self.edges[of.edge].holds.handle_client_gone(id);
                self.end(id, Ended::Left);
            }
        }
    }

    /// Released: it goes where its edge's table says now, not where it said before the hold.
    pub(super) fn released(&mut self, id: u64, opened: &Opened) {
        let now = self.now;
        let request = self.requests.get_mut(&id).filter(|request| request.held);
        let request = request.unwrap_or_else(|| panic!("I3: request {id} is released after its end"));
        request.held = false;
        let (edge, name, place) = (request.edge, request.name.clone(), request.place);
        assert_eq!(opened.generation, place.generation, "I7: request {id} is released for another placement");
        let key = flight_of(&name, place.generation);
        let (window, most) = {
            let own = self.own(&name);
            (own.window.unwrap_or(super::world::WINDOW), own.concurrency.unwrap_or(usize::MAX))
        };
        let turns = self.edges[edge].turns.entry(key).or_insert_with(|| Turns::new(now, window, most));
        turns.let_go(now, id);
        let resolved = match self.mutated(Mutation::NoReResolve) {
            true => place,
            false => self.edges[edge].table[&name],
        };
        if resolved != place {
            self.fared(id, Fared::Asleep);
            return self.hop(id);
        }
        assert_eq!(self.edges[edge].table[&name], place, "I7: request {id} goes by a route from before its hold");
        let delay = self.delay();
        self.after(delay, Event::Open(id, Sent { host: place.host, generation: opened.generation, run: opened.run }));
    }

    /// Refused by the owner, or by the edge itself.
    pub(super) fn refused(&mut self, id: u64, error: HoldError) {
        let place = self.requests.get(&id).unwrap_or_else(|| panic!("I3: request {id} ended before: {error}")).place;
        let newer = match error {
            HoldError::Moved { generation, .. } => Some(generation),
            HoldError::Unknown { my_generation } if my_generation > place.generation => Some(my_generation),
            _ => None,
        };
        match newer.filter(|_| !self.mutated(Mutation::NoReResolve)) {
            Some(generation) => self.led_astray(id, generation, error),
            None => self.end(id, Ended::Refused(error)),
        }
    }

    /// An owner knows a newer placement than this edge: its own table will hear of it soon.
    fn led_astray(&mut self, id: u64, generation: u64, error: HoldError) {
        let now = self.now;
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.held = false;
        if request.deadline <= now {
            return self.end(id, Ended::TooLate);
        }
        if self.edges[request.edge].table[&request.name].generation >= generation {
            return self.hop(id);
        }
        request.awaits = Some((generation, error));
        let until = request.deadline.min(now + FEED_WAIT).saturating_duration_since(now);
        let (hops, ms) = (request.hops, until.as_millis() as u64);
        self.after(ms, Event::FeedLate(id, hops));
    }

    pub(super) fn feed_late(&mut self, id: u64, hops: u32) {
        let Some(request) = self.requests.get(&id).filter(|request| request.hops == hops) else { return };
        if let Some((_, error)) = request.awaits.clone() {
            self.end(id, Ended::FeedLate(error));
        }
    }

    /// Held once more, within the same deadline.
    pub(super) fn hop(&mut self, id: u64) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.hops += 1;
        if request.hops > HOPS {
            assert!(request.uncommitted <= HOPS, "I10: request {id} failed by stops that were not committed");
            return self.end(id, Ended::HopBudget);
        }
        self.hold(id);
    }

    /// A request at the owner: served by the run it was sent to, or told why not.
    pub(super) fn open(&mut self, id: u64, sent: Sent) {
        let Some(request) = self.requests.get(&id) else { return };
        let (edge, name, now) = (request.edge, request.name.clone(), self.now);
        let owner = self.owner(sent.host);
        if owner.down {
            return self.reply(id, Reply::NoSession);
        }
        let Some(status) = owner.core.status(&name, now).filter(|status| status.generation == sent.generation) else {
            let generation = self.places[&name].generation;
            return self.reply(id, Reply::Elsewhere(generation));
        };
        let committed = owner.guests.of(&name).ending;
        let serves = owner.guests.in_run(&name, sent.run).filter(|guest| guest.present && !guest.gate_closed);
        let Some(guest) = serves else {
            let stops = status.state == StateName::Stopping && status.run == sent.run && !committed;
            return self.reply(id, Reply::Asleep { held: status.held, uncommitted: stops });
        };
        assert_eq!(status.run, sent.run, "I7: request {id} is served by an older run");
        assert_eq!(status.state, StateName::Running, "I7: request {id} is served by a guest that does not run");
        guest.open += 1;
        guest.last = Some(now);
        let life = (sent.generation, sent.run);
        let last = self.served.insert(name.clone(), life).unwrap_or_default();
        assert!(last <= life, "I7: {name} served from {life:?} after {last:?}");
        assert!(self.delivered.insert(id), "I6: request {id} is delivered twice");
        *self.edges[edge].leases.entry((sent.host, name.clone(), sent.run)).or_default() += 1;
        self.fared(id, Fared::Well);
        let took = self.rng.random_range(0..2_000);
        self.after(took, Event::Served(edge, sent.host, name, sent.run));
        self.end(id, Ended::Served { generation: sent.generation, run: sent.run });
    }

    fn reply(&mut self, id: u64, reply: Reply) {
        let delay = self.delay();
        self.after(delay, Event::NotOpened(id, reply));
    }

    /// It is back at its edge with every byte.
    pub(super) fn not_opened(&mut self, id: u64, reply: Reply) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let (edge, name) = (request.edge, request.name.clone());
        self.edges[edge].views.remove(&name);
        match reply {
            Reply::NoSession => {
                self.fared(id, Fared::Asleep);
                self.end(id, Ended::Unreachable);
            }
            Reply::Asleep { held: true, .. } => {
                self.fared(id, Fared::Asleep);
                self.hold(id);
            }
            Reply::Asleep { uncommitted, .. } => {
                request.uncommitted += u32::from(uncommitted);
                self.fared(id, Fared::Asleep);
                self.hop(id);
            }
            Reply::Elsewhere(generation) => {
                self.fared(id, Fared::Asleep);
                let error = HoldError::Moved { host: String::new(), generation };
                self.refused(id, error);
            }
        }
    }

    /// What those behind it are to make of how it went.
    pub(super) fn fared(&mut self, id: u64, how: Fared) {
        let Some(request) = self.requests.get(&id) else { return };
        let key = flight_of(&request.name, request.place.generation);
        let edge = &mut self.edges[request.edge];
        if let Some(turns) = edge.turns.get_mut(&key) {
            turns.fared(id);
        }
        edge.holds.handle_fared(self.now, &key, id, how);
    }

    pub(super) fn end(&mut self, id: u64, how: Ended) {
        invariants::at_the_end_of_a_request(self, id, &how);
        self.requests.remove(&id);
        assert!(self.ended.insert(id, how).is_none(), "I3: request {id} ended twice");
    }
}

pub(super) fn flight_of(name: &SpriteName, generation: u64) -> FlightKey {
    FlightKey { name: name.clone(), generation: Generation(generation), port: 0 }
}
