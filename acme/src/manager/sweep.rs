//! Takes away rows of limits that say nothing any more.

use super::Manager;
use crate::lease::shard;
use crate::limits::{Bucket, LIMIT_PREFIX};
use crate::rows::RowsError;
use std::sync::Arc;
use std::time::Duration;

/// How often (chosen: names leave a row each time they are proved, full again within hours).
pub(super) const SWEEP: Duration = Duration::from_secs(24 * 3600);

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
        }
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
}
