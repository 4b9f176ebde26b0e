//! What this PoP answers handshakes with, by suffix and domain; and of the certificates somebody waits for, what it tells
//! the others.

use super::metrics::Counted;
use super::table::{CertificateTable, Summary};
use super::wishes::{DOMAIN, For};
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
    /// By suffix; what a domain has the table notes.
    suffixes: BTreeMap<String, (String, u64)>,
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
    pub(super) fn of(&self, table: &CertificateTable, (is_suffix, name): &Target) -> Option<(String, u64)> {
        if *is_suffix {
            return self.state().suffixes.get(name).cloned();
        }
        let wish = format!("{DOMAIN}.{name}");
        let generation = table.served(&wish)?;
        Some((wish, generation))
    }

    /// What this PoP has of a wish: its generation, 0 when the certificate of another wish answers for its names, and
    /// nothing when none does.
    pub(super) fn of_wish(&self, table: &CertificateTable, wish: &str) -> Option<u64> {
        match For::of(wish)? {
            For::Domain(_) => table.served(wish),
            For::Suffix { suffix, .. } => {
                let state = self.state();
                let (answers, generation) = state.suffixes.get(suffix)?;
                Some(if answers == wish { *generation } else { 0 })
            }
        }
    }

    /// Every suffix that is answered for.
    pub(super) fn suffixes(&self) -> Vec<String> {
        self.state().suffixes.keys().cloned().collect()
    }

    /// Why a generation of a wish cannot be served here.
    pub(super) fn not_opened(&self, wish: &str, generation: u64) -> Option<String> {
        self.state().not_opened.get(wish).filter(|(failed, _)| *failed == generation).map(|(_, why)| why.clone())
    }

    /// This wish answers for a suffix from now on.
    pub(super) fn put_suffix(&self, suffix: &str, wish: &str, generation: u64) {
        let mut state = self.state();
        state.not_opened.remove(wish);
        state.suffixes.insert(suffix.to_owned(), (wish.to_owned(), generation));
    }

    /// These certificates answer for the domains of their wishes from now on, or none does.
    pub(super) fn put_domains(&self, table: &CertificateTable, served: &[(&str, Option<u64>)]) {
        table.note_served(served.iter().copied());
        let mut state = self.state();
        if !state.not_opened.is_empty() {
            served.iter().for_each(|(wish, _)| drop(state.not_opened.remove(*wish)));
        }
    }

    pub(super) fn failed(&self, wish: &str, generation: u64, why: String) {
        self.state().not_opened.insert(wish.to_owned(), (generation, why));
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
        for (wish, generation, one) in table.waited_for(|one| Self::may_speak_of(one, now)) {
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
            let has = self.of_wish(table, &wish).unwrap_or(0);
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
        put("domain.new.example", row(1, NOW - 9 * NEW));
        served.put_domains(&table, &[("domain.new.example", Some(1)), ("domain.bad.example", Some(3))]);
        served.put_suffix("sprites.test", "wild.b.sprites.test", 9);
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
        let (served, table) = (Served::default(), CertificateTable::new());
        let put = |generation| {
            let row = Arc::new(row(generation, NOW));
            table.apply_put(CertificateRow { wish: "domain.a.example".into(), row });
        };
        put(1);
        put(2);
        served.failed("domain.a.example", 2, "forged".into());
        assert_eq!(served.not_opened("domain.a.example", 2).as_deref(), Some("forged"));
        assert_eq!(served.not_opened("domain.a.example", 1), None);
        let of_wish = || served.of_wish(&table, "domain.a.example");
        assert_eq!(of_wish(), None);
        served.put_domains(&table, &[("domain.a.example", Some(2))]);
        assert_eq!((served.not_opened("domain.a.example", 2), of_wish()), (None, Some(2)));
        put(2);
        assert_eq!(of_wish(), Some(2), "another row of the same is no other certificate");
        let target = target("domain.a.example").unwrap();
        assert_eq!(served.of(&table, &target), Some(("domain.a.example".into(), 2)));
        served.put_domains(&table, &[("domain.a.example", None)]);
        assert_eq!((of_wish(), served.of(&table, &target)), (None, None));
    }
}
