//! Pages of the ledger, for readers that keep a cursor.

use super::LedgerError;
use super::record::Record;
use super::segment::{Lines, list};
use std::io::ErrorKind;
use std::path::Path;

/// What a reader gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Records in order, without a gap; empty at the end.
    pub records: Vec<Record>,
    /// The first record that is kept at all.
    pub first: u64,
    /// The last one on disk.
    pub last: u64,
}

/// Records behind `after`, at most `limit`, none behind `durable`.
pub(super) fn page(directory: &Path, after: u64, limit: usize, durable: u64) -> Result<Page, LedgerError> {
    let segments = list(directory)?;
    let first = segments.first().map_or(1, |(first, _)| *first);
    if after + 1 < first {
        return Err(LedgerError::NoLongerKept { last_gone: first - 1 });
    }
    if after > durable {
        return Err(LedgerError::Beyond { after, last: durable });
    }
    let mut records = Vec::new();
    let begin = segments.partition_point(|(first, _)| *first <= after + 1).saturating_sub(1);
    for (first, path) in &segments[begin..] {
        if records.len() >= limit || *first > durable {
            break;
        }
        let mut lines = match Lines::open(path) {
            Ok(lines) => lines,
            // Dropped in this moment; the next request is told from where on it can read.
            Err(LedgerError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Err(LedgerError::NoLongerKept { last_gone: *first });
            }
            Err(error) => return Err(error),
        };
        lines.header(path)?;
        let mut seq = *first;
        while seq <= durable && records.len() < limit && lines.next(path)? {
            if seq > after {
                let damaged = || LedgerError::Damaged { path: path.clone(), line: lines.number };
                records.push(lines.record().filter(|record| record.seq == seq).ok_or_else(damaged)?);
            }
            seq += 1;
        }
    }
    Ok(Page { records, first, last: durable })
}
