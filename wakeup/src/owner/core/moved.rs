//! What this owner knows of sprites it does not have any more: destroyed, or moved away.

use super::super::sprite::State;
use super::{Action, Answer, GONE_MAX, OwnerCore};
use backhaul::wire::Phase;
use router::names::SpriteName;
use std::time::Instant;

/// The last that was known here.
#[derive(Clone, Debug)]
pub(super) struct Gone {
    /// The placement that was destroyed, or the one it has now.
    pub(super) generation: u64,
    /// Where it is now; none when it is nowhere.
    pub(super) host: Option<String>,
    /// The last life it had here: one that comes back goes on counting.
    pub(super) run: u64,
}

/// What becomes of what a driver keeps of a guest besides its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// It stays, as after every end.
    Kept,
    /// It goes with the sprite.
    Destroyed,
}

impl OwnerCore {
    /// It lives on another host from now on, under a newer placement. Who waits is told; what
    /// is left of its guest here is ended. Sleep it first: what it has in memory does not
    /// travel by this call. `false` when it is unknown, or `generation` is not newer.
    pub fn handle_moved(&mut self, now: Instant, name: &SpriteName, host: &str, generation: u64) -> bool {
        let Some(sprite) = self.sprites.get(name).filter(|sprite| generation > sprite.spec.generation) else {
            return false;
        };
        let run = sprite.run;
        let answer = Answer::Moved { host: host.into(), generation };
        self.forget(now, name, &answer, Rest::Kept);
        self.remember_gone(now, name, Gone { generation, host: Some(host.into()), run });
        true
    }

    /// Takes a sprite out of everything; who waits hears `answer`, its guest is ended.
    pub(super) fn forget(&mut self, now: Instant, name: &SpriteName, answer: &Answer, rest: Rest) {
        let Some(mut sprite) = self.sprites.remove(name) else { return };
        for waiter in std::mem::take(&mut sprite.waiters).into_keys() {
            self.answer(waiter, name, answer.clone());
        }
        if let Some(at) = sprite.armed {
            self.timers.remove(&(at, name.clone()));
        }
        self.queue.remove(name);
        if matches!(sprite.state, State::Waking { phase: Phase::Starting, .. }) {
            self.starting -= 1;
        }
        self.actions.extend(sprite.destroyed(now, name));
        let (name_too, run, token) = (name.clone(), sprite.run, sprite.token + 1);
        self.spent_tokens = self.spent_tokens.max(token);
        self.actions.push_back(match rest {
            Rest::Kept => Action::End { name: name_too, run, token },
            Rest::Destroyed => Action::Destroy { name: name_too, run, token },
        });
        self.actions.push_back(Action::Ended { name: name.clone(), run: sprite.run });
        self.start_queued(now);
    }

    pub(super) fn remember_gone(&mut self, now: Instant, name: &SpriteName, gone: Gone) {
        if self.gone.len() >= GONE_MAX {
            self.gone.pop_first();
        }
        self.gone.insert(name.clone(), gone);
        self.ahead.hurry(now, name);
    }

    /// The answer to a stream for a sprite that is not here; none when it is.
    #[must_use]
    pub fn told_of(&self, name: &SpriteName, generation: u64) -> Option<Answer> {
        (!self.sprites.contains_key(name)).then(|| self.absent(name, generation))
    }

    /// The answer to who asks for a sprite that is not here, believing in `generation`.
    pub(super) fn absent(&self, name: &SpriteName, generation: u64) -> Answer {
        match self.gone.get(name) {
            Some(Gone { generation: now, host: Some(host), .. }) if generation <= *now => {
                Answer::Moved { host: host.clone(), generation: *now }
            }
            Some(Gone { generation: destroyed, host: None, .. }) if generation <= *destroyed => {
                Answer::Gone { generation: *destroyed }
            }
            // Made again since, and not known here yet; or never heard of.
            known => Answer::Unknown { generation: known.map_or(0, |gone| gone.generation) },
        }
    }
}
