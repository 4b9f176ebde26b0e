//! The holds of one edge process: who waits for which sprite, and the one wake they share.
//!
//! Sans-io: requests, answers and time come in through `handle_*`, what is to be done
//! goes out through [`Holds::poll_action`]. A *flight* belongs to the edge, not to a
//! request: no request that leaves can end it for another. It is keyed by name, placement
//! *and port*: the owner joins wakes of one sprite anyway, so there is one start, and
//! waiters for different ports end at different times and for different reasons.
//!
//! What it deliberately does not know: the view of running sprites (`views.rs`), routes,
//! and how fast released requests may go on.

mod counts;
mod flight;
mod memory;
mod patience;
mod release;
mod turns;

use super::prefix::Prefix;
use super::{HoldError, HoldLimits};
use backhaul::wire::{Accepted, Cause, ClientClass, Opened, Outcome, Phase, Wake, WakeAnswer, Withdraw};
use counts::{Counted, Counts};
use flight::{Due, Flight};
use memory::{REMEMBERED_MAX, Refusals, Suspects};
use patience::Patience;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
pub use release::Fared;
use release::Release;
use router::names::SpriteName;
use router::route::{Generation, HostId, Tenant};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// One flight's key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlightKey {
    /// The sprite.
    pub name: SpriteName,
    /// The placement believed in.
    pub generation: Generation,
    /// 0 for its HTTP port.
    pub port: u16,
}

/// One request that wants to wait.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Chosen by the caller, never used for two that wait at the same time.
    pub id: u64,
    /// For what.
    pub key: FlightKey,
    /// The host the table names.
    pub host: HostId,
    /// Whose request.
    pub client: IpAddr,
    /// See [`ClientClass`].
    pub class: ClientClass,
    /// When the request came to this edge; earlier than now if it is held a second time.
    pub arrived: Instant,
    /// When it gives up.
    pub deadline: Instant,
    /// For the receipt.
    pub reason: String,
    /// Whose sprite it is.
    pub tenant: Tenant,
    /// Memory the request keeps while it waits.
    pub bytes: usize,
    /// Bounds the sprite has of its own.
    pub own: OwnBounds,
}

/// Bounds a sprite's people have set for it; the edge's where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnBounds {
    /// Requests held for it.
    pub held: Option<usize>,
    /// Requests let go at once when it runs.
    pub window: Option<usize>,
    /// Requests it serves at a time, as long as those who waited are let go.
    pub concurrency: Option<usize>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send to the owner.
    Wake(HostId, Wake),
    /// Send to the owner: nobody here waits any more.
    Withdraw(HostId, Withdraw),
    /// This request's wait is over: it runs. With it, how many may be on their way at once.
    Release(u64, Opened, usize),
    /// This request's wait is over.
    Refuse(u64, HoldError),
    /// This run runs and nobody waits any more: new requests need not ask.
    Runs(SpriteName, u64, u64),
}

#[derive(Debug)]
struct Waiter {
    key: FlightKey,
    counted: Counted,
    /// When it is told that it waits in vain.
    deadline: Instant,
    /// When it gives up whatever it is told.
    patience: Instant,
    own: OwnBounds,
}

/// The holds. Nothing in it waits or speaks.
pub struct Holds {
    limits: HoldLimits,
    flights: BTreeMap<FlightKey, Flight>,
    by_wake: BTreeMap<u128, FlightKey>,
    waiters: BTreeMap<u64, Waiter>,
    /// Those whose sprite runs, and who are let go one after another. A key has a flight or a
    /// release, never both.
    releases: BTreeMap<FlightKey, Release>,
    /// One entry per flight and release: when it wants to be looked at.
    timers: BTreeSet<(Instant, FlightKey)>,
    /// Flights of each host.
    by_host: BTreeMap<HostId, usize>,
    counts: Counts,
    patience: Patience,
    refusals: Refusals,
    suspects: Suspects,
    actions: VecDeque<Action>,
    draining: Option<Instant>,
    rng: StdRng,
}

impl Holds {
    /// No holds. `seed` makes wake ids; it must be random in production.
    #[must_use]
    pub fn new(limits: HoldLimits, seed: u128) -> Self {
        let mut full = [0; 32];
        full[..16].copy_from_slice(&seed.to_le_bytes());
        Self {
            limits,
            flights: BTreeMap::new(),
            by_wake: BTreeMap::new(),
            waiters: BTreeMap::new(),
            releases: BTreeMap::new(),
            timers: BTreeSet::new(),
            by_host: BTreeMap::new(),
            counts: Counts::default(),
            patience: Patience::default(),
            refusals: Refusals::default(),
            suspects: Suspects::default(),
            actions: VecDeque::new(),
            draining: None,
            rng: StdRng::from_seed(full),
        }
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Holds::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (first, _) = self.timers.first()?;
        Some(self.draining.map_or(*first, |until| until.min(*first)))
    }

