//! Towards running: who waits, the start queue, what the driver reports on the way.

use super::super::sprite::{Sprite, Stage, State, Waiter};
use super::{
    Action, Answer, OwnerCore, REASON_CHARS_MAX, Unwanted, WAITERS_MAX, WaiterId, WakeRecord, WakeRequest, current,
};
use crate::ledger::StopReason;
use crate::spec::Depth;
use backhaul::wire::{Cause, ClientClass, Phase, WakeKind};
use router::names::SpriteName;
use std::time::{Duration, Instant};

/// When a host that is full may be asked again (chosen: a start takes a second or two).
const BUSY_RETRY: Duration = Duration::from_secs(2);
/// When a tenant at its bound may ask again (chosen: the idle timeout of what runs).
const CAPACITY_RETRY: Duration = Duration::from_secs(30);
/// A sleep shorter than this was hardly worth it (`wake.md` §8).
const NAP: Duration = Duration::from_secs(60);

impl OwnerCore {
    /// Somebody wants it to run.
    pub fn handle_wake(&mut self, now: Instant, request: WakeRequest) {
        if self.is_ahead(&request.name, request.generation) {
            return self.wake_ahead(now, request);
        }
        // It may have waited for the news that came meanwhile.
        self.ahead.leave(request.waiter);
        let WakeRequest { waiter, name, generation, deadline, reason, class } = request;
        let full = self.queue_is_full();
        let crowded = self.tenant_is_at_capacity(&name);
        let (per_hour, burst) = (self.settings.wakes_per_hour, self.settings.wake_burst);
        let Some(sprite) = self.sprites.get_mut(&name) else {
            let answer = self.absent(&name, generation);
            return self.answer(waiter, &name, answer);
        };
        if generation != sprite.spec.generation {
            // The edge is behind, and sees so from the number.
            let generation = sprite.spec.generation;
            return self.answer(waiter, &name, Answer::Unknown { generation });
        }
        if let Some(known) = sprite.waiters.get_mut(&waiter) {
            // A retransmission, or the same wake with a longer deadline.
            known.deadline = known.deadline.max(deadline);
            let accepted = sprite.accepted(now, known_joined(sprite, waiter));
            self.answer(waiter, &name, accepted);
            return self.arm(now, &name);
        }
        if sprite.stopped {
            let (cause, retry_after) = (Cause::StoppedByOwner, Duration::ZERO);
            return self.answer(waiter, &name, Answer::Refused { cause, retry_after, detail: String::new() });
        }
        if let State::Failed { until, detail } = &sprite.state {
            if *until > now {
                let retry_after = *until - now;
                let detail = detail.clone();
                return self.answer(waiter, &name, Answer::Refused { cause: Cause::WakeFailed, retry_after, detail });
            }
            sprite.enter(now, State::Asleep(Depth::Cold));
        }
        if sprite.held.is_none()
            && let State::Running { port_open: true, .. } = sprite.state
        {
            sprite.abandoned = false;
            let told = sprite.told.get(&waiter).filter(|opened| opened.run == sprite.run).cloned();
            let opened = told.unwrap_or_else(|| sprite.opened(WakeKind::None, Duration::ZERO, false));
            return self.answer(waiter, &name, Answer::Ready(opened));
        }
        let sleeps = matches!(sprite.state, State::Asleep(_));
        if sprite.waiters.len() >= WAITERS_MAX || (full && sprite.held.is_none() && sleeps) {
            return self.answer(waiter, &name, busy());
        }
        let operator = class == ClientClass::Operator;
        if sleeps && sprite.waiters.is_empty() {
            if let Some(refusal) = sprite.refusal(now, operator, crowded) {
                return self.answer(waiter, &name, refusal);
            }
            if !operator && class != ClientClass::Authenticated {
                let per_hour = sprite.spec.limits.wakes_per_hour.unwrap_or(per_hour);
                sprite.generous_until = sprite.budget.spend(now, per_hour, burst).or(sprite.generous_until);
            }
        }
        let joined = !sprite.waiters.is_empty() || matches!(sprite.state, State::Waking { .. });
        let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
        sprite.waiters.insert(waiter, Waiter { deadline, joined, operator, reason: reason.clone() });
        sprite.abandoned = false;
        if let Some(record) = &mut sprite.wake {
            record.waiters += 1;
        }
        if sprite.held.is_none() {
            self.wake(now, &name, &reason);
        }
        if let Some(sprite) = self.sprites.get(&name)
            && sprite.waiters.contains_key(&waiter)
        {
            let accepted = sprite.accepted(now, joined);
            self.answer(waiter, &name, accepted);
        }
        self.arm(now, &name);
    }

