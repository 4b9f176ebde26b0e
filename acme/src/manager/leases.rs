//! The leases this process holds on shares of the orders.

use super::{Manager, Pause};
use crate::lease::{LEASE_PREFIX, Lease, LeaseRow, Next, RENEW};
use std::convert::Infallible;
use std::sync::PoisonError;
use tokio::time::Instant;

/// Longest pause between two looks at a lease that somebody else has, seconds (chosen: a dead PoP's is missed that much
/// later, and all that is to be below the 20 s a fail-over may take).
const LOOK_MAX: u64 = 2;

impl Manager {
    /// The fence of a share, while its lease is held.
    pub(super) fn fence(&self, shard: u64) -> Option<u64> {
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.get(&shard)?.fence(Instant::now())
    }

    /// Writes the lease of a share for as long as it is awaited. One that is lost is not taken again here: whoever has
    /// it has a higher fence, and what was begun under this one cannot be written down.
    pub(super) async fn keep(&self, shard: u64) -> Infallible {
        loop {
            tokio::time::sleep(RENEW).await;
            if self.fence(shard).is_some() {
                // The store may be away; then the lease ends in its time.
                let _ = self.hold(shard).await;
            }
        }
    }

    /// Holds the lease of a share; its fence.
    pub(super) async fn hold(&self, shard: u64) -> Result<u64, Pause> {
        let key = format!("{LEASE_PREFIX}{shard}");
        let found = self.issuer.rows.get(&key).await?;
        let row =
            found.as_ref().and_then(|row| Some((serde_json::from_slice::<LeaseRow>(&row.value).ok()?, row.version)));
        let began = Instant::now();
        let with = |does: &mut dyn FnMut(&mut Lease)| {
            let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
            does(leases.entry(shard).or_insert_with(|| Lease::new(self.me.clone())));
        };
        let mut next = None;
        with(&mut |lease| next = Some(lease.look(row.as_ref().map(|(row, version)| (row, *version)), began)));
        match next {
            Some(Next::Write(wanted)) => {
                let value = serde_json::to_vec(&wanted).unwrap_or_default();
                let expected = found.map(|row| row.version);
                let version = self.issuer.rows.compare_and_set(&key, expected, Some(&value)).await?;
                with(&mut |lease| lease.wrote(&wanted, version, began));
                Ok(wanted.fence)
            }
            Some(Next::Wait(until)) => match self.fence(shard) {
                Some(fence) => Ok(fence),
                None => {
                    let wait = until.saturating_duration_since(Instant::now()).as_secs().clamp(1, LOOK_MAX);
                    Err(Pause::Until(self.clock.now() + wait))
                }
            },
            None => Err(Pause::Until(self.clock.now() + 1)),
        }
    }
}
