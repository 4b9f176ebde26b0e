//! One go at a wish: what can be done about it now, under the lease of its share.

use super::agenda::Again;
use super::decide::{self, Todo, elsewhere, todo};
use super::{GO, Manager, Pause, STUCK, Wish};
use crate::certificate::{CERT_PREFIX, CertRow, parse_cert_key};
use crate::lease::shard;
use crate::order::OrderRow;
use crate::order::issue::{Halt, Order, Outcome, order_key};
use crate::rows::RowsError;
use std::time::Duration;

/// Steps of an order in one go, before its lease is looked at again (chosen: more than an order has).
const STEPS_MAX: usize = 32;
/// A wait within an order that is sat out, seconds (chosen: what a CA works on an order).
const SIT_OUT: u64 = 3;
/// Pause after the table did not answer.
const ROWS_AWAY: u64 = 5;
/// Pause before another look at one whose CA somebody else asks when it is to be renewed, seconds (chosen: nobody waits for
/// that, and very many may be to be asked for at once).
const ASKED_ELSEWHERE: u64 = 300;
/// Pause until the table says here too what was issued.
const TOLD: u64 = 5;

impl Manager {
    /// Does what can be done about a wish; when to look again.
    pub(super) async fn go(&self, wish: &Wish) -> Again {
        let Ok(done) = tokio::time::timeout(GO, self.work(wish)).await else {
            tracing::warn!(id = wish.id, "an order hung; it is gone on with later");
            return Again::At(self.clock.now() + STUCK);
        };
        let now = self.clock.now();
        match done {
            Ok(until) | Err(Pause::Until(until)) => Again::At(until),
            Err(Pause::Closed { door, until: opens }) => {
                let ends = self.wishes.newest(&wish.id).map(|newest| newest.not_after);
                Again::Turn { door, opens, ends }
            }
            // Somebody else has it, and its row says more next time.
            Err(Pause::Rows(RowsError::Conflict)) => Again::At(now + 1),
            Err(Pause::Rows(error)) => {
                tracing::warn!(id = wish.id, %error, "no certificate can be seen to without the store");
                Again::At(now + ROWS_AWAY)
            }
        }
    }

    async fn work(&self, wish: &Wish) -> Result<u64, Pause> {
        let first = todo(self.wishes.newest_of(wish), self.clock.now());
        if let Todo::Nothing(until) = first {
            return Ok(until);
        }
        let fence = match self.hold(shard(&wish.id)).await {
            // Somebody else asks, and its row will say so.
            Err(Pause::Until(_)) if first == Todo::AskWindow => return Ok(self.clock.now() + ASKED_ELSEWHERE),
            held => held?,
        };
        let newest = self.wishes.newest(&wish.id);
        let summary = self.wishes.newest_of(wish);
        match (todo(summary, self.clock.now()), &newest) {
            (Todo::Nothing(until), _) => Ok(until),
            (_, None) if summary.is_some() => {
                tracing::error!(id = wish.id, "the newest certificate is known and cannot be read: nothing is begun");
                Ok(self.clock.now() + STUCK)
            }
            (Todo::AskWindow, Some(newest)) => self.ask_window(wish, newest).await,
            _ => self.order(wish, newest.as_deref(), fence).await,
        }
    }

