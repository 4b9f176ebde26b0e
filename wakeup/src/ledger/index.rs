//! What later lines depend on: the last run of every sprite, and the runs that are open.
//! It is what the lines so far add up to, so a segment that begins with it needs none before.

use super::record::{Event, Record};
use super::stamp::{Boot, Stamp, millis};
use router::names::SpriteName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A run without an end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenRun {
    /// Its number.
    pub run: u64,
    /// When it began.
    pub began: Stamp,
    /// In which boot of the machine.
    pub boot: Boot,
}

/// What is known of one sprite.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) generation: u64,
    /// The highest run told.
    pub(super) run: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) open: Option<OpenRun>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Index(pub(super) BTreeMap<SpriteName, Kept>);

impl Index {
    pub(super) fn apply(&mut self, record: &Record) {
        if record.event == Event::Gone {
            self.0.remove(&record.sprite);
            return;
        }
        if !self.0.contains_key(&record.sprite) {
            self.0.insert(record.sprite.clone(), Kept::default());
        }
        let Some(kept) = self.0.get_mut(&record.sprite) else { return };
        kept.generation = record.generation;
        kept.run = kept.run.max(record.run);
        match &record.event {
            Event::Start { boot, mono_ms, .. } => {
                let began = Stamp { unix_ms: record.at_unix_ms, mono_ms: *mono_ms };
                kept.open = Some(OpenRun { run: record.run, began, boot: boot.clone() });
            }
            Event::Stop { .. } => kept.open = None,
            Event::Failed { .. } | Event::Gone => {}
        }
    }

    pub(super) fn any_open(&self) -> bool {
        self.0.values().any(|kept| kept.open.is_some())
    }
}

impl OpenRun {
    /// How long it has run at `now` of `boot`: on the monotonic clock, or on the wall clock
    /// for a guest that outlived a start of the machine.
    #[must_use]
    pub fn awake(&self, now: Stamp, boot: &Boot) -> Duration {
        Duration::from_millis(match self.boot == *boot {
            true => now.mono_ms.saturating_sub(self.began.mono_ms),
            false => now.unix_ms.saturating_sub(self.began.unix_ms),
        })
    }

    /// The end of it: where `now` stands when it has run that long.
    pub(super) fn ends(&self, now: Stamp, boot: &Boot) -> (u64, u64) {
        let awake_ms = millis(self.awake(now, boot));
        (now.unix_ms.max(self.began.unix_ms), awake_ms)
    }
}
