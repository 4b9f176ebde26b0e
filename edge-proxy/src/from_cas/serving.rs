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
use router::changed::Changed;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Shortest pause between two rounds (chosen).
const PAUSE: Duration = Duration::from_millis(10);
/// A round happens this often at least: certificates end, and another CA's may be better then (chosen).
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Names that are told to the resolver at once: the first so many, so that at a start with a million some serve early; then
/// more and more, since each time it copies all it has (chosen).
const BATCH: usize = 4_096;
/// At most so many (chosen: some 20 MiB while they are told).
const BATCH_MAX: usize = 16 * BATCH;

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
    /// Wishes that have changed since the last round.
    changed: Arc<Changed>,
    /// Wishes with a certificate that could not be opened: tried again.
    failed: BTreeSet<Box<str>>,
}

impl Serving {
    pub(super) fn new(
        sealed: Arc<SealedCertificates>,
        to: Arc<DomainCertificates>,
        served: Arc<Served>,
        distrusted: Arc<Distrusted>,
    ) -> Self {
        let changed = sealed.table().changed_wishes();
        let (numbers, suffixes, failed) = Default::default();
        Self { sealed, to, served, distrusted, numbers, suffixes, changed, failed }
    }

    /// Serves what the table says; never returns. `again`: what could not be opened may be opened now.
    pub(super) async fn follow(mut self, again: Arc<tokio::sync::Notify>) {
        let (mut changes, mut distrusted) = (self.table().changes(), self.distrusted.changes());
        loop {
            changes.mark_unchanged();
            distrusted.mark_unchanged();
            let numbers = self.distrusted.numbers();
            // Of a domain too another CA's may be there.
            let is_another = numbers != self.numbers;
            self.numbers = numbers;
            // On a thread for such work: it reads the disk.
            let round = tokio::task::spawn_blocking(move || {
                self.round(is_another, acme::unix_now());
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

    /// Looks at what has changed, or at all there is. Suffixes first: every sprite hangs on them.
    fn round(&mut self, all: bool, now: u64) {
        let changed = self.changed.take();
        let mut wishes = std::mem::take(&mut self.failed);
        self.suffixes(now);
        if all || changed.is_none() {
            self.all(now);
        }
        // What is gone is in here alone.
        wishes.extend(changed.into_iter().flatten());
        let wishes: Vec<_> = wishes.into_iter().collect();
        wishes.chunks(BATCH_MAX).for_each(|wishes| self.domains(wishes, now));
        self.served.speak(self.table(), now);
        self.to.brought_up_to_date();
    }

    /// Every domain there is, some at a time.
    fn all(&mut self, now: u64) {
        let (prefix, mut last, mut batch) = (format!("{}.", wishes::DOMAIN), None, BATCH);
        loop {
            let some = self.table().wishes_after(&prefix, last.as_deref(), batch);
            self.domains(&some, now);
            last = some.into_iter().next_back();
            if last.is_none() {
                return;
            }
            batch = (batch * 2).min(BATCH_MAX);
        }
    }

    fn domains(&mut self, wishes: &[Box<str>], now: u64) {
        let mut names = Vec::with_capacity(wishes.len());
        for wish in wishes {
            let Some((false, name)) = target(wish) else { continue };
            if let Some(found) = self.domain(wish, now) {
                names.push((name, &**wish, found));
            }
        }
        if !names.is_empty() {
            self.tell(&mut names);
        }
    }

    /// Tells the resolver what domains have, with which generation; and then everybody else: nothing is said to be
    /// served before it is.
    fn tell(&self, names: &mut Vec<(String, &str, Option<Has>)>) {
        let slots = names.iter().flat_map(|(name, _, found)| {
            let slot = |is: bool| found.filter(|_| is).map(|found| Slot::Sealed(found.handle));
            [(name.clone(), slot(true)), (format!(".{name}"), slot(found.is_some_and(|found| found.has_below)))]
        });
        self.to.resolver().change(slots);
        let served: Vec<_> =
            names.iter().map(|(_, wish, found)| (*wish, found.map(|found| found.generation))).collect();
        self.served.put_domains(self.table(), &served);
        names.clear();
        self.to.brought_up_to_date();
    }

    /// What a domain has from now on: its best certificate that opens, or nothing; `None`: what it has stays.
    fn domain(&mut self, wish: &str, now: u64) -> Option<Option<Has>> {
        // As most of a million are.
        if let [(generation, only)] = &*self.table().generations(wish)
            && only.checked
        {
            return Some(Has::of(*generation, only));
        }
        let all = ranked(self.table(), &[wish.into()], &self.numbers, now);
        if all.is_empty() {
            return Some(None);
        }
        for Candidate { generation, summary, .. } in all {
            if summary.checked || self.check(wish, generation, &summary).is_some() {
                return Some(Has::of(generation, &summary));
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
                    self.served.put_suffix(&target.1, &served.0, generation);
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

impl Has {
    fn of(generation: u64, summary: &Summary) -> Option<Self> {
        let has_below = summary.has_below;
        Handle::new(summary.number).map(|handle| Self { generation, handle, has_below })
    }
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
