//! Secrets in rows that everybody can read: sealed under data keys, which are sealed under a key that no row has.
//!
//! A key encryption key (KEK) lies on every PoP, outside the table: a file, or a credential systemd hands over. Rows
//! `seal/ID` carry data keys, each wrapped under a KEK; all else is sealed under the newest data key, with the name of
//! its row and a generation as associated data, so what is sealed for one row opens in no other. A change of
//! the KEK wraps data keys anew and touches nothing that is sealed under them (`seal/change.rs`).

mod change;

use crate::rows::{Row, Rows, RowsError};
use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

pub use change::DataKey;

/// Where data keys are.
pub const SEAL_PREFIX: &str = "seal/";
/// Bytes of a key: AES-256.
const KEY_BYTES: usize = 32;
/// Bytes of an id: enough that two keys of one fleet never share one (64 bits of a digest, or of a random number).
const ID_BYTES: usize = 8;
/// First byte of what is sealed here.
const FORMAT: u8 = 1;
/// Data keys that are remembered (chosen: each is in use for years).
const DATA_KEYS_MAX: usize = 64;

type KeyId = [u8; ID_BYTES];

/// Why something was not sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The KEK's file.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It was not sealed for this row, was changed, or is nothing that was sealed.
    #[error("{0}: what is sealed there does not open")]
    Forged(String),
    /// It is sealed under a data key that this machine does not know, or cannot unwrap with its KEK.
    #[error("{0}: it is sealed under a key that this machine's KEK does not open")]
    UnknownKey(String),
    /// The rows with the data keys.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// There are as many data keys as are remembered.
    #[error("there are {DATA_KEYS_MAX} data keys already, and another one would push out the first")]
    TooMany,
    /// The library refused.
    #[error("the key was refused by the cryptographic library")]
    Library,
}

impl From<aws_lc_rs::error::Unspecified> for SealError {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self::Library
    }
}

struct Key {
    id: KeyId,
    key: RandomizedNonceKey,
}

impl Key {
    fn new(id: KeyId, bytes: &[u8]) -> Result<Self, SealError> {
        Ok(Self { id, key: RandomizedNonceKey::new(&AES_256_GCM, bytes)? })
    }

    /// `format ‖ key id ‖ nonce ‖ ciphertext and tag`.
    fn seal(&self, about: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut sealed = Zeroizing::new(plain.to_vec());
        let nonce = self.key.seal_in_place_append_tag(Aad::from(about), &mut *sealed)?;
        let mut all = Vec::with_capacity(1 + ID_BYTES + NONCE_LEN + sealed.len());
        all.push(FORMAT);
        all.extend_from_slice(&self.id);
        all.extend_from_slice(nonce.as_ref());
        all.extend_from_slice(&sealed);
        Ok(all)
    }

    fn open(&self, about: &[u8], parts: &Parts<'_>) -> Option<Zeroizing<Vec<u8>>> {
        let mut open = Zeroizing::new(parts.sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(parts.nonce);
        let length = self.key.open_in_place(nonce, Aad::from(about), &mut open).ok()?.len();
        open.truncate(length);
        Some(open)
    }
}

struct Parts<'a> {
    id: KeyId,
    nonce: [u8; NONCE_LEN],
    sealed: &'a [u8],
}

fn parts(all: &[u8]) -> Option<Parts<'_>> {
    let (format, rest) = all.split_first()?;
    let (id, rest) = rest.split_first_chunk()?;
    let (nonce, sealed) = rest.split_first_chunk()?;
    (*format == FORMAT).then_some(Parts { id: *id, nonce: *nonce, sealed })
}

/// What a PoP has outside the table. One more than the present one may be known while it changes.
pub struct Kek {
    /// The first wraps; all unwrap.
    keys: Vec<Key>,
}

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kek({} keys)", self.keys.len())
    }
}

