//! CAs that visitors trust no more: a row for each, and within a second every PoP answers by another CA's certificates.

use super::FromCas;
use super::asked::AskError;
use super::table::ca_number;
use acme::rows::{Rows as _, RowsError};
use acme::unix_now;
use router::registry::{self, Registry, RegistryRow};
use router::rows::RowError;
use router::store::Store;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

const PREFIX: &str = "distrust/";
/// Tries of one write against others' (chosen: nobody writes it but a person).
const TRIES: usize = 4;

/// A row `distrust/CA`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DistrustRow {
    ca: String,
    /// Since when, seconds since 1970.
    since: u64,
}

impl RegistryRow for DistrustRow {
    type Id = String;
    const PREFIX: &'static str = PREFIX;
    const WHAT: &'static str = "CA that is trusted no more";
    const MAY_ALL_GO: bool = true;

    fn id(&self) -> String {
        self.ca.clone()
    }

    fn id_in(key: &str) -> Option<String> {
        key.strip_prefix(PREFIX).map(str::to_owned)
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn decode(key: &str, value: &[u8]) -> Result<Self, RowError> {
        let row: Self = serde_json::from_slice(value).map_err(RowError::Value)?;
        match Self::id_in(key).as_deref() == Some(&row.ca) {
            true => Ok(row),
            false => Err(RowError::Field("ca")),
        }
    }
}

/// Which CAs those are. Nearly always none.
#[derive(Default)]
pub(super) struct Distrusted(Arc<Registry<DistrustRow>>);

impl Distrusted {
    /// Follows the rows, kept in `file` for a start without the store.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(super) fn follow(store: &Store, file: PathBuf) -> std::io::Result<Arc<Self>> {
        let this = Self::default();
        this.0.load(&file)?;
        let key = |ca: &String| format!("{PREFIX}{ca}");
        tokio::spawn(registry::follow(Arc::clone(store), Arc::clone(&this.0), key, file));
        Ok(Arc::new(this))
    }

    pub(super) fn is(&self, ca: &str) -> bool {
        self.0.all().iter().any(|row| row.ca == ca)
    }

    /// Whether this is the number of one of them ([`ca_number`]).
    pub(super) fn is_number(&self, number: u32) -> bool {
        self.numbers().contains(&number)
    }

    /// Their numbers: for who asks for many.
    pub(super) fn numbers(&self) -> Vec<u32> {
        self.0.all().iter().map(|row| ca_number(&row.ca)).collect()
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes()
    }

    /// As if the store had said so.
    #[cfg(test)]
    pub(super) async fn set(rows: &super::rows::StoreRows, ca: &str) {
        let row = DistrustRow { ca: ca.into(), since: 1 };
        rows.compare_and_set(&format!("{PREFIX}{ca}"), None, Some(&row.encode())).await.unwrap();
    }
}

impl FromCas {
    /// From now on a CA's certificates are the last resort on every PoP, and nothing more is ordered of it; or no more so.
    /// No certificate is revoked, and none is lost.
    ///
    /// # Errors
    /// [`AskError::Ca`]; [`AskError::LastCa`] when nothing could take its place.
    ///
    /// # Cancel safety
    /// It may be done; call it again.
    pub(crate) async fn distrust(&self, ca: &str, is: bool) -> Result<Value, AskError> {
        // One that is configured no more may still have certificates.
        if is && !self.wishes.ca_names().any(|name| name == ca) && !self.certificates.has_of(ca_number(ca)) {
            return Err(AskError::Ca(ca.to_owned()));
        }
        let left: Vec<_> = self.wishes.ca_names().filter(|name| name != ca && !self.distrusted.is(name)).collect();
        if is && left.is_empty() {
            return Err(AskError::LastCa(ca.to_owned()));
        }
        let key = format!("{PREFIX}{ca}");
        let value = is.then(|| DistrustRow { ca: ca.to_owned(), since: unix_now() }.encode());
        for _ in 0..TRIES {
            let present = self.rows.get(&key).await?;
            if present.is_some() == is {
                return Ok(json!({ "ca": ca, "distrusted": is, "instead": left }));
            }
            match self.rows.compare_and_set(&key, present.map(|row| row.version), value.as_deref()).await {
                Ok(_) => tracing::warn!(ca, distrusted = is, "whether a CA is trusted was changed"),
                Err(RowsError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(RowsError::Conflict.into())
    }
}
