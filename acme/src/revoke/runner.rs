//! Does what [`Revocation::next`] says.

use super::{Act, Revocation, Step};
use crate::ca::{Authority, Class, Problem, Reply};
use crate::certificate::{CertRow, cert_key};
use crate::lease::{Lease, LeaseRow, Next};
use crate::order::verify::leaf;
use crate::rows::{Rows, RowsError};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The lease of all of them: they are rare (chosen: one for the fleet).
const LEASE: &str = "lease/revoke";
/// How often is looked while there is something to do (chosen).
const TICK: Duration = Duration::from_secs(1);
/// Things that are done about one certificate before the next (chosen: more than there are).
const ACTS_MAX: usize = 8;

/// What a revoker is told by those who have tables.
pub trait Withdrawals: Send + Sync + 'static {
    /// The certificates that are to be revoked and are not yet, by id, as this PoP knows them.
    fn pending(&self) -> Vec<(String, u64)>;

    /// Returns when that may have changed.
    ///
    /// # Cancel safety
    /// Dropping it does nothing.
    fn changed(&self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// The PoPs that live and serve this generation of an id, or do not say that they do not.
    fn served_by(&self, id: &str, generation: u64) -> Vec<String>;

    /// A CA with an account, once it could be opened.
    fn authority(&self, name: &str) -> Option<Arc<dyn Authority>>;

    /// Makes every session ticket of the fleet void. May be called again.
    fn void_tickets(&self) -> Reply<'_, ()>;
}

/// Works on revocations for as long as it runs.
pub struct Revoker {
    rows: Arc<dyn Rows>,
    world: Arc<dyn Withdrawals>,
    lease: Lease,
}

impl Revoker {
    /// For a process called `me`, unlike any other.
    #[must_use]
    pub fn new(rows: Arc<dyn Rows>, world: Arc<dyn Withdrawals>, me: String) -> Self {
        Self { rows, world, lease: Lease::new(me) }
    }

    /// Works; never returns.
    ///
    /// # Cancel safety
    /// Dropping it leaves certificates where their rows say they are. Others take over when its lease ends.
    pub async fn run(mut self) {
        loop {
            if self.world.pending().is_empty() {
                self.world.changed().await;
                continue;
            }
            match self.turn(crate::unix_now()).await {
                // Somebody else has it, and its row says more next time.
                Ok(()) | Err(RowsError::Conflict) => {}
                Err(error) => tracing::warn!(%error, "nothing can be revoked without the store"),
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Does what can be done now, `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`RowsError`].
    pub async fn turn(&mut self, now: u64) -> Result<(), RowsError> {
        if !self.hold().await? {
            return Ok(());
        }
        for (id, generation) in self.world.pending() {
            for _ in 0..ACTS_MAX {
                if !self.go(&id, generation, now).await? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Whether there may be more to do at once.
    async fn go(&self, id: &str, generation: u64, now: u64) -> Result<bool, RowsError> {
        let key = cert_key(id, generation);
        let Some(found) = self.rows.get(&key).await? else { return Ok(false) };
        let read = serde_json::from_slice::<CertRow>(&found.value);
        let row = read.map_err(|error| RowsError::Unavailable(format!("{key}: {error}")))?;
        let Some(revocation) = &row.revocation else { return Ok(false) };
        let served_by = self.world.served_by(id, generation);
        let after = match revocation.next(!served_by.is_empty(), row.not_after, now) {
            Act::Wait => return Ok(false),
            Act::Begin => Revocation { step: Step::Revoking, ..revocation.clone() },
            Act::Tell => {
                let Some(ca) = self.world.authority(&row.ca) else { return Ok(false) };
                match tell(&*ca, &row).await {
                    Ok(()) => {
                        tracing::warn!(
                            id,
                            generation,
                            ca = row.ca,
                            "a certificate is revoked: its key is somebody else's too"
                        );
                        Revocation {
                            step: Step::Revoked,
                            revoked_at: Some(now),
                            last_problem: None,
                            ..revocation.clone()
                        }
                    }
                    Err(problem) => {
                        tracing::error!(id, generation, ca = row.ca, %problem, "a certificate is not revoked");
                        revocation.failed(problem, now)
                    }
                }
            }
            Act::VoidTickets => match self.world.void_tickets().await {
                Ok(()) => Revocation { tickets_void: true, ..revocation.clone() },
                Err(problem) => {
                    tracing::error!(%problem, "session tickets are not void yet");
                    return Ok(false);
                }
            },
        };
        let row = CertRow { revocation: Some(after), ..row };
        self.rows.compare_and_set(&key, Some(found.version), Some(&row.encode())).await?;
        Ok(true)
    }

    /// Whether the lease is this process's.
    async fn hold(&mut self) -> Result<bool, RowsError> {
        let found = self.rows.get(LEASE).await?;
        let row =
            found.as_ref().and_then(|row| Some((serde_json::from_slice::<LeaseRow>(&row.value).ok()?, row.version)));
        let began = Instant::now();
        if let Next::Write(wanted) = self.lease.look(row.as_ref().map(|(row, version)| (row, *version)), began) {
            let value = serde_json::to_vec(&wanted).unwrap_or_default();
            let expected = found.map(|row| row.version);
            let version = self.rows.compare_and_set(LEASE, expected, Some(&value)).await?;
            self.lease.wrote(&wanted, version, began);
        }
        Ok(self.lease.fence(Instant::now()).is_some())
    }
}

async fn tell(ca: &dyn Authority, row: &CertRow) -> Result<(), Problem> {
    match leaf(&row.chain) {
        Some(leaf) => ca.revoke(&leaf, true).await,
        None => Err(Problem::new(Class::Other, "there is no certificate in its row")),
    }
}