    /// Whether one more sprite of its tenant would be one too many. Looks at all sprites of
    /// the host, which are thousands at most, and only where there is such a bound.
    fn tenant_is_at_capacity(&self, name: &SpriteName) -> bool {
        let most = self.settings.running_per_tenant;
        let Some(tenant) = self.sprites.get(name).filter(|_| most > 0).map(|sprite| &sprite.spec.tenant) else {
            return false;
        };
        let runs = |sprite: &&Sprite| {
            !matches!(sprite.state, State::Asleep(_) | State::Failed { .. }) && sprite.spec.tenant == *tenant
        };
        self.sprites.values().filter(runs).take(most).count() >= most
    }

    /// Moves a sprite that somebody waits for towards running.
    pub(super) fn wake(&mut self, now: Instant, name: &SpriteName, reason: &str) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        let (waiters, lost_memory) = (sprite.waiters.len(), sprite.lost_memory);
        let record = |kind| WakeRecord {
            reason: reason.into(),
            kind,
            asked: now,
            slot: None,
            started: None,
            ready: None,
            waiters,
            lost_memory,
        };
        match &mut sprite.state {
            State::Asleep(depth) => {
                let kind = depth.wake_kind();
                sprite.wake = Some(record(kind));
                sprite.enter(now, State::Waking { phase: Phase::Queued, kind });
                self.queue.push(&sprite.spec.tenant, name.clone());
                self.start_queued(now);
            }
            State::Stopping { stage: Stage::Interruptible { port_open, .. }, .. } => {
                let port_open = *port_open;
                let mut record = record(WakeKind::Interrupted);
                sprite.enter(now, State::Running { since: now, port_open, gate_asked: false });
                let run = sprite.run;
                self.actions.push_back(Action::ReopenGate { name: name.clone(), run });
                if port_open {
                    sprite.woken_again();
                    record.ready = Some(now);
                    self.actions.push_back(Action::Receipt { name: name.clone(), run, record, result: "ready" });
                    self.release(name, WakeKind::Interrupted, Duration::ZERO);
                } else {
                    self.wake(now, name, reason);
                }
            }
            State::Stopping { stage: Stage::Committed { wake_next }, .. } => *wake_next = true,
            State::Running { port_open: false, gate_asked: false, .. } => {
                // It runs, its port did not answer the last time: look again.
                sprite.woken_again();
                sprite.token += 1;
                let token = sprite.token;
                sprite.wake = Some(record(WakeKind::None));
                sprite.enter(now, State::Waking { phase: Phase::PortWait, kind: WakeKind::None });
                self.actions.push_back(Action::Probe { name: name.clone(), token });
            }
            // While its gate is being closed the answer decides: a stop with a wake behind
            // it, or another look at its port.
            State::Running { .. } | State::Waking { .. } | State::Failed { .. } => {}
        }
    }

    /// Wakes it again for those who still wait, after something came in between.
    pub(super) fn wake_for_waiters(&mut self, now: Instant, name: &SpriteName) {
        let Some(sprite) = self.sprites.get(name).filter(|sprite| sprite.held.is_none()) else { return };
        let Some(reason) = sprite.waiters.values().next().map(|waiter| waiter.reason.clone()) else { return };
        if self.queue_is_full() && matches!(sprite.state, State::Asleep(_)) {
            return self.refuse_all(name, Cause::HostBusy, BUSY_RETRY, "the start queue is full");
        }
        self.wake(now, name, &reason);
    }

    fn queue_is_full(&self) -> bool {
        let slots = self.settings.start_slots;
        self.starting >= slots && self.queue.len() >= 4 * slots
    }

    /// Gives free start slots to the queue, first come first served.
    pub(super) fn start_queued(&mut self, now: Instant) {
        while self.starting < self.settings.start_slots {
            let Some(name) = self.queue.pop() else { return };
            let Some(sprite) = self.sprites.get_mut(&name) else { continue };
            let State::Waking { phase, kind } = &mut sprite.state else { continue };
            *phase = Phase::Starting;
            let kind = *kind;
            sprite.since = now;
            sprite.begun = now;
            sprite.run += 1;
            sprite.token += 1;
            sprite.count_nap(now);
            self.starting += 1;
            if let Some(record) = &mut sprite.wake {
                record.slot = Some(now);
            }
            let (run, token) = (sprite.run, sprite.token);
            self.actions.push_back(match kind {
                WakeKind::Warm => Action::Continue { name: name.clone(), run, token },
                _ => Action::Start { name: name.clone(), run, token },
            });
            self.arm(now, &name);
        }
    }

    /// A waiter left.
    pub fn handle_withdraw(&mut self, now: Instant, waiter: WaiterId) {
        if self.ahead.leave(waiter) {
            return;
        }
        let waiting = self.sprites.iter().find(|(_, sprite)| sprite.waiters.contains_key(&waiter));
        if let Some(name) = waiting.map(|(name, _)| name.clone()) {
            self.leave(now, &name, waiter);
        }
    }

    pub(super) fn leave(&mut self, now: Instant, name: &SpriteName, waiter: WaiterId) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        let waited = sprite.waiters.remove(&waiter).is_some();
        if waited && sprite.waiters.is_empty() {
            match &mut sprite.state {
                State::Waking { phase: Phase::Queued, .. } => {
                    self.actions.push_back(Action::Unwanted(Unwanted::Withdrawn));
                    self.unqueue(now, name);
                }
                // A guest that had been running keeps its own idle timeout.
                State::Waking { kind, .. } => sprite.abandoned = *kind != WakeKind::None,
                State::Stopping { stage: Stage::Committed { wake_next }, .. } => {
                    let withdrawn = std::mem::replace(wake_next, false);
                    self.actions.extend(withdrawn.then_some(Action::Unwanted(Unwanted::Withdrawn)));
                }
                _ => {}
            }
        }
        self.arm(now, name);
    }

    /// The driver started or continued the guest; its port is being watched.
    pub fn handle_started(&mut self, now: Instant, name: &SpriteName, token: u64) {
        let Some(sprite) = current(&mut self.sprites, name, token) else { return };
        let State::Waking { phase, kind } = &mut sprite.state else { return };
        if *phase != Phase::Starting {
            return;
        }
        *phase = Phase::PortWait;
        let kind = *kind;
        sprite.since = now;
        sprite.died_of = None;
        if let Some(record) = &mut sprite.wake {
            record.started = Some(now);
        }
        self.starting -= 1;
        for &waiter in sprite.waiters.keys() {
            let answer = Answer::Progress(Phase::PortWait);
            self.actions.push_back(Action::Answer { waiter, name: name.clone(), answer });
        }
        self.run_begins(now, name, kind);
        self.start_queued(now);
        self.go_on_stopping(now, name);
        self.arm(now, name);
    }

    /// The frozen guest was no more, or what it had written of its memory cannot be loaded: the
    /// wake goes on as a cold one, unless its people want to decide about that. Whether it goes on.
    pub fn handle_memory_lost(&mut self, now: Instant, name: &SpriteName, token: u64) -> bool {
        let Some(sprite) = current(&mut self.sprites, name, token) else { return false };
        let State::Waking { phase: Phase::Starting, kind } = &mut sprite.state else { return false };
        *kind = WakeKind::Cold;
        sprite.lost_memory = true;
        if let Some(record) = &mut sprite.wake {
            record.kind = WakeKind::Cold;
            record.lost_memory = true;
        }
        // A start from the disk has as long as any other.
        sprite.since = now;
        if !sprite.spec.limits.refuse_lossy || sprite.waiters.values().any(|waiter| waiter.operator) {
            self.arm(now, name);
            return true;
        }
        let (run, record) = (sprite.run, sprite.wake.take());
        sprite.token += 1;
        sprite.enter(now, State::Asleep(Depth::Cold));
        self.starting -= 1;
        self.actions.push_back(Action::Ended { name: name.clone(), run });
        if let Some(record) = record {
            self.actions.push_back(Action::Receipt { name: name.clone(), run, record, result: "refused_lossy" });
        }
        self.refuse_all(name, Cause::LossyWake, Duration::ZERO, "");
        self.start_queued(now);
        self.arm(now, name);
        false
    }

    /// The guest's port answered.
    pub fn handle_port_open(&mut self, now: Instant, name: &SpriteName, token: u64) {
        let Some(sprite) = current(&mut self.sprites, name, token) else { return };
        match &mut sprite.state {
            State::Waking { phase: Phase::PortWait, kind } => {
                let kind = *kind;
                sprite.enter(now, State::Running { since: now, port_open: true, gate_asked: false });
                let run = sprite.run;
                let record = sprite.wake.take().map(|record| WakeRecord { ready: Some(now), ..record });
                let took = record.as_ref().map_or(Duration::ZERO, |record| now.saturating_duration_since(record.asked));
                sprite.history.note(kind, took);
                self.actions.extend(sprite.abandoned.then_some(Action::Unwanted(Unwanted::Abandoned)));
                self.actions.push_back(Action::Running { name: name.clone(), run, since: now });
                if let Some(record) = record {
                    self.actions.push_back(Action::Receipt { name: name.clone(), run, record, result: "ready" });
                }
                self.runs(now, name, kind, took);
            }
            State::Running { port_open, since, .. } => {
                *port_open = true;
                self.actions.push_back(Action::Running { name: name.clone(), run: sprite.run, since: *since });
            }
            _ => {}
        }
        self.arm(now, name);
    }

    /// Its port answers: who waits is told, unless it is held or was stopped meanwhile.
    fn runs(&mut self, now: Instant, name: &SpriteName, kind: WakeKind, took: Duration) {
        let Some(sprite) = self.sprites.get(name) else { return };
        match sprite.held {
            Some(_) => self.actions.push_back(Action::Hold { name: name.clone(), run: sprite.run }),
            None => self.release(name, kind, took),
        }
        self.go_on_stopping(now, name);
    }

    /// The guest could not be started, or ended: `detail` says how ("exit status 1").
    pub fn handle_exited(&mut self, now: Instant, name: &SpriteName, run: u64, detail: &str) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        if sprite.run != run {
            return;
        }
        match &sprite.state {
            State::Waking { phase: Phase::PortWait, kind: WakeKind::None } => {
                // It had been running, and its port was looked at for the very reason that it
                // died: whoever waits gets a start, not the failure of one.
                sprite.wake = None;
                self.died(now, name, detail);
                self.wake_for_waiters(now, name);
            }
            State::Waking { phase, .. } if *phase != Phase::Queued => {
                if *phase == Phase::Starting {
                    self.starting -= 1;
                }
                self.start_failed(now, name, detail);
                self.start_queued(now);
            }
            State::Running { since, .. } => {
                let awake = *since;
                sprite.forget_failures(now, awake);
                self.died(now, name, detail);
                self.wake_for_waiters(now, name);
            }
            State::Asleep(Depth::Warm) | State::Stopping { stage: Stage::Interruptible { .. }, .. } => {
                self.died(now, name, detail);
            }
            // A committed stop reports its own end; a queued wake finds out when it starts.
            State::Stopping { .. } | State::Waking { .. } | State::Asleep(_) | State::Failed { .. } => {}
        }
        self.arm(now, name);
    }

    /// What it had in memory is lost, its disk is there.
    fn died(&mut self, now: Instant, name: &SpriteName, detail: &str) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        sprite.died_of = Some(detail.into());
        sprite.token += 1;
        sprite.end_claims();
        // Killed while it was frozen: its visitors left a memory behind.
        sprite.lost_memory |= matches!(sprite.state, State::Asleep(Depth::Warm));
        sprite.enter(now, State::Asleep(Depth::Cold));
        self.run_ends(now, name, StopReason::GuestDied);
        let Some(sprite) = self.sprites.get(name) else { return };
        self.actions.push_back(Action::Ended { name: name.clone(), run: sprite.run });
    }

    fn start_failed(&mut self, now: Instant, name: &SpriteName, detail: &str) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        sprite.failures += 1;
        let pause = self.backoff.pause(sprite.failures);
        sprite.token += 1;
        sprite.enter(now, State::Failed { until: now + pause, detail: detail.into() });
        let (run, record) = (sprite.run, sprite.wake.take());
        self.wake_failed(now, name, record.as_ref(), detail);
        self.actions.push_back(Action::Ended { name: name.clone(), run });
        if let Some(record) = record {
            self.actions.push_back(Action::Receipt { name: name.clone(), run, record, result: "wake_failed" });
        }
        if self.sprites.get(name).is_some_and(|sprite| sprite.held.is_none()) {
            self.refuse_all(name, Cause::WakeFailed, pause, detail);
        }
    }

    /// The guest runs but nobody listens: waiters are told, the guest is left alone.
    pub(super) fn port_stays_closed(&mut self, now: Instant, name: &SpriteName) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        sprite.enter(now, State::Running { since: now, port_open: false, gate_asked: false });
        self.actions.extend(sprite.abandoned.then_some(Action::Unwanted(Unwanted::Abandoned)));
        let run = sprite.run;
        if let Some(record) = sprite.wake.take() {
            self.actions.push_back(Action::Receipt { name: name.clone(), run, record, result: "port_closed" });
        }
        if self.sprites.get(name).is_some_and(|sprite| sprite.held.is_none()) {
            self.refuse_all(name, Cause::PortClosed, Duration::from_secs(2), "");
        }
        self.go_on_stopping(now, name);
        self.arm(now, name);
    }
}

