//! What goes on by itself as long as there are clients: visits, sleeps, deaths, moves.

use super::feed::Place;
use super::guests::Life;
use super::world::{CLIENTS, EDGES, Event, OWNERS, World};
use backhaul::wire::ClientClass;
use rand::Rng;
use router::names::SpriteName;
use router::route::HostId;
use std::time::Duration;
use wakeup::spec::{Depth, StateName};

/// How often a mover looks whether its sprite sleeps, and how often it has patience for.
const MOVE_LOOKS: u32 = 30;
const MOVE_LOOK_MS: u64 = 200;

impl World {
    fn any_name(&mut self) -> SpriteName {
        let at = self.rng.random_range(0..self.names.len());
        self.names[at].clone()
    }

    fn any_host(&mut self) -> HostId {
        HostId(self.rng.random_range(0..OWNERS as u32))
    }

    /// A sprite and the host it is on, if somebody is there to be asked.
    fn any_at_home(&mut self) -> Option<(SpriteName, HostId)> {
        let name = self.any_name();
        let place = self.places[&name];
        let owner = &self.owners[place.host.0 as usize];
        let here = !place.deleted && !owner.down && owner.core.status(&name, self.now).is_some();
        let here = here && owner.stands_until <= self.now;
        here.then_some((name, place.host))
    }

