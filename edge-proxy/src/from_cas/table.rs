//! The certificates there are, as the store says: kept on disk, so that a start without it serves them.

use acme::certificate::{CERT_PREFIX, CertRow, cert_key, parse_cert_key};
use router::registry::{Registry, RegistryRow};
use router::rows::RowError;
use std::sync::Arc;

/// A row `cert/ID/GENERATION`.
#[derive(Clone, Debug)]
pub struct CertificateRow {
    /// Of which wish.
    pub wish: String,
    /// What it says.
    pub row: Arc<CertRow>,
}

impl CertificateRow {
    pub(super) fn key((wish, generation): &(String, u64)) -> String {
        cert_key(wish, *generation)
    }
}

impl RegistryRow for CertificateRow {
    type Id = (String, u64);
    const PREFIX: &'static str = CERT_PREFIX;
    const WHAT: &'static str = "certificate";

    fn id(&self) -> Self::Id {
        (self.wish.clone(), self.row.generation)
    }

    fn id_in(key: &str) -> Option<Self::Id> {
        let (wish, generation) = parse_cert_key(key)?;
        Some((wish.to_owned(), generation))
    }

    fn encode(&self) -> Vec<u8> {
        self.row.encode()
    }

    fn decode(key: &str, value: &[u8]) -> Result<Self, RowError> {
        let row: CertRow = serde_json::from_slice(value).map_err(RowError::Value)?;
        match parse_cert_key(key) {
            Some((wish, generation)) if generation == row.generation => {
                Ok(Self { wish: wish.to_owned(), row: Arc::new(row) })
            }
            _ => Err(RowError::Field("generation")),
        }
    }
}

/// All of them.
pub type CertificateTable = Registry<CertificateRow>;

/// The newest of a wish.
pub(super) fn newest(table: &CertificateTable, wish: &str) -> Option<Arc<CertRow>> {
    table.last_in((wish.to_owned(), 0)..=(wish.to_owned(), u64::MAX)).map(|row| Arc::clone(&row.row))
}
