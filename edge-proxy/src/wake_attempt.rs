//! A wake a request is about to cause, and whether it was wasted.
//!
//! Dropped unsettled it counts as wasted: a client that leaves before the answer has had
//! its wake for nothing.

use crate::client::Client;
use crate::error::RequestError;
use crate::worker::Worker;
use backhaul::wire::WakeKind;
use http::StatusCode;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;
use wakeup::hold::{HoldError, Woken};

/// Spends of its source's budget when it is dropped, unless it was settled.
pub struct WakeAttempt {
    worker: Rc<Worker>,
    source: IpAddr,
    settled: bool,
    /// It was begun before its request came.
    early: bool,
}

impl WakeAttempt {
    /// Begins one.
    ///
    /// # Errors
    /// [`RequestError::WakeBudget`].
    pub fn begin(worker: &Rc<Worker>, client: &Client) -> Result<Self, RequestError> {
        Self::of(worker, client.peer.ip(), false)
    }

    /// Begins one for a request that has not come yet.
    ///
    /// # Errors
    /// [`RequestError::WakeBudget`].
    pub fn early(worker: &Rc<Worker>, source: IpAddr) -> Result<Self, RequestError> {
        Self::of(worker, source, true)
    }

    fn of(worker: &Rc<Worker>, source: IpAddr, early: bool) -> Result<Self, RequestError> {
        let checked = worker.edge.budget.check(Instant::now(), source);
        checked.map_err(|retry_after| RequestError::WakeBudget { retry_after })?;
        Ok(Self { worker: Rc::clone(worker), source, settled: false, early })
    }

    /// The sprite answered. Only 4xx is a waste, and only of the wake this request caused.
    pub fn answered(&mut self, woken: Option<&Woken>, status: StatusCode) {
        let caused = self.early || woken.is_some_and(|woken| woken.kind != WakeKind::None && !woken.joined);
        self.settled |= !(caused && status.is_client_error());
    }

    /// It did not. A sprite that cannot start, or does not listen, is not its visitors'
    /// doing: its own back-off bounds that, and who mends it must be able to look.
    pub fn failed(&mut self, error: &RequestError) {
        let wasted = matches!(
            error,
            RequestError::ClientGone | RequestError::Upstream(_) | RequestError::Hold(HoldError::Deadline { .. })
        );
        // One that was begun for a request that is none of the sprite's.
        let for_nothing = self.early && error.verdict().status < 500;
        self.settled |= !(wasted || for_nothing);
    }
}

impl Drop for WakeAttempt {
    fn drop(&mut self) {
        if !self.settled {
            self.worker.edge.budget.spend(Instant::now(), self.source);
        }
    }
}
