//! Another key encryption key: which one each PoP knows, and every data key under the one this PoP has first.

use super::FromCas;
use super::asked::AskError;
use super::causes::Keys;
use acme::seal::Sealer;
use acme::unix_now;
use serde_json::{Map, Value, json};
use std::sync::Arc;

impl FromCas {
    /// Which key encryption keys PoPs know, and which one each data key is wrapped under.
    ///
    /// # Errors
    /// [`AskError`].
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub(crate) async fn keks(&self) -> Result<Value, AskError> {
        let sealer = self.open_sealer()?;
        let keys = sealer.data_keys(&*self.rows).await?;
        let key = |key: &acme::seal::DataKey| json!({ "id": key.id, "wrapped_under": key.kek, "made": key.made, "in_use": key.in_use });
        let pops: Map<_, _> = self.pops.keks().into_iter().map(|(pop, knows)| (pop, knows.into())).collect();
        Ok(json!({ "data_keys": keys.iter().map(key).collect::<Vec<_>>(), "pops": pops }))
    }

    /// Wraps every data key under the key encryption key this PoP has first, and makes another data key when `another`:
    /// from then on that one is used.
    ///
    /// # Errors
    /// [`AskError::Kek`] while a PoP that lives does not know it: nothing is written.
    ///
    /// # Cancel safety
    /// What is wrapped stays so; call it again.
    pub(crate) async fn rewrap(&self, another: bool) -> Result<Value, AskError> {
        let sealer = self.open_sealer()?;
        let pops = self.pops.keks();
        let kek = pops.first().and_then(|(_, knows)| knows.first()).cloned().unwrap_or_default();
        let strangers = pops.iter().filter(|(_, knows)| !knows.contains(&kek)).map(|(pop, _)| pop.clone());
        let strangers: Vec<_> = strangers.collect();
        if !strangers.is_empty() {
            return Err(AskError::Kek { kek, strangers: strangers.join(", ") });
        }
        let rewrapped = sealer.rewrap(&*self.rows).await?;
        if another {
            sealer.another(&*self.rows, unix_now()).await?;
        }
        let found = sealer.reload(&*self.rows).await?;
        self.sealed.heard(&found);
        tracing::info!(kek, rewrapped, another, "the data keys are wrapped under this key encryption key");
        Ok(json!({ "kek": kek, "rewrapped": rewrapped, "data_keys": found.rows.len() }))
    }

    /// What opens and seals here.
    pub(super) fn open_sealer(&self) -> Result<Arc<Sealer>, AskError> {
        if let Keys::Away(why) | Keys::Wrong(why) = &*self.sealed.keys() {
            return Err(AskError::Keys(why.clone()));
        }
        self.sealed.sealer().ok_or_else(|| AskError::Keys("they are being read".into()))
    }
}
