//! The last record that was told, on disk.

use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(Serialize, Deserialize)]
struct Stored {
    seq: u64,
}

pub(super) struct Cursor {
    path: PathBuf,
    seq: u64,
}

impl Cursor {
    /// Reads it; without one it begins behind `begin`, and is on disk so.
    pub(super) fn load(path: &Path, begin: u64) -> anyhow::Result<Self> {
        let seq = match std::fs::read(path) {
            Ok(bytes) => {
                let stored: Stored = serde_json::from_slice(&bytes).with_context(|| {
                    format!(
                        "webhook cursor {}: is damaged; remove it to begin with what happens from now on",
                        path.display()
                    )
                })?;
                // A ledger that begins anew has lower numbers than were told of the old one.
                if stored.seq <= begin { stored.seq } else { begin }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => begin,
            Err(error) => return Err(error).with_context(|| format!("webhook cursor {}", path.display())),
        };
        save(path, seq).with_context(|| format!("webhook cursor {}", path.display()))?;
        Ok(Self { path: path.to_owned(), seq })
    }

    pub(super) const fn seq(&self) -> u64 {
        self.seq
    }

    /// Moves on without a trace on disk.
    pub(super) const fn pass(&mut self, seq: u64) {
        self.seq = seq;
    }

    /// Moves on; on disk when it returns without an error, and moved in any case.
    pub(super) async fn move_to(&mut self, seq: u64) -> io::Result<()> {
        self.seq = seq;
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || save(&path, seq)).await.map_err(io::Error::other)?
    }
}

/// Replaced as a whole: a crash leaves the old one or the new one.
fn save(path: &Path, seq: u64) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = File::create(&part)?;
    file.write_all(&serde_json::to_vec(&Stored { seq })?)?;
    file.sync_all()?;
    std::fs::rename(&part, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_goes_on_where_it_was_and_begins_at_the_end_of_what_there_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cursor");
        let mut cursor = Cursor::load(&path, 7).unwrap();
        assert_eq!(cursor.seq(), 7);
        assert_eq!(Cursor::load(&path, 50).unwrap().seq(), 7, "what it began with is on disk");
        cursor.move_to(9).await.unwrap();
        cursor.pass(10);
        assert_eq!((cursor.seq(), Cursor::load(&path, 50).unwrap().seq()), (10, 9));
        assert_eq!(Cursor::load(&path, 3).unwrap().seq(), 3, "the ledger began anew");
        std::fs::write(&path, "{").unwrap();
        assert!(Cursor::load(&path, 3).is_err());
    }
}