impl Kek {
    /// Reads a file of one or more lines, each 32 bytes in base64: the first is in use, the others only open.
    ///
    /// # Errors
    /// [`SealError::File`].
    pub fn from_file(path: &Path) -> Result<Self, SealError> {
        let wrong = |why: String| SealError::File { path: path.to_owned(), why };
        let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?);
        let mut keys = Vec::new();
        for (number, line) in text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty()) {
            let bytes = STANDARD.decode(line).map(Zeroizing::new).ok().filter(|bytes| bytes.len() == KEY_BYTES);
            let what =
                || wrong(format!("line {}: not 32 bytes in base64 (openssl rand -base64 32 makes some)", number + 1));
            keys.push(Self::key(&bytes.ok_or_else(what)?)?);
        }
        match keys.is_empty() {
            true => Err(wrong("it is empty; openssl rand -base64 32 makes a key".into())),
            false => Ok(Self { keys }),
        }
    }

    /// The same, after making the file with a new key if it is not there.
    ///
    /// # Errors
    /// [`SealError::File`]. A file that is there but unreadable is never replaced.
    pub fn from_file_or_new(path: &Path) -> Result<Self, SealError> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let made = made.and_then(|mut file| {
            let line = Zeroizing::new(format!("{}\n", STANDARD.encode(random::<KEY_BYTES>()?.as_slice())));
            file.write_all(line.as_bytes())?;
            file.sync_all()
        });
        match made {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(SealError::File { path: path.to_owned(), why: error.to_string() })
            }
            _ => Self::from_file(path),
        }
    }

    /// What tells its keys from others, the one in use first: the first 64 bits of their SHA-256, which says nothing else of
    /// a key of 256 random bits.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.keys.iter().map(|key| in_hex(key.id)).collect()
    }

    fn key(bytes: &[u8]) -> Result<Key, SealError> {
        let mut id = KeyId::default();
        id.copy_from_slice(&digest(&SHA256, bytes).as_ref()[..ID_BYTES]);
        Key::new(id, bytes)
    }

    /// Seals `plain` for the row `name`, in this generation of it, under the key itself: for what is few and short.
    ///
    /// # Errors
    /// [`SealError::Library`].
    pub fn seal(&self, name: &str, generation: u64, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        self.keys.first().ok_or(SealError::Library)?.seal(&about(name, generation), plain)
    }

    /// Opens what was sealed for the row `name` in this generation of it.
    ///
    /// # Errors
    /// [`SealError::Forged`], [`SealError::UnknownKey`].
    pub fn open(&self, name: &str, generation: u64, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        open_with(self.keys.iter(), name, generation, sealed)
    }
}

fn open_with<'a>(
    mut keys: impl Iterator<Item = &'a Key>,
    name: &str,
    generation: u64,
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let parts = parts(sealed).ok_or_else(|| SealError::Forged(name.into()))?;
    let key = keys.find(|key| key.id == parts.id).ok_or_else(|| SealError::UnknownKey(name.into()))?;
    key.open(&about(name, generation), &parts).ok_or_else(|| SealError::Forged(name.into()))
}

fn random<const N: usize>() -> std::io::Result<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    let no = |_| std::io::Error::other("the system has no random numbers");
    aws_lc_rs::rand::fill(&mut *bytes).map_err(no)?;
    Ok(bytes)
}

/// As in the key of a row.
fn in_hex(id: KeyId) -> String {
    format!("{:016x}", u64::from_be_bytes(id))
}

fn about(name: &str, generation: u64) -> Vec<u8> {
    // A name has no zero byte, so no two pairs read the same.
    [name.as_bytes(), &[0], &generation.to_be_bytes()].concat()
}

/// A row `seal/ID`.
#[derive(Serialize, Deserialize)]
struct DataKeyRow {
    /// Base64 of the data key, sealed under a KEK.
    wrapped: String,
    /// When it was made, seconds since 1970: what is sealed is sealed under the newest. The first key says nothing.
    #[serde(default)]
    made: u64,
}

impl DataKeyRow {
    fn read(row: &Row) -> Option<(Self, Vec<u8>)> {
        let read = serde_json::from_slice::<Self>(&row.value).ok()?;
        let wrapped = STANDARD.decode(&read.wrapped).ok()?;
        Some((read, wrapped))
    }

    fn encode(&self) -> Result<Vec<u8>, SealError> {
        serde_json::to_vec(self).map_err(|_| SealError::Library)
    }
}

/// What [`Sealer::reload`] has found.
#[derive(Debug)]
pub struct Reloaded {
    /// The rows, sealed as they lie in the store.
    pub rows: Vec<Row>,
    /// How many of them no KEK of this machine opens.
    pub closed: usize,
}

/// The data keys this machine can use. Shared; opening and sealing take no lock.
pub struct Sealer {
    kek: Arc<Kek>,
    /// The newest last.
    keys: ArcSwap<Vec<Arc<Key>>>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({} data keys)", self.keys.load().len())
    }
}

