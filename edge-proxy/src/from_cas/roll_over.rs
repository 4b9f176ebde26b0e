//! Another key for the account at a CA, on all PoPs at once.
//!
//! From when the next key is in the row no PoP asks this CA anything. What a CA looks for is made of the account's key, so
//! it is given time to see what it was told to look for; then it is told the key. With the new one in the row, a CA is told
//! to look when every PoP answers by it ([`super::challenges`]).

use super::FromCas;
use super::asked::AskError;
use acme::account::{begin_roll_over, finish_roll_over};
use acme::ca::Kind;
use acme::order::{ORDER_PREFIX, OrderRow, Step};
use acme::rows::{Rows as _, RowsError};
use serde_json::{Value, json};
use std::time::Duration;

/// How long other PoPs have to hear of the next key (chosen: a store takes milliseconds).
const HEARD: Duration = Duration::from_secs(1);
/// How long a CA has that was told to look (chosen: it looks for seconds).
const LOOKS: Duration = Duration::from_secs(10);

impl FromCas {
    /// Changes the key of the account at `ca`, or at the first one. The account stays the same.
    ///
    /// # Errors
    /// [`AskError`]. It may have been begun: any PoP finishes it.
    ///
    /// # Cancel safety
    /// Any PoP finishes it.
    pub(crate) async fn roll_over(&self, ca: Option<&str>) -> Result<Value, AskError> {
        let none = || AskError::Ca(ca.unwrap_or_default().to_owned());
        let ca = self.accounts.ca(ca).ok_or_else(none)?;
        let sealer = self.open_sealer()?;
        begin_roll_over(ca, &*self.rows, &sealer).await?;
        tokio::time::sleep(HEARD).await;
        if self.is_looking(&ca.name).await? {
            tokio::time::sleep(LOOKS).await;
        }
        let row = finish_roll_over(ca, &*self.rows, &sealer).await?;
        tracing::info!(ca = ca.name, generation = row.generation, "the account has another key");
        Ok(json!({ "ca": ca.name, "generation": row.generation, "thumbprint": row.thumbprint }))
    }

    /// Whether the CA is looking for an answer that is made of the account's key.
    async fn is_looking(&self, ca: &str) -> Result<bool, RowsError> {
        let orders = self.rows.scan(ORDER_PREFIX).await?;
        let mut orders = orders.iter().filter_map(|row| serde_json::from_slice::<OrderRow>(&row.value).ok());
        Ok(orders.any(|order| order.ca == ca && order.kind == Kind::Http01 && order.step == Step::Asking))
    }
}
