//! One edge: its holds, its sessions with the owners, its copy of the table, what it has open.

use super::feed::Place;
use super::invariants::Turns;
use super::world::{EDGES, Event, OWNERS, World};
use backhaul::owner::EdgeId;
use backhaul::wire::{EdgeMessage, Lease};
use rand::Rng;
use router::names::SpriteName;
use router::route::HostId;
use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;
use wakeup::hold::core::{Action, FlightKey, Holds};

pub(crate) struct Edge {
    pub(crate) holds: Holds,
    /// What the holds want done, taken from them and not done yet.
    pub(super) judged: VecDeque<Action>,
    /// The session it has with each owner now.
    pub(super) sessions: [EdgeId; OWNERS],
    /// What it has open, by host, sprite and run.
    pub(super) leases: BTreeMap<(HostId, SpriteName, u64), u32>,
    pub(crate) table: BTreeMap<SpriteName, Place>,
    /// What it believes to run: generation and run.
    pub(super) views: BTreeMap<SpriteName, (u64, u64)>,
    /// It is not scheduled before.
    pub(crate) stands_until: Instant,
    /// Releases under way, as seen from outside (I8).
    pub(crate) turns: BTreeMap<FlightKey, Turns>,
}

impl Edge {
    /// The next thing its holds want done.
    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.judged.pop_front().or_else(|| self.holds.poll_action())
    }
}

impl World {
    /// Whose session this is now, if it has not ended.
    pub(super) fn session(&self, id: EdgeId) -> Option<(usize, HostId)> {
        let of = |edge: &Edge| edge.sessions.iter().position(|session| *session == id);
        let (edge, host) = self.edges.iter().enumerate().find_map(|(at, edge)| Some((at, of(edge)?)))?;
        Some((edge, HostId(host as u32)))
    }

    /// The session of an edge with a host breaks; both ends notice, the owner a little later.
    pub(crate) fn lose_session(&mut self, edge: usize, host: HostId) {
        self.new_session(edge, host);
        self.edges[edge].holds.handle_host_down(self.now, host);
        self.settle();
    }

    pub(super) fn new_session(&mut self, edge: usize, host: HostId) {
        self.next += 1;
        let new = EdgeId(self.next);
        let old = std::mem::replace(&mut self.edges[edge].sessions[host.0 as usize], new);
        let noticed = self.delay();
        self.after(noticed, Event::EdgeGone(host, old));
    }

    /// An edge dies and comes back without its holds; its clients are gone.
    pub(crate) fn kill_edge(&mut self, edge: usize) {
        let lost: Vec<_> =
            self.requests.iter().filter(|(_, request)| request.edge == edge).map(|(id, _)| *id).collect();
        let table = self.places.clone();
        let seed = self.rng.random();
        let dead = &mut self.edges[edge];
        dead.holds = Holds::new(self.limits.clone(), seed);
        dead.leases.clear();
        dead.views.clear();
        dead.turns.clear();
        dead.stands_until = self.now;
        dead.table = table;
        for id in lost {
            self.end(id, super::world::Ended::Left);
        }
        for host in 0..OWNERS {
            self.new_session(edge, HostId(host as u32));
        }
        self.settle();
    }

    /// An edge tells what it has open, once a second (`backhaul::wire::Leases`).
    pub(super) fn renew(&mut self, edge: usize) {
        assert!(edge < EDGES);
        if !self.mutated(super::mutations::Mutation::LeasesNeverExpire) {
            self.edges[edge].leases.retain(|_, open| *open > 0);
        }
        for host in 0..OWNERS {
            let of_host = self.edges[edge].leases.iter().filter(|((at, ..), _)| at.0 as usize == host);
            let leases: Vec<_> = of_host
                .map(|((_, name, run), open)| Lease {
                    sprite: name.as_str().into(),
                    run: *run,
                    open: (*open).max(1),
                    ..Lease::default()
                })
                .collect();
            if !leases.is_empty() {
                let message = EdgeMessage::Leases(backhaul::wire::Leases { leases });
                self.send(&Event::ToOwner(self.edges[edge].sessions[host], message));
            }
        }
        self.after(1_000, Event::Renew(edge));
    }
}
