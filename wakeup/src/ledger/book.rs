//! The ledger on disk: numbers what it is given, writes it, begins new segments, and knows
//! after a crash which runs were open.
//!
//! No thread and no clock: moments are passed in, so that a day is tested in a second.

use super::LedgerError;
use super::index::{Index, OpenRun};
use super::mark::{Alive, Mark};
use super::record::{Entry, Event, Record, StopReason};
use super::segment::{self, Segment};
use super::stamp::{Boot, Stamp};
use router::names::SpriteName;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

/// Runs of one sprite whose records a crash may have taken with it: those that began and
/// ended within the second that is not on disk yet (chosen: a freeze with its wake takes
/// tens of milliseconds, and nothing wakes one sprite that often).
const RUNS_UNSEEN: u64 = 16;

/// Section `[ledger]`, and where it is.
#[derive(Clone, Debug)]
pub struct LedgerSettings {
    /// The directory; made when there is none.
    pub directory: PathBuf,
    /// A segment that has this many bytes is followed by another.
    pub segment_bytes: u64,
    /// Bytes of segments kept; the oldest are dropped. 0 drops none.
    pub keep_bytes: u64,
}

/// The ledger.
pub struct Book {
    settings: LedgerSettings,
    boot: Boot,
    mark: Mark,
    /// The mark of the owner before this one.
    before: Option<Alive>,
    clean: bool,
    segment: Segment,
    index: Index,
    next: u64,
}

impl Book {
    /// Opens it, or makes it. What a crash left of a last line is cut off.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn open(settings: LedgerSettings, boot: Boot, now: Stamp) -> Result<Self, LedgerError> {
        let directory = &settings.directory;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(LedgerError::io(directory, "cannot be made"))?;
        let (mark, before) = Mark::open(directory)?;
        let (segment, index, next) = match segment::list(directory)?.last() {
            Some((_, path)) => Segment::reopen(path)?,
            None => {
                let index = Index::default();
                let made = Segment::create(directory, 1, now.unix_ms, &index);
                (made.map_err(LedgerError::io(directory, "cannot begin a segment"))?, index, 1)
            }
        };
        let clean = next == 1 || before.as_ref().is_some_and(|alive| alive.clean);
        let book = Self { settings, boot, mark, before, clean, segment, index, next };
        let path = book.segment.path().to_owned();
        // From here on the end is not in order until it is; how far the last owner lived stays
        // said until its open runs have ended.
        let at = book.before.clone().unwrap_or_else(|| Alive { at: now, boot: book.boot.clone(), clean: false });
        let unclean = Alive { clean: false, ..at };
        book.sync()
            .and_then(|()| book.mark.write(&unclean))
            .map_err(LedgerError::io(&path, "cannot be written to disk"))?;
        Ok(book)
    }

    /// The number of the last record.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.next - 1
    }

    /// The last run each sprite may have begun, and its run if that is open.
    pub fn runs(&self) -> impl Iterator<Item = (&SpriteName, u64, Option<&OpenRun>)> {
        // After a crash some numbers may have been given out that no line tells.
        let unseen = if self.clean { 0 } else { RUNS_UNSEEN };
        self.index.0.iter().map(move |(name, kept)| (name, kept.run + unseen, kept.open.as_ref()))
    }

    /// Adds a record: in the file when this returns, on disk after [`Book::sync`].
    ///
    /// # Errors
    /// What the system said; then it was not added, and may be tried again.
    pub fn append(&mut self, entry: Entry) -> io::Result<Record> {
        if self.segment.len() >= self.settings.segment_bytes {
            self.rotate(entry.at_unix_ms)?;
        }
        let record = entry.numbered(self.next);
        self.segment.append(&record.line())?;
        self.index.apply(&record);
        self.next += 1;
        Ok(record)
    }

    /// Ends the open run of a sprite whose guest did not outlive its owner. `seen` is when
    /// it was found running and ended; without it, it ran as far as the owner is known to
    /// have lived.
    #[must_use]
    pub fn lost(&self, name: &SpriteName, seen: Option<Stamp>) -> Option<Entry> {
        let kept = self.index.0.get(name)?;
        let open = kept.open.as_ref()?;
        let (at_unix_ms, awake_ms) = match (seen, &self.before) {
            (Some(seen), _) => open.ends(seen, &self.boot),
            (None, Some(alive)) => open.ends(alive.at, &alive.boot),
            // The owner was gone before its first mark.
            (None, None) => (open.began.unix_ms, 0),
        };
        let event = Event::Stop {
            reason: StopReason::OwnerLost,
            awake_ms,
            // The one that began it. What else there was went with the owner.
            wakes: 1,
            bytes_to_guest: 0,
            bytes_from_guest: 0,
        };
        Some(Entry { at_unix_ms, sprite: name.clone(), generation: kept.generation, run: open.run, event })
    }

    /// Puts on disk what was added.
    ///
    /// # Errors
    /// What the system said.
    pub fn sync(&self) -> io::Result<()> {
        self.segment.sync()
    }

    /// Notes that the owner lives at `now`, or that it ended in order.
    ///
    /// # Errors
    /// What the system said.
    pub fn mark(&self, now: Stamp, clean: bool) -> io::Result<()> {
        self.mark.write(&Alive { at: now, boot: self.boot.clone(), clean })
    }

    /// Whether any run is open: then it wants a [`Book::mark`] every second, once no open
    /// run is one of an owner before.
    #[must_use]
    pub fn any_open(&self) -> bool {
        self.index.any_open()
    }

    fn rotate(&mut self, at_unix_ms: u64) -> io::Result<()> {
        self.segment.sync()?;
        self.segment = Segment::create(&self.settings.directory, self.next, at_unix_ms, &self.index)?;
        if let Err(error) = self.drop_old() {
            // What is kept too long harms nobody.
            tracing::warn!(%error, "old segments of the ledger are not dropped");
        }
        Ok(())
    }

    /// Drops the oldest segments while those before the current one are over the bound.
    fn drop_old(&self) -> Result<(), LedgerError> {
        if self.settings.keep_bytes == 0 {
            return Ok(());
        }
        let mut old = segment::list(&self.settings.directory)?;
        old.pop();
        let mut kept = 0;
        for (first, path) in old.into_iter().rev() {
            let failed = |what| LedgerError::io(&path, what);
            kept += std::fs::metadata(&path).map_err(failed("cannot be measured"))?.len();
            if kept > self.settings.keep_bytes {
                std::fs::remove_file(&path).map_err(failed("cannot be removed"))?;
                tracing::info!(first, path = %path.display(), "a segment of the ledger was dropped");
            }
        }
        Ok(())
    }
}
