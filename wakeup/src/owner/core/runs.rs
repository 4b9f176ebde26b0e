//! What the ledger is told: when a run begins, when it ends and why.
//!
//! A run counts from the moment the driver made the guest run until it was frozen, ended or
//! found dead; what it waits for in between (its port, its visitors) changes nothing. These
//! actions only report: no decision here.

use super::super::sprite::{Awake, Sprite, WakeRecord};
use super::{Action, OwnerCore};
use crate::ledger::StopReason;
use backhaul::wire::WakeKind;
use router::names::SpriteName;
use std::time::Instant;

/// Why a guest runs that was running before its owner was.
const FOUND: &str = "adopted";

impl OwnerCore {
    /// The owner goes away, and the guest ended with it at `at`.
    pub fn handle_left(&mut self, at: Instant, name: &SpriteName) {
        self.run_ends(at, name, StopReason::OwnerEnded);
    }

    /// The driver made it run. Nothing when its run was open before.
    pub(super) fn run_begins(&mut self, at: Instant, name: &SpriteName, kind: WakeKind) {
        let Some(sprite) = self.sprites.get_mut(name).filter(|sprite| sprite.awake.is_none()) else { return };
        let wake = sprite.wake.as_ref();
        sprite.awake = Some(Awake { since: at, wakes: u32::from(wake.is_some()) });
        let reason = wake.map_or_else(|| FOUND.into(), |wake| wake.reason.clone());
        let (generation, run) = (sprite.spec.generation, sprite.run);
        self.actions.push_back(Action::RunBegan { name: name.clone(), generation, run, at, kind, reason });
    }

    /// It runs no more. Nothing when no run was open.
    pub(super) fn run_ends(&mut self, at: Instant, name: &SpriteName, why: StopReason) {
        if let Some(sprite) = self.sprites.get_mut(name) {
            let ended = sprite.end_run(at, name, why);
            self.actions.extend(ended);
        }
    }

    /// A start came to nothing, whether the guest had run for a moment or not.
    pub(super) fn wake_failed(&mut self, at: Instant, name: &SpriteName, record: Option<&WakeRecord>, detail: &str) {
        self.run_ends(at, name, StopReason::WakeFailed);
        let Some(sprite) = self.sprites.get(name) else { return };
        let (generation, run) = (sprite.spec.generation, sprite.run);
        let reason = record.map_or_else(String::new, |record| record.reason.clone());
        let detail = detail.into();
        self.actions.push_back(Action::WakeFailed { name: name.clone(), generation, run, at, reason, detail });
    }
}

impl Sprite {
    /// Its run was open when this owner began, and goes on.
    pub(super) const fn go_on_awake(&mut self, since: Instant) {
        // The wake that began it; what else there was went with the owner before.
        self.awake = Some(Awake { since, wakes: 1 });
    }

    /// Somebody woke it in the run it is in.
    pub(super) const fn woken_again(&mut self) {
        if let Some(awake) = &mut self.awake {
            awake.wakes = awake.wakes.saturating_add(1);
        }
    }

    fn end_run(&mut self, at: Instant, name: &SpriteName, why: StopReason) -> Option<Action> {
        let Awake { since, wakes } = self.awake.take()?;
        // However its sleep began: that its people stopped it is what counts.
        let why = if self.stopped && why.is_sleep() { StopReason::StoppedByOwner } else { why };
        let (generation, run) = (self.spec.generation, self.run);
        Some(Action::RunEnded { name: name.clone(), generation, run, since, at, why, wakes })
    }

    /// What the ledger is told when it is destroyed.
    pub(super) fn destroyed(&mut self, at: Instant, name: &SpriteName) -> impl Iterator<Item = Action> + use<> {
        let (generation, run) = (self.spec.generation, self.run);
        let gone = Action::Destroyed { name: name.clone(), generation, run, at };
        let gone = Some(gone).filter(|_| !self.spec.always);
        self.end_run(at, name, StopReason::Destroyed).into_iter().chain(gone)
    }
}
