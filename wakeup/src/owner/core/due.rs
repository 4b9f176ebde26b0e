//! What time brings: one timer per sprite, set to the next thing that may be due.

use super::super::sprite::{Sprite, Stage, State};
use super::{Action, Activity, Answer, CoreSettings, OwnerCore, START_TIMEOUT};
use crate::ledger::StopReason;
use crate::spec::Depth;
use backhaul::wire::{Cause, Phase};
use router::names::SpriteName;
use std::time::{Duration, Instant};

/// Sleeps shorter than a minute in a row before the minimum run grows (`wake.md` §8).
const NAPS_FREE: u32 = 3;
/// Longest it grows (`wake.md` §8).
const MINIMUM_RUN_MAX: Duration = Duration::from_secs(300);

impl OwnerCore {
    /// Lets everything happen that is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant, activity: &dyn Activity) {
        self.look_ahead(now);
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
            let retry_after = Duration::from_secs(1);
            let answer = Answer::Refused { cause: Cause::WakeDeadline, retry_after, detail: String::new() };
            self.answer(waiter, name, answer);
            self.leave(now, name, waiter);
        }
    }

    fn due(&mut self, now: Instant, name: &SpriteName, activity: &dyn Activity) {
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        if sprite.held.is_some_and(|until| now >= until) {
            return self.handle_release(now, name);
        }
        let (since, held) = (sprite.since, sprite.held.is_some());
        match sprite.state {
            State::Asleep(Depth::Warm) if !held && now >= since + self.settings.warm_for => {
                return self.commit(now, name, Depth::Cold);
            }
            State::Waking { phase: Phase::Starting, .. } if now >= since + START_TIMEOUT => {
                return self.start_hangs(now, name);
            }
            State::Waking { phase: Phase::PortWait, .. } => {
                let wait = self.sprites.get(name).map_or(Duration::ZERO, |sprite| self.port_wait_of(sprite, since));
                if now >= since + wait {
                    return self.port_stays_closed(now, name);
                }
            }
            State::Running { since: awake, gate_asked: false, .. } if !held && !sprite.spec.always => {
                return self.idle_perhaps(now, name, awake, activity);
            }
            State::Stopping { depth, stage: Stage::Interruptible { until, .. } } if now >= until => {
                sprite.dozed = Some(now);
                return self.commit(now, name, depth);
            }
            State::Failed { until, .. } if now >= until => sprite.enter(now, State::Asleep(Depth::Cold)),
            _ => {}
        }
        self.arm(now, name);
    }

    /// The driver does not come back: whatever it may have begun is ended behind it.
    fn start_hangs(&mut self, now: Instant, name: &SpriteName) {
        let Some(run) = self.sprites.get(name).map(|sprite| sprite.run) else { return };
        self.handle_exited(now, name, run, "it did not start in time");
        let Some(token) = self.sprites.get(name).map(|sprite| sprite.token) else { return };
        self.actions.push_back(Action::End { name: name.clone(), run, token });
    }

    fn idle_perhaps(&mut self, now: Instant, name: &SpriteName, awake: Instant, activity: &dyn Activity) {
        let silence = self.sprites.get(name).map_or(Duration::ZERO, |sprite| self.silence_of(sprite));
        let Some(sprite) = self.sprites.get_mut(name) else { return };
        let (open, last) = activity.activity(name, sprite.run);
        if open > 0 || last > awake {
            // Somebody came after all.
            sprite.abandoned = false;
        }
        let idle = idle_timeout(sprite, &self.settings, now);
        let at = match open {
            0 => {
                let claims = sprite.claimed_until(now, silence).into_iter().chain(sprite.busy_until(now));
                claims.fold(idle_at(sprite, &self.settings, awake, last), Instant::max)
            }
            // What is open ends now at the earliest, and that counts as activity.
            _ => now + idle,
        };
        if at > now {
            return self.arm_at(name, at);
        }
        if let State::Running { gate_asked, .. } = &mut sprite.state {
            *gate_asked = true;
        }
        sprite.ending = if sprite.abandoned { StopReason::Abandoned } else { StopReason::Idle };
        sprite.token += 1;
        let (run, token) = (sprite.run, sprite.token);
        self.actions.push_back(Action::CloseGate { name: name.clone(), run, token, force: None });
    }

    /// Sets the sprite's timer to the next thing that may be due.
    pub(super) fn arm(&mut self, now: Instant, name: &SpriteName) {
        let Some(sprite) = self.sprites.get(name) else { return };
        let state = match &sprite.state {
            State::Asleep(Depth::Warm) if sprite.held.is_none() => Some(sprite.since + self.settings.warm_for),
            State::Waking { phase: Phase::Starting, .. } => Some(sprite.since + START_TIMEOUT),
            State::Waking { phase: Phase::PortWait, .. } => {
                Some(sprite.since + self.port_wait_of(sprite, sprite.since))
            }
            State::Running { since, gate_asked: false, .. } if sprite.held.is_none() && !sprite.spec.always => {
                Some(idle_at(sprite, &self.settings, *since, *since).max(now))
            }
            State::Stopping { stage: Stage::Interruptible { until, .. }, .. } => Some(*until),
            State::Failed { until, .. } => Some(*until),
            _ => None,
        };
        let waiters = sprite.waiters.values().map(|waiter| waiter.deadline).min();
        match state.into_iter().chain(waiters).chain(sprite.held).min() {
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

/// When a running sprite is idle, if nothing more happens.
pub(super) fn idle_at(sprite: &Sprite, settings: &CoreSettings, awake: Instant, last: Instant) -> Instant {
    let idle = idle_timeout(sprite, settings, last.max(awake));
    if sprite.abandoned {
        return last.max(awake) + settings.abandoned_timeout.min(idle);
    }
    (last.max(awake) + idle).max(awake + minimum_run(sprite, settings))
}

/// Over its budget of wakes it is slow to sleep: fewer wakes, and nobody is refused.
fn idle_timeout(sprite: &Sprite, settings: &CoreSettings, last: Instant) -> Duration {
    let idle = sprite.spec.idle_timeout.unwrap_or(settings.idle_timeout);
    if sprite.generous_until.is_some_and(|until| last < until) { idle.max(settings.busy_idle_timeout) } else { idle }
}

/// Doubled with each nap that was too short, once there were [`NAPS_FREE`] of them.
fn minimum_run(sprite: &Sprite, settings: &CoreSettings) -> Duration {
    let doublings = sprite.naps.saturating_sub(NAPS_FREE).min(16);
    let longest = MINIMUM_RUN_MAX.max(settings.minimum_run);
    settings.minimum_run.saturating_mul(1 << doublings).min(longest)
}
