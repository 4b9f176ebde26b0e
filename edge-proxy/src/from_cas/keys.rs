//! Whether secrets in rows open on this machine.

use super::rows::StoreRows;
use acme::seal::{Kek, SealError, Sealer};
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::time::Duration;

/// Pause between two tries to read the data keys from a store that is away (chosen).
const AGAIN: Duration = Duration::from_secs(2);

/// How that is.
#[derive(Debug)]
pub(super) enum KeysHere {
    /// They do.
    Open(Arc<Sealer>),
    /// The store has not said the data keys.
    Away(String),
    /// The KEK is not the fleet's.
    Wrong(String),
}

/// As it is known.
#[derive(Debug)]
pub(super) struct Keys(ArcSwap<KeysHere>);

impl Default for Keys {
    fn default() -> Self {
        Self(ArcSwap::from_pointee(KeysHere::Away("the store has not been asked yet".into())))
    }
}

impl Keys {
    pub(super) fn state(&self) -> Arc<KeysHere> {
        self.0.load_full()
    }

    /// The data keys, as soon as the store says them; `None` when the KEK is not the fleet's: nothing can be done then.
    pub(super) async fn open(&self, kek: Kek, rows: &StoreRows) -> Option<Arc<Sealer>> {
        let kek = Arc::new(kek);
        loop {
            match Sealer::load(&kek, rows).await {
                Ok(sealer) => {
                    let sealer = Arc::new(sealer);
                    self.0.store(Arc::new(KeysHere::Open(Arc::clone(&sealer))));
                    return Some(sealer);
                }
                Err(SealError::Rows(error)) => {
                    tracing::warn!(%error, "the keys of certificates are not read yet");
                    self.0.store(Arc::new(KeysHere::Away(error.to_string())));
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => {
                    tracing::error!(%error, "certificates from CAs are neither served nor ordered: acme.kek_file is another than the fleet's");
                    self.0.store(Arc::new(KeysHere::Wrong(error.to_string())));
                    return None;
                }
            }
        }
    }
}