/// Whether a known waiter had joined a wake of somebody else.
fn known_joined(sprite: &Sprite, waiter: WaiterId) -> bool {
    sprite.waiters.get(&waiter).is_some_and(|waiter| waiter.joined)
}

fn busy() -> Answer {
    Answer::Refused { cause: Cause::HostBusy, retry_after: BUSY_RETRY, detail: "the start queue is full".into() }
}

impl Sprite {
    fn accepted(&self, now: Instant, joined: bool) -> Answer {
        let ago = |record: &WakeRecord| now.saturating_duration_since(record.asked);
        let eta = self.wake.as_ref().map(|record| self.history.left(record.kind, ago(record)));
        Answer::Accepted { joined, held: self.held.is_some(), eta: eta.unwrap_or_default() }
    }

    /// Why this sleeping sprite is not woken, if its people or its tenant's bounds forbid it.
    fn refusal(&mut self, now: Instant, operator: bool, crowded: bool) -> Option<Answer> {
        if crowded {
            let (cause, retry_after) = (Cause::TenantAtCapacity, CAPACITY_RETRY);
            return Some(Answer::Refused { cause, retry_after, detail: String::new() });
        }
        if operator {
            return None;
        }
        if self.lost_memory && self.spec.limits.refuse_lossy {
            let (cause, retry_after) = (Cause::LossyWake, Duration::ZERO);
            return Some(Answer::Refused { cause, retry_after, detail: String::new() });
        }
        self.meter.advance(now, false, self.spec.limits.awake_per_day);
        let retry_after = self.meter.refuses(self.spec.limits.awake_per_day)?;
        Some(Answer::Refused { cause: Cause::AwakeBudget, retry_after, detail: String::new() })
    }

    /// Woken soon after it had fallen asleep by itself, again and again: it should have stayed
    /// awake.
    fn count_nap(&mut self, now: Instant) {
        let short = self.dozed.take().is_some_and(|dozed| now.saturating_duration_since(dozed) < NAP);
        self.naps = if short { self.naps.saturating_add(1) } else { 0 };
    }

    /// Having run for a while, the next failed wake is the first again.
    pub(super) fn forget_failures(&mut self, now: Instant, awake: Instant) {
        if now.saturating_duration_since(awake) >= super::FAILURES_FORGOTTEN {
            self.failures = 0;
        }
    }
}
