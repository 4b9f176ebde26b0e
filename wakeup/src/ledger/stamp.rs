//! A moment on both clocks, and which boot of the machine it belongs to.
//!
//! Awake time is measured on the monotonic clock, which nobody sets; the wall clock only
//! says when it was.

use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Wall clock, milliseconds since 1970.
    pub unix_ms: u64,
    /// `CLOCK_MONOTONIC`, milliseconds; comparable within one boot.
    pub mono_ms: u64,
}

/// `/proc/sys/kernel/random/boot_id`: another one after every start of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Boot(pub String);

impl Stamp {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        let mono = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            unix_ms: millis(unix),
            mono_ms: u64::try_from(mono.tv_sec).unwrap_or(0) * 1_000
                + u64::try_from(mono.tv_nsec).unwrap_or(0) / 1_000_000,
        }
    }

    /// A moment that is over.
    #[must_use]
    pub fn of(at: Instant) -> Self {
        Self::now().before(at.elapsed())
    }

    /// So much earlier.
    #[must_use]
    pub fn before(self, by: Duration) -> Self {
        let by = millis(by);
        Self { unix_ms: self.unix_ms.saturating_sub(by), mono_ms: self.mono_ms.saturating_sub(by) }
    }

    /// RFC 3339, UTC, with milliseconds.
    #[must_use]
    pub fn text(self) -> String {
        text_of(self.unix_ms)
    }
}

/// RFC 3339 of milliseconds since 1970.
pub(crate) fn text_of(unix_ms: u64) -> String {
    // Four-digit years only; a clock beyond them is wrong by any measure.
    let at = UNIX_EPOCH + Duration::from_millis(unix_ms.min(253_402_300_799_999));
    humantime::format_rfc3339_millis(at).to_string()
}

impl Boot {
    /// The present one. Where the kernel does not say, every start of the owner is another.
    #[must_use]
    pub fn current() -> Self {
        match std::fs::read_to_string("/proc/sys/kernel/random/boot_id") {
            Ok(text) => Self(text.trim().to_owned()),
            Err(_) => Self(format!("{:032x}", rand::random::<u128>())),
        }
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
