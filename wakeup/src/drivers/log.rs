//! A guest's output, in a file that cannot grow without end.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt};

/// One log: at most `bytes_max` in the file and as much in the one before it.
#[derive(Clone)]
pub(super) struct Log(Arc<Mutex<Inner>>);

struct Inner {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl Log {
    pub(super) fn open(path: &Path, bytes_max: u64) -> std::io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self(Arc::new(Mutex::new(Inner { path: path.into(), file, bytes, bytes_max }))))
    }

    pub(super) fn write(&self, data: &[u8]) -> std::io::Result<()> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if log.bytes + data.len() as u64 > log.bytes_max {
            std::fs::rename(&log.path, log.path.with_extension("log.1"))?;
            log.file = File::create(&log.path)?;
            log.bytes = 0;
        }
        log.file.write_all(data)?;
        log.bytes += data.len() as u64;
        Ok(())
    }

    /// Copies `output` into the log until it ends. A log that cannot be written loses
    /// output, never the guest: the pipe is drained all the same.
    pub(super) fn follow(&self, mut output: impl AsyncRead + Unpin + Send + 'static) {
        let log = self.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 8192];
            while let Ok(count @ 1..) = output.read(&mut buffer).await {
                if let Err(error) = log.write(&buffer[..count]) {
                    tracing::warn!(%error, "a sprite's log cannot be written");
                }
            }
        });
    }
}

/// The same for a file that another process appends to: over the bound it is copied to the
/// one before it and emptied.
pub(super) fn begin_anew_over(path: &Path, bytes_max: u64) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.len() > bytes_max {
        std::fs::copy(path, path.with_extension("log.1"))?;
        file.set_len(0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[test]
    fn a_log_keeps_to_its_bound_and_keeps_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let log = Log::open(&path, 4096).unwrap();
        for n in 0..1000 {
            log.write(format!("line {n}\n").as_bytes()).unwrap();
        }
        let (now, before) = (std::fs::read(&path).unwrap(), std::fs::read(path.with_extension("log.1")).unwrap());
        assert!(now.len() <= 4096 && before.len() <= 4096);
        assert!(now.ends_with(b"line 999\n"));
    }

    #[tokio::test]
    async fn what_is_followed_keeps_to_the_bound_too_and_a_log_that_cannot_be_written_drains_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let log = Log::open(&path, 10_000).unwrap();
        let write = async |bytes: &[u8]| {
            let (mut guest, output) = tokio::io::duplex(64);
            log.follow(output);
            // Ends only when everything was read.
            guest.write_all(bytes).await.unwrap();
            guest.shutdown().await.unwrap();
        };
        let text = vec![b'x'; 100_000];
        write(&text).await;
        let kept = || [path.clone(), path.with_extension("log.1")].map(|path| path.metadata().map_or(0, |m| m.len()));
        assert!(kept().iter().all(|bytes| *bytes <= 10_000), "{:?}", kept());
        assert!(kept().iter().sum::<u64>() > 10_000, "{:?}", kept());
        drop(dir);
        write(&text).await;
    }

    #[test]
    fn a_file_of_another_process_begins_anew_over_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let mut theirs = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        theirs.write_all(b"first ").unwrap();
        begin_anew_over(&path, 6).unwrap();
        theirs.write_all(b"second").unwrap();
        begin_anew_over(&path, 6).unwrap();
        theirs.write_all(b"third").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"third");
        assert_eq!(std::fs::read(path.with_extension("log.1")).unwrap(), b"first second");
    }
}
