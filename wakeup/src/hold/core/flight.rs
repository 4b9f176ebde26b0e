//! One pending wake: who waits for it, and when the owner is to be asked again.

use super::super::prefix::Prefix;
use backhaul::wire::{Phase, Wake};
use router::route::HostId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Pauses after the first, second and third question while the owner has not accepted:
/// it is asked at 0, 250 and 750 ms, and unreachable at 2 s, all but the first two round trips
/// to it later (`wake.md` §4). Counted from the last question, so that a process that was
/// itself stopped does not give up at once.
const PAUSES: [Duration; 3] = [Duration::from_millis(250), Duration::from_millis(500), Duration::from_millis(1_250)];
/// How often an accepted wake is asked about again (chosen). An answer may be lost, since a
/// full queue drops it; a lost `Ready` then costs this long and not the whole deadline.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// A longer round trip is not waited for (chosen: no way on earth takes it, and a host must not
/// be able to say how long it may be silent).
const ROUND_TRIP_MAX: Duration = Duration::from_secs(1);
/// A question must be on its way this long before the owner's patience ends (chosen: more
/// than any sane round trip).
const MARGIN: Duration = Duration::from_secs(1);

/// What a flight's clock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing yet.
    Nothing,
    /// Send the wake (again).
    Ask,
    /// The owner did not answer the last question either.
    GiveUp,
}

#[derive(Debug)]
pub(super) struct Flight {
    pub(super) host: HostId,
    pub(super) wake: Wake,
    pub(super) phase: Phase,
    /// Round-robin over prefixes, first in first out within one.
    waiters: BTreeMap<Prefix, VecDeque<u64>>,
    deadlines: BTreeSet<(Instant, u64)>,
    /// When the owner was last asked by the clock.
    asked: Instant,
    /// How often it was asked without an answer; 0 once it accepted.
    unanswered: usize,
    /// To the owner and back, as far as it was known when it was asked last.
    round_trip: Duration,
    /// The patience the owner knows of.
    patience: Instant,
    /// The owner lets new requests wait: those here wait as long as they said.
    pub(super) held: bool,
    /// When the owner thinks that it will be ready.
    pub(super) eta: Option<Instant>,
    /// How many its release begins with, if an earlier one was too fast.
    pub(super) window: Option<usize>,
    /// Its entry in the timers.
    pub(super) armed: Option<Instant>,
}

impl Flight {
    /// A flight whose first question is due with its first waiter.
    pub(super) const fn new(now: Instant, host: HostId, wake: Wake) -> Self {
        Self {
            host,
            wake,
            phase: Phase::Queued,
            waiters: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            asked: now,
            unanswered: 1,
            round_trip: Duration::ZERO,
            patience: now,
            held: false,
            eta: None,
            window: None,
            armed: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.deadlines.is_empty()
    }

    /// Adds a waiter; whether the owner must hear of its deadline now. Otherwise the next
    /// question is early enough: a herd whose deadlines grow by milliseconds is one message.
    pub(super) fn join(&mut self, id: u64, prefix: Prefix, deadline: Instant) -> bool {
        self.waiters.entry(prefix).or_default().push_back(id);
        self.deadlines.insert((deadline, id));
        deadline > self.patience && self.patience < self.next_question() + MARGIN
    }

    pub(super) fn leave(&mut self, id: u64, prefix: Prefix, deadline: Instant) {
        self.deadlines.remove(&(deadline, id));
        if let Some(queue) = self.waiters.get_mut(&prefix) {
            queue.retain(|waiter| *waiter != id);
            if queue.is_empty() {
                self.waiters.remove(&prefix);
            }
        }
    }

    /// A waiter has more patience than it had.
    pub(super) fn wait_longer(&mut self, id: u64, before: Instant, deadline: Instant) {
        if self.deadlines.remove(&(before, id)) {
            self.deadlines.insert((deadline, id));
        }
    }

    /// Everybody, first come first served.
    pub(super) fn waiters(&self) -> impl Iterator<Item = u64> {
        self.deadlines.iter().map(|(_, id)| *id)
    }

    /// Everybody, in the order of release.
    pub(super) fn into_waiters(mut self) -> impl Iterator<Item = u64> {
        let mut order = Vec::with_capacity(self.deadlines.len());
        while !self.waiters.is_empty() {
            self.waiters.retain(|_, queue| {
                order.extend(queue.pop_front());
                !queue.is_empty()
            });
        }
        order.into_iter()
    }

    /// Whose deadline has passed.
    pub(super) fn expired(&self, now: Instant) -> Vec<u64> {
        self.deadlines.iter().take_while(|(deadline, _)| *deadline <= now).map(|(_, id)| *id).collect()
    }

    /// The wake as it is to be sent now: with the longest patience of all who wait.
    pub(super) fn question(&mut self, now: Instant) -> Wake {
        self.patience = self.deadlines.last().map_or(now, |(deadline, _)| *deadline);
        let left = self.patience.saturating_duration_since(now).as_millis();
        self.wake.deadline_ms = u32::try_from(left).unwrap_or(u32::MAX);
        self.wake.clone()
    }

    /// Its last question has left; an answer takes this long at the least.
    pub(super) fn sent(&mut self, round_trip: Duration) {
        self.round_trip = round_trip.min(ROUND_TRIP_MAX);
    }

    /// The owner has it.
    pub(super) fn accepted(&mut self) {
        self.unanswered = 0;
    }

    /// The owner gave up before everybody here did: what it knew of their patience was old.
    /// It is asked anew, but not more often than if it were silent.
    pub(super) fn begin_anew(&mut self) {
        self.unanswered = 1;
    }

    fn next_question(&self) -> Instant {
        let pause = match self.unanswered {
            0 => ASK_AGAIN,
            1 => PAUSES[0] + 2 * self.round_trip,
            asked => PAUSES.get(asked - 1).copied().unwrap_or(PAUSES[0]),
        };
        self.asked + pause
    }

    /// What the clock says about the owner; a question that is due counts as asked.
    pub(super) fn tick(&mut self, now: Instant) -> Due {
        if self.next_question() > now {
            return Due::Nothing;
        }
        if self.unanswered >= PAUSES.len() {
            return Due::GiveUp;
        }
        self.asked = now;
        if self.unanswered > 0 {
            self.unanswered += 1;
        }
        Due::Ask
    }

    /// When something is due next.
    pub(super) fn next(&self) -> Instant {
        let question = self.next_question();
        self.deadlines.first().map_or(question, |(deadline, _)| question.min(*deadline))
    }

    /// Everybody, for tests.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        assert_eq!(self.waiters.values().map(VecDeque::len).sum::<usize>(), self.deadlines.len());
        assert!(self.waiters.values().all(|queue| !queue.is_empty()));
        self.deadlines.len()
    }
}