impl Sealer {
    /// Reads the data keys, and makes the first one if there is none.
    ///
    /// # Errors
    /// [`SealError::UnknownKey`] when there are some and the KEK opens none of them; [`SealError::Rows`].
    pub async fn load(kek: &Arc<Kek>, rows: &dyn Rows) -> Result<Self, SealError> {
        let sealer = Self { kek: Arc::clone(kek), keys: ArcSwap::default() };
        if sealer.reload(rows).await?.rows.is_empty() {
            match sealer.add(rows).await {
                // Another PoP was first.
                Ok(()) | Err(SealError::Rows(RowsError::Conflict)) => sealer.reload(rows).await?,
                Err(error) => return Err(error),
            };
        }
        match sealer.keys.load().is_empty() {
            true => Err(SealError::UnknownKey(SEAL_PREFIX.into())),
            false => Ok(sealer),
        }
    }

    /// With the data keys in these rows, as they were kept from an earlier [`Self::reload`]; `None` when the KEK opens
    /// none of them.
    #[must_use]
    pub fn of(kek: &Arc<Kek>, kept: Vec<Row>) -> Option<Self> {
        let sealer = Self { kek: Arc::clone(kek), keys: ArcSwap::default() };
        sealer.take(kept).ok()?;
        (!sealer.keys.load().is_empty()).then_some(sealer)
    }

    /// Reads the data keys again; the rows there are, sealed as they lie in the store. One that no KEK of this machine opens
    /// any more is used on when it was known.
    ///
    /// # Errors
    /// [`SealError::Rows`].
    ///
    /// # Cancel safety
    /// Dropping it changes nothing.
    pub async fn reload(&self, rows: &dyn Rows) -> Result<Reloaded, SealError> {
        let rows = rows.scan(SEAL_PREFIX).await?;
        let closed = self.take(rows.clone())?;
        Ok(Reloaded { rows, closed })
    }

    /// How many did not open.
    fn take(&self, mut found: Vec<Row>) -> Result<usize, SealError> {
        // Wrapped anew, a row is as new as can be and its key as old as before.
        found.sort_by_cached_key(|row| (DataKeyRow::read(row).map_or(0, |(read, _)| read.made), row.key.clone()));
        let skip = found.len().saturating_sub(DATA_KEYS_MAX);
        let (mut keys, mut closed) = (Vec::new(), 0);
        let known = self.keys.load();
        for row in &found[skip..] {
            let id = row.key.strip_prefix(SEAL_PREFIX).and_then(|id| u64::from_str_radix(id, 16).ok());
            let bytes = DataKeyRow::read(row).and_then(|(_, wrapped)| self.kek.open(&row.key, 0, &wrapped).ok());
            let (Some(id), Some(bytes)) = (id, bytes) else {
                tracing::warn!(row = row.key, "a data key does not open with this machine's KEK");
                closed += 1;
                keys.extend(known.iter().find(|key| id.is_some_and(|id| key.id == id.to_be_bytes())).cloned());
                continue;
            };
            keys.push(Arc::new(Key::new(id.to_be_bytes(), &bytes)?));
        }
        self.keys.store(Arc::new(keys));
        Ok(closed)
    }

    /// Makes a data key; what is sealed after the next [`Self::reload`] is sealed under it. There is one first key: a
    /// second machine that wants to make it gets a conflict.
    async fn add(&self, rows: &dyn Rows) -> Result<(), SealError> {
        // The first has a name of its own, so that two machines cannot both make it.
        self.make(1, 0, rows).await
    }

    async fn make(&self, id: u64, made: u64, rows: &dyn Rows) -> Result<(), SealError> {
        let key = format!("{SEAL_PREFIX}{id:016x}");
        let data_key = random::<KEY_BYTES>().map_err(|_| SealError::Library)?;
        let wrapped = STANDARD.encode(self.kek.seal(&key, 0, &*data_key)?);
        let value = DataKeyRow { wrapped, made }.encode()?;
        rows.compare_and_set(&key, None, Some(&value)).await?;
        Ok(())
    }

    /// Whether this was sealed under a data key that is known here and in use no more.
    #[must_use]
    pub fn is_superseded(&self, sealed: &[u8]) -> bool {
        let (keys, parts) = (self.keys.load(), parts(sealed));
        let older = keys.split_last().map_or(&[][..], |(_, older)| older);
        parts.is_some_and(|parts| older.iter().any(|key| key.id == parts.id))
    }

