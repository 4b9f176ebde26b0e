//! One file of the ledger: a line that says what all before it adds up to, then records.
//!
//! A file is named after the number of its first record, so that the names alone say where
//! a record is.

use super::LedgerError;
use super::index::Index;
use super::record::Record;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const PREFIX: &str = "runs-";
const SUFFIX: &str = ".ndjson";
/// The form of the files; another number is another form.
const VERSION: u32 = 1;

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    ledger: u32,
    /// The record of the second line.
    pub(super) first_seq: u64,
    /// When the file was made, milliseconds since 1970.
    pub(super) at_unix_ms: u64,
    pub(super) sprites: Index,
}

/// The first record of every segment in `directory`, with its file, in order.
pub(super) fn list(directory: &Path) -> Result<Vec<(u64, PathBuf)>, LedgerError> {
    let failed = || LedgerError::io(directory, "cannot be listed");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        let number = path.file_name().and_then(|name| name.to_str());
        let number = number.and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX));
        if let Some(first) = number.and_then(|number| number.parse().ok()) {
            found.push((first, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// A segment being written.
pub(super) struct Segment {
    path: PathBuf,
    file: File,
    /// Bytes that count; more than the file has after a write that failed half-way.
    len: u64,
    /// Something behind `len` may be in the file.
    dirty: bool,
}

impl Segment {
    /// Makes the next one. It has its name only when its first line is on disk, so a crash
    /// leaves it whole or not at all.
    pub(super) fn create(directory: &Path, first_seq: u64, at_unix_ms: u64, sprites: &Index) -> io::Result<Self> {
        let path = directory.join(format!("{PREFIX}{first_seq:020}{SUFFIX}"));
        let part = directory.join("next.part");
        let header = Header { ledger: VERSION, first_seq, at_unix_ms, sprites: sprites.clone() };
        let mut line = serde_json::to_vec(&header)?;
        line.push(b'\n');
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        file.write_all(&line)?;
        file.sync_all()?;
        std::fs::rename(&part, &path)?;
        sync_directory(directory)?;
        Ok(Self { path, file, len: line.len() as u64, dirty: false })
    }

    /// Opens the last one, brings `index` up to its end and cuts off what a crash left of a
    /// line. The number its next record gets.
    pub(super) fn reopen(path: &Path) -> Result<(Self, Index, u64), LedgerError> {
        let reader = BufReader::new(File::open(path).map_err(LedgerError::io(path, "cannot be opened"))?);
        let mut lines = Lines { reader, line: Vec::new(), number: 0 };
        let header = lines.header(path)?;
        let (mut index, mut next) = (header.sprites, header.first_seq);
        let mut len = lines.line.len() as u64;
        let mut bad: Option<usize> = None;
        while lines.next(path)? {
            match lines.record() {
                Some(record) if bad.is_none() && record.seq == next => {
                    index.apply(&record);
                    next += 1;
                    len += lines.line.len() as u64;
                }
                // Only the end of a file can be torn.
                Some(_) => return Err(LedgerError::Damaged { path: path.into(), line: bad.unwrap_or(lines.number) }),
                None => bad = bad.or(Some(lines.number)),
            }
        }
        let file = OpenOptions::new().write(true).open(path).map_err(LedgerError::io(path, "cannot be opened"))?;
        let mut segment = Self { path: path.into(), file, len, dirty: true };
        let cut = bad.is_some();
        segment.cut().map_err(LedgerError::io(path, "its torn end cannot be cut off"))?;
        if cut {
            tracing::warn!(path = %path.display(), next, "the end of the ledger was torn and is cut off");
        }
        Ok((segment, index, next))
    }

    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line: one write, so that it survives the end of this process. After an error
    /// it is not there.
    pub(super) fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.cut()?;
        self.dirty = true;
        self.file.write_all(line)?;
        self.len += line.len() as u64;
        self.dirty = false;
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn cut(&mut self) -> io::Result<()> {
        if self.dirty {
            self.file.set_len(self.len)?;
            self.file.seek(SeekFrom::Start(self.len))?;
            self.dirty = false;
        }
        Ok(())
    }
}

/// The lines of a segment.
pub(super) struct Lines<R> {
    pub(super) reader: R,
    pub(super) line: Vec<u8>,
    pub(super) number: usize,
}

impl Lines<BufReader<File>> {
    pub(super) fn open(path: &Path) -> Result<Self, LedgerError> {
        let file = File::open(path).map_err(LedgerError::io(path, "cannot be opened"))?;
        Ok(Self { reader: BufReader::new(file), line: Vec::new(), number: 0 })
    }
}

impl<R: BufRead> Lines<R> {
    /// Reads the next line; `false` at the end.
    pub(super) fn next(&mut self, path: &Path) -> Result<bool, LedgerError> {
        self.line.clear();
        let read = self.reader.read_until(b'\n', &mut self.line);
        self.number += 1;
        Ok(read.map_err(LedgerError::io(path, "cannot be read"))? > 0)
    }

    /// Reads the first line.
    pub(super) fn header(&mut self, path: &Path) -> Result<Header, LedgerError> {
        self.next(path)?;
        let header = serde_json::from_slice(&self.line).ok().filter(|header: &Header| header.ledger == VERSION);
        header.ok_or_else(|| LedgerError::Damaged { path: path.into(), line: 1 })
    }

    /// The record on the line; none when it is not whole.
    pub(super) fn record(&self) -> Option<Record> {
        serde_json::from_slice(self.line.strip_suffix(b"\n")?).ok()
    }
}

pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
