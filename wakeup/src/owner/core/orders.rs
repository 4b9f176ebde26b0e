//! What a sprite's people order: a stop that lasts, and a hold while something else works
//! on it (a snapshot, a move, a restore).
//!
//! A stopped sprite refuses, a held one lets wait. Neither cuts off what is open, but the
//! stop gives it only the little time of every forced sleep.

use super::super::sprite::{Stage, State};
use super::{Action, Answer, OwnerCore};
use crate::spec::Depth;
use backhaul::wire::{Cause, Phase, WakeKind};
use router::names::SpriteName;
use std::time::{Duration, Instant};

/// Longest hold (`wake.md` §2): the patience of those who wait.
pub const HOLD_MAX: Duration = Duration::from_secs(30);

impl OwnerCore {
    /// Stops it until [`OwnerCore::handle_start`]: who waits is refused, it ends, and no
    /// request wakes it. `false` for one that never sleeps.
    pub fn handle_stop(&mut self, now: Instant, name: &SpriteName) -> bool {
        let Some(sprite) = self.sprites.get_mut(name).filter(|sprite| !sprite.spec.always) else { return false };
        sprite.stopped = true;
        self.refuse_all(name, Cause::StoppedByOwner, Duration::ZERO, "");
        self.go_on_stopping(now, name);
        self.arm(now, name);
        true
    }

    /// Lets it wake again.
    pub fn handle_start(&mut self, name: &SpriteName) {
        if let Some(sprite) = self.sprites.get_mut(name) {
            sprite.stopped = false;
        }
    }

    /// Takes the next step of a stop, if there is one in this state; called again in each
    /// state that is reached.
    pub(super) fn go_on_stopping(&mut self, now: Instant, name: &SpriteName) {
        let Some(sprite) = self.sprites.get_mut(name).filter(|sprite| sprite.stopped) else { return };
        match sprite.state {
            State::Running { .. } => {
                self.handle_sleep(now, name, Depth::Cold);
            }
            State::Asleep(Depth::Warm) | State::Stopping { stage: Stage::Interruptible { .. }, .. } => {
                self.commit(now, name, Depth::Cold);
            }
            State::Waking { phase: Phase::Queued, .. } => {
                self.unqueue(now, name);
                self.go_on_stopping(now, name);
            }
            State::Waking { phase: Phase::PortWait, .. } => {
                let (run, record) = (sprite.run, sprite.wake.take());
                if let Some(record) = record {
                    self.actions.push_back(Action::Receipt {
                        name: name.clone(),
                        run,
                        record,
                        result: "stopped_by_owner",
                    });
                }
                self.commit(now, name, Depth::Cold);
            }
            // What the driver is at ends first.
            State::Waking { .. } | State::Stopping { .. } | State::Asleep(Depth::Cold) | State::Failed { .. } => {}
        }
    }

    /// Back to sleep from the queue.
    pub(super) fn unqueue(&mut self, now: Instant, name: &SpriteName) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        let State::Waking { phase: Phase::Queued, kind } = sprite.state else { return };
        let depth = if kind == WakeKind::Warm { Depth::Warm } else { Depth::Cold };
        sprite.wake = None;
        sprite.enter(now, State::Asleep(depth));
        self.queue.remove(name);
    }

    /// From now on new requests wait, for `longest` at most and never longer than
    /// [`HOLD_MAX`]; what is open goes on, and it neither wakes nor falls asleep by itself.
    /// Holds do not add up: of two the later end counts, since whoever ordered the longer one
    /// still works on it. `false` for one that is unknown.
    pub fn handle_hold(&mut self, now: Instant, name: &SpriteName, longest: Duration) -> bool {
        let Some(sprite) = self.sprites.get_mut(name) else { return false };
        let end = now + longest.min(HOLD_MAX);
        sprite.held = Some(sprite.held.map_or(end, |before| before.max(end)));
        let run = sprite.run;
        let waiting: Vec<_> = sprite.waiters.iter().map(|(id, waiter)| (*id, waiter.joined)).collect();
        for (waiter, joined) in waiting {
            // Their patience is of another kind from now on.
            self.answer(waiter, name, Answer::Accepted { joined, held: true, eta: Duration::ZERO });
        }
        let Some(sprite) = self.sprites.get(name) else { return false };
        match sprite.state {
            State::Running { .. } => self.actions.push_back(Action::Hold { name: name.clone(), run }),
            State::Waking { phase: Phase::Queued, .. } => {
                self.unqueue(now, name);
                self.start_queued(now);
            }
            _ => {}
        }
        self.arm(now, name);
        true
    }

    /// The hold is over, however often it was ordered: who waited goes on, by a wake if need be.
    pub fn handle_release(&mut self, now: Instant, name: &SpriteName) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        if sprite.held.take().is_none() {
            return;
        }
        let run = sprite.run;
        match &sprite.state {
            State::Running { port_open, .. } => {
                let port_open = *port_open;
                self.actions.push_back(Action::Unhold { name: name.clone(), run });
                match port_open {
                    true => self.release(name, WakeKind::None, Duration::ZERO),
                    false => self.wake_for_waiters(now, name),
                }
            }
            State::Failed { until, detail } => {
                let (left, detail) = (until.saturating_duration_since(now), detail.clone());
                self.refuse_all(name, Cause::WakeFailed, left, &detail);
            }
            State::Asleep(_) | State::Waking { .. } | State::Stopping { .. } => self.wake_for_waiters(now, name),
        }
        self.arm(now, name);
    }
}
