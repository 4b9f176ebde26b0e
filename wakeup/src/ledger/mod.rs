//! The ledger of runs: what ran, from when to when, why, and how much passed through it.
//! Metering reads it, the webhook tells it, and run numbers go on from it after a restart.
//!
//! `record.rs`: what a line says. `book.rs` keeps the lines: `segment.rs` is one file of them,
//! `index.rs` what later lines depend on, `mark.rs` how far the owner lived. `handle.rs` is
//! what the owner holds: a queue, behind it `writer.rs`, the one thread that writes. `read.rs`
//! and `usage.rs` give pages and sums.
//!
//! Deliberately not here: prices, quotas, and who may read it.

mod book;
mod handle;
mod index;
mod mark;
mod read;
mod record;
mod segment;
mod stamp;
mod usage;
mod writer;

pub use book::{Book, LedgerSettings};
pub use handle::{Known, Ledger};
pub use index::OpenRun;
pub use read::Page;
pub use record::{Entry, Event, Record, StopReason};
pub use stamp::{Boot, Stamp};
pub use usage::Usage;

use std::io;
use std::path::PathBuf;

/// The ledger cannot be opened, written or read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Reading or writing failed.
    #[error("ledger {}: {what}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another owner writes to it.
    #[error("ledger {}: another owner has it open", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A line that is no record has records behind it: nothing a crash leaves.
    #[error("ledger {}: line {line} is damaged; restore the file, or move the directory away to begin a new ledger", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// Records behind this number are no longer kept.
    #[error("records up to {last_gone} are no longer kept; go on after {last_gone}, what is before it is lost")]
    NoLongerKept {
        /// The last one that is gone.
        last_gone: u64,
    },
    /// There is no such record yet.
    #[error("there is no record {after} yet: the last is {last}")]
    Beyond {
        /// What was asked for.
        after: u64,
        /// The last one on disk.
        last: u64,
    },
}

impl LedgerError {
    fn io(path: &std::path::Path, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, what, source }
    }
}

#[cfg(test)]
mod tests;
