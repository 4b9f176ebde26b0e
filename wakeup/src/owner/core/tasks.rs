//! What a guest itself says keeps it awake: a build without visitors, an upload it makes.
//!
//! A task is bounded and must be renewed, so that a guest that forgot one, or died with it,
//! does not stay awake for ever.

use super::super::sprite::{Sprite, State};
use super::OwnerCore;
use router::names::SpriteName;
use std::time::{Duration, Instant};

/// Longest task before it must be renewed (`wake.md` §8).
pub const TASK_MAX: Duration = Duration::from_secs(3600);
/// Most tasks of one sprite (chosen: one for each of its cores and some to spare).
pub(super) const TASKS_MAX: usize = 64;

/// Why a task was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// There is none by this name here.
    #[error("no such sprite")]
    NoSuchSprite,
    /// Only a guest that runs has tasks.
    #[error("it does not run")]
    NotRunning,
    /// It has as many as it may.
    #[error("it has {TASKS_MAX} tasks already")]
    TooMany,
}

impl OwnerCore {
    /// Begins a task, or renews the one with this id, for `span` (at most [`TASK_MAX`]). When
    /// it ends by itself.
    ///
    /// # Errors
    /// [`TaskError`].
    pub fn handle_task(
        &mut self,
        now: Instant,
        name: &SpriteName,
        id: u64,
        span: Duration,
    ) -> Result<Instant, TaskError> {
        let sprite = self.sprites.get_mut(name).ok_or(TaskError::NoSuchSprite)?;
        if !sprite.is_awake() {
            return Err(TaskError::NotRunning);
        }
        sprite.tasks.retain(|_, until| *until > now);
        if sprite.tasks.len() >= TASKS_MAX && !sprite.tasks.contains_key(&id) {
            return Err(TaskError::TooMany);
        }
        let until = now + span.min(TASK_MAX);
        sprite.tasks.insert(id, until);
        sprite.abandoned = false;
        if matches!(sprite.state, State::Stopping { .. }) {
            // It was about to sleep: as if somebody had come.
            self.wake(now, name, "task");
        }
        self.arm(now, name);
        Ok(until)
    }

    /// A task is done; `false` when there is none with this id.
    pub fn handle_task_done(&mut self, now: Instant, name: &SpriteName, id: u64) -> bool {
        let Some(sprite) = self.sprites.get_mut(name) else { return false };
        let done = sprite.tasks.remove(&id).is_some();
        if done {
            self.arm(now, name);
        }
        done
    }
}

impl Sprite {
    /// Until when its tasks keep it awake.
    pub(super) fn busy_until(&self, now: Instant) -> Option<Instant> {
        self.tasks.values().copied().filter(|until| *until > now).max()
    }
}
