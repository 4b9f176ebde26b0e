//! Who asks by a placement this owner has not heard of yet: it waits a moment for the owner's
//! own news, which may be on their way, before it is told that nobody here knows it.
//!
//! Nothing is begun for those who wait so. Once the news are there they are looked at as if
//! they had come in that moment, by the next timeout and not at once: what is known of a
//! sprite may come in several calls (a guest that is found alive).

use super::{Action, Answer, OwnerCore, WaiterId, WakeRequest};
use backhaul::owner::EdgeId;
use backhaul::wire::Cause;
use router::names::SpriteName;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How long the owner's own news may be behind an edge's (`wake.md` §4).
pub const AHEAD_WAIT: Duration = Duration::from_millis(300);
/// Wakes and streams that may wait so, of all sprites together; one more is told at once that
/// its placement is unknown (chosen: twice the flights one edge may have at a host).
pub const AHEAD_MAX: usize = 1_024;

/// Those who wait so.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    waiting: BTreeMap<WaiterId, Early>,
    timers: BTreeSet<(Instant, WaiterId)>,
}

#[derive(Debug)]
struct Early {
    name: SpriteName,
    generation: u64,
    /// It waits no longer than this.
    until: Instant,
    /// Its entry in the timers.
    due: Instant,
    /// What it wants; a stream only wants to know whether it may ask again.
    wake: Option<WakeRequest>,
}

impl Ahead {
    pub(super) fn next(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    fn insert(&mut self, waiter: WaiterId, early: Early) {
        self.timers.insert((early.due, waiter));
        self.waiting.insert(waiter, early);
    }

    fn remove(&mut self, waiter: WaiterId) -> Option<Early> {
        let early = self.waiting.remove(&waiter)?;
        self.timers.remove(&(early.due, waiter));
        Some(early)
    }

    /// There are news of a sprite: those who wait for it are due.
    pub(super) fn hurry(&mut self, now: Instant, name: &SpriteName) {
        for (waiter, early) in self.waiting.iter_mut().filter(|(_, early)| early.name == *name) {
            self.timers.remove(&(early.due, *waiter));
            early.due = now;
            self.timers.insert((now, *waiter));
        }
    }

    fn pop_due(&mut self, now: Instant) -> Option<(WaiterId, Early)> {
        let (_, waiter) = self.timers.first().copied().filter(|(at, _)| *at <= now)?;
        self.remove(waiter).map(|early| (waiter, early))
    }

    /// It waits no more; `true` if it did.
    pub(super) fn leave(&mut self, waiter: WaiterId) -> bool {
        self.remove(waiter).is_some()
    }

    pub(super) fn edge_gone(&mut self, edge: EdgeId) {
        let gone: Vec<_> = self.waiting.range((edge, 0)..=(edge, u128::MAX)).map(|(waiter, _)| *waiter).collect();
        for waiter in gone {
            self.remove(waiter);
        }
    }
}

impl OwnerCore {
    /// Whether `generation` is newer than anything that is known here of the sprite.
    #[must_use]
    pub fn is_ahead(&self, name: &SpriteName, generation: u64) -> bool {
        match self.sprites.get(name) {
            Some(sprite) => generation > sprite.spec.generation,
            None => self.gone.get(name).is_none_or(|gone| generation > gone.generation),
        }
    }

    /// A stream was opened by a placement that may be newer than what is known here:
    /// [`Action::CaughtUp`] says when it is not any more, or that this was waited for in vain.
    pub fn handle_stream_ahead(&mut self, now: Instant, waiter: WaiterId, name: SpriteName, generation: u64) {
        if !self.is_ahead(&name, generation) || self.ahead.waiting.len() >= AHEAD_MAX {
            return self.actions.push_back(Action::CaughtUp { waiter });
        }
        let until = now + AHEAD_WAIT;
        self.ahead.insert(waiter, Early { name, generation, until, due: until, wake: None });
    }

    /// Lets a wake wait for the owner's own news. One that is asked for again waits no longer
    /// for it.
    pub(super) fn wake_ahead(&mut self, now: Instant, request: WakeRequest) {
        let WakeRequest { waiter, generation, .. } = request;
        let before = self.ahead.remove(waiter);
        if before.is_none() && self.ahead.waiting.len() >= AHEAD_MAX {
            return self.unknown_here(waiter, &request.name);
        }
        let until = before.map_or(now + AHEAD_WAIT, |before| before.until).min(request.deadline);
        let name = request.name.clone();
        self.ahead.insert(waiter, Early { name, generation, until, due: until, wake: Some(request) });
    }

    /// Those whose time is up, or for whom there are news.
    pub(super) fn look_ahead(&mut self, now: Instant) {
        while let Some((waiter, early)) = self.ahead.pop_due(now) {
            let in_vain = self.is_ahead(&early.name, early.generation);
            if in_vain && now < early.until {
                // The news were of a placement in between.
                self.ahead.insert(waiter, Early { due: early.until, ..early });
                continue;
            }
            match early.wake {
                None => self.actions.push_back(Action::CaughtUp { waiter }),
                Some(_) if in_vain => self.unknown_here(waiter, &early.name),
                Some(request) => self.handle_wake(now, request),
            }
        }
    }

    /// The owner goes away: they wait in vain.
    pub(super) fn refuse_ahead(&mut self) {
        let Ahead { waiting, .. } = std::mem::take(&mut self.ahead);
        for (waiter, early) in waiting {
            match early.wake {
                None => self.actions.push_back(Action::CaughtUp { waiter }),
                Some(_) => {
                    let (cause, retry_after) = (Cause::ShuttingDown, Duration::from_secs(1));
                    self.answer(waiter, &early.name, Answer::Refused { cause, retry_after, detail: String::new() });
                }
            }
        }
    }

    fn unknown_here(&mut self, waiter: WaiterId, name: &SpriteName) {
        let here = self.sprites.get(name).map(|sprite| sprite.spec.generation);
        let generation = here.or_else(|| self.gone.get(name).map(|gone| gone.generation)).unwrap_or(0);
        self.answer(waiter, name, Answer::Unknown { generation });
    }
}
