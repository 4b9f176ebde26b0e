//! From a flight that ended well to requests that are on their way: in turns, and anew if the
//! run is over before all of them had theirs.

use super::super::HoldError;
use super::release::{Fared, Release};
use super::{Action, FlightKey, Holds};
use backhaul::wire::{Opened, Phase, WakeKind};
use std::time::{Duration, Instant};

impl Holds {
    pub(super) fn release(&mut self, now: Instant, key: &FlightKey, opened: Opened) {
        let Some(flight) = self.drop_flight(key) else { return };
        if opened.kind() != WakeKind::None {
            self.patience.note(&key.name, opened.wake_ms);
        }
        let own = flight.waiters().next().and_then(|id| self.waiters.get(&id)).map(|waiter| waiter.own);
        let own = own.unwrap_or_default();
        let window = own.window.unwrap_or(self.limits.release_window);
        let release = Release::new(now, flight, opened, window, own.concurrency.unwrap_or(usize::MAX));
        self.releases.insert(key.clone(), release);
        self.let_go(now, key);
    }

    /// One more behind those who are being let go.
    pub(super) fn join_release(&mut self, now: Instant, key: &FlightKey, id: u64) {
        if let Some(release) = self.releases.get_mut(key) {
            release.join(id);
        }
        self.let_go(now, key);
    }

    /// Lets go as many as the window has room for. The release ends with the last of them.
    fn let_go(&mut self, now: Instant, key: &FlightKey) {
        let Some(mut release) = self.releases.remove(key) else { return };
        if let Some(armed) = release.armed.take() {
            self.timers.remove(&(armed, key.clone()));
        }
        release.tick(now);
        while let Some(id) = release.next(now) {
            self.remove(id);
            let opened = release.opened.clone();
            // The first has caused the wake, as far as this edge knows.
            release.opened.joined = true;
            self.actions.push_back(Action::Release(id, opened, release.window()));
        }
        if release.is_empty() {
            self.releases.insert(key.clone(), release);
            return self.end_release_if_empty(key);
        }
        let first = release.waiting().filter_map(|id| Some(self.waiters.get(&id)?.deadline)).min();
        let due = first.into_iter().fold(release.due(), Instant::min);
        release.armed = Some(due);
        self.timers.insert((due, key.clone()));
        self.releases.insert(key.clone(), release);
    }

    /// Everybody was let go, or has left: from now on nobody need ask.
    pub(super) fn end_release_if_empty(&mut self, key: &FlightKey) {
        if !self.releases.get(key).is_some_and(Release::is_empty) {
            return;
        }
        let Some(Release { armed, opened, .. }) = self.releases.remove(key) else { return };
        if let Some(armed) = armed {
            self.timers.remove(&(armed, key.clone()));
        }
        self.actions.push_back(Action::Runs(key.name.clone(), opened.generation, opened.run));
    }

    /// How a request fared that was let go with others behind it: what its connection met,
    /// theirs would too. Without effect once all of them were let go.
    pub fn handle_fared(&mut self, now: Instant, key: &FlightKey, id: u64, how: Fared) {
        let Some(release) = self.releases.get_mut(key) else { return };
        if !release.fared(now, id, how) {
            return;
        }
        match how {
            Fared::Well | Fared::Reset => self.let_go(now, key),
            Fared::Asleep => self.ask_again(now, key),
        }
    }

    /// The run that was released for is over, or its port closed: who was not let go yet waits
    /// for another answer of the owner.
    fn ask_again(&mut self, now: Instant, key: &FlightKey) {
        let Some(release) = self.releases.remove(key) else { return };
        if let Some(armed) = release.armed {
            self.timers.remove(&(armed, key.clone()));
        }
        let waiting: Vec<_> = release.waiting().collect();
        let class = release.wake.client_class();
        let begun = self.begin(now, release.host, key, class, release.wake.reason.clone());
        match begun {
            Ok(()) => {
                if let Some(flight) = self.flights.get_mut(key) {
                    flight.window = Some(release.window());
                }
                for id in waiting {
                    self.join(now, key, id);
                }
                self.end_if_empty(key);
            }
            Err(error) => {
                for id in waiting {
                    self.remove(id);
                    self.actions.push_back(Action::Refuse(id, error.clone()));
                }
            }
        }
    }

    /// Those whose time is up while they wait for their turn, and then the next turn.
    pub(super) fn look_at_release(&mut self, now: Instant, key: &FlightKey) {
        let Some(release) = self.releases.get(key) else { return };
        let late = |id: &u64| self.waiters.get(id).is_some_and(|waiter| waiter.deadline <= now);
        for id in release.waiting().filter(late).collect::<Vec<_>>() {
            self.remove(id);
            let error = HoldError::Deadline { phase: Phase::PortWait, eta: Duration::ZERO };
            self.actions.push_back(Action::Refuse(id, error));
        }
        self.let_go(now, key);
    }

    pub(super) fn let_all_go(&mut self, now: Instant, key: &FlightKey) {
        if let Some(release) = self.releases.get_mut(key) {
            release.open_wide(now);
        }
        self.let_go(now, key);
    }
}
