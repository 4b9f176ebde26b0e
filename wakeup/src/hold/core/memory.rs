//! What the edge remembers of wakes that failed, so that it need not ask again at once.
//!
//! Two memories: refusals of one sprite, and hosts that do not answer. Both only
//! shorten a wait that would fail; neither is ever the reason that a host is not asked
//! for longer than a minute.

use super::super::HoldError;
use super::FlightKey;
use router::route::HostId;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Longest a refusal is believed, whatever the owner says: 60 s for `Gone` (`wake.md` §6),
/// and more than the owner's longest back-off of 30 s ± 20 %.
pub(super) const REMEMBERED_MAX: Duration = Duration::from_secs(60);
/// Refusals remembered (chosen: about 2 MB).
const REFUSALS_MAX: usize = 10_000;
/// A silent host fails new flights at once for 1, 2, 4, then 5 s (`wake.md` §4).
const SUSPECT_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Refusal {
    learnt: Instant,
    until: Instant,
    /// Who said so: about another host's copy it says nothing.
    host: HostId,
    error: HoldError,
}

/// Refusals by flight.
#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<FlightKey, Refusal>);

impl Refusals {
    /// Believes `error` of `host` for `span`, at most [`REMEMBERED_MAX`].
    pub(super) fn learn(&mut self, now: Instant, key: FlightKey, host: HostId, span: Duration, error: HoldError) {
        if self.0.len() >= REFUSALS_MAX {
            self.0.retain(|_, refusal| refusal.until > now);
            if self.0.len() >= REFUSALS_MAX {
                // Forgetting costs one question to an owner; which one is asked does not matter.
                self.0.pop_first();
            }
        }
        self.0.insert(key, Refusal { learnt: now, until: now + span.min(REMEMBERED_MAX), host, error });
    }

    /// The refusal of a request to `host` that arrived at `arrived`: only what was known by then.
    /// What was learnt while the request waited may be about another try than its own.
    pub(super) fn recall(
        &mut self,
        now: Instant,
        key: &FlightKey,
        host: HostId,
        arrived: Instant,
    ) -> Option<HoldError> {
        let refusal = self.0.get(key)?;
        if refusal.until <= now {
            self.0.remove(key);
            return None;
        }
        (refusal.learnt <= arrived && refusal.host == host).then(|| refusal.error.clone().since(refusal.until - now))
    }
}

#[derive(Debug)]
struct Suspect {
    until: Instant,
    failures: u32,
    /// The one flight that finds out whether the host is back.
    prober: Option<FlightKey>,
}

/// Hosts that did not answer the last time; as many as the table has hosts.
#[derive(Debug, Default)]
pub(super) struct Suspects(BTreeMap<HostId, Suspect>);

impl Suspects {
    /// The host was silent, or cannot be reached.
    pub(super) fn accuse(&mut self, now: Instant, host: HostId) {
        let suspect = self.0.entry(host).or_insert(Suspect { until: now, failures: 0, prober: None });
        suspect.until = now + Duration::from_secs(1 << suspect.failures.min(3)).min(SUSPECT_MAX);
        suspect.failures = suspect.failures.saturating_add(1);
        suspect.prober = None;
    }

    /// The host spoke.
    pub(super) fn clear(&mut self, host: HostId) {
        self.0.remove(&host);
    }

    /// Whether `key` may begin a flight to `host`. Once the pause is over a single one may,
    /// until it ends (`pending` tells) or the host answers.
    pub(super) fn may_fly(
        &mut self,
        now: Instant,
        host: HostId,
        key: &FlightKey,
        pending: impl Fn(&FlightKey) -> bool,
    ) -> bool {
        let Some(suspect) = self.0.get_mut(&host) else { return true };
        if suspect.until > now || suspect.prober.as_ref().is_some_and(pending) {
            return false;
        }
        suspect.prober = Some(key.clone());
        true
    }
}
