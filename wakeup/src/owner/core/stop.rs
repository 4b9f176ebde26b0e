//! Towards sleep: the gate, the cordon, the commit, the end.
//!
//! In this order because each step is the last at which something is still cheap: a gate
//! that does not close keeps the sprite awake at no cost, a cordon is called off by the
//! next wake, only a committed stop must be gone through.

use super::super::sprite::{Stage, State};
use super::{Action, CORDON, CORDON_ANSWERS, OwnerCore, current};
use crate::ledger::StopReason;
use crate::spec::Depth;
use router::names::SpriteName;
use std::time::Instant;

impl OwnerCore {
    /// Answer to [`Action::CloseGate`]. A forced one has ended what was open, so there is
    /// nothing to call off any more: it commits.
    pub fn handle_gate(&mut self, now: Instant, name: &SpriteName, token: u64, closed: bool, forced: Option<Depth>) {
        let Some(sprite) = current(&mut self.sprites, name, token) else { return };
        let State::Running { since, port_open, gate_asked } = &mut sprite.state else { return };
        *gate_asked = false;
        let (awake, port_open, run) = (*since, *port_open, sprite.run);
        if closed {
            sprite.forget_failures(now, awake);
            self.actions.push_back(Action::Cordon { name: name.clone(), run, forced: forced.is_some() });
            if let Some(depth) = forced {
                return self.commit(now, name, depth);
            }
            let stage = Stage::Interruptible { until: now + CORDON_ANSWERS, port_open };
            sprite.enter(now, State::Stopping { depth: Depth::Warm, stage });
        }
        self.wake_for_waiters(now, name);
        self.go_on_stopping(now, name);
        self.arm(now, name);
    }

    /// Every edge has answered the [`Action::Cordon`] of this run, and [`OwnerCore::handle_lease`] has
    /// what it claimed: there is no more to wait for than what is on the way.
    pub fn handle_cordoned(&mut self, now: Instant, name: &SpriteName, run: u64) {
        let Some(sprite) = self.sprites.get_mut(name).filter(|sprite| sprite.run == run) else { return };
        let since = sprite.since;
        if let State::Stopping { stage: Stage::Interruptible { until, .. }, .. } = &mut sprite.state {
            *until = since + CORDON;
            self.arm(now, name);
        }
    }

    /// Requests the edges have open with the run that is on, by what they said last; not sockets and other things that
    /// may be silent for long.
    #[must_use]
    pub fn requests_at_edges(&self, now: Instant, name: &SpriteName) -> u32 {
        self.sprites.get(name).map_or(0, |sprite| sprite.requests_at_edges(now))
    }

    /// A claim came: a stop that was decided without it is called off as long as that costs nothing.
    pub(super) fn call_off(&mut self, now: Instant, name: &SpriteName) {
        let Some(sprite) = self.sprites.get(name) else { return };
        let State::Stopping { stage: Stage::Interruptible { port_open, .. }, .. } = sprite.state else { return };
        let claimed = sprite.claimed_until(now, self.silence_of(sprite)).is_some();
        let Some(sprite) = self.sprites.get_mut(name).filter(|_| claimed) else { return };
        sprite.enter(now, State::Running { since: now, port_open, gate_asked: false });
        let run = sprite.run;
        self.actions.push_back(Action::ReopenGate { name: name.clone(), run });
        self.arm(now, name);
    }

    /// The driver froze or ended the guest.
    pub fn handle_stopped(&mut self, now: Instant, name: &SpriteName, token: u64, depth: Depth) {
        let Some(sprite) = current(&mut self.sprites, name, token) else { return };
        let State::Stopping { stage: Stage::Committed { .. }, .. } = sprite.state else { return };
        sprite.enter(now, State::Asleep(depth));
        sprite.end_claims();
        let why = sprite.ending;
        self.run_ends(now, name, why);
        let Some(sprite) = self.sprites.get(name) else { return };
        self.actions.push_back(Action::Ended { name: name.clone(), run: sprite.run });
        self.wake_for_waiters(now, name);
        self.go_on_stopping(now, name);
        self.arm(now, name);
    }

    /// Somebody wants it to sleep now; the minimum run does not count. `true` when it is
    /// on its way to sleep afterwards, perhaps to a shallower one if that is committed
    /// already; `false` when it sleeps that deep, never sleeps, or is waking.
    pub fn handle_sleep(&mut self, now: Instant, name: &SpriteName, depth: Depth) -> bool {
        let Some(sprite) = self.sprites.get_mut(name) else { return false };
        if sprite.spec.always {
            return false;
        }
        let run = sprite.run;
        match &mut sprite.state {
            State::Running { gate_asked, .. } => {
                *gate_asked = true;
                sprite.ending = StopReason::Asked;
                sprite.token += 1;
                let token = sprite.token;
                self.actions.push_back(Action::CloseGate { name: name.clone(), run, token, force: Some(depth) });
                self.arm(now, name);
            }
            State::Asleep(Depth::Warm) if depth == Depth::Cold => self.commit(now, name, Depth::Cold),
            State::Stopping { stage: Stage::Interruptible { .. }, .. } => {
                sprite.ending = StopReason::Asked;
                self.actions.push_back(Action::Cordon { name: name.clone(), run, forced: true });
                self.commit(now, name, depth);
            }
            State::Stopping { .. } => {}
            State::Asleep(_) | State::Waking { .. } | State::Failed { .. } => return false,
        }
        true
    }

    pub(super) fn commit(&mut self, now: Instant, name: &SpriteName, depth: Depth) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        sprite.token += 1;
        let (run, token) = (sprite.run, sprite.token);
        let wake_next = !sprite.waiters.is_empty();
        sprite.enter(now, State::Stopping { depth, stage: Stage::Committed { wake_next } });
        self.actions.push_back(match depth {
            Depth::Warm => Action::Freeze { name: name.clone(), run, token },
            Depth::Cold => Action::Suspend { name: name.clone(), run, token },
        });
        self.arm(now, name);
    }
}
