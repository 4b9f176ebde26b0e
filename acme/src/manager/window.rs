//! When a CA wants a certificate renewed (RFC 9773): asked for, and written down for every PoP.

use super::gate::windows_of;
use super::{Manager, Pause, Wish};
use crate::ca::{Class, Window};
use crate::certificate::{CertRow, cert_key};
use crate::order::{DAY, verify};

/// Renewal information is asked for at least this often, also of a CA that had none (Let's Encrypt: twice a day).
const ASK_WINDOW: u64 = 12 * 3600;
/// What is believed of a CA's word when to ask again (RFC 9773 §4.3: a minute to a day).
const AGAIN_MIN: u64 = 60;
const AGAIN_MAX: u64 = DAY;
/// Pause after the CA did not say it, nor when to ask again (chosen).
const UNSAID: u64 = 3600;
/// Until the table says here too what was just written.
const TOLD: u64 = 5;

impl Manager {
    /// Asks; when to look at the wish again.
    pub(super) async fn ask_window(&self, wish: &Wish, newest: &CertRow) -> Result<u64, Pause> {
        let now = self.clock.now();
        // Whatever is not known by then: the certificate is renewed.
        let due = newest.due(&wish.id);
        let ca = self.wishes.authority(&newest.ca).ok_or_else(|| Pause::Until((now + 60).min(due)))?;
        for gate in [ca.name(), &windows_of(ca.name())] {
            self.gate(gate).await.map_err(|pause| match pause {
                Pause::Closed { until, .. } => Pause::Until(until.min(due)),
                pause => pause,
            })?;
        }
        let Some(leaf) = verify::leaf(&newest.chain) else { return Ok((now + ASK_WINDOW).min(due)) };
        let window = match ca.window(&leaf, now).await {
            Ok(None) => return Ok((now + ASK_WINDOW).min(due)),
            Ok(Some(window)) => window,
            Err(problem) => {
                tracing::info!(id = wish.id, ca = newest.ca, %problem, "no renewal information");
                let wait = problem.retry_after.map_or(UNSAID, |wait| wait.as_secs());
                if problem.class == Class::RateLimited {
                    // It counts what the fleet asks, not what is asked of one certificate.
                    self.close_gate(&windows_of(ca.name()), self.clock.now() + wait).await?;
                }
                return Ok((now + wait).min(due));
            }
        };
        let ask_again = window.ask_again.clamp(now + AGAIN_MIN, now + AGAIN_MAX);
        let key = cert_key(&wish.id, newest.generation);
        let Some(found) = self.issuer.rows.get(&key).await? else { return Ok(now + TOLD) };
        // What is in the row by now stays: somebody may have marked the certificate meanwhile.
        let Ok(row) = serde_json::from_slice::<CertRow>(&found.value) else { return Ok((now + ASK_WINDOW).min(due)) };
        let row = CertRow { window: Some(Window { ask_again, ..window }), ..row };
        self.issuer.rows.compare_and_set(&key, Some(found.version), Some(&row.encode())).await?;
        Ok(now + TOLD)
    }
}
