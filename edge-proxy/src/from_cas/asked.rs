//! What people ask for: a new certificate before its time.

use super::FromCas;
use acme::account::AccountError;
use acme::certificate::{CertRow, cert_key};
use acme::rows::{Rows as _, RowsError};
use acme::seal::SealError;
use acme::unix_now;
use serde_json::{Value, json};

/// Tries of one write against others' (chosen: a certificate's row is written a few times in its life).
const TRIES: usize = 8;

/// Why it is not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// There is no such certificate.
    #[error("there is no certificate for {asked}: {why}")]
    None {
        /// For what.
        asked: String,
        /// Its cause.
        why: String,
    },
    /// No CA of this name is configured.
    #[error("no CA is called {0:?}")]
    Ca(String),
    /// Nothing could take its place.
    #[error(
        "no other CA is configured that is trusted, and nothing could take the place of what {0:?} issued: add one (acme.fallback)"
    )]
    LastCa(String),
    /// Secrets do not open here.
    #[error("secrets do not open on this machine: {0}")]
    Keys(String),
    /// Some PoP could open nothing any more.
    #[error(
        "{strangers}: the key encryption key {kek}, which is first here, is not known there: add its line to `acme.kek_file` of each, and start the edge again"
    )]
    Kek {
        /// Which key.
        kek: String,
        /// Who does not know it.
        strangers: String,
    },
    /// The data keys.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The account.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The store.
    #[error(transparent)]
    Rows(#[from] RowsError),
}

impl FromCas {
    /// Makes the certificates of a name or an id due now, from each CA; which there were. Those that order them keep to the
    /// lease, the gate and the pauses of an order that has failed.
    ///
    /// # Errors
    /// [`AskError`].
    ///
    /// # Cancel safety
    /// Some may be due; call it again.
    pub(crate) async fn renew(&self, asked: &str) -> Result<Value, AskError> {
        let mut due = Vec::new();
        for id in self.meant(asked) {
            let Some(newest) = self.certificates.newest(&id) else { continue };
            // Nobody orders it before its CA is trusted again.
            if self.wishes.is_set_aside(&id) {
                continue;
            }
            self.change(&id, newest.generation, |row| {
                row.renew_asked.is_none().then(|| CertRow { renew_asked: Some(unix_now()), ..row })
            })
            .await?;
            due.push(json!({ "id": id, "generation": newest.generation }));
        }
        match due.is_empty() {
            true => Err(self.none(asked).await),
            false => Ok(due.into()),
        }
    }

    pub(super) async fn none(&self, asked: &str) -> AskError {
        let id = self.meant(asked).into_iter().next().unwrap_or_default();
        AskError::None { asked: asked.into(), why: self.explain_id(&id).await.in_words() }
    }

    /// Writes what `change` makes of a certificate's row as it is now, if that is something else.
    pub(super) async fn change(
        &self,
        id: &str,
        generation: u64,
        change: impl Fn(CertRow) -> Option<CertRow>,
    ) -> Result<(), RowsError> {
        let key = cert_key(id, generation);
        for _ in 0..TRIES {
            let Some(found) = self.rows.get(&key).await? else { return Ok(()) };
            let row = serde_json::from_slice(&found.value);
            let row = row.map_err(|error| RowsError::Unavailable(format!("{key}: {error}")))?;
            let Some(row) = change(row) else { return Ok(()) };
            match self.rows.compare_and_set(&key, Some(found.version), Some(&row.encode())).await {
                Err(RowsError::Conflict) => {}
                written => return written.map(drop),
            }
        }
        Err(RowsError::Conflict)
    }
}
