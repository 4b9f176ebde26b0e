//! What this PoP answers handshakes with, by suffix and domain; and of the certificates somebody waits for, what it tells
//! the others.

use super::metrics::Counted;
use super::table::{CertificateTable, Summary};
use super::wishes::For;
use acme::certificate::CertRow;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A new certificate is one that others may wait for, for so long, seconds (chosen: many times what a PoP needs).
const NEW: u64 = 15 * 60;
/// Certificates a PoP speaks of at once (chosen: a row of some 10 KiB; with more, the newest).
const SPOKEN_MAX: usize = 256;

/// What a handshake is for: a suffix (`true`) and what is under it, or a whole name.
pub(super) type Target = (bool, String);

/// What a wish is served for.
pub(super) fn target(wish: &str) -> Option<Target> {
    match For::of(wish)? {
        For::Suffix { suffix, .. } => Some((true, suffix.to_owned())),
        For::Domain(name) => Some((false, name.to_owned())),
    }
}

#[derive(Debug, Default)]
struct State {
    by_target: BTreeMap<Target, (String, u64)>,
    /// By wish: which generation could not be opened, and why.
    not_opened: BTreeMap<String, (u64, String)>,
}

/// Shared by who serves and who tells.
#[derive(Debug)]
pub(super) struct Served {
    state: Mutex<State>,
    spoken: watch::Sender<BTreeMap<String, u64>>,
    /// What is to be revoked: wish and generation.
    withdrawn: watch::Sender<Vec<(String, u64)>>,
    counted: Counted,
}

impl Default for Served {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            spoken: watch::Sender::new(BTreeMap::new()),
            withdrawn: watch::Sender::new(Vec::new()),
            counted: Counted::default(),
        }
    }
}

impl Served {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is counted beside it.
    pub(super) const fn counted(&self) -> &Counted {
        &self.counted
    }

    /// Which wish answers, in which generation.
    pub(super) fn of(&self, target: &Target) -> Option<(String, u64)> {
        self.state().by_target.get(target).cloned()
    }

    /// What this PoP has of a wish: its generation, 0 when the certificate of another wish answers for its names, and
    /// nothing when none does.
    pub(super) fn of_wish(&self, wish: &str) -> Option<u64> {
        let (answers, generation) = self.of(&target(wish)?)?;
        Some(if answers == wish { generation } else { 0 })
    }

    /// Every suffix and domain that is answered for.
    pub(super) fn targets(&self) -> Vec<Target> {
        self.state().by_target.keys().cloned().collect()
    }

    /// Why a generation of a wish cannot be served here.
    pub(super) fn not_opened(&self, wish: &str, generation: u64) -> Option<String> {
        self.state().not_opened.get(wish).filter(|(failed, _)| *failed == generation).map(|(_, why)| why.clone())
    }

    pub(super) fn put(&self, target: Target, wish: &str, generation: u64) {
        let mut state = self.state();
        state.not_opened.remove(wish);
        state.by_target.insert(target, (wish.to_owned(), generation));
    }

    pub(super) fn failed(&self, wish: &str, generation: u64, why: String) {
        self.state().not_opened.insert(wish.to_owned(), (generation, why));
    }

    /// Nothing answers for this any more.
    pub(super) fn remove(&self, target: &Target, wish: &str) {
        let mut state = self.state();
        state.by_target.remove(target);
        state.not_opened.remove(wish);
    }

    /// What this PoP tells the others, as it changes: of each certificate somebody may wait for, the generation it has, and
    /// 0 for none.
    pub(super) fn spoken(&self) -> watch::Receiver<BTreeMap<String, u64>> {
        self.spoken.subscribe()
    }

    /// What is to be revoked and is not yet, as it changes.
    pub(super) fn withdrawn(&self) -> watch::Receiver<Vec<(String, u64)>> {
        self.withdrawn.subscribe()
    }

    /// Whether a certificate is one somebody may wait for.
    pub(super) fn may_speak_of(one: &Summary, now: u64) -> bool {
        one.is_being_withdrawn(now) || now.saturating_sub(one.issued_at) < NEW
    }

    /// Whether PoPs speak of this certificate: not when others are newer and too many.
    pub(super) fn speaks_of(&self, row: &CertRow, now: u64) -> bool {
        let waited = row.is_being_withdrawn(now) || now.saturating_sub(row.issued_at) < NEW;
        waited && self.spoken.borrow().len() < SPOKEN_MAX
    }

