//! The state machine of all sprites of a host (`wake.md` §2): events in, actions out.
//!
//! No clock, no socket, no driver: `now` is passed in, and what the drivers do comes back
//! as an event with the token of the action it answers, so that a late result of
//! something given up changes nothing. Chance (the jitter of the back-off) comes from a
//! seed. What it deliberately does not know: HTTP, streams, where a guest listens.
//!
//! Here is who it knows and who claims what; `ahead.rs` is for who knows more than this owner,
//! `wake.rs` leads to running, `stop.rs` to sleep, `due.rs` does what time brings.

mod actions;
mod ahead;
mod backoff;
mod budget;
mod due;
mod history;
mod moved;
mod orders;
mod queue;
mod runs;
mod stop;
mod tasks;
mod wake;
mod why;

pub use super::sprite::{CoreSpec, WaiterId, WakeRecord};
pub use actions::{Action, Activity, Answer, CoreSettings, Unwanted, WakeRequest};
pub use ahead::{AHEAD_MAX, AHEAD_WAIT};
pub(super) use budget::{AwakeMeter, WakeBudget};
pub(super) use history::History;
pub use orders::HOLD_MAX;
pub use tasks::{TASK_MAX, TaskError};

use super::sprite::{Lease, Sprite, State};
use crate::spec::{Depth, SpriteStatus};
use ahead::Ahead;
use backhaul::owner::EdgeId;
use backhaul::wire::{self, Cause, WakeKind};
use backoff::Backoff;
use moved::{Gone, Rest};
use queue::StartQueue;
use router::names::SpriteName;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// A lease counts for this long after it was renewed (`wake.md` §8).
pub const LEASE_TTL: Duration = Duration::from_secs(15);
/// From the cordon until a stop is committed; a request in between calls it off (`wake.md` §8).
pub const CORDON: Duration = Duration::from_millis(200);
/// Longest wait for the edges' answers to a cordon, which say what they had not claimed yet (chosen:
/// three round trips of the longest backhaul, 300 ms).
pub const CORDON_ANSWERS: Duration = Duration::from_secs(1);
/// Port wait of a run that is older than [`RUN_IS_OLD`] (`wake.md` §4).
pub const PORT_WAIT_LATE: Duration = Duration::from_secs(2);
/// From this age on a run has had its time to listen (`wake.md` §4).
pub const RUN_IS_OLD: Duration = Duration::from_secs(60);
/// Longest start before the port wait (chosen: a process starts in milliseconds).
pub const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Running this long makes earlier failures forgotten (`wake.md` §2).
const FAILURES_FORGOTTEN: Duration = Duration::from_secs(60);
/// Tombstones kept; the first name in order goes first (chosen).
const GONE_MAX: usize = 10_000;
/// Waiters of one sprite, edges and streams together (chosen: an edge has one, a stream
/// that asks for a wake is one; far over both is a broken peer).
const WAITERS_MAX: usize = 4_096;
/// Longest reason a receipt keeps, characters (chosen: "http DELETE" is 11).
const REASON_CHARS_MAX: usize = 64;

/// The core. Drive it with the `handle_*` methods, then take every action, then sleep
/// until [`OwnerCore::poll_timeout`].
pub struct OwnerCore {
    settings: CoreSettings,
    sprites: BTreeMap<SpriteName, Sprite>,
    gone: BTreeMap<SpriteName, Gone>,
    timers: BTreeSet<(Instant, SpriteName)>,
    /// Those who know more than this owner.
    ahead: Ahead,
    queue: StartQueue,
    starting: usize,
    /// Tokens up to here were given to sprites that are no more: a late result of theirs must
    /// not be taken for one of a sprite that has their name now.
    spent_tokens: u64,
    actions: VecDeque<Action>,
    backoff: Backoff,
}

