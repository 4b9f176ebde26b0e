//! The owners of two hosts: what they are made of, and how they die and come back.

use super::feed::Place;
use super::guests::{Guests, Life};
use super::world::{EDGES, Event, World};
use router::names::SpriteName;
use router::route::HostId;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use wakeup::owner::core::{CoreSettings, CoreSpec, OwnerCore};
use wakeup::spec::Depth;

/// A run may have begun that no ledger knows of.
const RUN_SKIP: u64 = 1;

pub(crate) struct Owner {
    pub(crate) core: OwnerCore,
    pub(crate) guests: Guests,
    /// Counts its lives: what a driver tells an owner that is no more, nobody hears.
    pub(super) epoch: u32,
    pub(crate) down: bool,
    /// It is not scheduled before.
    pub(crate) stands_until: Instant,
    /// The last run its ledger knows of each sprite, by placement.
    pub(super) runs: BTreeMap<SpriteName, (u64, u64)>,
}

impl Owner {
    pub(super) fn new(now: Instant, settings: CoreSettings) -> Self {
        Self {
            core: OwnerCore::new(settings),
            guests: Guests::default(),
            epoch: 0,
            down: false,
            stands_until: now,
            runs: BTreeMap::new(),
        }
    }
}

impl World {
    pub(super) fn owner(&mut self, host: HostId) -> &mut Owner {
        &mut self.owners[host.0 as usize]
    }

    /// A placement reaches the host it names, if it is still the newest.
    pub(super) fn upsert(&mut self, name: &SpriteName, place: Place) {
        let now = self.now;
        if self.places.get(name) == Some(&place) && !self.owner(place.host).down {
            let spec = CoreSpec { tenant: self.tenant(name).into(), ..CoreSpec::new(place.generation) };
            self.owner(place.host).core.handle_upsert(now, name, spec);
        }
    }

    /// An owner dies. Half of its guests die with it.
    pub(crate) fn crash_owner(&mut self, host: HostId, back_after_ms: u64, guests_die: Option<bool>) {
        let now = self.now;
        let settings = self.settings.clone();
        let owner = self.owner(host);
        if owner.down {
            return;
        }
        owner.core = OwnerCore::new(settings);
        owner.epoch += 1;
        owner.down = true;
        owner.stands_until = now;
        let names: Vec<_> = owner.guests.all().map(|(name, _)| name.clone()).collect();
        for name in names {
            let by_chance = self.chance(500);
            let guest = self.owner(host).guests.of(&name);
            guest.gate_closed = false;
            guest.present = false;
            guest.open = 0;
            guest.busy_until = None;
            if guest.ending || guest.life == Life::Absent || guests_die.unwrap_or(by_chance) {
                self.owner(host).guests.stop(&name, Life::Absent);
                self.awake.lost(now, host, &name);
            }
        }
        for edge in 0..EDGES {
            self.new_session(edge, host);
            let noticed = self.delay();
            self.after(noticed, Event::HostDown(edge, host));
        }
        self.after(back_after_ms, Event::OwnerBack(host));
        self.settle();
    }

    /// The next owner of a host knows the placements, the ledger, and what its driver finds.
    pub(super) fn owner_back(&mut self, host: HostId) {
        let now = self.now;
        self.owner(host).down = false;
        let places: Vec<_> = self.places.iter().map(|(name, place)| (name.clone(), *place)).collect();
        for (name, place) in places {
            let found = self.owner(host).guests.of(&name).life;
            if place.host != host || place.deleted {
                self.owner(host).guests.stop(&name, Life::Absent);
                self.awake.lost(now, host, &name);
                continue;
            }
            let known = self.owner(host).runs.get(&name).filter(|(generation, _)| *generation == place.generation);
            let run = known.map_or(0, |(_, run)| run + RUN_SKIP);
            let spec = CoreSpec { tenant: self.tenant(&name).into(), run, ..CoreSpec::new(place.generation) };
            let guest_run = self.owner(host).guests.of(&name).run;
            let open = self.awake.open(host, &name).filter(|(run, _)| *run == guest_run && found == Life::Alive);
            let core = &mut self.owner(host).core;
            core.handle_upsert(now, &name, spec);
            let depth = match found {
                Life::Absent => continue,
                Life::Alive => None,
                Life::Frozen => Some(Depth::Warm),
            };
            let run = core.handle_adopted(now, &name, depth, open).expect("it is new");
            let guest = self.owner(host).guests.of(&name);
            guest.run = run;
            guest.last = Some(now);
            if found == Life::Alive && !self.awake.runs(host, &name) {
                self.awake.begins(now, host, &name);
            }
        }
        self.settle();
    }

    pub(crate) fn stall_ms(&mut self) -> Duration {
        Duration::from_millis(200 + self.up_to(19_800))
    }
}
