//! The copy of the store's certificates on this machine's disk: what a start without the store serves, and where a
//! handshake's certificate lies until it is asked for.
//!
//! It is a cache. Whatever is in it the store has too, and keys in it are sealed as they are there.

use super::packed::{Packed, Parts, pack, unpack};
use super::summary::{Stored, Summary};
use aws_lc_rs::digest::{SHA256, digest};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition};
use router::store::Cursor;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Key of the store's row → what is kept in memory of it.
const INDEX: TableDefinition<'_, &str, Stored> = TableDefinition::new("index");
/// Number → key and value of the store's row (`packed.rs`).
const ROWS: TableDefinition<'_, u64, (&str, &[u8], Option<Rest<'_>>)> = TableDefinition::new("rows");
/// What is not in the JSON of a row: leaf, digests of its issuers, whether empty lines are between them, key.
type Rest<'a> = (&'a [u8], &'a [u8], bool, &'a [u8]);
/// The first half of the SHA-256 of an intermediate certificate → the certificate.
const ISSUERS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("issuers");
/// Key → value of the store's rows `seal/`: data keys, themselves sealed.
const DATA_KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("data-keys");
/// `format`, `next`, `epoch`, `version`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Of what is in these tables: another one is begun anew.
const FORMAT: u64 = 3;
/// Intermediate certificates that lie once for all (chosen: a CA has some ten at a time; rows with others lie as they are).
const ISSUERS_MAX: u64 = 4_096;
/// Memory for its pages, bytes (chosen: it is read at a start and at first handshakes).
const CACHE: usize = 16 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Disk {
    database: Database,
}

/// A change of the copy.
#[derive(Debug)]
pub(super) enum Change {
    /// A row whose chain and key lie under this number from now on; the number they lay under before.
    Put { key: String, value: Vec<u8>, summary: Summary, was: Option<u64> },
    /// It is gone, with what lies under its number.
    Gone { key: String, number: u64 },
    /// Only what is kept in memory of it is another.
    Noted { key: String, summary: Summary },
}

pub(super) type Result<T> = std::result::Result<T, redb::Error>;

impl Disk {
    /// Opens the file; one of another format is begun anew.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let database = Self::create(path)?;
        match Self::format_of(&database)? {
            // A new one, or ours.
            None | Some(FORMAT) => Self::begin(database),
            Some(other) => {
                tracing::info!(path = %path.display(), other, "the copy of certificates is of another version, and is begun anew");
                drop(database);
                std::fs::remove_file(path).map_err(redb::Error::Io)?;
                Self::begin(Self::create(path)?)
            }
        }
    }

    /// Before any other table is opened: one of other types is an error there.
    fn format_of(database: &Database) -> Result<Option<u64>> {
        match database.begin_read()?.open_table(META) {
            Ok(meta) => Ok(meta.get("format")?.map(|format| format.value())),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn create(path: &Path) -> Result<Database> {
        let database = Database::builder().set_cache_size(CACHE).create(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(redb::Error::Io)?;
        Ok(database)
    }

    #[cfg(test)]
    pub(super) fn in_memory() -> Self {
        let backend = redb::backends::InMemoryBackend::new();
        Self::begin(Database::builder().create_with_backend(backend).unwrap()).unwrap()
    }

    fn begin(database: Database) -> Result<Self> {
        let write = database.begin_write()?;
        {
            let (mut meta, index) = (write.open_table(META)?, write.open_table(INDEX)?);
            if index.first()?.is_none() && meta.get("format")?.is_none() {
                meta.insert("format", FORMAT)?;
            }
            write.open_table(ROWS)?;
            write.open_table(ISSUERS)?;
            write.open_table(DATA_KEYS)?;
        }
        write.commit()?;
        Ok(Self { database })
    }

    /// All that is to be kept in memory, in order of keys.
    pub(super) fn index(&self, mut take: impl FnMut(&str, Summary)) -> Result<()> {
        let index = self.database.begin_read()?.open_table(INDEX)?;
        for row in index.iter()? {
            let (key, stored) = row?;
            take(key.value(), stored.value().into());
        }
        Ok(())
    }

    /// The number the next chain lies under.
    pub(super) fn next_number(&self) -> Result<u64> {
        Ok(self.meta("next")?.unwrap_or(1))
    }

    /// How far the copy is.
    pub(super) fn cursor(&self) -> Result<Option<Cursor>> {
        Ok(self.meta("epoch")?.zip(self.meta("version")?).map(|(epoch, version)| Cursor { epoch, version }))
    }

    fn meta(&self, key: &str) -> Result<Option<u64>> {
        let meta = self.database.begin_read()?.open_table(META)?;
        Ok(meta.get(key)?.map(|value| value.value()))
    }

    /// Key and value of the store's row whose chain lies under this number.
    pub(super) fn row(&self, number: u64) -> Result<Option<(String, Vec<u8>)>> {
        let read = self.database.begin_read()?;
        let (rows, known) = (read.open_table(ROWS)?, read.open_table(ISSUERS)?);
        let Some(row) = rows.get(number)? else { return Ok(None) };
        let (key, rest, parts) = row.value();
        let parts = match parts {
            None => None,
            Some((leaf, digests, has_gaps, sealed)) => {
                let mut issuers = Vec::new();
                for digest in digests.as_chunks().0 {
                    let Some(issuer) = known.get(u128::from_be_bytes(*digest))? else { return Ok(None) };
                    issuers.push(issuer.value().to_vec());
                }
                Some(Parts { leaf: leaf.to_vec(), issuers, has_gaps, key: sealed.to_vec() })
            }
        };
        let value = unpack(key, &Packed { rest: rest.to_vec(), parts });
        Ok(value.map(|value| (key.to_owned(), value)))
    }

    /// Makes these changes at once. With `cursor` the copy is whole up to there, and on the disk when this returns;
    /// without one it may be lost, and is heard again.
    pub(super) fn write(&self, changes: &[Change], next: u64, cursor: Option<Cursor>) -> Result<()> {
        let mut write = self.database.begin_write()?;
        if cursor.is_none() {
            write.set_durability(Durability::None)?;
        }
        {
            let (mut index, mut rows) = (write.open_table(INDEX)?, write.open_table(ROWS)?);
            let mut issuers = write.open_table(ISSUERS)?;
            for change in changes {
                match change {
                    Change::Put { key, value, summary, was } => {
                        if let Some(was) = was.filter(|was| *was != summary.number) {
                            rows.remove(was)?;
                        }
                        let packed = pack(key, value);
                        match packed.parts.as_ref().map(|parts| intern(&mut issuers, parts)).transpose()?.flatten() {
                            Some((parts, digests)) => {
                                let Parts { leaf, has_gaps, key: sealed, .. } = parts;
                                let parts = (leaf.as_slice(), digests.as_slice(), *has_gaps, sealed.as_slice());
                                rows.insert(summary.number, (key.as_str(), packed.rest.as_slice(), Some(parts)))?;
                            }
                            None => drop(rows.insert(summary.number, (key.as_str(), value.as_slice(), None))?),
                        }
                        index.insert(key.as_str(), summary.stored())?;
                    }
                    Change::Gone { key, number } => {
                        rows.remove(number)?;
                        index.remove(key.as_str())?;
                    }
                    Change::Noted { key, summary } => drop(index.insert(key.as_str(), summary.stored())?),
                }
            }
            let mut meta = write.open_table(META)?;
            meta.insert("next", next)?;
            if let Some(Cursor { epoch, version }) = cursor {
                meta.insert("epoch", epoch)?;
                meta.insert("version", version)?;
            }
        }
        write.commit()?;
        Ok(())
    }

    /// The data keys of the last run.
    pub(super) fn data_keys(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let table = self.database.begin_read()?.open_table(DATA_KEYS)?;
        let mut all = Vec::new();
        for row in table.iter()? {
            let (key, value) = row?;
            all.push((key.value().to_owned(), value.value().to_vec()));
        }
        Ok(all)
    }

    /// Replaces them.
    pub(super) fn keep_data_keys<'a>(&self, all: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<()> {
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(DATA_KEYS)?;
            table.retain(|_, _| false)?;
            for (key, value) in all {
                table.insert(key, value)?;
            }
        }
        write.commit()?;
        Ok(())
    }
}

