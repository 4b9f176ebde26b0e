//! How long a sprite's wakes took, which is how long the next one will take.

use backhaul::wire::WakeKind;
use std::time::Duration;

/// The last wake of each kind.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct History {
    warm: Option<Duration>,
    cold: Option<Duration>,
}

impl History {
    pub(in super::super) const fn new() -> Self {
        Self { warm: None, cold: None }
    }

    /// One took so long.
    pub(super) fn note(&mut self, kind: WakeKind, took: Duration) {
        match kind {
            WakeKind::Warm => self.warm = Some(took),
            WakeKind::Cold | WakeKind::Restored => self.cold = Some(took),
            WakeKind::None | WakeKind::Interrupted => {}
        }
    }

    /// What is left of a wake that began `ago`; nothing when none of its kind is known.
    pub(super) fn left(&self, kind: WakeKind, ago: Duration) -> Duration {
        let took = match kind {
            WakeKind::Warm => self.warm,
            WakeKind::Cold | WakeKind::Restored => self.cold,
            WakeKind::None | WakeKind::Interrupted => None,
        };
        took.unwrap_or_default().saturating_sub(ago)
    }
}
