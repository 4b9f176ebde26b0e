//! The state machine of all sprites of a host (`wake.md` §2): events in, actions out.
//!
//! No clock, no socket, no driver: `now` is passed in, and what the drivers do comes back
//! as an event with the token of the action it answers, so that a late result of
//! something given up changes nothing. Chance (the jitter of the back-off) comes from a
//! seed. What it deliberately does not know: HTTP, streams, where a guest listens.

pub use super::sprite::{CoreSpec, WaiterId, WakeRecord};
use super::sprite::{Lease, Sprite, Stage, State, Waiter};
use crate::spec::{Depth, SpriteStatus};
use backhaul::owner::EdgeId;
use backhaul::wire::{Cause, Opened, Phase, WakeKind};
use router::names::SpriteName;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// A lease counts for this long after it was renewed (`wake.md` §8).
pub const LEASE_TTL: Duration = Duration::from_secs(15);
/// From the cordon until a stop is committed; a request in between calls it off (`wake.md` §8).
pub const CORDON: Duration = Duration::from_millis(200);
/// Port wait of a run that is older than a minute (`wake.md` §4).
pub const PORT_WAIT_LATE: Duration = Duration::from_secs(2);
/// Longest start before the port wait (chosen: a process starts in milliseconds).
pub const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Running this long makes earlier failures forgotten (`wake.md` §2).
const FAILURES_FORGOTTEN: Duration = Duration::from_secs(60);
/// Longest back-off (`wake.md` §2).
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Tombstones kept; the oldest name in order goes first (chosen).
const GONE_MAX: usize = 10_000;

/// Figures of the host that the core decides by.
#[derive(Clone, Debug)]
pub struct CoreSettings {
    /// Without activity for this long a sprite is frozen.
    pub idle_timeout: Duration,
    /// Frozen for this long it is ended.
    pub warm_for: Duration,
    /// It runs at least this long after a wake.
    pub minimum_run: Duration,
    /// Idle timeout of an abandoned wake.
    pub abandoned_timeout: Duration,
    /// How long a closed port is waited for.
    pub port_wait: Duration,
    /// Guests starting at once; four times as many may be queued.
    pub start_slots: usize,
    /// Seed of the jitter.
    pub seed: u64,
}

