//! What one line of the ledger says. `docs/ledger.md` describes it for its readers: fields
//! may be added, none changes its meaning.

use super::stamp::{Boot, text_of};
use router::names::SpriteName;
use serde::{Deserialize, Serialize};

/// Longest text of others in a record, characters (chosen: a reason is "http GET", a detail
/// one line of a program).
const TEXT_CHARS_MAX: usize = 256;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number: from 1, without a gap, over restarts.
    pub seq: u64,
    /// Its own name, for receivers that may see it twice.
    pub id: String,
    /// When it happened, RFC 3339.
    pub at: String,
    /// When it happened, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The sprite.
    pub sprite: SpriteName,
    /// Its placement.
    pub generation: u64,
    /// Its run.
    pub run: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened, before it has a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The sprite.
    pub sprite: SpriteName,
    /// Its placement.
    pub generation: u64,
    /// Its run.
    pub run: u64,
    /// What.
    pub event: Event,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A run began: the driver had it running.
    Start {
        /// `warm`, `cold`, `restored`, or `adopted` for one that was found running.
        kind: String,
        /// Who asked: "http GET", "admin".
        reason: String,
        /// The boot of the machine.
        boot: Boot,
        /// `CLOCK_MONOTONIC` of that boot, milliseconds.
        mono_ms: u64,
    },
    /// A run ended: the guest is frozen, ended or dead.
    Stop {
        /// Why.
        reason: StopReason,
        /// Its whole length on the monotonic clock, milliseconds.
        awake_ms: u64,
        /// Times it was woken in this run; a sleep that was called off counts.
        wakes: u32,
        /// Bytes delivered to the guest.
        bytes_to_guest: u64,
        /// Bytes the guest answered.
        bytes_from_guest: u64,
    },
    /// A wake came to nothing.
    Failed {
        /// Who asked.
        reason: String,
        /// What the driver said.
        detail: String,
    },
    /// The sprite was destroyed. A later one of this name begins with run 1 and a higher
    /// generation.
    Gone,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// Nothing happened for its idle timeout.
    Idle,
    /// Nobody waited any more for the wake that began it.
    Abandoned,
    /// Somebody asked for it (`sprite sleep`).
    Asked,
    /// Its people stopped it (`sprite stop`).
    StoppedByOwner,
    /// The guest ended by itself, or was killed by others.
    GuestDied,
    /// It was started but never came so far that its port could be waited for.
    WakeFailed,
    /// The sprite was destroyed.
    Destroyed,
    /// The owner ended in order, and ended it.
    OwnerEnded,
    /// The owner was lost; the time of the end is the latest at which it can have run.
    OwnerLost,
}

impl StopReason {
    /// Whether somebody decided that it sleeps.
    #[must_use]
    pub const fn is_sleep(self) -> bool {
        matches!(self, Self::Idle | Self::Abandoned | Self::Asked)
    }
}

impl Event {
    /// As `event` names it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Failed { .. } => "failed",
            Self::Gone => "gone",
        }
    }

    fn bounded(self) -> Self {
        let short = |text: String| text.chars().take(TEXT_CHARS_MAX).collect();
        match self {
            Self::Start { kind, reason, boot, mono_ms } => Self::Start { kind, reason: short(reason), boot, mono_ms },
            Self::Failed { reason, detail } => Self::Failed { reason: short(reason), detail: short(detail) },
            other => other,
        }
    }
}

impl Entry {
    /// Gives it its number and its name.
    pub(super) fn numbered(self, seq: u64) -> Record {
        Record {
            seq,
            // By chance, not from the number: a ledger that came back from a copy must not
            // give another event the name of one that was told already.
            id: format!("{:032x}", rand::random::<u128>()),
            at: text_of(self.at_unix_ms),
            at_unix_ms: self.at_unix_ms,
            sprite: self.sprite,
            generation: self.generation,
            run: self.run,
            event: self.event.bounded(),
        }
    }
}

impl Record {
    /// As a line, with its end.
    pub(super) fn line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}