impl OwnerCore {
    /// No sprites yet.
    #[must_use]
    pub fn new(settings: CoreSettings) -> Self {
        let backoff = Backoff::new(settings.seed);
        Self {
            settings,
            sprites: BTreeMap::new(),
            gone: BTreeMap::new(),
            timers: BTreeSet::new(),
            ahead: Ahead::default(),
            queue: StartQueue::default(),
            starting: 0,
            spent_tokens: 0,
            actions: VecDeque::new(),
            backoff,
        }
    }

    /// The next thing to do, in order.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`OwnerCore::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at).into_iter().chain(self.ahead.next()).min()
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

    /// How long a closed port of a running sprite is worth waiting for at `now`.
    #[must_use]
    pub fn port_wait(&self, name: &SpriteName, now: Instant) -> Duration {
        self.sprites.get(name).map_or(Duration::ZERO, |sprite| self.port_wait_of(sprite, now))
    }

    /// How long open sockets without data keep it awake.
    fn silence_of(&self, sprite: &Sprite) -> Duration {
        sprite.spec.limits.silent_sockets.unwrap_or(self.settings.silent_sockets)
    }

    fn port_wait_of(&self, sprite: &Sprite, asked: Instant) -> Duration {
        let wait = sprite.spec.limits.port_wait.unwrap_or(self.settings.port_wait);
        let old = asked.saturating_duration_since(sprite.begun) > RUN_IS_OLD;
        if old { PORT_WAIT_LATE.min(wait) } else { wait }
    }

    /// Makes a sprite known, asleep and cold, or changes what is known about it; a
    /// placement older than the known one changes nothing.
    pub fn handle_upsert(&mut self, now: Instant, name: &SpriteName, spec: CoreSpec) {
        match self.sprites.get_mut(name) {
            Some(sprite) if spec.generation < sprite.spec.generation => return,
            Some(sprite) => sprite.spec = spec,
            None => {
                // What is still said of its earlier lives is said of other runs than its own.
                let lived = self.gone.remove(name).map_or(0, |gone| gone.run);
                let spec = CoreSpec { run: spec.run.max(lived), ..spec };
                let sprite = Sprite::new(spec, now, self.spent_tokens);
                if sprite.spec.always {
                    self.actions.push_back(Action::Running { name: name.clone(), run: sprite.run, since: now });
                }
                self.sprites.insert(name.clone(), sprite);
            }
        }
        self.ahead.hurry(now, name);
        self.arm(now, name);
    }

    /// A sprite that is new here has a guest already, from an owner before this one: it runs
    /// (`None`) or sleeps that deep. `open` is its run if that owner had not seen the end of
    /// it, and since when it runs: one that still runs goes on in it. Its run; `None` when it
    /// is not new.
    pub fn handle_adopted(
        &mut self,
        now: Instant,
        name: &SpriteName,
        depth: Option<Depth>,
        open: Option<(u64, Instant)>,
    ) -> Option<u64> {
        let sprite = self.sprites.get_mut(name)?;
        if !matches!(sprite.state, State::Asleep(Depth::Cold)) || sprite.spec.always {
            return None;
        }
        match (depth, open) {
            (None, Some((run, since))) => {
                sprite.run = run;
                sprite.begun = since;
                sprite.go_on_awake(since);
            }
            (None | Some(Depth::Warm), _) => {
                sprite.run += 1;
                sprite.begun = now;
            }
            (Some(Depth::Cold), _) => {}
        }
        let run = sprite.run;
        sprite.enter(
            now,
            match depth {
                Some(depth) => State::Asleep(depth),
                // Its port is looked at when somebody asks for it.
                None => State::Running { since: now, port_open: false, gate_asked: false },
            },
        );
        if depth.is_none() {
            self.run_begins(now, name, WakeKind::None);
        }
        self.go_on_stopping(now, name);
        self.arm(now, name);
        Some(run)
    }

    /// Destroys a sprite: waiters are told, a guest is ended.
    pub fn handle_remove(&mut self, now: Instant, name: &SpriteName) {
        let Some((generation, run)) = self.sprites.get(name).map(|sprite| (sprite.spec.generation, sprite.run)) else {
            return;
        };
        self.forget(now, name, &Answer::Gone { generation }, Rest::Destroyed);
        self.remember_gone(now, name, Gone { generation, host: None, run });
    }