/// What the core asks of its shell. `token` comes back with the result.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the sentence of a variant covers its fields")]
pub enum Action {
    /// Start the guest from its disk, then watch its port.
    Start { name: SpriteName, run: u64, token: u64 },
    /// Continue the frozen guest, then watch its port.
    Continue { name: SpriteName, run: u64, token: u64 },
    /// Watch the port of the running guest.
    Probe { name: SpriteName, token: u64 },
    /// Close the run's gate: at once if nothing is open, else only with `force`, which
    /// gives what is open a little time.
    CloseGate { name: SpriteName, run: u64, token: u64, force: Option<Depth> },
    /// The stop was called off.
    ReopenGate { name: SpriteName, run: u64 },
    /// Tell every edge that the run is about to end.
    Cordon { name: SpriteName, run: u64 },
    /// End the run's streams, then freeze the guest.
    Freeze { name: SpriteName, run: u64, token: u64 },
    /// End the run's streams, then end the guest.
    End { name: SpriteName, run: u64, token: u64 },
    /// Tell one waiter.
    Answer { waiter: WaiterId, name: SpriteName, answer: Answer },
    /// The guest runs and its port answers (or answered once).
    Running { name: SpriteName, run: u64 },
    /// The run is over.
    Ended { name: SpriteName, run: u64 },
    /// A wake came to its end.
    Receipt { name: SpriteName, run: u64, record: WakeRecord, result: &'static str },
}

/// What a waiter is told.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the sentence of a variant covers its fields")]
pub enum Answer {
    /// The wake is known here.
    Accepted { joined: bool },
    /// It entered a phase.
    Progress(Phase),
    /// The port answers. Ends the wait.
    Ready(Opened),
    /// Ends the wait.
    Refused { cause: Cause, retry_after: Duration, detail: String },
    /// Ends the wait.
    Gone { generation: u64 },
    /// Ends the wait.
    Unknown { generation: u64 },
}

/// What a run has open, as the shell sees it.
pub trait Activity {
    /// Items open now, and when the last byte moved.
    fn activity(&self, name: &SpriteName, run: u64) -> (u32, Instant);
}

/// One wake as an edge asks for it.
#[derive(Clone, Debug)]
pub struct WakeRequest {
    /// Who waits.
    pub waiter: WaiterId,
    /// For whom.
    pub name: SpriteName,
    /// The placement the edge believes in.
    pub generation: u64,
    /// When the waiter gives up.
    pub deadline: Instant,
    /// For the receipt.
    pub reason: String,
}

/// The core. Drive it with the `handle_*` methods, then take every action, then sleep
/// until [`OwnerCore::poll_timeout`].
pub struct OwnerCore {
    settings: CoreSettings,
    sprites: BTreeMap<SpriteName, Sprite>,
    gone: BTreeMap<SpriteName, u64>,
    timers: BTreeSet<(Instant, SpriteName)>,
    queue: VecDeque<SpriteName>,
    starting: usize,
    actions: VecDeque<Action>,
    jitter: u64,
}

impl OwnerCore {
    /// No sprites yet.
    #[must_use]
    pub fn new(settings: CoreSettings) -> Self {
        let jitter = settings.seed;
        Self {
            settings,
            sprites: BTreeMap::new(),
            gone: BTreeMap::new(),
            timers: BTreeSet::new(),
            queue: VecDeque::new(),
            starting: 0,
            actions: VecDeque::new(),
            jitter,
        }
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`OwnerCore::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// State of every sprite.
    #[must_use]
    pub fn statuses(&self, now: Instant) -> Vec<SpriteStatus> {
        self.sprites.iter().map(|(name, sprite)| sprite.status(name, now)).collect()
    }

    /// State of one.
    #[must_use]
    pub fn status(&self, name: &SpriteName, now: Instant) -> Option<SpriteStatus> {
        self.sprites.get(name).map(|sprite| sprite.status(name, now))
    }

    /// Makes a sprite known, asleep and cold, or changes what is known about it.
    pub fn handle_upsert(&mut self, now: Instant, name: &SpriteName, spec: CoreSpec) {
        self.gone.remove(name);
        match self.sprites.get_mut(name) {
            Some(sprite) => sprite.spec = spec,
            None => {
                let sprite = Sprite::new(spec, now);
                if sprite.spec.always {
                    self.actions.push_back(Action::Running { name: name.clone(), run: sprite.run });
                }
                self.sprites.insert(name.clone(), sprite);
            }
        }
        self.arm(now, name);
    }

    /// Destroys a sprite: waiters are told, a guest is ended.
    pub fn handle_remove(&mut self, now: Instant, name: &SpriteName) {
        let Some(mut sprite) = self.sprites.remove(name) else { return };
        let generation = sprite.spec.generation;
        for waiter in std::mem::take(&mut sprite.waiters).into_keys() {
            self.answer(waiter, name, Answer::Gone { generation });
        }
        if let Some(at) = sprite.armed {
            self.timers.remove(&(at, name.clone()));
        }
        self.queue.retain(|queued| queued != name);
        if matches!(sprite.state, State::Waking { phase: Phase::Starting, .. }) {
            self.starting -= 1;
        }
        let token = sprite.token + 1;
        self.actions.push_back(Action::End { name: name.clone(), run: sprite.run, token });
        self.actions.push_back(Action::Ended { name: name.clone(), run: sprite.run });
        if self.gone.len() >= GONE_MAX {
            self.gone.pop_first();
        }
        self.gone.insert(name.clone(), generation);
        self.start_queued(now);
    }

    /// Somebody wants it to run.
    pub fn handle_wake(&mut self, now: Instant, request: WakeRequest) {
        let WakeRequest { waiter, name, generation, deadline, reason } = request;
        let Some(sprite) = self.sprites.get_mut(&name) else {
            let answer = match self.gone.get(&name) {
                Some(&generation) => Answer::Gone { generation },
                None => Answer::Unknown { generation: 0 },
            };
            return self.answer(waiter, &name, answer);
        };
        if generation > sprite.spec.generation {
            let generation = sprite.spec.generation;
            return self.answer(waiter, &name, Answer::Unknown { generation });
        }
        if sprite.waiters.contains_key(&waiter) {
            // A retransmission, or the same wake with a longer deadline.
            let known = sprite.waiters.get_mut(&waiter).expect("checked above");
            known.deadline = known.deadline.max(deadline);
            let joined = known.joined;
            self.answer(waiter, &name, Answer::Accepted { joined });
            return self.arm(now, &name);
        }
        if let State::Failed { until, detail } = &sprite.state {
            if *until > now {
                let retry_after = *until - now;
                let detail = detail.clone();
                return self.answer(waiter, &name, Answer::Refused { cause: Cause::WakeFailed, retry_after, detail });
            }
            sprite.enter(now, State::Asleep(Depth::Cold));
        }
        let joined = !sprite.waiters.is_empty() || matches!(sprite.state, State::Waking { .. });
        match sprite.state {
            State::Running { port_open: true, .. } => {
                let opened = opened(sprite, WakeKind::None, 0, false);
                return self.answer(waiter, &name, Answer::Ready(opened));
            }
            State::Asleep(_)
                if self.starting >= self.settings.start_slots && self.queue.len() >= 4 * self.settings.start_slots =>
            {
                let retry_after = Duration::from_secs(2);
                let detail = "the start queue is full".to_owned();
                return self.answer(waiter, &name, Answer::Refused { cause: Cause::HostBusy, retry_after, detail });
            }
            _ => {}
        }
        sprite.waiters.insert(waiter, Waiter { deadline, joined });
        sprite.abandoned = false;
        if let Some(record) = &mut sprite.wake {
            record.waiters += 1;
        }
        self.answer(waiter, &name, Answer::Accepted { joined });
        self.wake(now, &name, &reason);
        self.arm(now, &name);
    }

    /// Moves a sprite with a new waiter towards running.
    fn wake(&mut self, now: Instant, name: &SpriteName, reason: &str) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        let record = |kind| WakeRecord {
            reason: reason.into(),
            kind,
            asked: now,
            slot: None,
            started: None,
            ready: None,
            waiters: 1,
        };
        match &mut sprite.state {
            State::Asleep(depth) => {
                let kind = depth.wake_kind();
                sprite.wake = Some(record(kind));
                sprite.enter(now, State::Waking { phase: Phase::Queued, kind });
                self.queue.push_back(name.clone());
                self.start_queued(now);
            }
            State::Stopping { stage: Stage::Interruptible { .. }, .. } => {
                let mut record = record(WakeKind::Interrupted);
                record.ready = Some(now);
                sprite.enter(now, State::Running { since: now, port_open: true, gate_asked: false });
                let run = sprite.run;
                self.actions.push_back(Action::ReopenGate { name: name.clone(), run });
                self.actions.push_back(Action::Receipt { name: name.clone(), run, record, result: "ready" });
                self.release(name, WakeKind::Interrupted, 0);
            }
            State::Stopping { stage: Stage::Committed { wake_next }, .. } => *wake_next = true,
            State::Running { port_open: false, .. } => {
                // It runs, its port did not answer the last time: look again.
                sprite.token += 1;
                let token = sprite.token;
                sprite.wake = Some(record(WakeKind::None));
                sprite.enter(now, State::Waking { phase: Phase::PortWait, kind: WakeKind::None });
                self.actions.push_back(Action::Probe { name: name.clone(), token });
            }
            State::Waking { .. } | State::Running { .. } | State::Failed { .. } => {}
        }
    }

    /// Gives free start slots to the queue, first come first served.
    fn start_queued(&mut self, now: Instant) {
        while self.starting < self.settings.start_slots {
            let Some(name) = self.queue.pop_front() else { return };
            let Some(sprite) = self.sprites.get_mut(&name) else { continue };
            let State::Waking { phase, kind } = &mut sprite.state else { continue };
            *phase = Phase::Starting;
            let kind = *kind;
            sprite.since = now;
            sprite.run += 1;
            sprite.token += 1;
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
        let waiting = self.sprites.iter().find(|(_, sprite)| sprite.waiters.contains_key(&waiter));
        if let Some(name) = waiting.map(|(name, _)| name.clone()) {
            self.leave(now, &name, waiter);
        }
    }

    fn leave(&mut self, now: Instant, name: &SpriteName, waiter: WaiterId) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        sprite.waiters.remove(&waiter);
        if sprite.waiters.is_empty() {
            match &mut sprite.state {
                State::Waking { phase: Phase::Queued, kind } => {
                    let depth = if *kind == WakeKind::Warm { Depth::Warm } else { Depth::Cold };
                    sprite.wake = None;
                    sprite.enter(now, State::Asleep(depth));
                    self.queue.retain(|queued| queued != name);
                }
                State::Waking { .. } => sprite.abandoned = true,
                State::Stopping { stage: Stage::Committed { wake_next }, .. } => *wake_next = false,
                _ => {}
            }
        }
        self.arm(now, name);
    }

    /// An edge's session ended: its waiters and leases are void.
    pub fn handle_edge_gone(&mut self, now: Instant, edge: EdgeId) {
        let names: Vec<_> = self.sprites.keys().cloned().collect();
        for name in names {
            let Some(sprite) = self.sprites.get_mut(&name) else { continue };
            sprite.leases.remove(&edge);
            let waiters: Vec<_> = sprite.waiters.keys().filter(|(of, _)| *of == edge).copied().collect();
            for waiter in waiters {
                self.leave(now, &name, waiter);
            }
        }
    }

    /// An edge renews its claim on a run.
    pub fn handle_lease(&mut self, now: Instant, edge: EdgeId, name: &str, run: u64, open: u32) {
        if let Some(sprite) = self.sprites.get_mut(name) {
            sprite.leases.insert(edge, Lease { run, open, until: now + LEASE_TTL });
        }
    }

    /// The driver started or continued the guest; its port is being watched.
    pub fn handle_started(&mut self, now: Instant, name: &SpriteName, token: u64) {
        let Some(sprite) = current(&mut self.sprites, name, token) else { return };
        let State::Waking { phase, .. } = &mut sprite.state else { return };
        if *phase != Phase::Starting {
            return;
        }
        *phase = Phase::PortWait;
        sprite.since = now;
        if let Some(record) = &mut sprite.wake {
            record.started = Some(now);
        }
        self.starting -= 1;
        for &waiter in sprite.waiters.keys() {
            let answer = Answer::Progress(Phase::PortWait);
            self.actions.push_back(Action::Answer { waiter, name: name.clone(), answer });
        }
        self.start_queued(now);
        self.arm(now, name);
    }

    /// The frozen guest was no more: the wake goes on as a cold one.
    pub fn handle_memory_lost(&mut self, name: &SpriteName, token: u64) {
        let Some(sprite) = current(&mut self.sprites, name, token) else { return };
        if let State::Waking { kind, .. } = &mut sprite.state {
            *kind = WakeKind::Cold;
            if let Some(record) = &mut sprite.wake {
                record.kind = WakeKind::Cold;
            }
        }
    }

    /// The guest's port answered.
    pub fn handle_port_open(&mut self, now: Instant, name: &SpriteName, token: u64) {
        let Some(sprite) = current(&mut self.sprites, name, token) else { return };
        match &mut sprite.state {
            State::Waking { phase: Phase::PortWait, kind } => {
                let kind = *kind;
                sprite.enter(now, State::Running { since: now, port_open: true, gate_asked: false });
                let run = sprite.run;
                let record = sprite.wake.take().map(|mut record| {
                    record.ready = Some(now);
                    record
                });
                let wake_ms = record.as_ref().map_or(0, |record| millis(now - record.asked));
                self.actions.push_back(Action::Running { name: name.clone(), run });
                if let Some(record) = record {
                    self.actions.push_back(Action::Receipt { name: name.clone(), run, record, result: "ready" });
                }
                self.release(name, kind, wake_ms);
            }
            State::Running { port_open, .. } => {
                *port_open = true;
                self.actions.push_back(Action::Running { name: name.clone(), run: sprite.run });
            }
            _ => {}
        }
        self.arm(now, name);
    }

    /// Tells every waiter that it runs.
    fn release(&mut self, name: &SpriteName, kind: WakeKind, wake_ms: u32) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        for (waiter, record) in std::mem::take(&mut sprite.waiters) {
            let opened = opened(sprite, kind, wake_ms, record.joined);
            self.actions.push_back(Action::Answer { waiter, name: name.clone(), answer: Answer::Ready(opened) });
        }
    }

    /// The guest could not be started, or ended: `detail` says how ("exit status 1").
    pub fn handle_exited(&mut self, now: Instant, name: &SpriteName, run: u64, detail: &str) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        if sprite.run != run {
            return;
        }
        match &sprite.state {
            State::Waking { phase, .. } if *phase != Phase::Queued => {
                if *phase == Phase::Starting {
                    self.starting -= 1;
                }
                sprite.failures += 1;
                let backoff = backoff(sprite.failures, &mut self.jitter);
                sprite.token += 1;
                sprite.enter(now, State::Failed { until: now + backoff, detail: detail.into() });
                let record = sprite.wake.take();
                self.actions.push_back(Action::Ended { name: name.clone(), run });
                if let Some(record) = record {
                    self.actions.push_back(Action::Receipt { name: name.clone(), run, record, result: "wake_failed" });
                }
                self.refuse_all(name, Cause::WakeFailed, backoff, detail);
                self.start_queued(now);
            }
            State::Running { .. } | State::Asleep(Depth::Warm) => {
                sprite.token += 1;
                sprite.enter(now, State::Asleep(Depth::Cold));
                self.actions.push_back(Action::Ended { name: name.clone(), run });
            }
            State::Stopping { stage: Stage::Interruptible { .. }, .. } => {
                sprite.token += 1;
                sprite.enter(now, State::Asleep(Depth::Cold));
                self.actions.push_back(Action::Ended { name: name.clone(), run });
            }
            // A committed stop reports its own end; a queued wake finds out when it starts.
            State::Stopping { .. } | State::Waking { .. } | State::Asleep(_) | State::Failed { .. } => {}
        }
        self.arm(now, name);
    }

    fn refuse_all(&mut self, name: &SpriteName, cause: Cause, retry_after: Duration, detail: &str) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        for waiter in std::mem::take(&mut sprite.waiters).into_keys() {
            let answer = Answer::Refused { cause, retry_after, detail: detail.into() };
            self.actions.push_back(Action::Answer { waiter, name: name.clone(), answer });
        }
    }

    /// Answer to [`Action::CloseGate`].
    pub fn handle_gate(&mut self, now: Instant, name: &SpriteName, token: u64, closed: bool, forced: Option<Depth>) {
        let Some(sprite) = current(&mut self.sprites, name, token) else { return };
        let State::Running { gate_asked, .. } = &mut sprite.state else { return };
        *gate_asked = false;
        if closed {
            let run = sprite.run;
            let until = if forced.is_some() { now } else { now + CORDON };
            let depth = forced.unwrap_or(Depth::Warm);
            sprite.enter(now, State::Stopping { depth, stage: Stage::Interruptible { until } });
            self.actions.push_back(Action::Cordon { name: name.clone(), run });
        }
        self.arm(now, name);
    }

    /// The driver froze or ended the guest.
    pub fn handle_stopped(&mut self, now: Instant, name: &SpriteName, token: u64, depth: Depth) {
        let Some(sprite) = current(&mut self.sprites, name, token) else { return };
        let State::Stopping { stage: Stage::Committed { wake_next }, .. } = sprite.state else { return };
        sprite.enter(now, State::Asleep(depth));
        sprite.leases.clear();
        self.actions.push_back(Action::Ended { name: name.clone(), run: sprite.run });
        if wake_next && !sprite.waiters.is_empty() {
            let waiters = sprite.waiters.len();
            self.wake(now, name, "wake behind a stop");
            if let Some(record) = self.sprites.get_mut(name).and_then(|sprite| sprite.wake.as_mut()) {
                record.waiters = waiters;
            }
        }
        self.arm(now, name);
    }

    /// Somebody wants it to sleep now; the minimum run does not count. `false` when it
    /// sleeps that deep already, never sleeps, or is not in a state to be told.
    pub fn handle_sleep(&mut self, now: Instant, name: &SpriteName, depth: Depth) -> bool {
        let Some(sprite) = self.sprites.get_mut(name) else { return false };
        if sprite.spec.always {
            return false;
        }
        let run = sprite.run;
        match &mut sprite.state {
            State::Running { gate_asked, .. } => {
                *gate_asked = true;
                sprite.token += 1;
                let token = sprite.token;
                self.actions.push_back(Action::CloseGate { name: name.clone(), run, token, force: Some(depth) });
                true
            }
            State::Asleep(Depth::Warm) if depth == Depth::Cold => {
                self.commit(now, name, Depth::Cold);
                true
            }
            _ => false,
        }
    }

    fn commit(&mut self, now: Instant, name: &SpriteName, depth: Depth) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        sprite.token += 1;
        let (run, token) = (sprite.run, sprite.token);
        sprite.enter(now, State::Stopping { depth, stage: Stage::Committed { wake_next: false } });
        self.actions.push_back(match depth {
            Depth::Warm => Action::Freeze { name: name.clone(), run, token },
            Depth::Cold => Action::End { name: name.clone(), run, token },
        });
        self.arm(now, name);
    }

    /// Lets everything happen that is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant, activity: &dyn Activity) {
        while let Some((at, name)) = self.timers.first().cloned() {
            if at > now {
                return;
            }
            self.timers.remove(&(at, name.clone()));
            if let Some(sprite) = self.sprites.get_mut(&name) {
                sprite.armed = None;
            }
            self.expire_waiters(now, &name);
            self.due(now, &name, activity);
        }
    }

    fn expire_waiters(&mut self, now: Instant, name: &SpriteName) {
        let Some(sprite) = self.sprites.get(name) else { return };
        let expired: Vec<_> =
            sprite.waiters.iter().filter(|(_, waiter)| waiter.deadline <= now).map(|(id, _)| *id).collect();
        for waiter in expired {
            let answer = Answer::Refused {
                cause: Cause::WakeDeadline,
                retry_after: Duration::from_secs(1),
                detail: String::new(),
            };
            self.answer(waiter, name, answer);
            self.leave(now, name, waiter);
        }
    }

    fn due(&mut self, now: Instant, name: &SpriteName, activity: &dyn Activity) {
        let settings = self.settings.clone();
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        let since = sprite.since;
        match &mut sprite.state {
            State::Asleep(Depth::Warm) if now >= since + settings.warm_for => {
                return self.commit(now, name, Depth::Cold);
            }
            State::Waking { phase: Phase::Starting, .. } if now >= since + START_TIMEOUT => {
                let run = sprite.run;
                let token = sprite.token + 1;
                self.handle_exited(now, name, run, "it did not start in time");
                self.actions.push_back(Action::End { name: name.clone(), run, token });
                return;
            }
            State::Waking { phase: Phase::PortWait, kind } if now >= since + port_wait(&settings, *kind) => {
                return self.port_stays_closed(now, name);
            }
            State::Running { since: awake, gate_asked, .. } => {
                if now >= *awake + FAILURES_FORGOTTEN {
                    sprite.failures = 0;
                }
                if !*gate_asked && !sprite.spec.always {
                    let (open, last) = activity.activity(name, sprite.run);
                    let awake = *awake;
                    if open == 0 && sprite.leased(now) == 0 && now >= idle_at(sprite, &settings, awake, last) {
                        sprite.token += 1;
                        let (run, token) = (sprite.run, sprite.token);
                        if let State::Running { gate_asked, .. } = &mut sprite.state {
                            *gate_asked = true;
                        }
                        self.actions.push_back(Action::CloseGate { name: name.clone(), run, token, force: None });
                    } else {
                        let at = idle_at(sprite, &settings, awake, last).max(now + settings.idle_timeout / 8);
                        return self.arm_at(name, at);
                    }
                }
            }
            State::Stopping { depth, stage: Stage::Interruptible { until } } if now >= *until => {
                let depth = *depth;
                return self.commit(now, name, depth);
            }
            State::Failed { until, .. } if now >= *until => sprite.enter(now, State::Asleep(Depth::Cold)),
            _ => {}
        }
        self.arm(now, name);
    }

    /// The guest runs but nobody listens: waiters are told, the guest is left alone.
    fn port_stays_closed(&mut self, now: Instant, name: &SpriteName) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        sprite.enter(now, State::Running { since: now, port_open: false, gate_asked: false });
        let run = sprite.run;
        if let Some(record) = sprite.wake.take() {
            self.actions.push_back(Action::Receipt { name: name.clone(), run, record, result: "port_closed" });
        }
        self.refuse_all(name, Cause::PortClosed, Duration::from_secs(2), "");
        self.arm(now, name);
    }

    /// The port of a running guest refused a connection: ask again before the next stream.
    pub fn handle_port_lost(&mut self, name: &SpriteName, run: u64) {
        if let Some(sprite) = self.sprites.get_mut(name)
            && let State::Running { port_open, .. } = &mut sprite.state
            && sprite.run == run
            && !sprite.spec.always
        {
            *port_open = false;
        }
    }

    fn answer(&mut self, waiter: WaiterId, name: &SpriteName, answer: Answer) {
        self.actions.push_back(Action::Answer { waiter, name: name.clone(), answer });
    }

    /// Sets the sprite's timer to the next thing that may be due.
    fn arm(&mut self, now: Instant, name: &SpriteName) {
        let Some(sprite) = self.sprites.get(name) else { return };
        let state = match &sprite.state {
            State::Asleep(Depth::Warm) => Some(sprite.since + self.settings.warm_for),
            State::Waking { phase: Phase::Starting, .. } => Some(sprite.since + START_TIMEOUT),
            State::Waking { phase: Phase::PortWait, kind } => Some(sprite.since + port_wait(&self.settings, *kind)),
            State::Running { since, gate_asked: false, .. } if !sprite.spec.always => {
                Some(idle_at(sprite, &self.settings, *since, *since).max(now))
            }
            State::Stopping { stage: Stage::Interruptible { until }, .. } => Some(*until),
            State::Failed { until, .. } => Some(*until),
            _ => None,
        };
        let waiters = sprite.waiters.values().map(|waiter| waiter.deadline).min();
        match state.into_iter().chain(waiters).min() {
            Some(at) => self.arm_at(name, at),
            None => self.disarm(name),
        }
    }

    fn arm_at(&mut self, name: &SpriteName, at: Instant) {
        self.disarm(name);
        if let Some(sprite) = self.sprites.get_mut(name) {
            sprite.armed = Some(at);
            self.timers.insert((at, name.clone()));
        }
    }

    fn disarm(&mut self, name: &SpriteName) {
        if let Some(at) = self.sprites.get_mut(name).and_then(|sprite| sprite.armed.take()) {
            self.timers.remove(&(at, name.clone()));
        }
    }
}

fn current<'a>(sprites: &'a mut BTreeMap<SpriteName, Sprite>, name: &SpriteName, token: u64) -> Option<&'a mut Sprite> {
    sprites.get_mut(name).filter(|sprite| sprite.token == token)
}

/// When a running sprite is idle, if nothing more happens.
fn idle_at(sprite: &Sprite, settings: &CoreSettings, awake: Instant, last: Instant) -> Instant {
    let idle = sprite.spec.idle_timeout.unwrap_or(settings.idle_timeout);
    if sprite.abandoned {
        return last.max(awake) + settings.abandoned_timeout.min(idle);
    }
    (last.max(awake) + idle).max(awake + settings.minimum_run)
}

const fn port_wait(settings: &CoreSettings, kind: WakeKind) -> Duration {
    match kind {
        WakeKind::None => PORT_WAIT_LATE,
        _ => settings.port_wait,
    }
}

fn opened(sprite: &Sprite, kind: WakeKind, wake_ms: u32, joined: bool) -> Opened {
    Opened { generation: sprite.spec.generation, run: sprite.run, kind: kind.into(), wake_ms, joined }
}

/// 1, 2, 4 … 30 s, ±20 % (`wake.md` §2).
fn backoff(failures: u32, jitter: &mut u64) -> Duration {
    let base = Duration::from_secs(1 << (failures - 1).min(5)).min(BACKOFF_MAX);
    // SplitMix64: enough for jitter, and the same in every simulation of a seed.
    *jitter = jitter.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *jitter;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let percent = 80 + u32::try_from((mixed ^ (mixed >> 31)) % 41).unwrap_or(20);
    base * percent / 100
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
