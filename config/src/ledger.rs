//! The ledger of runs: how much of it is kept.

use serde::{Deserialize, Serialize};

/// Smallest segment: below it the first line, which repeats what is known of every sprite,
/// would be most of it (chosen).
const SEGMENT_BYTES_MIN: u64 = 64 * 1024;

/// Section `[ledger]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ledger {
    /// A segment with this many bytes is followed by another.
    pub segment_bytes: u64,
    /// Bytes of segments kept; the oldest are dropped. 0 drops none.
    pub keep_bytes: u64,
}

impl Default for Ledger {
    fn default() -> Self {
        Self { segment_bytes: 4 << 20, keep_bytes: 0 }
    }
}

impl Ledger {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.segment_bytes < SEGMENT_BYTES_MIN {
            return Err(("ledger.segment_bytes", format!("at least {SEGMENT_BYTES_MIN}")));
        }
        if self.keep_bytes != 0 && self.keep_bytes < self.segment_bytes {
            return Err(("ledger.keep_bytes", "0, or at least segment_bytes".into()));
        }
        Ok(())
    }
}
