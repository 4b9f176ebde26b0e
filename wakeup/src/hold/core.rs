//! The holds of one edge process: who waits for which sprite, and the one wake they share.
//!
//! Sans-io: requests, answers and time come in through `handle_*`, what is to be done
//! goes out through [`Holds::poll_action`]. A *flight* belongs to the edge, not to a
//! request: no request that leaves can end it for another. It is keyed by name, placement
//! *and port*: the owner joins wakes of one sprite anyway, and waiters for different
//! ports end at different times and for different reasons.

use super::{HoldError, HoldLimits};
use backhaul::wire::{Cause, ClientClass, Opened, Outcome, Phase, Wake, WakeAnswer, Withdraw};
use router::names::SpriteName;
use router::route::{Generation, HostId};
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// When a wake is sent again while the owner has not accepted it, counted from the first
/// time (`wake.md` §4).
const RESEND_AFTER: [Duration; 2] = [Duration::from_millis(250), Duration::from_millis(750)];
/// Without an answer for this long the host is unreachable (`wake.md` §4).
const UNREACHABLE_AFTER: Duration = Duration::from_millis(2000);
/// A host that did not answer fails flights at once for 1, 2, 4, then 5 s (`wake.md` §4).
const SUSPECT_MAX: Duration = Duration::from_secs(5);
/// How long `Gone` is believed (`wake.md` §6).
const GONE_REMEMBERED: Duration = Duration::from_secs(60);
/// Refusals remembered (chosen); the first in order is forgotten for a new one.
const REFUSALS_MAX: usize = 10_000;

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
    /// Chosen by the caller, never used twice.
    pub id: u64,
    /// For what.
    pub key: FlightKey,
    /// The host the table names.
    pub host: HostId,
    /// Whose request.
    pub client: IpAddr,
    /// See [`ClientClass`].
    pub class: ClientClass,
    /// When it gives up.
    pub deadline: Instant,
    /// For the receipt.
    pub reason: String,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send to the owner.
    Wake(HostId, Wake),
    /// Send to the owner: nobody here waits any more.
    Withdraw(HostId, Withdraw),
    /// This request's wait is over: it runs.
    Release(u64, Opened),
    /// This request's wait is over.
    Refuse(u64, HoldError),
}

/// A client's network: /32 of IPv4, /56 of IPv6.
type Prefix = u128;

#[derive(Debug)]
struct Flight {
    host: HostId,
    wake: Wake,
    began: Instant,
    sends: usize,
    accepted: bool,
    phase: Phase,
    /// Round-robin over prefixes, first in first out within one.
    waiters: BTreeMap<Prefix, VecDeque<(u64, Instant)>>,
    held: usize,
}

/// The holds. Nothing in it waits or speaks.
pub struct Holds {
    limits: HoldLimits,
    flights: BTreeMap<FlightKey, Flight>,
    by_wake: BTreeMap<u128, FlightKey>,
    waiters: BTreeMap<u64, (FlightKey, Prefix)>,
    per_client: BTreeMap<Prefix, usize>,
    suspects: BTreeMap<HostId, Suspect>,
    refusals: BTreeMap<FlightKey, (Instant, HoldError)>,
    actions: VecDeque<Action>,
    draining: Option<Instant>,
    next_id: u128,
}

#[derive(Debug)]
struct Suspect {
    until: Instant,
    failures: u32,
}

