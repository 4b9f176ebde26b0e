//! One sprite in the owner's core: its state, who waits for it, who claims it.

use super::core::{AwakeMeter, History, WakeBudget};
use crate::ledger::StopReason;
use crate::spec::{Depth, LOCAL_TENANT, SpriteLimits, SpriteStatus, StateName};
use backhaul::owner::EdgeId;
use backhaul::wire::{Opened, Phase, WakeKind};
use router::names::SpriteName;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One waiter: an edge and the id of its wake.
pub type WaiterId = (EdgeId, u128);

/// What the core must know of a spec.
#[derive(Clone, Debug)]
pub struct CoreSpec {
    /// The placement this host has.
    pub generation: u64,
    /// Its own idle timeout.
    pub idle_timeout: Option<Duration>,
    /// It is always running and never sleeps.
    pub always: bool,
    /// It was stopped before this owner began.
    pub stopped: bool,
    /// The last run an owner before this one may have begun; the next one has a higher number.
    pub run: u64,
    /// What its people have set.
    pub limits: SpriteLimits,
    /// Whose it is.
    pub tenant: Arc<str>,
}

impl CoreSpec {
    /// A sprite nobody has set anything for.
    #[must_use]
    pub fn new(generation: u64) -> Self {
        Self {
            generation,
            idle_timeout: None,
            always: false,
            stopped: false,
            run: 0,
            limits: SpriteLimits::default(),
            tenant: LOCAL_TENANT.into(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Sprite {
    pub(super) spec: CoreSpec,
    pub(super) state: State,
    pub(super) since: Instant,
    /// The current or last life.
    pub(super) run: u64,
    /// When that life began.
    pub(super) begun: Instant,
    /// Number of the last thing asked of the driver; results for older ones are stale.
    pub(super) token: u64,
    pub(super) waiters: BTreeMap<WaiterId, Waiter>,
    pub(super) leases: BTreeMap<EdgeId, Lease>,
    /// What the guest itself is busy with, and until when it may be.
    pub(super) tasks: BTreeMap<u64, Instant>,
    /// Failed wakes in a row.
    pub(super) failures: u32,
    /// It slept warm and its memory is gone: those of the next wake are told.
    pub(super) lost_memory: bool,
    /// How its guest died, until it runs again.
    pub(super) died_of: Option<String>,
    /// Nobody waited for the end of its last wake.
    pub(super) abandoned: bool,
    /// Wakes by strangers.
    pub(super) budget: WakeBudget,
    /// They are too many: until then it is slow to sleep.
    pub(super) generous_until: Option<Instant>,
    /// Awake time against its cap.
    pub(super) meter: AwakeMeter,
    /// When it last fell asleep by itself.
    pub(super) dozed: Option<Instant>,
    /// How often in a row it was woken soon after that.
    pub(super) naps: u32,
    /// How long its wakes took.
    pub(super) history: History,
    /// Its people have stopped it: nothing wakes it.
    pub(super) stopped: bool,
    /// Until when new requests wait, whatever its state.
    pub(super) held: Option<Instant>,
    /// The wake under way.
    pub(super) wake: Option<WakeRecord>,
    /// The awake time that counts, while it does (`core/runs.rs`).
    pub(super) awake: Option<Awake>,
    /// Why the sleep it is on its way to was begun.
    pub(super) ending: StopReason,
    /// Who was told of the last wake, and what: a question that comes twice, because its answer
    /// is late, is answered alike. No more than there were waiters; gone with the run.
    pub(super) told: BTreeMap<WaiterId, Opened>,
    pub(super) armed: Option<Instant>,
}

/// From the moment a driver made it run until it runs no more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Awake {
    pub(super) since: Instant,
    /// Times it was woken in this run; a stop that was called off is one.
    pub(super) wakes: u32,
}

#[derive(Debug)]
pub(super) enum State {
    Asleep(Depth),
    Waking { phase: Phase, kind: WakeKind },
    Running { since: Instant, port_open: bool, gate_asked: bool },
    Stopping { depth: Depth, stage: Stage },
    Failed { until: Instant, detail: String },
}

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Cordoned; a wake calls it off.
    Interruptible { until: Instant, port_open: bool },
    /// The driver is at it; a wake follows it.
    Committed { wake_next: bool },
}

#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) deadline: Instant,
    pub(super) joined: bool,
    /// One of its people, who may wake it whatever it costs.
    pub(super) operator: bool,
    /// For the receipt of the wake that is made for it.
    pub(super) reason: String,
}

#[derive(Debug)]
pub(super) struct Lease {
    pub(super) run: u64,
    pub(super) open: u32,
    /// Of those, what may be silent for long.
    pub(super) sockets: u32,
    /// When there was data on one of them.
    pub(super) last_data: Instant,
    pub(super) until: Instant,
}

/// When each phase of a wake was reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WakeRecord {
    /// Why it was asked for.
    pub reason: String,
    /// How it wakes.
    pub kind: WakeKind,
    /// When it was asked for.
    pub asked: Instant,
    /// When it left the queue.
    pub slot: Option<Instant>,
    /// When the driver acted.
    pub started: Option<Instant>,
    /// When the port answered.
    pub ready: Option<Instant>,
    /// Everybody who joined.
    pub waiters: usize,
    /// What it had in memory was lost in its sleep.
    pub lost_memory: bool,
}

