//! Hands the best certificate of each suffix and domain to the resolver, as the table changes: wildcards open, since every
//! handshake needs them, those of domains sealed until somebody asks.
//!
//! A certificate that is new to this machine is opened once before it takes an older one's place, so that a row that
//! is damaged, or sealed under a key nobody here has, is never what a name is left with.

#[cfg(test)]
mod tests;

use super::distrust::Distrusted;
use super::opening::SealedCertificates;
use super::served::{Served, Target, target};
use super::table::{CertificateTable, Summary};
use super::wishes;
use crate::domain_certificates::DomainCertificates;
use acme::resolver::{Certificate, Handle, Slot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Shortest pause between two rounds (chosen).
const PAUSE: Duration = Duration::from_millis(10);
/// A round happens this often at least: certificates end, and another CA's may be better then (chosen).
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Names that are told to the resolver at once (chosen: at the first start with a million, the first serve early).
const BATCH: usize = 4_096;

/// What this machine serves.
pub(super) struct Serving {
    sealed: Arc<SealedCertificates>,
    to: Arc<DomainCertificates>,
    /// For people and for the other PoPs.
    served: Arc<Served>,
    distrusted: Arc<Distrusted>,
    /// Of these CAs in this round.
    numbers: Vec<u32>,
    /// What is served of a suffix: of which wish, under which number.
    suffixes: BTreeMap<String, (Box<str>, u64)>,
    /// Wishes with a certificate that could not be opened: tried again.
    failed: BTreeSet<Box<str>>,
}

impl Serving {
    pub(super) const fn new(
        sealed: Arc<SealedCertificates>,
        to: Arc<DomainCertificates>,
        served: Arc<Served>,
        distrusted: Arc<Distrusted>,
    ) -> Self {
        Self { sealed, to, served, distrusted, numbers: Vec::new(), suffixes: BTreeMap::new(), failed: BTreeSet::new() }
    }

    /// Serves what the table says; never returns. `again`: what could not be opened may be opened now.
    pub(super) async fn follow(mut self, again: Arc<tokio::sync::Notify>) {
        let (mut changes, mut distrusted) = (self.table().changes(), self.distrusted.changes());
        loop {
            changes.mark_unchanged();
            distrusted.mark_unchanged();
            let mut wishes = self.table().take_changed();
            let numbers = self.distrusted.numbers();
            if numbers != self.numbers {
                // Of a domain too another CA's may be there.
                wishes.append(&mut self.table().wishes(wishes::DOMAIN));
                self.numbers = numbers;
            }
            wishes.append(&mut self.failed);
            // On a thread for such work: it reads the disk.
            let round = tokio::task::spawn_blocking(move || {
                self.round(&wishes, acme::unix_now());
                self
            });
            match round.await {
                Ok(after) => self = after,
                Err(error) => return tracing::error!(%error, "certificates from CAs are followed no more"),
            }
            tokio::time::sleep(PAUSE).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                changed = distrusted.changed() => if changed.is_err() { return },
                () = again.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn table(&self) -> &CertificateTable {
        self.sealed.table()
    }

    fn round(&mut self, changed: &BTreeSet<Box<str>>, now: u64) {
        self.suffixes(now);
        let mut names = Vec::new();
        for wish in changed {
            let Some((false, name)) = target(wish) else { continue };
            if let Some(found) = self.domain(wish, now) {
                names.push((name, &**wish, found));
            }
            if names.len() >= BATCH {
                self.tell(&mut names);
            }
        }
        self.tell(&mut names);
        self.served.speak(self.table(), now);
        self.to.brought_up_to_date();
    }

    /// Tells the resolver what domains have, with which generation; and then everybody else: nothing is said to be
    /// served before it is.
    fn tell(&self, names: &mut Vec<(String, &str, Option<Has>)>) {
        let slots = names.iter().flat_map(|(name, _, found)| {
            let slot = |is: bool| found.filter(|_| is).map(|found| Slot::Sealed(found.handle));
            [(name.clone(), slot(true)), (format!(".{name}"), slot(found.is_some_and(|found| found.has_below)))]
        });
        self.to.resolver().change(slots);
        for (name, wish, found) in names.drain(..) {
            match found {
                Some(found) => self.served.put((false, name), wish, found.generation),
                None => self.served.remove(&(false, name), wish),
            }
        }
        self.to.brought_up_to_date();
    }

    /// What a domain has from now on: its best certificate that opens, or nothing; `None`: what it has stays.
    fn domain(&mut self, wish: &str, now: u64) -> Option<Option<Has>> {
        let all = ranked(self.table(), &[wish.into()], &self.numbers, now);
        if all.is_empty() {
            return Some(None);
        }
        for Candidate { generation, summary, .. } in all {
            if summary.checked || self.check(wish, generation, &summary).is_some() {
                let has_below = summary.has_below;
                return Some(Handle::new(summary.number).map(|handle| Has { generation, handle, has_below }));
            }
        }
        // One that does not open yet takes nothing away.
        None
    }

    fn check(&mut self, wish: &str, generation: u64, summary: &Summary) -> Option<Certificate> {
        match self.sealed.open_number(summary.number) {
            Ok(certificate) => {
                if !summary.checked {
                    self.table().checked(wish, generation, summary.number);
                }
                Some(certificate)
            }
            Err(error) => {
                tracing::error!(wish, generation, %error, "a certificate cannot be served");
                self.served.failed(wish, generation, format!("{error:#}"));
                self.failed.insert(wish.into());
                None
            }
        }
    }

    fn suffixes(&mut self, now: u64) {
        let mut of_suffix: BTreeMap<Target, Vec<Box<str>>> = BTreeMap::new();
        for wish in self.table().wishes(wishes::WILDCARD) {
            if let Some(target) = target(&wish).filter(|target| target.0) {
                of_suffix.entry(target).or_default().push(wish);
            }
        }
        for (target, wishes) in of_suffix {
            for Candidate { wish, generation, summary } in ranked(self.table(), &wishes, &self.numbers, now) {
                let served = (wish, summary.number);
                if self.suffixes.get(&target.1) == Some(&served) {
                    break;
                }
                if let Some(certificate) = self.check(&served.0, generation, &summary) {
                    self.to.resolver().put_suffix(&target.1, certificate.key);
                    self.served.put(target.clone(), &served.0, generation);
                    self.suffixes.insert(target.1, served);
                    break;
                }
            }
        }
    }
}

/// What a domain has.
#[derive(Clone, Copy)]
struct Has {
    generation: u64,
    /// Where it lies.
    handle: Handle,
    /// It is for the names one label below the domain too.
    has_below: bool,
}

/// A certificate that may answer.
#[derive(Debug)]
struct Candidate {
    wish: Box<str>,
    generation: u64,
    summary: Summary,
}

impl Candidate {
    fn fit(&self, distrusted: &[u32], now: u64) -> (bool, bool, bool) {
        let summary = &self.summary;
        (!summary.compromised, summary.not_after > now, !distrusted.contains(&summary.ca))
    }
}

/// The certificates of these wishes, the best first: one whose key is nobody else's before one whose key is, one that has
/// not ended before one that has, one whose CA is trusted before one whose CA is not (by number); then of each wish the
/// newest, and of several wishes the one that lasts longest. All others come after these.
fn ranked(table: &CertificateTable, wishes: &[Box<str>], distrusted: &[u32], now: u64) -> Vec<Candidate> {
    let (mut first, mut others) = (Vec::new(), Vec::new());
    for wish in wishes {
        let all = table.generations(wish).into_iter();
        let mut all: Vec<_> =
            all.map(|(generation, summary)| Candidate { wish: wish.clone(), generation, summary }).collect();
        all.sort_unstable_by_key(|one| std::cmp::Reverse((one.fit(distrusted, now), one.generation)));
        let mut all = all.into_iter();
        first.extend(all.next());
        others.extend(all);
    }
    first.sort_by_key(|one| std::cmp::Reverse((one.fit(distrusted, now), one.summary.not_after)));
    others.sort_by_key(|one| std::cmp::Reverse((one.fit(distrusted, now), one.generation)));
    first.extend(others);
    first
}