impl Holds {
    /// No holds. `seed` makes wake ids; it must be random in production.
    #[must_use]
    pub fn new(limits: HoldLimits, seed: u128) -> Self {
        Self {
            limits,
            flights: BTreeMap::new(),
            by_wake: BTreeMap::new(),
            waiters: BTreeMap::new(),
            per_client: BTreeMap::new(),
            suspects: BTreeMap::new(),
            refusals: BTreeMap::new(),
            actions: VecDeque::new(),
            draining: None,
            next_id: seed,
        }
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Requests held at this moment.
    #[must_use]
    pub fn held(&self) -> usize {
        self.waiters.len()
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
        let Arrival { id, key, host, client, class, deadline, reason } = arrival;
        let prefix = prefix_of(client);
        if self.draining.is_some() {
            return Err(HoldError::Draining);
        }
        if deadline <= now {
            return Err(HoldError::Deadline { phase: Phase::Queued });
        }
        if let Some((until, error)) = self.refusals.get(&key) {
            if *until > now {
                return Err(error.clone().since(*until - now));
            }
            self.refusals.remove(&key);
        }
        if self.suspects.get(&host).is_some_and(|suspect| suspect.until > now) && !self.flights.contains_key(&key) {
            return Err(HoldError::HostUnreachable);
        }
        self.within_bounds(&key, prefix)?;

        if !self.flights.contains_key(&key) {
            self.next_id = next_id(self.next_id);
            let wake = Wake {
                wake_id_high: (self.next_id >> 64) as u64,
                wake_id_low: self.next_id as u64,
                sprite: key.name.as_str().into(),
                generation: key.generation.0,
                port: key.port.into(),
                deadline_ms: 0,
                reason,
                client_class: class.into(),
            };
            let flight = Flight {
                host,
                wake,
                began: now,
                sends: 0,
                accepted: false,
                phase: Phase::Queued,
                waiters: BTreeMap::new(),
                held: 0,
            };
            self.by_wake.insert(self.next_id, key.clone());
            self.flights.insert(key.clone(), flight);
        }
        let flight = self.flights.get_mut(&key).expect("inserted above when it was absent");
        let longest = flight.longest();
        flight.waiters.entry(prefix).or_default().push_back((id, deadline));
        flight.held += 1;
        *self.per_client.entry(prefix).or_default() += 1;
        self.waiters.insert(id, (key.clone(), prefix));
        // The owner is asked for the longest patience of all who wait.
        if longest.is_none_or(|longest| deadline > longest) {
            self.send_wake(now, &key);
        }
        Ok(())
    }

    fn within_bounds(&self, key: &FlightKey, prefix: Prefix) -> Result<(), HoldError> {
        let limits = &self.limits;
        if self.waiters.len() >= limits.per_process {
            return Err(HoldError::EdgeBusy);
        }
        if self.per_client.get(&prefix).is_some_and(|&held| held >= limits.per_client) {
            return Err(HoldError::ClientHoldFull);
        }
        let Some(flight) = self.flights.get(key) else {
            return if self.flights.len() >= limits.flights { Err(HoldError::EdgeBusy) } else { Ok(()) };
        };
        if flight.held >= limits.per_sprite {
            return Err(HoldError::HoldFull);
        }
        // Up to half of the bound anybody may wait; the rest is shared fairly.
        let mine = flight.waiters.get(&prefix).map_or(0, VecDeque::len);
        let clients = flight.waiters.len() + usize::from(mine == 0);
        if flight.held >= limits.per_sprite / 2 && clients > 1 && mine >= (limits.per_sprite / clients).max(1) {
            return Err(HoldError::ClientHoldFull);
        }
        Ok(())
    }

    fn send_wake(&mut self, now: Instant, key: &FlightKey) {
        let Some(flight) = self.flights.get_mut(key) else { return };
        let Some(longest) = flight.longest() else { return };
        flight.wake.deadline_ms = u32::try_from(longest.saturating_duration_since(now).as_millis()).unwrap_or(u32::MAX);
        if !flight.accepted {
            flight.sends = flight.sends.max(1);
        }
        self.actions.push_back(Action::Wake(flight.host, flight.wake.clone()));
    }

    /// The request's client left.
    pub fn handle_client_gone(&mut self, id: u64) {
        let Some(key) = self.remove(id) else { return };
        self.end_if_empty(&key);
    }

    /// Takes a waiter out of every count.
    fn remove(&mut self, id: u64) -> Option<FlightKey> {
        let (key, prefix) = self.waiters.remove(&id)?;
        self.uncount(prefix);
        if let Some(flight) = self.flights.get_mut(&key) {
            if let Some(queue) = flight.waiters.get_mut(&prefix) {
                queue.retain(|(waiter, _)| *waiter != id);
                if queue.is_empty() {
                    flight.waiters.remove(&prefix);
                }
            }
            flight.held -= 1;
        }
        Some(key)
    }

    fn uncount(&mut self, prefix: Prefix) {
        if let Some(held) = self.per_client.get_mut(&prefix) {
            *held -= 1;
            if *held == 0 {
                self.per_client.remove(&prefix);
            }
        }
    }

    fn end_if_empty(&mut self, key: &FlightKey) {
        if self.flights.get(key).is_some_and(|flight| flight.held == 0)
            && let Some(flight) = self.drop_flight(key)
        {
            let Wake { wake_id_high, wake_id_low, .. } = flight.wake;
            self.actions.push_back(Action::Withdraw(flight.host, Withdraw { wake_id_high, wake_id_low }));
        }
    }

    fn drop_flight(&mut self, key: &FlightKey) -> Option<Flight> {
        let flight = self.flights.remove(key)?;
        self.by_wake.remove(&wake_id(flight.wake.wake_id_high, flight.wake.wake_id_low));
        Some(flight)
    }

    /// The owner answered. Answers to flights that ended are ignored.
    pub fn handle_answer(&mut self, now: Instant, answer: WakeAnswer) {
        let id = wake_id(answer.wake_id_high, answer.wake_id_low);
        let Some(key) = self.by_wake.get(&id).cloned() else { return };
        let Some(outcome) = answer.outcome else { return };
        if let Some(flight) = self.flights.get_mut(&key) {
            flight.accepted = true;
            self.suspects.remove(&flight.host);
        }
        match outcome {
            Outcome::Accepted(_) => {}
            Outcome::Progress(progress) => {
                if let Some(flight) = self.flights.get_mut(&key) {
                    flight.phase = progress.phase();
                }
            }
            Outcome::Ready(opened) => self.release(&key, &opened),
            Outcome::Refused(refused) => {
                let cause = refused.cause();
                let retry_after = Duration::from_millis(refused.retry_after_ms.into());
                let error =
                    HoldError::Refused { cause, retry_after_ms: refused.retry_after_ms, detail: refused.detail };
                if cause == Cause::WakeFailed && !retry_after.is_zero() {
                    self.remember(key.clone(), now + retry_after, error.clone());
                }
                self.refuse(&key, &error);
            }
            Outcome::Moved(moved) => {
                self.refuse(&key, &HoldError::Moved { host: moved.host, generation: moved.generation });
            }
            Outcome::Gone(gone) => {
                let error = HoldError::Gone { generation: gone.generation };
                self.remember(key.clone(), now + GONE_REMEMBERED, error.clone());
                self.refuse(&key, &error);
            }
            Outcome::Unknown(unknown) => {
                self.refuse(&key, &HoldError::Unknown { my_generation: unknown.my_generation });
            }
        }
    }

    fn remember(&mut self, key: FlightKey, until: Instant, error: HoldError) {
        if self.refusals.len() >= REFUSALS_MAX {
            self.refusals.pop_first();
        }
        self.refusals.insert(key, (until, error));
    }

    fn release(&mut self, key: &FlightKey, opened: &Opened) {
        let Some(mut flight) = self.drop_flight(key) else { return };
        let mut first = true;
        while !flight.waiters.is_empty() {
            flight.waiters.retain(|&prefix, queue| {
                if let Some((id, _)) = queue.pop_front() {
                    self.waiters.remove(&id);
                    if let Some(held) = self.per_client.get_mut(&prefix) {
                        *held -= 1;
                    }
                    let opened = Opened { joined: opened.joined || !first, ..opened.clone() };
                    first = false;
                    self.actions.push_back(Action::Release(id, opened));
                }
                !queue.is_empty()
            });
        }
        self.per_client.retain(|_, held| *held > 0);
    }

    fn refuse(&mut self, key: &FlightKey, error: &HoldError) {
        let Some(flight) = self.drop_flight(key) else { return };
        for (prefix, queue) in flight.waiters {
            for (id, _) in queue {
                self.waiters.remove(&id);
                self.uncount(prefix);
                self.actions.push_back(Action::Refuse(id, error.clone()));
            }
        }
    }

    /// There is no session to the host: its flights end, new ones fail at once for a while.
    pub fn handle_host_down(&mut self, now: Instant, host: HostId) {
        let suspect = self.suspects.entry(host).or_insert(Suspect { until: now, failures: 0 });
        let pause = Duration::from_secs(1 << suspect.failures.min(3)).min(SUSPECT_MAX);
        suspect.failures += 1;
        suspect.until = now + pause;
        let keys: Vec<_> =
            self.flights.iter().filter(|(_, flight)| flight.host == host).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.refuse(&key, &HoldError::HostUnreachable);
        }
    }

