//! The gate of a CA: closed for the whole fleet, for as long as the CA says, when it was asked for too much.

use super::{Manager, Pause};
use crate::ca::Class;
use crate::limits::is_of_names;
use crate::order::{GATE, OrderRow};
use crate::rows::{Row, RowsError};

/// Tries to write the gate's row before somebody else's word is enough (chosen).
const TRIES: usize = 4;

/// Where it stands until when a CA is left alone, seconds since 1970.
pub(super) fn gate_key(ca: &str) -> String {
    format!("gate/{ca}")
}

/// What stands for a CA's renewal information alone: whoever asks for it too often may still order.
pub(super) fn windows_of(ca: &str) -> String {
    format!("{ca}/renewal-info")
}

fn closed_until(row: &Row) -> Option<u64> {
    std::str::from_utf8(&row.value).ok()?.parse().ok()
}

impl Manager {
    /// Whether the CA may be asked anything.
    pub(super) async fn gate(&self, ca: &str) -> Result<(), Pause> {
        let door = gate_key(ca);
        let until = self.issuer.rows.get(&door).await?.as_ref().and_then(closed_until);
        match until {
            Some(until) if self.clock.now() < until => Err(Pause::Closed { door, until }),
            _ => Ok(()),
        }
    }

    /// What a failure means for more than its order.
    pub(super) async fn heed(&self, row: &OrderRow) -> Result<(), RowsError> {
        let Some(problem) = &row.last_problem else { return Ok(()) };
        match problem.class {
            // Of one order's names: it waits as its row says, and no other.
            Class::RateLimited if is_of_names(&problem.detail, &row.names) => Ok(()),
            Class::RateLimited => {
                let wait = problem.retry_after.map_or(GATE, |wait| wait.as_secs());
                self.close_gate(&row.ca, self.clock.now() + wait).await
            }
            Class::Account => {
                self.wishes.reopen(&row.ca);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Of two words of the CA the later one counts.
    pub(super) async fn close_gate(&self, ca: &str, until: u64) -> Result<(), RowsError> {
        let (key, value) = (gate_key(ca), until.to_string());
        for _ in 0..TRIES {
            let present = self.issuer.rows.get(&key).await?;
            if present.as_ref().and_then(closed_until).is_some_and(|closed| closed >= until) {
                break;
            }
            let version = present.map(|row| row.version);
            match self.issuer.rows.compare_and_set(&key, version, Some(value.as_bytes())).await {
                Err(RowsError::Conflict) => {}
                done => return done.map(drop),
            }
        }
        Ok(())
    }
}