    pub(super) fn happen_again(&mut self, event: Event) {
        let chances = self.chances.clone();
        let every = match event {
            Event::NewRequest => {
                self.new_request();
                self.rng.random_range(1..=2 * chances.request_every_ms)
            }
            Event::Sleep => {
                let depth = if self.rng.random() { Depth::Warm } else { Depth::Cold };
                if let Some((name, _)) = self.any_at_home() {
                    self.sleep(&name, depth);
                }
                chances.sleep_every_ms
            }
            Event::Death => {
                self.a_guest_dies();
                chances.death_every_ms
            }
            Event::Hold => {
                self.hold_by_order();
                chances.hold_every_ms
            }
            Event::Stop => {
                if let Some((name, host)) = self.any_at_home() {
                    let now = self.now;
                    assert!(self.owner(host).core.handle_stop(now, &name));
                    let after = self.rng.random_range(0..5_000);
                    self.after(after, Event::StartAgain(name));
                }
                chances.stop_every_ms
            }
            Event::SessionLost => {
                let (edge, host) = (self.rng.random_range(0..EDGES), self.any_host());
                self.lose_session(edge, host);
                chances.session_lost_every_ms
            }
            Event::Move => {
                if let Some((name, host)) = self.any_at_home() {
                    let to = HostId((host.0 + 1) % OWNERS as u32);
                    self.begin_move(&name, to);
                }
                chances.move_every_ms
            }
            Event::Destroy => {
                if let Some((name, _)) = self.any_at_home() {
                    self.destroy(&name);
                    let after = self.rng.random_range(0..4_000);
                    self.after(after, Event::MakeAgain(name));
                }
                chances.destroy_every_ms
            }
            Event::OwnerDies => {
                let (host, back) = (self.any_host(), self.rng.random_range(100..5_000));
                self.crash_owner(host, back, None);
                chances.owner_dies_every_ms
            }
            Event::Stall => {
                let until = self.now + self.stall_ms();
                // One that stands still already does not wake up earlier for it.
                let stands = match self.rng.random_range(0..EDGES + OWNERS) {
                    edge if edge < EDGES => &mut self.edges[edge].stands_until,
                    host => &mut self.owners[host - EDGES].stands_until,
                };
                *stands = until.max(*stands);
                chances.stall_every_ms
            }
            _ => {
                let edge = self.rng.random_range(0..EDGES);
                self.kill_edge(edge);
                chances.edge_dies_every_ms
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
        let class = match self.rng.random_range(0..10) {
            0 => ClientClass::Navigation,
            1..4 => ClientClass::Authenticated,
            4 => ClientClass::Operator,
            _ => ClientClass::Anonymous,
        };
        // One that stands still takes no connection.
        if self.edges[edge].stands_until > self.now {
            return;
        }
        let id = self.arrive(edge, &name, client, patience, class);
        if !(self.chance(self.chances.warm) && self.warm(id)) {
            self.hold(id);
        }
        if self.chance(self.chances.client_leaves) {
            let after = self.rng.random_range(0..2_000);
            self.after(after, Event::Leave(id));
        }
    }

    fn a_guest_dies(&mut self) {
        let Some((name, host)) = self.any_at_home() else { return };
        let now = self.now;
        let owner = self.owner(host);
        let guest = owner.guests.of(&name);
        let frozen = guest.life == Life::Frozen && guest.busy_until.is_none_or(|until| until <= now);
        if guest.ending || !(guest.listening || frozen) {
            return;
        }
        let run = guest.run;
        owner.guests.stop(&name, Life::Absent);
        owner.core.handle_exited(now, &name, run, "killed by signal 9");
        self.awake.ends(now, host, &name);
    }

    fn hold_by_order(&mut self) {
        let Some((name, host)) = self.any_at_home() else { return };
        let (now, longest) = (self.now, self.rng.random_range(0..4_000));
        assert!(self.owner(host).core.handle_hold(now, &name, Duration::from_millis(longest)));
        // Some are never released and end by themselves.
        if self.rng.random() {
            let after = self.rng.random_range(0..=longest);
            self.after(after, Event::Release(name));
        }
    }

    /// Held and put to sleep; the placement changes once it sleeps.
    pub(crate) fn begin_move(&mut self, name: &SpriteName, to: HostId) {
        let (now, host) = (self.now, self.places[name].host);
        self.owner(host).core.handle_hold(now, name, Duration::from_secs(30));
        self.owner(host).core.handle_sleep(now, name, Depth::Cold);
        self.settle();
        self.go_on_moving(name, to, MOVE_LOOKS);
    }

    pub(super) fn go_on_moving(&mut self, name: &SpriteName, to: HostId, looks: u32) {
        let (now, from) = (self.now, self.places[name]);
        let Some(status) = self.owner(from.host).core.status(name, now) else { return };
        if from.deleted || from.host == to {
            return;
        }
        if status.state == StateName::Asleep && status.warmth == Some(Depth::Cold) {
            let place = Place { host: to, generation: from.generation + 1, deleted: false };
            self.publish(name, place);
            match self.up_to(self.chances.lag_ms) {
                0 => self.upsert(name, place),
                lag => self.after(lag, Event::Upserted(name.clone(), place)),
            }
            let text = format!("h{}", to.0);
            assert!(self.owner(from.host).core.handle_moved(now, name, &text, place.generation));
        } else if looks == 0 {
            self.owner(from.host).core.handle_release(now, name);
        } else {
            // Who lets others wait for a snapshot ends that for a mover too: there is one hold.
            // Without it those who wait would wake what is put to sleep, again and again.
            self.owner(from.host).core.handle_hold(now, name, Duration::from_secs(30));
            self.owner(from.host).core.handle_sleep(now, name, Depth::Cold);
            self.after(MOVE_LOOK_MS, Event::MoveOn(name.clone(), to, looks - 1));
        }
        self.settle();
    }

    /// Without putting it to sleep first.
    pub(crate) fn move_awake(&mut self, name: &SpriteName, to: HostId) {
        let (now, from) = (self.now, self.places[name]);
        let place = Place { host: to, generation: from.generation + 1, deleted: false };
        self.publish(name, place);
        self.upsert(name, place);
        let text = format!("h{}", to.0);
        assert!(self.owner(from.host).core.handle_moved(now, name, &text, place.generation));
        self.settle();
    }

    pub(crate) fn destroy(&mut self, name: &SpriteName) {
        let (now, place) = (self.now, self.places[name]);
        self.owner(place.host).core.handle_remove(now, name);
        self.publish(name, Place { generation: place.generation + 1, deleted: true, ..place });
        self.settle();
    }

    pub(crate) fn make_again(&mut self, name: &SpriteName, host: HostId) {
        let gone = self.places[name];
        assert!(gone.deleted, "it is made once");
        let place = Place { host, generation: gone.generation + 1, deleted: false };
        self.publish(name, place);
        self.upsert(name, place);
        self.settle();
    }

    pub(super) fn make_again_anywhere(&mut self, name: &SpriteName) {
        let host = self.any_host();
        self.make_again(name, host);
    }
}