    /// The owner goes away: everybody who waits is told.
    pub fn handle_shutdown(&mut self) {
        let waiting: Vec<_> = self
            .sprites
            .iter()
            .filter(|(_, sprite)| !sprite.waiters.is_empty())
            .map(|(name, _)| name.clone())
            .collect();
        for name in waiting {
            self.refuse_all(&name, Cause::ShuttingDown, Duration::from_secs(1), "");
        }
        self.refuse_ahead();
    }

    /// An edge's session ended: its waiters and leases are void.
    pub fn handle_edge_gone(&mut self, now: Instant, edge: EdgeId) {
        self.ahead.edge_gone(edge);
        let names: Vec<_> = self.sprites.keys().cloned().collect();
        for name in names {
            let Some(sprite) = self.sprites.get_mut(&name) else { continue };
            let claimed = sprite.leases.remove(&edge).is_some();
            let waiters: Vec<_> = sprite.waiters.keys().filter(|(of, _)| *of == edge).copied().collect();
            for waiter in waiters {
                self.leave(now, &name, waiter);
            }
            if claimed {
                self.arm(now, &name);
            }
        }
    }

    /// An edge renews its claim on a run, or gives it back with nothing open. A claim on
    /// another run than the current one is void.
    pub fn handle_lease(&mut self, now: Instant, edge: EdgeId, lease: &wire::Lease) {
        let &wire::Lease { run, open, sockets, quiet_ms, .. } = lease;
        let Some((name, sprite)) = self.sprites.get_key_value(lease.sprite.as_str()) else { return };
        if sprite.run != run {
            return;
        }
        let name = name.clone();
        let Some(sprite) = self.sprites.get_mut(&name) else { return };
        if open > 0 {
            let quiet = Duration::from_millis(quiet_ms.into());
            let last_data = now.checked_sub(quiet).unwrap_or(now);
            sprite.leases.insert(edge, Lease { run, open, sockets, last_data, until: now + LEASE_TTL });
            self.call_off(now, &name);
        } else if sprite.leases.remove(&edge).is_some() {
            // The timer stands at the end of the claim: idle may be sooner now.
            self.arm(now, &name);
        }
    }

    /// The port of a running guest refused a connection: ask again before the next stream.
    pub fn handle_port_lost(&mut self, name: &SpriteName, run: u64) {
        if let Some(sprite) = self.sprites.get_mut(name)
            && sprite.run == run
            && !sprite.spec.always
        {
            sprite.lose_port();
        }
    }

    fn answer(&mut self, waiter: WaiterId, name: &SpriteName, answer: Answer) {
        self.actions.push_back(Action::Answer { waiter, name: name.clone(), answer });
    }

    fn refuse_all(&mut self, name: &SpriteName, cause: Cause, retry_after: Duration, detail: &str) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        for waiter in std::mem::take(&mut sprite.waiters).into_keys() {
            let answer = Answer::Refused { cause, retry_after, detail: detail.into() };
            self.actions.push_back(Action::Answer { waiter, name: name.clone(), answer });
        }
    }

    /// Tells every waiter that it runs.
    fn release(&mut self, name: &SpriteName, kind: WakeKind, wake: Duration) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        sprite.told.clear();
        for (waiter, record) in std::mem::take(&mut sprite.waiters) {
            let opened = sprite.opened(kind, wake, record.joined);
            sprite.told.insert(waiter, opened.clone());
            self.actions.push_back(Action::Answer { waiter, name: name.clone(), answer: Answer::Ready(opened) });
        }
        sprite.lost_memory = false;
    }
}

fn current<'a>(sprites: &'a mut BTreeMap<SpriteName, Sprite>, name: &SpriteName, token: u64) -> Option<&'a mut Sprite> {
    sprites.get_mut(name).filter(|sprite| sprite.token == token)
}

#[cfg(test)]
mod tests;