    /// No new holds; those there end at `until` at the latest.
    pub fn handle_drain(&mut self, until: Instant) {
        self.draining = Some(until);
    }

    /// When [`Holds::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let flights = self.flights.values().filter_map(|flight| {
            let resend = flight.next_send();
            flight.shortest().into_iter().chain(resend).chain(self.draining).min()
        });
        flights.min()
    }

    /// Ends what is over at `now` and sends again what was not accepted.
    pub fn handle_timeout(&mut self, now: Instant) {
        let keys: Vec<_> = self.flights.keys().cloned().collect();
        for key in keys {
            if self.draining.is_some_and(|until| until <= now) {
                self.refuse(&key, &HoldError::Draining);
                continue;
            }
            let Some(flight) = self.flights.get(&key) else { continue };
            let (phase, host) = (flight.phase, flight.host);
            for id in flight.expired(now) {
                self.remove(id);
                self.actions.push_back(Action::Refuse(id, HoldError::Deadline { phase }));
            }
            self.end_if_empty(&key);
            let Some(flight) = self.flights.get_mut(&key) else { continue };
            if flight.next_send().is_none_or(|at| at > now) {
                continue;
            }
            if flight.sends > RESEND_AFTER.len() {
                self.handle_host_down(now, host);
            } else {
                flight.sends += 1;
                self.send_wake(now, &key);
            }
        }
    }
}

