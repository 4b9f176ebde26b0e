//! Certificates whose key is somebody else's too: what people say of them, and what the one who revokes is told
//! ([`acme::revoke`]).

use super::FromCas;
use super::asked::AskError;
use acme::ca::{Authority, Class, Problem, Reply};
use acme::certificate::{CERT_PREFIX, CertRow, parse_cert_key};
use acme::revoke::{Revocation, Withdrawals};
use acme::rows::Rows as _;
use acme::unix_now;
use serde_json::{Value, json};
use std::pin::Pin;
use std::sync::Arc;

impl FromCas {
    /// Says that the keys of all certificates of a name (each CA's), or of an id, are somebody else's too: every generation
    /// that has not ended. Which those are.
    ///
    /// # Errors
    /// [`AskError`].
    ///
    /// # Cancel safety
    /// Some may be marked; call it again.
    pub(crate) async fn compromise(&self, asked: &str) -> Result<Value, AskError> {
        let (mut marked, now) = (Vec::new(), unix_now());
        for id in self.meant(asked) {
            for found in self.rows.scan(&format!("{CERT_PREFIX}{id}/")).await? {
                let Some((_, generation)) = parse_cert_key(&found.key) else { continue };
                if serde_json::from_slice::<CertRow>(&found.value).is_ok_and(|row| row.not_after <= now) {
                    continue;
                }
                let revoked = |row: CertRow| {
                    let revocation = row.revocation.is_none().then(|| Revocation::new(now))?;
                    Some(CertRow { compromised: true, revocation: Some(revocation), ..row })
                };
                self.change(&id, generation, revoked).await?;
                tracing::warn!(id, generation, "the key of a certificate is said to be somebody else's too");
                marked.push(json!({ "id": id, "generation": generation }));
            }
        }
        match marked.is_empty() {
            true => Err(self.none(asked).await),
            false => Ok(marked.into()),
        }
    }

    /// The certificates of an id that are to be revoked or are.
    pub(super) fn revocations(&self, id: &str) -> Vec<(Arc<CertRow>, Value)> {
        let now = unix_now();
        let of_it = self.certificates.rows_of(id);
        let shown = of_it.into_iter().filter_map(|found| {
            let revocation = found.row.revocation.as_ref()?;
            let shown = json!({
                "generation": found.row.generation,
                "step": revocation.step,
                "revoked_unix_s": revocation.revoked_at,
                "tickets_void": revocation.tickets_void,
                "over": revocation.is_over(found.row.not_after, now),
                "served_by": Withdrawals::served_by(self, id, found.row.generation),
                "last_problem": revocation.last_problem.as_ref().map(ToString::to_string),
                "next_try_unix_s": revocation.next_try,
            });
            Some((Arc::clone(&found.row), shown))
        });
        shown.collect()
    }
}

impl Withdrawals for FromCas {
    fn pending(&self) -> Vec<(String, u64)> {
        self.served.withdrawn().borrow().clone()
    }

    fn changed(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let mut withdrawn = self.served.withdrawn();
        // The sender lives in self.
        Box::pin(async move { drop(withdrawn.wait_for(|withdrawn| !withdrawn.is_empty()).await) })
    }

    fn served_by(&self, id: &str, generation: u64) -> Vec<String> {
        let serves = |serves: &Option<u64>| serves.is_none_or(|served| served == generation);
        self.pops.serving(id).into_iter().filter(|(_, served)| serves(served)).map(|(pop, _)| pop).collect()
    }

    fn authority(&self, name: &str) -> Option<Arc<dyn Authority>> {
        self.accounts.authority(name)
    }

    fn void_tickets(&self) -> Reply<'_, ()> {
        Box::pin(async move {
            let tickets = self.tls.tickets();
            let none = || Problem::new(Class::Other, "this edge shares no ticket keys");
            let purged = tickets.ok_or_else(none)?.purge().await;
            purged.map(drop).map_err(|error| Problem::new(Class::Unavailable, error.to_string()))
        })
    }
}
