//! Takes away rows that say nothing any more: limits that are full again, certificates that nobody wants or could use,
//! orders that are done or were given up.

use super::Manager;
use super::decide::{Todo, todo};
use crate::certificate::{CertRow, cert_key};
use crate::lease::shard;
use crate::limits::{Bucket, LIMIT_PREFIX};
use crate::order::{DAY, ORDER_PREFIX, OrderRow};
use crate::rows::RowsError;
use std::sync::Arc;
use std::time::Duration;

/// How often (chosen: names leave a row each time they are proved, full again within hours).
pub(super) const SWEEP: Duration = Duration::from_secs(24 * 3600);
/// How often is looked for orders whose PoP died between its last two writes (chosen: such a row costs a look at the next
/// renewal, and nothing before).
const TIDY: Duration = Duration::from_secs(600);
/// A certificate that is wanted no more stays for so long after its end, seconds (chosen: whoever asks why a name was
/// not served asks within a month).
const ENDED: u64 = 30 * DAY;
/// Certificates that one sweep takes away (chosen: the next one takes more).
const AT_A_TIME: usize = 10_000;

impl Manager {
    /// Sweeps now and then; never returns.
    pub(super) async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            // Another one sweeps, or the store is away: the next time.
            if self.hold(shard(LIMIT_PREFIX)).await.is_err() {
                continue;
            }
            if let Err(error) = self.take_away_full().await {
                tracing::info!(%error, "full limits stay in the store until the next time");
            }
            if let Err(error) = self.take_away_ended().await {
                tracing::info!(%error, "certificates that have ended stay in the store until the next time");
            }
        }
    }

    /// Looks for orders that nobody will look at again; never returns.
    pub(super) async fn tidy(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TIDY).await;
            if self.hold(shard(ORDER_PREFIX)).await.is_err() {
                continue;
            }
            if let Err(error) = self.take_away_done().await {
                tracing::info!(%error, "orders that are done stay in the store until the next time");
            }
        }
    }

    async fn take_away_done(&self) -> Result<(), RowsError> {
        let now = self.clock.now();
        for found in self.issuer.rows.scan(ORDER_PREFIX).await? {
            let Some(id) = found.key.strip_prefix(ORDER_PREFIX) else { continue };
            let Ok(row) = serde_json::from_slice::<OrderRow>(&found.value) else { continue };
            let wish = self.wishes.find(id);
            let newest = wish.as_ref().and_then(|wish| self.wishes.newest_of(wish));
            let is_done = newest.is_some_and(|newest| newest.generation >= row.generation);
            let is_idle = match todo(newest, now) {
                _ if wish.is_none() => row.began.saturating_add(DAY) < now,
                // It is not due any more, whatever it waits for: its CA moved the window, or is trusted again.
                Todo::Nothing(_) | Todo::AskWindow => row.began.saturating_add(TIDY.as_secs()) < now,
                Todo::Order => false,
            };
            if !is_done && !is_idle {
                continue;
            }
            match self.issuer.rows.compare_and_set(&found.key, Some(found.version), None).await {
                Ok(_) => tracing::debug!(id, is_done, "an order that nobody would have looked at again is gone"),
                // Whoever works on it has done so.
                Err(RowsError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn take_away_full(&self) -> Result<(), RowsError> {
        let now = self.clock.now();
        for row in self.issuer.rows.scan(LIMIT_PREFIX).await? {
            let full = serde_json::from_slice::<Bucket>(&row.value).is_ok_and(|bucket| bucket.full_at <= now);
            if full {
                match self.issuer.rows.compare_and_set(&row.key, Some(row.version), None).await {
                    // Somebody takes from it just now.
                    Ok(_) | Err(RowsError::Conflict) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    async fn take_away_ended(&self) -> Result<(), RowsError> {
        let now = self.clock.now();
        let ended = self.wishes.ended_before(now.saturating_sub(ENDED)).into_iter();
        for (id, generation) in ended.filter(|(id, _)| self.wishes.find(id).is_none()).take(AT_A_TIME) {
            let key = cert_key(&id, generation);
            let Some(found) = self.issuer.rows.get(&key).await? else { continue };
            let Ok(row) = serde_json::from_slice::<CertRow>(&found.value) else { continue };
            if row.not_after + ENDED > now || row.is_being_withdrawn(now) {
                continue;
            }
            match self.issuer.rows.compare_and_set(&key, Some(found.version), None).await {
                Ok(_) => tracing::debug!(id, generation, "a certificate that has ended and is wanted no more is gone"),
                Err(RowsError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
