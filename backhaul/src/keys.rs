//! WireGuard keys in files: made once, readable by their owner alone, never shown.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// A private key. It has no `Debug`, no `Display` and is wiped when it is dropped.
#[derive(Clone)]
pub struct PrivateKey(StaticSecret);

/// A public key; prints as base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Public([u8; 32]);

/// Why a key was not made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file could not be made or read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others could read or replace it.
    #[error("{path}: {rule}")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// What must hold.
        rule: &'static str,
    },
    /// It holds no key.
    #[error("{path}: holds no key of 32 bytes in base64")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

impl PrivateKey {
    /// Makes a key and writes it to a new file of mode 0600.
    ///
    /// # Errors
    /// [`KeyError::File`], also when the file exists: a key is never overwritten.
    pub fn generate_into(path: &Path) -> Result<Public, KeyError> {
        let file = |source| KeyError::File { path: path.to_owned(), source };
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *bytes).map_err(|error| file(io::Error::other(error.to_string())))?;
        let secret = StaticSecret::from(*bytes);
        let text = Zeroizing::new(STANDARD.encode(secret.as_bytes()) + "\n");
        let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(file)?;
        to.write_all(text.as_bytes()).and_then(|()| to.sync_all()).map_err(file)?;
        Ok(Public(PublicKey::from(&secret).to_bytes()))
    }

    /// Reads a key that nobody else can read or replace.
    ///
    /// # Errors
    /// [`KeyError`], which says what must hold.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let file = |source| KeyError::File { path: path.to_owned(), source };
        let exposed = |rule| Err(KeyError::Exposed { path: path.to_owned(), rule });
        // No symbolic link: what is checked must be what is read.
        let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
        let mut from = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(file)?;
        let facts = from.metadata().map_err(file)?;
        let us = rustix::process::geteuid().as_raw();
        if facts.uid() != us && facts.uid() != 0 {
            return exposed("the file must belong to this user or to root");
        }
        if facts.mode() & 0o077 != 0 {
            return exposed("group and others must have no access (chmod 600)");
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mode = std::fs::metadata(parent).map_err(file)?.mode();
        // Sticky, as /tmp is: others may write there but not replace what is ours.
        if mode & 0o002 != 0 && mode & 0o1000 == 0 {
            return exposed("the directory must not be writable by everybody");
        }
        let mut text = Zeroizing::new(String::new());
        from.read_to_string(&mut text).map_err(file)?;
        let bytes = STANDARD
            .decode(text.trim())
            .map(Zeroizing::new)
            .ok()
            .and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
        bytes.map(|bytes| Self(StaticSecret::from(bytes))).ok_or_else(|| KeyError::Malformed { path: path.to_owned() })
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> Public {
        Public(PublicKey::from(&self.0).to_bytes())
    }

    /// For the tunnel only.
    pub(crate) const fn secret(&self) -> &StaticSecret {
        &self.0
    }
}

impl Public {
    /// The raw bytes.
    #[must_use]
    pub const fn bytes(&self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for Public {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Public {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Eight characters are enough to tell keys apart in a log.
        f.write_str(&STANDARD.encode(self.0)[..8])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let public = PrivateKey::generate_into(&path).unwrap();
        assert_eq!(PrivateKey::load(&path).unwrap().public(), public);
        assert!(matches!(PrivateKey::generate_into(&path), Err(KeyError::File { .. })));
    }

    #[test]
    fn a_key_others_could_read_or_replace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        PrivateKey::generate_into(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(PrivateKey::load(&path), Err(KeyError::Exposed { .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        PrivateKey::load(&path).unwrap();
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        assert!(matches!(PrivateKey::load(&dir.path().join("link")), Err(KeyError::File { .. })));
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(PrivateKey::load(&path), Err(KeyError::Exposed { .. })));
    }
}
