//! A key in a file beside the table seals the ticket keys in it. One file for the whole fleet.

use super::Sealer;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;

/// Keys of a file with a line each, 32 bytes in base64: the first seals, all open.
pub struct KekFile(Vec<RandomizedNonceKey>);

impl KekFile {
    /// Reads it.
    ///
    /// # Errors
    /// It cannot be read, or a line is no key.
    pub fn load(path: &Path) -> io::Result<Self> {
        let text = Zeroizing::new(std::fs::read_to_string(path)?);
        let no_key =
            || io::Error::new(io::ErrorKind::InvalidData, "lines of 32 bytes in base64: openssl rand -base64 32");
        let key = |line: &str| {
            let bytes = STANDARD.decode(line).map(Zeroizing::new).map_err(|_| no_key())?;
            RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| no_key())
        };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let keys = lines.map(key).collect::<io::Result<Vec<_>>>()?;
        if keys.is_empty() { Err(no_key()) } else { Ok(Self(keys)) }
    }

    /// The same, after making it with a new key when it is not there.
    ///
    /// # Errors
    /// As [`Self::load`]; what is there is never replaced.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(mut file) => {
                let mut bytes = Zeroizing::new([0; KEY_BYTES]);
                aws_lc_rs::rand::fill(&mut *bytes).map_err(io::Error::other)?;
                file.write_all(Zeroizing::new(format!("{}\n", STANDARD.encode(*bytes))).as_bytes())?;
                file.sync_all()?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Self::load(path)
    }
}

/// A name has no zero byte, so no two pairs read the same.
fn about(name: &str, generation: u64) -> Vec<u8> {
    [name.as_bytes(), &[0], &generation.to_be_bytes()].concat()
}

impl Sealer for KekFile {
    fn seal(&self, name: &str, generation: u64, plain: &[u8]) -> Result<Vec<u8>, String> {
        let mut sealed = Zeroizing::new(plain.to_vec());
        let about = about(name, generation);
        let nonce = self.0.first().map(|key| key.seal_in_place_append_tag(Aad::from(&about), &mut *sealed));
        match nonce {
            Some(Ok(nonce)) => Ok([nonce.as_ref().as_slice(), sealed.as_slice()].concat()),
            _ => Err("the library refused to seal".into()),
        }
    }

    fn open(&self, name: &str, generation: u64, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
        let wrong = || format!("{name} is sealed for another row or with another key");
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(wrong)?;
        let open = |key: &RandomizedNonceKey| {
            let mut plain = Zeroizing::new(sealed.to_vec());
            let about = about(name, generation);
            let length =
                key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(&about), &mut plain).ok()?.len();
            plain.truncate(length);
            Some(plain)
        };
        self.0.iter().find_map(open).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_any_key_of_the_file_for_its_own_row_and_generation() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("a"), dir.path().join("b"));
        let kek = KekFile::load_or_create(&first).unwrap();
        let sealed = kek.seal("stek/normal/1", 1, b"secret").unwrap();
        let again = KekFile::load_or_create(&first).unwrap();
        assert_eq!(again.open("stek/normal/1", 1, &sealed).unwrap().as_slice(), b"secret");
        assert!(kek.open("stek/normal/2", 1, &sealed).is_err() && kek.open("stek/normal/1", 2, &sealed).is_err());
        for at in 0..sealed.len() {
            assert!(kek.open("stek/normal/1", 1, &sealed[..at]).is_err(), "{at} bytes");
        }
        let other = KekFile::load_or_create(&second).unwrap();
        assert!(other.open("stek/normal/1", 1, &sealed).is_err());
        // A new key in front, the old one behind it.
        let both = std::fs::read_to_string(&second).unwrap() + &std::fs::read_to_string(&first).unwrap();
        std::fs::write(&second, both).unwrap();
        assert!(KekFile::load(&second).unwrap().open("stek/normal/1", 1, &sealed).is_ok());
        for wrong in ["", "AAAA\n", "no base64!\n"] {
            std::fs::write(&second, wrong).unwrap();
            assert!(KekFile::load(&second).is_err(), "{wrong:?}");
        }
    }
}
