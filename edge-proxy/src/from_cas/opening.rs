//! Opens certificates that lie sealed on this machine's disk, when a handshake asks for the first time, and keeps the data
//! keys that open them: also without the store, from what was kept of it.

use super::causes::Keys;
use super::rows::StoreRows;
use super::table::{CertificateRow, CertificateTable};
use acme::certificate::sealed_as;
use acme::order::verify;
use acme::resolver::{Certificate, Handle, OpenError, SealedStore};
use acme::seal::{Kek, Reloaded, SealError, Sealer};
use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;

/// Pause between two tries to read the data keys from a store that is away (chosen).
const AGAIN: Duration = Duration::from_secs(2);
/// Shortest time between two looks for a data key that is not known (chosen: a row that names a key which is nowhere must
/// not keep the store busy).
const LOOK: Duration = Duration::from_secs(5);

/// Longest time between two looks at the data keys: another one is in use everywhere after it, and what lies on this
/// machine's disk is wrapped under the KEK of now (chosen: they are a few rows).
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// The table, and what opens it as soon as that is known.
#[derive(Debug)]
pub struct SealedCertificates {
    table: Arc<CertificateTable>,
    sealer: OnceLock<Arc<Sealer>>,
    keys: ArcSwap<Keys>,
    /// Something was sealed under a data key that is not known here.
    unknown: Notify,
}

impl SealedCertificates {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(table: Arc<CertificateTable>) -> Arc<Self> {
        let keys = ArcSwap::from_pointee(Keys::Away("the store has not been asked yet".into()));
        Arc::new(Self { table, sealer: OnceLock::new(), keys, unknown: Notify::new() })
    }

    /// Whether they open.
    pub(super) fn keys(&self) -> Arc<Keys> {
        self.keys.load_full()
    }

    /// What opens and seals, as soon as that is known.
    pub(super) fn sealer(&self) -> Option<Arc<Sealer>> {
        self.sealer.get().cloned()
    }

    /// The certificates, sealed.
    #[must_use]
    pub const fn table(&self) -> &Arc<CertificateTable> {
        &self.table
    }

    /// Opens the one whose chain lies under this number. Blocks, for a disk at most.
    ///
    /// # Errors
    /// In words: it is gone, no data key of ours opens it, or the key is not the chain's.
    pub fn open_number(&self, number: u64) -> anyhow::Result<Certificate> {
        let found = self.table.row(number).ok_or_else(|| anyhow::anyhow!("it is not on this machine's disk"))?;
        self.open_row(&found)
    }

    fn open_row(&self, found: &CertificateRow) -> anyhow::Result<Certificate> {
        let sealer = self.sealer.get().ok_or_else(|| anyhow::anyhow!("the data keys are not read yet"))?;
        let sealed = STANDARD.decode(&found.row.sealed_key)?;
        let key = sealer.open(&sealed_as(&found.wish), found.row.generation, &sealed).inspect_err(|error| {
            if matches!(error, SealError::UnknownKey(_)) {
                self.unknown.notify_one();
            }
        })?;
        Ok(Arc::new(verify::read(&found.row.chain, &key)?.key).into())
    }

    /// The data keys, as soon as they are known; `None` when the KEK is not the fleet's: nothing can be done then.
    ///
    /// # Cancel safety
    /// Dropping it changes nothing.
    pub(super) async fn unlock(&self, kek: Kek, rows: &StoreRows) -> Option<Arc<Sealer>> {
        let kek = Arc::new(kek);
        let sealer = match Sealer::of(&kek, self.table.data_keys()) {
            Some(kept) => kept,
            None => loop {
                match Sealer::load(&kek, rows).await {
                    Ok(sealer) => break sealer,
                    Err(SealError::Rows(error)) => {
                        tracing::warn!(%error, "the keys of certificates are not read yet");
                        self.keys.store(Arc::new(Keys::Away(error.to_string())));
                        tokio::time::sleep(AGAIN).await;
                    }
                    Err(error) => {
                        tracing::error!(%error, "certificates from CAs are neither served nor ordered: acme.kek_file is another than the fleet's");
                        self.keys.store(Arc::new(Keys::Wrong(error.to_string())));
                        return None;
                    }
                }
            },
        };
        let sealer = Arc::new(sealer);
        // This is the only one who sets it.
        let _ = self.sealer.set(Arc::clone(&sealer));
        self.keys.store(Arc::new(Keys::Open));
        Some(sealer)
    }

    /// Reads the data keys again, now and whenever one is not known; never returns.
    pub(super) async fn keep(self: Arc<Self>, sealer: Arc<Sealer>, rows: Arc<StoreRows>, known: impl Fn() + Send) {
        loop {
            match sealer.reload(&*rows).await {
                Ok(found) => {
                    self.heard(&found);
                    known();
                    tokio::time::sleep(LOOK).await;
                    // What is unknown is looked for at once; nobody who waits for a new key is told of it.
                    let _ = tokio::time::timeout(LOOK_EVERY, self.unknown.notified()).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "the data keys are not read again yet");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Keeps the rows of data keys for a start without the store, unless this machine could do nothing with them.
    pub(super) fn heard(&self, found: &Reloaded) {
        if found.closed > 0 {
            let why = format!("{} of {} data keys are sealed under another", found.closed, found.rows.len());
            return self.keys.store(Arc::new(Keys::Wrong(why)));
        }
        self.keys.store(Arc::new(Keys::Open));
        self.table.keep_data_keys(&found.rows);
    }
}

impl SealedStore for SealedCertificates {
    fn open(&self, handle: Handle) -> Result<Certificate, OpenError> {
        self.open_number(handle.number()).map_err(|error| OpenError::Store(error.to_string()))
    }
}
