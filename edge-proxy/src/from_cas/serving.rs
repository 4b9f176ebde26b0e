//! Hands the best certificate of each suffix and domain to the resolver, as the table changes: wildcards open, since every
//! handshake needs them, those of domains sealed until somebody asks.
//!
//! A certificate that is new to this machine is opened once before it takes an older one's place, so that a row that
//! is damaged, or sealed under a key nobody here has, is never what a name is left with.

#[cfg(test)]
mod tests;

use super::opening::SealedCertificates;
use super::table::{CertificateTable, Summary};
use super::wishes::{self, For};
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
    /// What is served of a suffix: of which wish, under which number.
    suffixes: BTreeMap<String, (Box<str>, u64)>,
    /// Wishes with a certificate that could not be opened: tried again.
    failed: BTreeSet<Box<str>>,
}

impl Serving {
    pub(super) const fn new(sealed: Arc<SealedCertificates>, to: Arc<DomainCertificates>) -> Self {
        Self { sealed, to, suffixes: BTreeMap::new(), failed: BTreeSet::new() }
    }

    /// Serves what the table says; never returns. `again`: what could not be opened may be opened now.
    pub(super) async fn follow(mut self, again: Arc<tokio::sync::Notify>) {
        let mut changes = self.table().changes();
        loop {
            changes.mark_unchanged();
            let mut wishes = self.table().take_changed();
            wishes.append(&mut self.failed);
            // On a thread for such work: it reads the disk.
            let round = tokio::task::spawn_blocking(move || {
                self.round(wishes);
                self
            });
            match round.await {
                Ok(after) => self = after,
                Err(error) => return tracing::error!(%error, "certificates from CAs are followed no more"),
            }
            tokio::time::sleep(PAUSE).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = again.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn table(&self) -> &CertificateTable {
        self.sealed.table()
    }

    fn round(&mut self, changed: BTreeSet<Box<str>>) {
        self.suffixes(acme::unix_now());
        let mut names = Vec::new();
        for wish in changed {
            if let Some(For::Domain(name)) = For::of(&wish)
                && let Some(slot) = self.domain(&wish)
            {
                names.push((name.to_owned(), slot));
            }
            if names.len() >= BATCH {
                self.to.resolver().change(names.drain(..));
                self.to.brought_up_to_date();
            }
        }
        self.to.resolver().change(names);
        self.to.brought_up_to_date();
    }

    /// What a domain has from now on: its newest certificate that opens, or nothing; `None`: what it has stays.
    fn domain(&mut self, wish: &str) -> Option<Option<Slot>> {
        let all = self.table().generations(wish);
        for (generation, summary) in all.iter().rev().filter(|(_, summary)| !summary.compromised) {
            if summary.checked || self.check(wish, *generation, summary).is_some() {
                return Some(Handle::new(summary.number).map(Slot::Sealed));
            }
            self.failed.insert(wish.into());
        }
        // None was there, or none is left; one that does not open yet takes nothing away.
        (!self.failed.contains(wish)).then_some(None)
    }

    fn check(&self, wish: &str, generation: u64, summary: &Summary) -> Option<Certificate> {
        match self.sealed.open_number(summary.number) {
            Ok(certificate) => {
                if !summary.checked {
                    self.table().checked(wish, generation, summary.number);
                }
                Some(certificate)
            }
            Err(error) => {
                tracing::error!(wish, generation, %error, "a certificate cannot be served");
                None
            }
        }
    }

    /// The best certificate of each suffix: one that has not ended before one that has, then the one that ends last.
    fn suffixes(&mut self, now: u64) {
        let mut best: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
        for wish in self.table().wishes(wishes::WILDCARD) {
            let Some(For::Suffix { suffix, .. }) = For::of(&wish) else { continue };
            let all = self.table().generations(&wish);
            // Of one CA the newest that is nobody else's, and an older one only when that does not open.
            for (generation, summary) in all.into_iter().filter(|(_, summary)| !summary.compromised) {
                let candidate = Candidate { wish: wish.clone(), generation, summary };
                best.entry(suffix.to_owned()).or_default().push(candidate);
            }
        }
        for (suffix, mut candidates) in best {
            candidates.sort_unstable_by_key(|candidate| std::cmp::Reverse(candidate.rank(now)));
            for Candidate { wish, generation, summary } in candidates {
                let served = (wish, summary.number);
                if self.suffixes.get(&suffix) == Some(&served) {
                    break;
                }
                if let Some(certificate) = self.check(&served.0, generation, &summary) {
                    self.to.resolver().put_suffix(&suffix, certificate.key);
                    self.suffixes.insert(suffix, served);
                    break;
                }
            }
        }
    }
}

/// A certificate a suffix may have.
struct Candidate {
    wish: Box<str>,
    generation: u64,
    summary: Summary,
}

impl Candidate {
    fn rank(&self, now: u64) -> (bool, u64, u64) {
        (self.summary.not_after > now, self.summary.not_after, self.generation)
    }
}
