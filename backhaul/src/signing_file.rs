//! Keys that sign rows of the store, in files as safe as those of WireGuard keys ([`crate::secret_file`]).

use crate::keys::{KeyError, random, read, write};
use crate::secret_file::SecretFileError;
use router::signing::{PublicKey, SigningKey};
use std::path::Path;

/// Writes a new key to a new file of mode 0600; its public half.
///
/// # Errors
/// [`KeyError`]; a file that exists is left as it is.
pub fn generate_into(path: &Path) -> Result<PublicKey, KeyError> {
    let seed = random()?;
    let key = SigningKey::from_seed(&seed).ok_or(KeyError::NotASeed)?;
    write(path, &seed)?;
    Ok(key.public())
}

/// Reads a key under the rules of [`crate::keys::PrivateKey::load`].
///
/// # Errors
/// [`KeyError`].
pub fn load(path: &Path) -> Result<SigningKey, KeyError> {
    read(path)?.and_then(|seed| SigningKey::from_seed(&seed)).ok_or(KeyError::NotASeed)
}

/// [`load`], after [`generate_into`] where there is no file yet.
///
/// # Errors
/// [`KeyError`].
pub fn load_or_generate(path: &Path) -> Result<SigningKey, KeyError> {
    match generate_into(path) {
        Ok(_) | Err(KeyError::File(SecretFileError::Exists { .. })) => load(path),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file_and_a_file_of_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let public = generate_into(&path).unwrap();
        assert_eq!(load(&path).unwrap().public(), public);
        assert_eq!(load_or_generate(&path).unwrap().public(), public);
        assert!(matches!(generate_into(&path), Err(KeyError::File(SecretFileError::Exists { .. }))));
        let other = dir.path().join("other");
        crate::secret_file::create(&other, b"AAAA").unwrap();
        assert!(matches!(load(&other), Err(KeyError::NotASeed)));
    }
}
