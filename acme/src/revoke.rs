//! A certificate whose key is somebody else's too: another one takes its place on every PoP, then its CA revokes it, then
//! all session tickets are void.
//!
//! Sans-io core: [`Revocation::next`] looks at what the certificate's row says was begun, and at who serves the
//! certificate, and says one thing to do. Each is written before it is done and can be done twice, so whichever PoP
//! reads the row goes on where another one stopped (`runner.rs` does it, under a lease).

mod runner;
#[cfg(test)]
mod tests;

pub use runner::{Revoker, Withdrawals};

use crate::ca::Problem;
use crate::order::DAY;
use serde::{Deserialize, Serialize};

/// First pause after a CA did not revoke, seconds, doubled each time (chosen: as for orders).
const AGAIN: u64 = 60;
/// The longest of them (chosen).
const AGAIN_MAX: u64 = DAY;

/// How far it was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Some PoP serves the certificate, or does not say that it does not.
    Replacing,
    /// Nobody served it any more; its CA is being told.
    Revoking,
    /// Its CA has revoked it.
    Revoked,
}

/// In a certificate's row: how far its revocation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// When somebody asked for it, seconds since 1970.
    pub asked: u64,
    /// How far it was begun.
    pub step: Step,
    /// Tickets that were made before are worth nothing.
    #[serde(default)]
    pub tickets_void: bool,
    /// When its CA had revoked it, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<u64>,
    /// Times its CA did not revoke it.
    #[serde(default)]
    pub failures: u32,
    /// Its CA is not told before then, seconds since 1970.
    #[serde(default)]
    pub next_try: u64,
    /// Why its CA did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_problem: Option<Problem>,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nobody serves it: write that its CA is being told.
    Begin,
    /// Tell its CA.
    Tell,
    /// Delete every ticket key of the fleet.
    VoidTickets,
    /// Nothing now.
    Wait,
}

impl Revocation {
    /// At its beginning.
    #[must_use]
    pub const fn new(now: u64) -> Self {
        Self {
            asked: now,
            step: Step::Replacing,
            tickets_void: false,
            revoked_at: None,
            failures: 0,
            next_try: 0,
            last_problem: None,
        }
    }

    /// Whether nothing is left to do about a certificate that ends at `not_after`. What has ended need not be revoked.
    #[must_use]
    pub const fn is_over(&self, not_after: u64, now: u64) -> bool {
        self.tickets_void && (matches!(self.step, Step::Revoked) || not_after <= now)
    }

    /// What comes next: `is_served` by a PoP that lives, or one has not said that it does not. A CA that does not revoke
    /// keeps tickets from being void no longer than its first answer takes.
    #[must_use]
    pub fn next(&self, is_served: bool, not_after: u64, now: u64) -> Act {
        let has_ended = not_after <= now;
        match self.step {
            _ if self.is_over(not_after, now) => Act::Wait,
            Step::Replacing if is_served => Act::Wait,
            Step::Replacing => Act::Begin,
            Step::Revoking if !self.tickets_void && (self.failures > 0 || has_ended) => Act::VoidTickets,
            Step::Revoking if now < self.next_try => Act::Wait,
            Step::Revoking => Act::Tell,
            Step::Revoked => Act::VoidTickets,
        }
    }

    /// After its CA did not revoke it.
    #[must_use]
    pub fn failed(&self, problem: Problem, now: u64) -> Self {
        let failures = self.failures.saturating_add(1);
        let pause = AGAIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(AGAIN_MAX);
        let pause = problem.retry_after.map_or(pause, |wait| wait.as_secs().max(1));
        Self { failures, next_try: now + pause, last_problem: Some(problem), ..self.clone() }
    }
}