impl Flight {
    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        self.waiters.values().flatten().map(|(_, deadline)| *deadline)
    }

    fn longest(&self) -> Option<Instant> {
        self.deadlines().max()
    }

    fn shortest(&self) -> Option<Instant> {
        self.deadlines().min()
    }

    fn expired(&self, now: Instant) -> Vec<u64> {
        self.waiters.values().flatten().filter(|(_, deadline)| *deadline <= now).map(|(id, _)| *id).collect()
    }

    /// When the wake is sent again, or given up; never once it was accepted.
    fn next_send(&self) -> Option<Instant> {
        if self.accepted {
            return None;
        }
        let after = RESEND_AFTER.get(self.sends.saturating_sub(1)).copied().unwrap_or(UNREACHABLE_AFTER);
        Some(self.began + after)
    }
}

fn wake_id(high: u64, low: u64) -> u128 {
    (u128::from(high) << 64) | u128::from(low)
}

/// A full-period step: ids never repeat in a process and are spread over all bits.
const fn next_id(id: u128) -> u128 {
    id.wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645).wrapping_add(0x5851_f42d_4c95_7f2d_1405_7b7e_f767_814f)
}

fn prefix_of(client: IpAddr) -> Prefix {
    match client.to_canonical() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        // Above every IPv4 value, since the lower 72 bits are cut off and never all zero above.
        IpAddr::V6(v6) => (v6.to_bits() >> 72) << 72 | 1 << 71,
    }
}

#[cfg(test)]
mod tests;
