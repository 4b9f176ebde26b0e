//! Files that hold a secret: written once, for their owner alone, and refused when others
//! could have read or replaced them.
//!
//! Deliberately not here: what the bytes mean. [`crate::keys`] and
//! [`crate::session::Identity`] know.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Largest secret file read, bytes (chosen: a certificate with its key is below 4 KiB).
const BYTES_MAX: u64 = 64 * 1024;

/// Why a file with a secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// Reading or writing failed.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It exists already and is never overwritten.
    #[error("{}: exists already and is not overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else could read or replace it.
    #[error("{}: {reason}", path.display())]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// What is wrong, and how it should be.
        reason: &'static str,
    },
}

/// Writes `secret` to a new file of mode 0600, on disk before it returns.
///
/// # Errors
/// [`SecretFileError`]; a file that exists is left as it is.
pub(crate) fn create(path: &Path, secret: &[u8]) -> Result<(), SecretFileError> {
    let failed = |source: io::Error| SecretFileError::Io { path: path.into(), source };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
    }
    check_parent(path)?;
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => SecretFileError::Exists { path: path.into() },
        _ => failed(source),
    })?;
    file.write_all(secret).and_then(|()| file.sync_all()).map_err(failed)
}

/// Reads a secret, after checking that nobody else can read or replace it.
///
/// # Errors
/// [`SecretFileError`].
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
    let failed = |source: io::Error| SecretFileError::Io { path: path.into(), source };
    let wrong = |reason| SecretFileError::Unsafe { path: path.into(), reason };
    check_parent(path)?;
    // Non-blocking, so that a pipe under this name is refused below and not waited for.
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file =
        OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|source| match source.raw_os_error() {
            Some(libc::ELOOP) => wrong("is a symbolic link; name the file itself"),
            _ => failed(source),
        })?;
    check_file(&file).map_err(failed)?.map_err(wrong)?;
    // One allocation, so that no copy of a part stays behind in freed memory.
    let mut secret = Zeroizing::new(Vec::with_capacity(BYTES_MAX as usize + 1));
    file.take(BYTES_MAX + 1).read_to_end(&mut secret).map_err(failed)?;
    if secret.len() as u64 > BYTES_MAX {
        return Err(wrong("is too long for a key file"));
    }
    Ok(secret)
}

fn check_file(file: &File) -> io::Result<Result<(), &'static str>> {
    let meta = file.metadata()?;
    Ok(if !meta.is_file() {
        Err("is not a regular file")
    } else if meta.mode() & 0o177 != 0 {
        Err("must have mode 0600 or 0400")
    } else if !is_ours(meta.uid()) {
        Err("must belong to this user or to root")
    } else {
        Ok(())
    })
}

fn check_parent(path: &Path) -> Result<(), SecretFileError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let meta = parent.metadata().map_err(|source| SecretFileError::Io { path: parent.into(), source })?;
    let sticky = meta.mode() & 0o1000 != 0;
    if meta.mode() & 0o002 != 0 && !sticky {
        return Err(SecretFileError::Unsafe { path: parent.into(), reason: "everybody may replace files in it" });
    }
    Ok(())
}

fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, metadata, set_permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_new_secret_is_for_its_owner_alone_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/secret");
        create(&path, b"one").unwrap();
        assert_eq!(metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(create(&path, b"two"), Err(SecretFileError::Exists { .. })));
        assert_eq!(read(&path).unwrap().as_slice(), b"one");
    }

    #[test]
    fn a_secret_that_others_may_read_or_replace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        create(&path, b"one").unwrap();
        for mode in [0o640, 0o604, 0o700] {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(matches!(read(&path), Err(SecretFileError::Unsafe { .. })), "mode {mode:o}");
        }
        set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        assert!(read(&path).is_ok());
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(read(&link), Err(SecretFileError::Unsafe { .. })));
        set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(read(&path), Err(SecretFileError::Unsafe { .. })));
        set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
        assert!(read(&path).is_ok());
    }
}