    /// Says what it has of the certificates that are new or not to be served any more.
    pub(super) fn speak(&self, table: &CertificateTable, now: u64) {
        let mut waited: BTreeMap<String, (bool, u64)> = BTreeMap::new();
        let mut withdrawn = Vec::new();
        for (wish, generation, one) in table.wishes_where(|one| Self::may_speak_of(one, now)) {
            let is_urgent = one.is_being_withdrawn(now);
            let entry = waited.entry(wish.to_string()).or_default();
            *entry = (entry.0 || is_urgent, entry.1.max(one.issued_at));
            if is_urgent {
                withdrawn.push((wish.into(), generation));
            }
        }
        let mut waited: Vec<_> = waited.into_iter().collect();
        waited.sort_by_key(|(_, (is_urgent, issued_at))| std::cmp::Reverse((*is_urgent, *issued_at)));
        waited.truncate(SPOKEN_MAX);
        let spoken = waited.into_iter().map(|(wish, _)| {
            let has = self.of_wish(&wish).unwrap_or(0);
            (wish, has)
        });
        let spoken: BTreeMap<_, _> = spoken.collect();
        self.withdrawn.send_replace(withdrawn);
        self.spoken.send_if_modified(|before| {
            let changed = *before != spoken;
            *before = spoken;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_cas::table::CertificateRow;
    use acme::revoke::Revocation;
    use std::sync::Arc;

    const NOW: u64 = 1_800_000_000;

    fn row(generation: u64, issued_at: u64) -> CertRow {
        CertRow {
            names: Vec::new(),
            ca: "a".into(),
            generation,
            chain: String::new(),
            sealed_key: String::new(),
            not_before: issued_at,
            not_after: NOW + 1000,
            issued_at,
            ari: None,
            window: None,
            compromised: false,
            renew_asked: None,
            revocation: None,
        }
    }

    #[test]
    fn a_pop_speaks_of_what_is_new_and_of_what_is_to_go_and_of_no_more_than_fits() {
        let (served, table) = (Served::default(), CertificateTable::new());
        let put = |wish: &str, row: CertRow| table.apply_put(CertificateRow { wish: wish.into(), row: Arc::new(row) });
        put("domain.old.example", row(1, NOW - NEW));
        put("domain.new.example", row(2, NOW - NEW + 1));
        put("domain.bad.example", CertRow { revocation: Some(Revocation::new(NOW)), ..row(3, NOW - 9 * NEW) });
        put("wild.a.sprites.test", row(4, NOW));
        served.put(target("domain.new.example").unwrap(), "domain.new.example", 1);
        served.put(target("domain.bad.example").unwrap(), "domain.bad.example", 3);
        served.put((true, "sprites.test".into()), "wild.b.sprites.test", 9);
        served.speak(&table, NOW);
        let spoken = served.spoken().borrow().clone();
        let said: Vec<_> = spoken.iter().map(|(wish, generation)| (wish.as_str(), *generation)).collect();
        assert_eq!(said, [("domain.bad.example", 3), ("domain.new.example", 1), ("wild.a.sprites.test", 0)]);
        assert!(served.speaks_of(&row(4, NOW), NOW) && !served.speaks_of(&row(1, NOW - NEW), NOW));

        for at in 0..SPOKEN_MAX + 10 {
            put(&format!("domain.d{at}.example"), row(1, NOW));
        }
        served.speak(&table, NOW);
        let spoken = served.spoken().borrow().clone();
        assert_eq!(spoken.len(), SPOKEN_MAX);
        assert!(spoken.contains_key("domain.bad.example"), "what is to go comes first");
        assert!(!served.speaks_of(&row(1, NOW), NOW), "nobody is missed who may have had no room");
    }

    #[test]
    fn what_cannot_be_opened_is_known_until_it_can() {
        let served = Served::default();
        served.failed("domain.a.example", 2, "forged".into());
        assert_eq!(served.not_opened("domain.a.example", 2).as_deref(), Some("forged"));
        assert_eq!(served.not_opened("domain.a.example", 1), None);
        served.put(target("domain.a.example").unwrap(), "domain.a.example", 2);
        assert_eq!((served.not_opened("domain.a.example", 2), served.of_wish("domain.a.example")), (None, Some(2)));
        served.remove(&target("domain.a.example").unwrap(), "domain.a.example");
        assert_eq!(served.of_wish("domain.a.example"), None);
    }
}
