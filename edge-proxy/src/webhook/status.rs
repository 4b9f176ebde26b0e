//! How the webhook is doing, for `status`.

use serde_json::{Value, json};
use std::sync::{Mutex, PoisonError};

/// Kept by the webhook, read by the admin API.
pub struct Status {
    to: String,
    state: Mutex<State>,
}

struct State {
    seq: u64,
    /// Attempts in a row that came to nothing.
    failures: u64,
    last_error: Option<String>,
    stopped: bool,
}

impl Status {
    pub(super) fn new(to: &str, seq: u64) -> Self {
        let state = State { seq, failures: 0, last_error: None, stopped: false };
        Self { to: to.to_owned(), state: Mutex::new(state) }
    }

    /// As JSON; `last` is the ledger's last record. The host of the receiver only: the rest
    /// of a webhook's URL is often a secret.
    #[must_use]
    pub fn shown(&self, last: u64) -> Value {
        self.with(|state| {
            json!({
                "to": self.to,
                "seq": state.seq,
                "lag": last.saturating_sub(state.seq),
                "failures": state.failures,
                "last_error": state.last_error,
                "stopped": state.stopped,
            })
        })
    }

    /// Everything up to this record is done.
    pub(super) fn at(&self, seq: u64) {
        self.with(|state| (state.seq, state.failures, state.last_error) = (seq, 0, None));
    }

    pub(super) fn failed(&self, why: &str) {
        self.with(|state| {
            state.failures += 1;
            state.last_error = Some(why.to_owned());
        });
    }

    pub(super) fn stopped(&self) {
        self.with(|state| state.stopped = true);
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