impl Sprite {
    pub(super) fn new(spec: CoreSpec, now: Instant, token: u64) -> Self {
        let state = if spec.always {
            State::Running { since: now, port_open: true, gate_asked: false }
        } else {
            State::Asleep(Depth::Cold)
        };
        let run = if spec.always { 1 } else { spec.run };
        let stopped = spec.stopped && !spec.always;
        Self {
            spec,
            state,
            since: now,
            run,
            begun: now,
            token,
            waiters: BTreeMap::new(),
            leases: BTreeMap::new(),
            tasks: BTreeMap::new(),
            failures: 0,
            lost_memory: false,
            died_of: None,
            abandoned: false,
            budget: WakeBudget::new(),
            generous_until: None,
            meter: AwakeMeter::new(now),
            dozed: None,
            naps: 0,
            history: History::new(),
            stopped,
            held: None,
            wake: None,
            awake: None,
            told: BTreeMap::new(),
            ending: StopReason::Idle,
            armed: None,
        }
    }

    pub(super) fn enter(&mut self, now: Instant, state: State) {
        self.meter.advance(now, self.is_awake(), self.spec.limits.awake_per_day);
        self.state = state;
        self.since = now;
    }

    /// Whether a guest of it uses the machine.
    pub(super) const fn is_awake(&self) -> bool {
        match self.state {
            State::Waking { phase: Phase::PortWait, .. } | State::Running { .. } | State::Stopping { .. } => true,
            State::Asleep(_) | State::Waking { .. } | State::Failed { .. } => false,
        }
    }

    /// Requests some edge claims to have open, by leases that have not expired.
    pub(super) fn leased(&self, now: Instant) -> u32 {
        self.claims(now).map(|lease| lease.open).sum()
    }

    /// Of those: what is no socket.
    pub(super) fn requests_at_edges(&self, now: Instant) -> u32 {
        self.claims(now).map(|lease| lease.open.saturating_sub(lease.sockets)).sum()
    }

    /// What was open with its run, or kept it busy, ended with it.
    pub(super) fn end_claims(&mut self) {
        self.leases.clear();
        self.tasks.clear();
        self.told.clear();
    }

    /// When the last claim ends that has not ended yet. Sockets claim it for `silence` after
    /// their last data, whether they are open or not.
    pub(super) fn claimed_until(&self, now: Instant, silence: Duration) -> Option<Instant> {
        let until = |lease: &Lease| match lease.open > lease.sockets {
            true => lease.until,
            false => lease.until.min(lease.last_data + silence),
        };
        self.claims(now).map(until).filter(|until| *until > now).max()
    }

    fn claims(&self, now: Instant) -> impl Iterator<Item = &Lease> {
        self.leases.values().filter(move |lease| lease.run == self.run && lease.open > 0 && lease.until > now)
    }

    /// Its port is not known to answer any more.
    pub(super) const fn lose_port(&mut self) {
        if let State::Running { port_open, .. }
        | State::Stopping { stage: Stage::Interruptible { port_open, .. }, .. } = &mut self.state
        {
            *port_open = false;
        }
    }

    pub(super) fn opened(&self, kind: WakeKind, wake: Duration, joined: bool) -> Opened {
        let wake_ms = u32::try_from(wake.as_millis()).unwrap_or(u32::MAX);
        Opened {
            generation: self.spec.generation,
            run: self.run,
            kind: kind.into(),
            wake_ms,
            joined,
            lost_memory: self.lost_memory,
        }
    }

    pub(super) fn status(&self, name: &SpriteName, now: Instant) -> SpriteStatus {
        let (state, warmth, cause) = match &self.state {
            State::Asleep(_) | State::Failed { .. } if self.stopped => (StateName::Stopped, None, None),
            State::Asleep(depth) => (StateName::Asleep, Some(*depth), self.died_of.clone()),
            State::Waking { .. } => (StateName::Waking, None, None),
            State::Running { .. } => (StateName::Running, None, None),
            State::Stopping { .. } => (StateName::Stopping, None, None),
            State::Failed { detail, .. } => (StateName::Failed, None, Some(detail.clone())),
        };
        SpriteStatus {
            name: name.clone(),
            generation: self.spec.generation,
            run: self.run,
            state,
            warmth,
            cause,
            since_ms: u64::try_from(now.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX),
            open: self.leased(now),
            waiting: self.waiters.len(),
            held: self.held.is_some_and(|until| until > now),
        }
    }
}