    /// Requests held at this moment.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.counts.held()
    }

    /// Whether a wake of this sprite is pending: one more request causes no other.
    #[must_use]
    pub fn is_waking(&self, name: &SpriteName) -> bool {
        let first = FlightKey { name: name.clone(), generation: Generation(0), port: 0 };
        let flies = self.flights.range(first.clone()..).next().is_some_and(|(key, _)| key.name == *name);
        flies || self.releases.range(first..).next().is_some_and(|(key, _)| key.name == *name)
    }

    /// When the owner thinks that this sprite will be ready, if it is being woken.
    #[must_use]
    pub fn eta(&self, name: &SpriteName, generation: Generation) -> Option<Instant> {
        let first = FlightKey { name: name.clone(), generation, port: 0 };
        let of_sprite = self.flights.range(first.clone()..).take_while(|(key, _)| key.name == first.name);
        of_sprite.filter_map(|(_, flight)| flight.eta).max()
    }

    /// Wakes pending at this moment.
    #[must_use]
    pub fn flights(&self) -> usize {
        self.flights.len()
    }

    /// Admits a request to the hold or refuses it at once.
    pub fn handle_request(&mut self, now: Instant, arrival: Arrival) {
        let id = arrival.id;
        if let Err(error) = self.admit(now, arrival) {
            self.actions.push_back(Action::Refuse(id, error));
        }
    }

    fn admit(&mut self, now: Instant, arrival: Arrival) -> Result<(), HoldError> {
        let Arrival { id, key, host, client, class, arrived, deadline, reason, tenant, bytes, own } = arrival;
        let counted = Counted { prefix: Prefix::from(client), tenant, bytes };
        if self.draining.is_some() {
            return Err(HoldError::Draining);
        }
        if deadline <= now {
            return Err(HoldError::Deadline { phase: Phase::Queued, eta: Duration::ZERO });
        }
        if let Some(error) = self.refusals.recall(now, &key, host, arrived) {
            return Err(error);
        }
        let known = !matches!(class, ClientClass::Anonymous | ClientClass::Crawler);
        let per_sprite = own.held.unwrap_or(self.limits.per_sprite);
        self.counts.admit(&self.limits, &key.name, per_sprite, counted, known)?;
        let releasing = self.releases.contains_key(&key);
        if !releasing && !self.flights.contains_key(&key) {
            self.begin(now, host, &key, class, reason)?;
        }
        self.counts.add(&key.name, counted);
        let held = self.flights.get(&key).is_some_and(|flight| flight.held);
        let worth = self.patience.worth(&key.name).filter(|_| !held);
        let (patience, deadline) = (deadline, worth.map_or(deadline, |worth| deadline.min(arrived.max(now) + worth)));
        self.waiters.insert(id, Waiter { key: key.clone(), counted, deadline, patience, own });
        match releasing {
            true => self.join_release(now, &key, id),
            false => self.join(now, &key, id),
        }
        Ok(())
    }

    /// Lets a known waiter wait for the flight of its key.
    fn join(&mut self, now: Instant, key: &FlightKey, id: u64) {
        let (Some(waiter), Some(flight)) = (self.waiters.get(&id), self.flights.get_mut(key)) else { return };
        if flight.join(id, waiter.counted.prefix, waiter.deadline) {
            self.ask(now, key);
        }
        self.arm(key);
    }

    fn begin(
        &mut self,
        now: Instant,
        host: HostId,
        key: &FlightKey,
        class: ClientClass,
        reason: String,
    ) -> Result<(), HoldError> {
        let of_host = self.by_host.get(&host).copied().unwrap_or(0);
        if self.flights.len() >= self.limits.flights || of_host >= self.limits.flights_per_host {
            return Err(HoldError::EdgeBusy);
        }
        let flights = &self.flights;
        let pending = |prober: &FlightKey| flights.get(prober).is_some_and(|flight| flight.host == host);
        if !self.suspects.may_fly(now, host, key, pending) {
            return Err(HoldError::HostUnreachable);
        }
        let id: u128 = self.rng.random();
        let wake = Wake {
            wake_id_high: (id >> 64) as u64,
            wake_id_low: id as u64,
            sprite: key.name.as_str().into(),
            generation: key.generation.0,
            port: key.port.into(),
            deadline_ms: 0,
            reason,
            client_class: class.into(),
        };
        self.by_wake.insert(id, key.clone());
        *self.by_host.entry(host).or_default() += 1;
        self.flights.insert(key.clone(), Flight::new(now, host, wake));
        Ok(())
    }

    fn ask(&mut self, now: Instant, key: &FlightKey) {
        if let Some(flight) = self.flights.get_mut(key) {
            let wake = flight.question(now);
            self.actions.push_back(Action::Wake(flight.host, wake));
        }
    }

    /// Puts the flight's next moment into the timers.
    fn arm(&mut self, key: &FlightKey) {
        let Some(flight) = self.flights.get_mut(key) else { return };
        let next = flight.next();
        if flight.armed == Some(next) {
            return;
        }
        if let Some(before) = flight.armed.replace(next) {
            self.timers.remove(&(before, key.clone()));
        }
        self.timers.insert((next, key.clone()));
    }

    /// The request's client left.
    pub fn handle_client_gone(&mut self, id: u64) {
        if let Some(key) = self.remove(id) {
            self.end_if_empty(&key);
            self.arm(&key);
        }
    }

    /// Takes a waiter out of its flight and every count.
    fn remove(&mut self, id: u64) -> Option<FlightKey> {
        let Waiter { key, counted, deadline, .. } = self.waiters.remove(&id)?;
        self.counts.remove(&key.name, counted);
        if let Some(flight) = self.flights.get_mut(&key) {
            flight.leave(id, counted.prefix, deadline);
        } else if let Some(release) = self.releases.get_mut(&key) {
            release.leave(id);
        }
        Some(key)
    }

    fn end_if_empty(&mut self, key: &FlightKey) {
        self.end_release_if_empty(key);
        if self.flights.get(key).is_some_and(Flight::is_empty)
            && let Some(flight) = self.drop_flight(key)
        {
            let Wake { wake_id_high, wake_id_low, .. } = flight.wake;
            self.actions.push_back(Action::Withdraw(flight.host, Withdraw { wake_id_high, wake_id_low }));
        }
    }

    fn drop_flight(&mut self, key: &FlightKey) -> Option<Flight> {
        let flight = self.flights.remove(key)?;
        self.by_wake.remove(&wake_id(flight.wake.wake_id_high, flight.wake.wake_id_low));
        if let Some(count) = self.by_host.get_mut(&flight.host) {
            *count -= 1;
            if *count == 0 {
                self.by_host.remove(&flight.host);
            }
        }
        if let Some(armed) = flight.armed {
            self.timers.remove(&(armed, key.clone()));
        }
        Some(flight)
    }

    /// A [`Action::Wake`] has left, to a host that is `round_trip` away: its answer is waited for
    /// so much longer before it is sent again. Without effect if its flight has ended.
    pub fn handle_sent(&mut self, wake_id_high: u64, wake_id_low: u64, round_trip: Duration) {
        let Some(key) = self.by_wake.get(&wake_id(wake_id_high, wake_id_low)).cloned() else { return };
        if let Some(flight) = self.flights.get_mut(&key) {
            flight.sent(round_trip);
        }
        self.arm(&key);
    }

    /// A host answered. What is about a flight that ended, or comes from another host than
    /// the one that was asked, is ignored; but an owner that waits for nobody is told so.
    pub fn handle_answer(&mut self, now: Instant, host: HostId, answer: WakeAnswer) {
        let WakeAnswer { wake_id_high, wake_id_low, outcome } = answer;
        let Some(outcome) = outcome else { return };
        let Some(key) = self.by_wake.get(&wake_id(wake_id_high, wake_id_low)).cloned() else {
            if matches!(outcome, Outcome::Accepted(_)) {
                // A question was sent twice, since its answer was long on the way. The second
                // one came to a sprite that had been put to sleep in between.
                self.actions.push_back(Action::Withdraw(host, Withdraw { wake_id_high, wake_id_low }));
            }
            return;
        };
        let Some(flight) = self.flights.get_mut(&key).filter(|flight| flight.host == host) else { return };
        flight.accepted();
        self.suspects.clear(host);
        match outcome {
            Outcome::Accepted(accepted) => self.accepted(now, &key, &accepted),
            Outcome::Progress(progress) => flight.phase = progress.phase(),
            Outcome::Ready(opened) => self.release(now, &key, opened),
            Outcome::Refused(refused) if refused.cause() == Cause::WakeDeadline => {
                // The owner's patience ended. Whose does here, ends; the others are not harmed.
                flight.begin_anew();
                self.look(now, &key);
            }
            Outcome::Refused(refused) => {
                let (cause, retry_after_ms) = (refused.cause(), refused.retry_after_ms);
                let error = HoldError::Refused { cause, retry_after_ms, detail: refused.detail };
                if cause == Cause::WakeFailed && retry_after_ms > 0 {
                    let span = Duration::from_millis(retry_after_ms.into());
                    self.refusals.learn(now, key.clone(), host, span, error.clone());
                }
                self.refuse(&key, &error);
            }
            Outcome::Moved(moved) => {
                self.refuse(&key, &HoldError::Moved { host: moved.host, generation: moved.generation });
            }
            Outcome::Gone(gone) => {
                let error = HoldError::Gone { generation: gone.generation };
                self.refusals.learn(now, key.clone(), host, REMEMBERED_MAX, error.clone());
                self.refuse(&key, &error);
            }
            Outcome::Unknown(unknown) => {
                self.refuse(&key, &HoldError::Unknown { my_generation: unknown.my_generation });
            }
        }
        self.arm(&key);
    }

    /// The owner says how it stands. Who waits for a held sprite waits as long as it said: how
    /// long a hold lasts says nothing about the sprite.
    fn accepted(&mut self, now: Instant, key: &FlightKey, accepted: &Accepted) {
        let Some(flight) = self.flights.get_mut(key) else { return };
        let eta = Duration::from_millis(accepted.eta_ms.into());
        flight.eta = (!eta.is_zero()).then(|| now + eta);
        if !accepted.held || std::mem::replace(&mut flight.held, true) {
            return;
        }
        for id in flight.waiters().collect::<Vec<_>>() {
            let Some(waiter) = self.waiters.get_mut(&id) else { continue };
            let before = std::mem::replace(&mut waiter.deadline, waiter.patience);
            flight.wait_longer(id, before, waiter.patience);
        }
    }

    fn refuse(&mut self, key: &FlightKey, error: &HoldError) {
        let Some(flight) = self.drop_flight(key) else { return };
        for id in flight.into_waiters() {
            self.remove(id);
            self.actions.push_back(Action::Refuse(id, error.clone()));
        }
    }

    /// There is no session to the host: its flights end, new ones fail at once for a while.
    pub fn handle_host_down(&mut self, now: Instant, host: HostId) {
        self.suspects.accuse(now, host);
        let lost = self.flights.iter().filter(|(_, flight)| flight.host == host);
        for key in lost.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.refuse(&key, &HoldError::HostUnreachable);
        }
    }

    /// No new holds; those there end at `until` at the latest.
    pub fn handle_drain(&mut self, until: Instant) {
        self.draining = Some(self.draining.map_or(until, |before| before.min(until)));
    }

    /// Ends what is over at `now` and asks again what was not answered.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.draining.is_some_and(|until| until <= now) {
            for key in self.flights.keys().cloned().collect::<Vec<_>>() {
                self.refuse(&key, &HoldError::Draining);
            }
            // Their sprites run: nothing is gained by letting them wait for their turn.
            for key in self.releases.keys().cloned().collect::<Vec<_>>() {
                self.let_all_go(now, &key);
            }
        }
        while let Some((_, key)) = self.timers.first().filter(|(at, _)| *at <= now).cloned() {
            self.look(now, &key);
        }
    }

    /// Lets everything happen to one flight that is due. Its next moment is later than
    /// `now` afterwards: deadlines that passed are gone, and a question that was due is asked.
    fn look(&mut self, now: Instant, key: &FlightKey) {
        if self.releases.contains_key(key) {
            return self.look_at_release(now, key);
        }
        let Some(flight) = self.flights.get(key) else { return };
        let (phase, eta) = (flight.phase, flight.eta.map(|eta| eta.saturating_duration_since(now)).unwrap_or_default());
        for id in flight.expired(now) {
            self.remove(id);
            self.actions.push_back(Action::Refuse(id, HoldError::Deadline { phase, eta }));
        }
        self.end_if_empty(key);
        let Some(flight) = self.flights.get_mut(key) else { return };
        let host = flight.host;
        match flight.tick(now) {
            Due::Nothing => {}
            Due::Ask => self.ask(now, key),
            Due::GiveUp => self.handle_host_down(now, host),
        }
        self.arm(key);
    }
}

fn wake_id(high: u64, low: u64) -> u128 {
    (u128::from(high) << 64) | u128::from(low)
}

#[cfg(test)]
mod tests;
