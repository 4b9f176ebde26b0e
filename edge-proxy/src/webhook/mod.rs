//! Tells somebody what the ledger of runs says, one record after the other, by signed POSTs.
//!
//! A reader of the ledger like any other: its cursor is on disk, so each record is told at
//! least once and in order, and a receiver that is slow or gone holds up nobody here. What is
//! sent follows the Standard Webhooks scheme; `docs/ledger.md` says how it is verified.
//! Deliberately not here: several receivers, and telling two records at once.

mod cursor;
mod post;
mod status;
#[cfg(test)]
mod tests;

pub use post::PostError;
pub use status::Status;

use anyhow::Context;
use cursor::Cursor;
use http::StatusCode;
use post::Receiver;
use rand::Rng;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use wakeup::ledger::{Ledger, LedgerError, Record};
use wakeup::signature::Secret;

/// Records read at once (chosen: they are told one by one).
const PAGE: usize = 100;
/// Shortest and longest pause between two attempts, the jitter included.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// What is told to whom.
pub struct Webhook {
    ledger: Arc<Ledger>,
    receiver: Receiver,
    secret: Secret,
    cursor: Cursor,
    events: Vec<String>,
    retry_min: Duration,
    retry_max: Duration,
    status: Arc<Status>,
}

impl Webhook {
    /// Reads the secret, the roots and the cursor, which is kept in `directory`. `None` when
    /// nobody is to be told. Without a cursor it begins with what happens from now on.
    ///
    /// # Errors
    /// The file or the URL that cannot be used, and why.
    pub fn load(config: &config::Webhook, ledger: Arc<Ledger>, directory: &Path) -> anyhow::Result<Option<Self>> {
        if config.url.is_empty() {
            return Ok(None);
        }
        let secret = Secret::load(&config.secret_file).context("webhook")?;
        let receiver = Receiver::new(&config.url, &config.ca_file, config.timeout)?;
        let cursor = Cursor::load(&directory.join("webhook.cursor"), ledger.begun_after())?;
        let status = Arc::new(Status::new(receiver.host(), cursor.seq()));
        let (events, retry_min, retry_max) = (config.events.clone(), config.retry_min, config.retry_max);
        Ok(Some(Self { ledger, receiver, secret, cursor, events, retry_min, retry_max, status }))
    }

    /// How it is doing.
    #[must_use]
    pub const fn status(&self) -> &Arc<Status> {
        &self.status
    }

    /// Tells until the receiver says that it is gone, or the ledger ends.
    ///
    /// # Cancel safety
    /// A delivery under way may be told again, under the same id.
    pub async fn run(mut self) {
        let mut durable = self.ledger.durable();
        loop {
            let cursor = self.cursor.seq();
            if durable.wait_for(|last| *last > cursor).await.is_err() {
                return;
            }
            let Some(records) = self.page().await else { continue };
            for record in records {
                if self.events.iter().any(|event| event == record.event.name()) {
                    if !self.deliver(&record).await {
                        return;
                    }
                    self.told(record.seq).await;
                } else {
                    // On disk with the next one that is told: seen again it is left out again.
                    self.cursor.pass(record.seq);
                    self.status.at(record.seq);
                }
            }
        }
    }

    async fn told(&mut self, seq: u64) {
        self.status.at(seq);
        if let Err(error) = self.cursor.move_to(seq).await {
            tracing::warn!(%error, "the webhook's cursor is not on disk; a restart would tell again what was told");
        }
    }

    /// What comes next; `None` when that has to be asked again.
    async fn page(&mut self) -> Option<Vec<Record>> {
        let (ledger, after) = (Arc::clone(&self.ledger), self.cursor.seq());
        let read = tokio::task::spawn_blocking(move || ledger.page(after, PAGE)).await;
        let error = match read {
            Ok(Ok(page)) => return Some(page.records),
            Ok(Err(LedgerError::NoLongerKept { last_gone })) => {
                tracing::error!(after, last_gone, "records were dropped from the ledger before the webhook told them");
                self.told(last_gone).await;
                return None;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(error, "the webhook cannot read the ledger");
        self.status.failed(&error);
        tokio::time::sleep(self.retry_max).await;
        None
    }

    /// Tells one record, as often as it takes; `false` when the receiver wants no more.
    async fn deliver(&mut self, record: &Record) -> bool {
        let body = body_of(record);
        let mut failures = 0;
        loop {
            let signed = self.secret.sign(&record.id, &body);
            let why = match self.receiver.post(&signed, body.clone()).await {
                Ok(status) if status.is_success() => {
                    if failures > 0 {
                        tracing::info!(seq = record.seq, failures, "the webhook's receiver is back");
                    }
                    return true;
                }
                Ok(StatusCode::GONE) => {
                    tracing::error!(
                        seq = record.seq,
                        "the webhook's receiver answered 410: it is told no more until the next start"
                    );
                    self.status.stopped();
                    return false;
                }
                Ok(status) => format!("it answered {status}"),
                Err(error) => error.to_string(),
            };
            failures += 1;
            if failures == 1 {
                tracing::warn!(seq = record.seq, why, "the webhook's receiver did not take a record; trying again");
            }
            self.status.failed(&why);
            let jitter = rand::rng().random_range(80..=120);
            tokio::time::sleep(pause(self.retry_min, self.retry_max, failures, jitter)).await;
        }
    }
}

/// What is sent of a record: the same bytes at every attempt.
fn body_of(record: &Record) -> bytes::Bytes {
    let kind = format!("sprite.{}", record.event.name());
    json!({ "type": kind, "timestamp": record.at, "data": record }).to_string().into()
}

/// The pause after so many failures in a row, at least one; the jitter in percent.
fn pause(min: Duration, max: Duration, failures: u32, percent: u32) -> Duration {
    let doubled = min.saturating_mul(1 << (failures - 1).min(16)).min(max);
    (doubled * percent / 100).clamp(PAUSE_MIN, PAUSE_MAX)
}
