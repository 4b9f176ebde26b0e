//! The owner's task and the ledger: what the core reports is written down with the bytes the
//! run moved, and what an owner before this one left open goes on or is ended.

use super::answers::unwritten;
use super::core::{Action, Answer};
use super::task::Task;
use crate::drivers::Adopted;
use crate::ledger::{Boot, Entry, Event, OpenRun, Stamp};
use crate::spec::StateName;
use backhaul::wire::WakeKind;
use router::names::SpriteName;
use std::sync::Arc;
use std::time::Instant;

impl Task {
    /// Hands what the core reports to the ledger; other actions are none of its business.
    pub(super) fn write_down(&mut self, action: Action) {
        let bytes = match &action {
            Action::RunEnded { name, run, .. } => self.bytes_of(name, *run),
            _ => (0, 0),
        };
        let ledger = &self.shared.ledger;
        if let Some(entry) = entry_of(action, Stamp::of, ledger.boot(), bytes) {
            ledger.add(entry);
        }
    }

    fn bytes_of(&mut self, name: &SpriteName, run: u64) -> (u64, u64) {
        let counted = self.counted.remove(name).filter(|(of, _)| *of == run);
        counted.map_or((0, 0), |(_, activity)| activity.bytes())
    }

    /// The run an owner before this one left open, if its guest was found running: its number,
    /// and since when. Otherwise that run has ended.
    pub(super) fn still_open(
        &self,
        name: &SpriteName,
        open: Option<OpenRun>,
        adopted: Option<&Adopted>,
    ) -> Option<(u64, Instant)> {
        let (ledger, open) = (&self.shared.ledger, open?);
        if adopted.is_some_and(|adopted| adopted.depth.is_none()) {
            return Some((open.run, ledger.since(&open)));
        }
        ledger.lost(name, self.shared.reaped.get(name).copied());
        None
    }

    /// What a waiter is told when the ledger cannot be written: a run that began now could not
    /// be told. Nothing while it can be, or the sprite runs.
    pub(super) fn refused_unwritten(&self, now: Instant, name: &SpriteName) -> Option<Answer> {
        let running = || self.core.status(name, now).is_some_and(|status| status.state == StateName::Running);
        (self.shared.ledger.is_full() && !running()).then(unwritten)
    }

    /// Waits until the ledger is on disk, if it can be.
    pub(super) async fn close_ledger(&self) {
        let ledger = Arc::clone(&self.shared.ledger);
        // It waits for a disk; it cannot panic and is not cancelled.
        let _ = tokio::task::spawn_blocking(move || ledger.close()).await;
    }
}

/// What the ledger writes of an action; none of those that are none of its business.
pub(crate) fn entry_of(
    action: Action,
    stamp: impl FnOnce(Instant) -> Stamp,
    boot: &Boot,
    (bytes_to_guest, bytes_from_guest): (u64, u64),
) -> Option<Entry> {
    let (at, sprite, generation, run, event) = match action {
        Action::RunBegan { name, generation, run, at, kind, reason } => {
            let at = stamp(at);
            let kind = if kind == WakeKind::None { "adopted" } else { kind.as_str() }.into();
            (at, name, generation, run, Event::Start { kind, reason, boot: boot.clone(), mono_ms: at.mono_ms })
        }
        Action::RunEnded { name, generation, run, since, at, why, wakes } => {
            let awake = at.saturating_duration_since(since);
            let awake_ms = u64::try_from(awake.as_millis()).unwrap_or(u64::MAX);
            let stop = Event::Stop { reason: why, awake_ms, wakes, bytes_to_guest, bytes_from_guest };
            (stamp(at), name, generation, run, stop)
        }
        Action::WakeFailed { name, generation, run, at, reason, detail } => {
            (stamp(at), name, generation, run, Event::Failed { reason, detail })
        }
        Action::Destroyed { name, generation, run, at } => (stamp(at), name, generation, run, Event::Gone),
        _ => return None,
    };
    Some(Entry { at_unix_ms: at.unix_ms, sprite, generation, run, event })
}