    /// Orders a certificate, or goes on with that.
    async fn order(&self, wish: &Wish, newest: Option<&CertRow>, fence: u64) -> Result<u64, Pause> {
        let mut order = match self.issuer.find(&wish.id).await? {
            Some(order) if order.row.names == wish.names => order,
            Some(order) => {
                // Of a wish that has changed since.
                self.issuer.rows.compare_and_set(&order_key(&wish.id), Some(order.version), None).await?;
                return Ok(self.clock.now());
            }
            None => {
                let Some(generation) = self.next_generation(&wish.id, newest).await? else {
                    return Ok(self.clock.now() + TOLD);
                };
                let now = self.clock.now();
                let new = decide::new_order(wish, newest, generation, fence, now);
                let new = new.ok_or(Pause::Until(now + STUCK))?;
                self.issuer.begin(&wish.id, new).await?
            }
        };
        // Whoever had the data key of then has its key too.
        if self.issuer.is_superseded(&order.row) {
            tracing::info!(id = wish.id, "the order's key is sealed under an old data key; it is begun anew");
            let anew = order.row.anew(self.clock.now());
            self.issuer.write(&mut order, anew).await?;
        }
        for _ in 0..STEPS_MAX {
            let now = self.clock.now();
            if let Some((ca, profile)) = elsewhere(wish, &order.row, newest, now) {
                tracing::info!(id = wish.id, from = order.row.ca, to = ca, "another CA is asked");
                let elsewhere = OrderRow { profile: profile.clone(), ..order.row.elsewhere(ca, now) };
                self.issuer.write(&mut order, elsewhere).await?;
                continue;
            }
            if let Some(until) = self.step(wish, &mut order, fence).await? {
                return Ok(until);
            }
        }
        Ok(self.clock.now() + 1)
    }

    /// What the next certificate of a wish is; nothing when the store has a newer one than the table has heard of: one that
    /// was issued just now, by a PoP whose lease this one has taken over.
    async fn next_generation(&self, id: &str, newest: Option<&CertRow>) -> Result<Option<u64>, RowsError> {
        let mut last = newest.map_or(0, |newest| newest.generation);
        for found in self.issuer.rows.scan(&format!("{CERT_PREFIX}{id}/")).await? {
            let Some((_, generation)) = parse_cert_key(&found.key).filter(|(_, other)| *other > last) else { continue };
            let row = serde_json::from_slice::<CertRow>(&found.value);
            if row.is_ok_and(|row| row.generation == generation) {
                return Ok(None);
            }
            // No table will ever have it, and no certificate can be written over it.
            tracing::warn!(key = found.key, "this is no certificate's row: the next one comes behind it");
            last = generation;
        }
        Ok(Some(last + 1))
    }

    /// One step of an order; when to look again, unless there is more to do now.
    async fn step(&self, wish: &Wish, order: &mut Order, fence: u64) -> Result<Option<u64>, Pause> {
        let now = self.clock.now();
        let ca = self
            .wishes
            .authority(&order.row.ca)
            .ok_or_else(|| Pause::Closed { door: format!("account/{}", order.row.ca), until: now + 1 })?;
        // A row that only waits asks the CA nothing.
        if order.row.next_try <= now {
            self.gate(ca.name()).await?;
        }
        if self.fence(shard(&wish.id)) != Some(fence) {
            return Ok(Some(now + 1));
        }
        let failures = order.row.failures;
        // A CA may take its time, and nobody else is to begin the same meanwhile.
        let stepped = tokio::select! {
            stepped = self.issuer.step(order, &*ca, now) => stepped,
            never = self.keep(shard(&wish.id)) => match never {},
        };
        let outcome = match stepped {
            Ok(outcome) => outcome,
            Err(Halt::Rows(error)) => return Err(error.into()),
            Err(error) => {
                tracing::error!(id = wish.id, %error, "an order cannot go on");
                return Ok(Some(now + STUCK));
            }
        };
        if order.row.failures > failures {
            self.heed(&order.row).await?;
        }
        match outcome {
            Outcome::Again => Ok(None),
            Outcome::Wait(until) if until <= now + SIT_OUT => {
                tokio::time::sleep(Duration::from_secs(until.saturating_sub(now).max(1))).await;
                self.hold(shard(&wish.id)).await?;
                Ok(None)
            }
            Outcome::Wait(until) => Ok(Some(until)),
            Outcome::Held(held) if held.shared => Err(Pause::Closed { door: held.bucket, until: held.until }),
            Outcome::Held(held) => Ok(Some(held.until)),
            Outcome::Issued(row) => {
                tracing::info!(id = wish.id, names = ?row.names, ca = row.ca, not_after = row.not_after, "a certificate");
                Ok(Some(now + TOLD))
            }
        }
    }
}