/// Sees to it that the issuers of a row are there; their digests. Nothing when there is no room for them.
fn intern<'a>(issuers: &mut Table<'_, u128, &[u8]>, parts: &'a Parts) -> Result<Option<(&'a Parts, Vec<u8>)>> {
    let mut digests = Vec::with_capacity(parts.issuers.len() * size_of::<u128>());
    for issuer in &parts.issuers {
        let digest = digest(&SHA256, issuer);
        let Some(half) = digest.as_ref().first_chunk() else { return Ok(None) };
        let number = u128::from_be_bytes(*half);
        if issuers.get(number)?.is_none() {
            if issuers.len()? >= ISSUERS_MAX {
                return Ok(None);
            }
            issuers.insert(number, issuer.as_slice())?;
        }
        digests.extend_from_slice(half);
    }
    Ok(Some((parts, digests)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use acme::certificate::CertRow;

    #[test]
    fn a_copy_of_another_version_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("certificates");
        const OLD: TableDefinition<'_, &str, (u64, u8)> = TableDefinition::new("index");
        let old = Database::builder().create(&path).unwrap();
        let write = old.begin_write().unwrap();
        write.open_table(OLD).unwrap().insert("cert/a/1", (1, 2)).unwrap();
        write.open_table(META).unwrap().insert("format", FORMAT - 1).unwrap();
        write.commit().unwrap();
        drop(old);
        let disk = Disk::open(&path).unwrap();
        disk.index(|key, _| panic!("{key}")).unwrap();
        drop(disk);
        // And one of this version is not.
        let disk = Disk::open(&path).unwrap();
        disk.write(&[], 7, None).unwrap();
        disk.keep_data_keys(std::iter::once(("seal/1", &b"x"[..]))).unwrap();
        drop(disk);
        assert_eq!(Disk::open(&path).unwrap().data_keys().unwrap().len(), 1);
    }

    #[test]
    fn rows_of_one_ca_share_its_certificates_and_come_back_as_they_were() {
        use super::super::packed::tests::{certificate, row};
        let disk = Disk::in_memory();
        let (issuer, other) = (certificate("issuer"), certificate("other"));
        let value = |name: &str, issuer: &str| row(&[name], certificate(name) + issuer).encode();
        let values =
            [value("a.example", &issuer), value("b.example", &issuer), value("c.example", &other), b"{}".to_vec()];
        let key = |number: u64| format!("cert/domain.{}.example/0000000007", ["a", "b", "c", "d"][number as usize]);
        let found: CertRow = serde_json::from_slice(&values[0]).unwrap();
        let puts = (0..).zip(&values).map(|(number, value)| {
            let summary = Summary::of("domain.a.example", &found, number, false);
            Change::Put { key: key(number), value: value.clone(), summary, was: None }
        });
        disk.write(&puts.collect::<Vec<_>>(), 9, None).unwrap();
        for (number, value) in (0..).zip(values) {
            assert_eq!(disk.row(number).unwrap(), Some((key(number), value)));
        }
        assert_eq!(disk.database.begin_read().unwrap().open_table(ISSUERS).unwrap().len().unwrap(), 2);
    }
}
