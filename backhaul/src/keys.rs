//! WireGuard keys: a private key that cannot be printed, and the public key that names a peer.
//!
//! A private key comes from a file and from nowhere else: never from an argument, the
//! environment or the main configuration.

use crate::secret_file::{self, SecretFileError};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gotatun::x25519;
use std::fmt;
use std::net::Ipv6Addr;
use std::path::Path;
use std::str::FromStr;
use zeroize::Zeroizing;

/// Length of either key, bytes.
const KEY_BYTES: usize = 32;

/// A WireGuard private key. Zeroed when dropped; there is no way to print it.
#[derive(Clone)]
pub struct PrivateKey(x25519::StaticSecret);

impl PrivateKey {
    /// A new key, kept in memory only.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self((*random()?).into()))
    }

    /// Writes a new key to a new file of mode 0600 and returns its public half.
    ///
    /// # Errors
    /// [`KeyError`]; a file that exists is left as it is.
    pub fn generate_into(path: &Path) -> Result<PublicKey, KeyError> {
        let key = Self::generate()?;
        write(path, &Zeroizing::new(key.0.to_bytes()))?;
        Ok(key.public())
    }

    /// Reads a key in base64 from a file of mode 0600 or 0400 that belongs to this user or
    /// root, is no symbolic link, and lies in a directory where nobody else may replace it.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let key = read(path)?.ok_or(KeyError::Malformed)?;
        Ok(Self((*key).into()))
    }

    /// [`PrivateKey::load`], after [`PrivateKey::generate_into`] where there is no file yet.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load_or_generate(path: &Path) -> Result<Self, KeyError> {
        match Self::generate_into(path) {
            Ok(_) | Err(KeyError::File(SecretFileError::Exists { .. })) => Self::load(path),
            Err(error) => Err(error),
        }
    }

    /// The half that may be known.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(x25519::PublicKey::from(&self.0).to_bytes())
    }

    pub(crate) const fn secret(&self) -> &x25519::StaticSecret {
        &self.0
    }
}

/// Random bytes for a key.
pub(crate) fn random() -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyError> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(bytes.as_mut()).map_err(KeyError::Random)?;
    Ok(bytes)
}

/// Writes a key in base64 to a new file.
pub(crate) fn write(path: &Path, key: &[u8; KEY_BYTES]) -> Result<(), KeyError> {
    let mut text = Zeroizing::new(STANDARD.encode(key));
    text.push('\n');
    Ok(secret_file::create(path, text.as_bytes())?)
}

/// Reads one; `None` when the file holds something else.
pub(crate) fn read(path: &Path) -> Result<Option<Zeroizing<[u8; KEY_BYTES]>>, KeyError> {
    let text = secret_file::read(path)?;
    let text = text.trim_ascii();
    // Room for a decoder that rounds up: it must not allocate a second time.
    let mut bytes = Zeroizing::new([0; KEY_BYTES + 3]);
    let Ok(KEY_BYTES) = STANDARD.decode_slice(text, bytes.as_mut()) else { return Ok(None) };
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    key.copy_from_slice(&bytes[..KEY_BYTES]);
    Ok(Some(key))
}

/// A WireGuard public key; prints as base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub(crate) [u8; KEY_BYTES]);

impl PublicKey {
    /// An address inside the tunnel for a peer that was assigned none: `fd` and the first
    /// 15 bytes of the key's SHA-256 (a locally assigned prefix, RFC 4193 §3.2).
    #[must_use]
    pub fn derived_address(&self) -> Ipv6Addr {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.0);
        let mut octets = [0xfd; 16];
        octets[1..].copy_from_slice(&hash.as_ref()[..15]);
        octets.into()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    /// The first 8 characters, enough to tell peers apart in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(&self.0[..6]))
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| KeyError::Malformed)?;
        Ok(Self(bytes.try_into().map_err(|_| KeyError::Malformed)?))
    }
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// See [`SecretFileError`].
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// Not 32 bytes in base64. Says nothing about what was there instead.
    #[error("not a WireGuard key: expected 32 bytes in base64")]
    Malformed,
    /// The same for a key that signs.
    #[error("not a signing key: expected 32 bytes in base64")]
    NotASeed,
    /// The system gave no randomness.
    #[error("no randomness")]
    Random(#[source] getrandom::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let public = PrivateKey::generate_into(&path).unwrap();
        assert_eq!(PrivateKey::load(&path).unwrap().public(), public);
        assert_eq!(PrivateKey::load_or_generate(&path).unwrap().public(), public);
        assert_eq!(public.to_string().parse::<PublicKey>().unwrap(), public);
        assert_eq!(public.derived_address().octets()[0], 0xfd);
    }

    #[test]
    fn an_error_never_quotes_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        secret_file::create(&path, b"AAAAAAAAAAAAAAAAsecretAAAAAAAAAA").unwrap();
        let error = PrivateKey::load(&path).err().unwrap();
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
}
