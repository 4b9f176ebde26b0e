//! How far the owner lived: one small file, written over in place once a second while
//! anything runs. It also keeps a second owner out.

use super::LedgerError;
use super::stamp::{Boot, Stamp};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Every mark has this length, so that writing one changes no file size: nothing but one
/// sector need reach the disk.
const BYTES: usize = 256;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Alive {
    pub(super) at: Stamp,
    pub(super) boot: Boot,
    /// The owner ended in order: every record of it is there.
    pub(super) clean: bool,
}

pub(super) struct Mark {
    file: File,
}

impl Mark {
    /// Takes the file for this process; what it said.
    pub(super) fn open(directory: &Path) -> Result<(Self, Option<Alive>), LedgerError> {
        let path = directory.join("alive");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(LedgerError::io(&path, "cannot be opened"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(LedgerError::InUse { path: directory.to_owned() }),
            Err(error) => return Err(LedgerError::io(&path, "cannot be locked")(error.into())),
        }
        let mut bytes = [0; BYTES];
        let length = file.read_at(&mut bytes, 0).map_err(LedgerError::io(&path, "cannot be read"))?;
        let text = String::from_utf8_lossy(&bytes[..length]);
        Ok((Self { file }, serde_json::from_str(text.trim()).ok()))
    }

    /// Says so; on disk when it returns.
    pub(super) fn write(&self, alive: &Alive) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(alive)?;
        bytes.resize(BYTES, b' ');
        self.file.write_all_at(&bytes, 0)?;
        self.file.sync_data()
    }
}