    /// Seals `plain` for the row `name`, in this generation of it.
    ///
    /// # Errors
    /// [`SealError::Library`].
    pub fn seal(&self, name: &str, generation: u64, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let keys = self.keys.load();
        keys.last().ok_or(SealError::Library)?.seal(&about(name, generation), plain)
    }

    /// Opens what was sealed for the row `name` in this generation of it.
    ///
    /// # Errors
    /// [`SealError::Forged`], [`SealError::UnknownKey`]: then [`Self::reload`] may help.
    pub fn open(&self, name: &str, generation: u64, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let keys = self.keys.load();
        open_with(keys.iter().map(|key| &**key), name, generation, sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Memory;

    pub(super) fn kek(dir: &Path, name: &str, lines: &str) -> Arc<Kek> {
        std::fs::write(dir.join(name), lines).unwrap();
        Arc::new(Kek::from_file(&dir.join(name)).unwrap())
    }

    pub(super) fn line(byte: u8) -> String {
        format!("{}\n", STANDARD.encode([byte; KEY_BYTES]))
    }

    #[tokio::test]
    async fn what_is_sealed_opens_on_every_pop_with_the_kek_in_its_own_row_and_generation_alone() {
        let (dir, rows) = (tempfile::tempdir().unwrap(), Memory::default());
        let near = Sealer::load(&kek(dir.path(), "a", &line(1)), &rows).await.unwrap();
        let far = Sealer::load(&kek(dir.path(), "a", &line(1)), &rows).await.unwrap();
        let sealed = near.seal("cert/x/1", 1, b"secret").unwrap();
        assert_eq!(far.open("cert/x/1", 1, &sealed).unwrap().as_slice(), b"secret");
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        for (name, generation) in [("cert/y/1", 1), ("cert/x/1", 2), ("cert/x/", 1)] {
            assert!(matches!(far.open(name, generation, &sealed), Err(SealError::Forged(_))), "{name} {generation}");
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(far.open("cert/x/1", 1, &changed).is_err(), "byte {at}");
            assert!(far.open("cert/x/1", 1, &sealed[..at]).is_err(), "{at} bytes");
        }
        // Without the store, from what was kept of it.
        let kept = far.reload(&rows).await.unwrap().rows;
        let apart = Sealer::of(&kek(dir.path(), "a", &line(1)), kept.clone()).unwrap();
        assert_eq!(apart.open("cert/x/1", 1, &sealed).unwrap().as_slice(), b"secret");
        assert!(Sealer::of(&kek(dir.path(), "b", &line(2)), kept).is_none());
        assert!(Sealer::of(&kek(dir.path(), "a", &line(1)), Vec::new()).is_none());
        let stranger = Sealer::load(&kek(dir.path(), "b", &line(2)), &rows).await;
        assert!(matches!(stranger, Err(SealError::UnknownKey(_))), "{stranger:?}");
    }

    #[test]
    fn what_a_kek_seals_opens_with_any_key_of_its_file_for_its_own_row_and_generation() {
        let dir = tempfile::tempdir().unwrap();
        let (name, old) = ("stek/normal/1", kek(dir.path(), "old", &line(1)));
        let sealed = old.seal(name, 1, b"secret").unwrap();
        let both = kek(dir.path(), "both", &(line(2) + &line(1)));
        assert_eq!(both.open(name, 1, &sealed).unwrap().as_slice(), b"secret");
        assert!(both.open("stek/normal/2", 1, &sealed).is_err() && both.open(name, 2, &sealed).is_err());
        for at in 0..sealed.len() {
            assert!(both.open(name, 1, &sealed[..at]).is_err(), "{at} bytes");
        }
        assert!(kek(dir.path(), "new", &line(2)).open(name, 1, &sealed).is_err());
    }

    #[test]
    fn a_kek_file_says_what_is_wrong_with_it_and_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kek");
        assert!(Kek::from_file(&path).unwrap_err().to_string().contains("kek"));
        for (text, said) in [("\n", "it is empty"), ("AAAA\n", "line 1"), (&(line(1) + "x"), "line 2")] {
            std::fs::write(&path, text).unwrap();
            let error = Kek::from_file(&path).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        let first = Kek::from_file_or_new(&path).unwrap();
        let second = Kek::from_file_or_new(&path).unwrap();
        assert_eq!(first.keys[0].id, second.keys[0].id);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
