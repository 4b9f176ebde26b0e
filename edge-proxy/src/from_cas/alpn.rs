//! The handshakes of TLS-ALPN-01 this PoP answers: one certificate for each challenge, made when its row comes and not when
//! somebody asks.

use acme::alpn::{self, NotMade};
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use std::collections::HashMap;
use std::sync::Arc;

/// Most names with such a challenge at a time (chosen, as many as in the DNS: an order lasts minutes).
const NAMES_MAX: usize = 10_000;

/// By name.
#[derive(Default)]
pub(super) struct AlpnAnswers(ArcSwap<HashMap<String, Arc<ServerConfig>>>);

/// Why a challenge is not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAdded {
    #[error(transparent)]
    Made(#[from] NotMade),
    #[error("at most {NAMES_MAX} names have such challenges at a time")]
    Names,
}

impl AlpnAnswers {
    /// What there is for a name, lower case.
    pub(super) fn find(&self, name: &str) -> Option<Arc<ServerConfig>> {
        self.0.load().get(name).cloned()
    }

    /// Answers for a name, in the place of what was there.
    ///
    /// # Errors
    /// [`NotAdded`]: nothing has changed.
    pub(super) fn add(&self, name: &str, answer: &str) -> Result<(), NotAdded> {
        let known = self.0.load();
        if known.len() >= NAMES_MAX && !known.contains_key(name) {
            return Err(NotAdded::Names);
        }
        let config = alpn::config(name, answer)?;
        self.change(|all| drop(all.insert(name.to_owned(), Arc::clone(&config))));
        Ok(())
    }

    /// Answers for a name no more.
    pub(super) fn remove(&self, name: &str) {
        self.change(|all| drop(all.remove(name)));
    }

    fn change(&self, change: impl Fn(&mut HashMap<String, Arc<ServerConfig>>)) {
        self.0.rcu(|all| {
            let mut all = HashMap::clone(all);
            change(&mut all);
            all
        });
    }
}
