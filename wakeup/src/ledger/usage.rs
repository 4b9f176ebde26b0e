//! What a sprite used between two moments: the sum over its runs, cut at both ends.

use super::LedgerError;
use super::index::OpenRun;
use super::record::{Event, Record};
use super::segment::{Lines, list};
use super::stamp::{Boot, Stamp, millis};
use router::names::SpriteName;
use std::io::ErrorKind;
use std::path::Path;

/// A sum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// From when on it counts, milliseconds since 1970: what was asked for, or the beginning
    /// of what is kept.
    pub since_ms: u64,
    /// Until when.
    pub until_ms: u64,
    /// Time awake, milliseconds.
    pub awake_ms: u64,
    /// Runs that were awake at some moment of it.
    pub runs: u64,
    /// Wakes of the runs that ended in it.
    pub wakes: u64,
    /// Bytes delivered to the guest in the runs that ended in it.
    pub bytes_to_guest: u64,
    /// Bytes the guest answered in them.
    pub bytes_from_guest: u64,
    /// Since when the run is awake that has not ended, milliseconds since 1970.
    pub open_since_ms: Option<u64>,
    /// Any record speaks of it.
    pub known: bool,
}

pub(super) fn usage(
    directory: &Path,
    name: &SpriteName,
    since_ms: u64,
    until_ms: u64,
    now: Stamp,
    boot: &Boot,
) -> Result<Usage, LedgerError> {
    let segments = list(directory)?;
    let mut sum = Sum { until_ms: until_ms.min(now.unix_ms), ..Sum::new(since_ms) };
    let mut open: Option<OpenRun> = None;
    for (at, (_, path)) in segments.iter().enumerate() {
        let mut lines = match Lines::open(path) {
            Ok(lines) => lines,
            // Dropped in this moment.
            Err(LedgerError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        // A segment is over before the moments asked for when the next one had begun.
        if let Some((_, next)) = segments.get(at + 1)
            && Lines::open(next)?.header(next)?.at_unix_ms < sum.usage.since_ms
        {
            continue;
        }
        let header = lines.header(path)?;
        if !sum.begun {
            sum.begun = true;
            // Nothing is told of what came before the first segment there is.
            if at == 0 && header.first_seq > 1 {
                sum.usage.since_ms = sum.usage.since_ms.max(header.at_unix_ms);
            }
            let kept = header.sprites.0.get(name);
            sum.usage.known |= kept.is_some();
            open = kept.and_then(|kept| kept.open.clone());
        }
        let mark = format!("\"sprite\":\"{name}\"");
        while lines.next(path)? {
            // Most lines are of others, and need not be understood.
            if !contains(&lines.line, mark.as_bytes()) {
                continue;
            }
            match lines.record() {
                Some(record) => sum.add(&record, &mut open),
                // Being written in this moment.
                None if at + 1 == segments.len() => break,
                None => return Err(LedgerError::Damaged { path: path.clone(), line: lines.number }),
            }
        }
    }
    if let Some(open) = open {
        sum.span(open.began.unix_ms, now.unix_ms, millis(open.awake(now, boot)));
        sum.usage.open_since_ms = Some(open.began.unix_ms);
    }
    Ok(Usage { until_ms: sum.until_ms, ..sum.usage })
}

struct Sum {
    usage: Usage,
    until_ms: u64,
    begun: bool,
}

impl Sum {
    fn new(since_ms: u64) -> Self {
        Self { usage: Usage { since_ms, ..Usage::default() }, until_ms: u64::MAX, begun: false }
    }

    fn add(&mut self, record: &Record, open: &mut Option<OpenRun>) {
        self.usage.known = true;
        match &record.event {
            Event::Start { boot, mono_ms, .. } => {
                let began = Stamp { unix_ms: record.at_unix_ms, mono_ms: *mono_ms };
                *open = Some(OpenRun { run: record.run, began, boot: boot.clone() });
            }
            Event::Stop { awake_ms, wakes, bytes_to_guest, bytes_from_guest, .. } => {
                *open = None;
                let end = record.at_unix_ms;
                self.span(end.saturating_sub(*awake_ms), end, *awake_ms);
                if (self.usage.since_ms..=self.until_ms).contains(&end) {
                    self.usage.wakes += u64::from(*wakes);
                    self.usage.bytes_to_guest += bytes_to_guest;
                    self.usage.bytes_from_guest += bytes_from_guest;
                }
            }
            Event::Failed { .. } | Event::Gone => {}
        }
    }

    /// One time awake; what of it lies between the two moments counts.
    fn span(&mut self, begin: u64, end: u64, awake_ms: u64) {
        let (since, until) = (self.usage.since_ms, self.until_ms);
        if end < since || begin > until {
            return;
        }
        let cut = since.saturating_sub(begin) + end.saturating_sub(until);
        self.usage.runs += 1;
        self.usage.awake_ms += awake_ms.saturating_sub(cut);
    }
}

fn contains(line: &[u8], part: &[u8]) -> bool {
    line.windows(part.len()).any(|window| window == part)
}
