//! Certificates of custom domains, as long as the local CA issues them: a leaf of its own for each domain
//! that is proved, before it is asked for.
//!
//! Names come and go a batch at a time, and a handshake under way ends with what it began with. With a configured
//! certificate there is nothing to issue: that one answers for what it covers.

use acme::local_ca::LocalCa;
use acme::resolver::{CertResolver, Certificates, Found, Policy, SealedStore, Slot};
use router::domains::DomainName;
use router::regions::DomainRegions;
use rustls::sign::CertifiedKey;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Most domains with a certificate of the local CA (chosen: it is for a machine or a demo).
const DOMAINS_MAX: usize = 10_000;
/// Leaves that are issued before they serve (chosen: some tens of milliseconds of work).
const BATCH: usize = 64;
/// A leaf lives 90 days; after so long there is a new one (chosen: a third before its end).
const RENEW_AFTER: Duration = Duration::from_secs(60 * 24 * 3600);
/// How often that is looked for when nothing else happens (chosen).
const LOOK_EVERY: Duration = Duration::from_secs(24 * 3600);
/// Shortest pause between two rounds (chosen).
const PAUSE: Duration = Duration::from_millis(10);
/// Of the time this takes, at most one part in so many (chosen: the set is searched at each change).
const SHARE: u32 = 10;

/// The certificates of this edge.
pub struct DomainCertificates {
    resolver: Arc<CertResolver>,
    /// Domains of the config file, whose certificates do not change.
    fixed: HashSet<String>,
    ca: Option<Arc<LocalCa>>,
    /// Counts the times they were brought up to date.
    rounds: watch::Sender<u64>,
}

/// With whether it is for the names below too, and since when it is there.
type Issued = HashMap<DomainName, Leaf>;

#[derive(Clone)]
struct Leaf {
    key: Arc<CertifiedKey>,
    wildcard: bool,
    since: Instant,
}

impl DomainCertificates {
    /// Around what is there from the start; without a CA nothing is issued.
    #[must_use]
    pub fn new(base: Certificates, ca: Option<LocalCa>) -> Arc<Self> {
        Self::with(base, ca, Policy::default(), None)
    }

    /// The same, where the operator has said what is done in doubt; what is sealed lies in `sealed`.
    #[must_use]
    pub fn with(
        base: Certificates,
        ca: Option<LocalCa>,
        policy: Policy,
        sealed: Option<Arc<dyn SealedStore>>,
    ) -> Arc<Self> {
        let fixed = base.names.keys().cloned().collect();
        let resolver = CertResolver::with(base, policy, sealed);
        Arc::new(Self { resolver, fixed, ca: ca.map(Arc::new), rounds: watch::Sender::new(0) })
    }

    /// What rustls asks.
    #[must_use]
    pub fn resolver(&self) -> Arc<CertResolver> {
        Arc::clone(&self.resolver)
    }

    /// Whether a handshake for the name would be answered.
    #[must_use]
    pub fn covers(&self, name: &DomainName) -> bool {
        !matches!(self.resolver.look(Some(name.as_str())), Found::Unknown)
    }

    /// What is served has changed by another hand: whoever waits for a domain's certificate looks again.
    pub fn brought_up_to_date(&self) {
        self.rounds.send_modify(|rounds| *rounds = rounds.wrapping_add(1));
    }

    /// Whether there is a CA that issues.
    #[must_use]
    pub const fn issues(&self) -> bool {
        self.ca.is_some()
    }

    /// Waits until a proved domain has its certificate, or it was tried with the table as it is now.
    ///
    /// # Cancel safety
    /// Dropping it does nothing.
    pub async fn tried(&self, name: &DomainName) {
        if !self.issues() || self.covers(name) {
            return;
        }
        let mut rounds = self.rounds.subscribe();
        // The round under way may have begun before the domain was proved.
        for _ in 0..2 {
            if self.covers(name) {
                return;
            }
            // The sender lives in self.
            let _ = rounds.changed().await;
        }
    }

    /// Waits until the domains that were in the table when [`Self::follow`] began have been tried.
    ///
    /// # Cancel safety
    /// Dropping it does nothing.
    pub async fn begun(&self) {
        if self.issues() {
            // The sender lives in self.
            let _ = self.rounds.subscribe().wait_for(|rounds| *rounds > 0).await;
        }
    }

    /// Keeps the set in step with the table; never returns. Without a CA it returns at once.
    ///
    /// # Cancel safety
    /// Dropping it leaves the set as it is.
    pub async fn follow(self: Arc<Self>, table: Arc<DomainRegions>) {
        let Some(ca) = self.ca.clone() else { return };
        let mut changes = table.changes();
        let mut issued = Issued::new();
        loop {
            let begun = Instant::now();
            changes.mark_unchanged();
            self.bring_up_to_date(&ca, &table, &mut issued).await;
            self.rounds.send_modify(|rounds| *rounds = rounds.wrapping_add(1));
            tokio::time::sleep((begun.elapsed() * (SHARE - 1)).max(PAUSE)).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn bring_up_to_date(&self, ca: &Arc<LocalCa>, table: &DomainRegions, issued: &mut Issued) {
        let gone: Vec<_> = issued.extract_if(|name, _| !table.is_proved(name)).map(|(name, _)| (name, None)).collect();
        self.change(gone);
        let fresh = |issued: &Issued, name: &DomainName| {
            let fresh = |leaf: &Leaf| leaf.since.elapsed() < RENEW_AFTER && leaf.wildcard == table.is_wildcard(name);
            issued.get(name).is_some_and(fresh)
        };
        let mut wanted = table.pick(|name, row| row.sprite().is_some() && !fresh(issued, name));
        let room = DOMAINS_MAX.saturating_sub(issued.len());
        let renewed = wanted.iter().filter(|name| issued.contains_key(*name)).count();
        if wanted.len() > room + renewed {
            tracing::warn!(domains = wanted.len(), "more domains than the local CA has certificates for");
            wanted.sort_unstable_by_key(|name| !issued.contains_key(name));
            wanted.truncate(room + renewed);
        }
        for batch in wanted.chunks(BATCH) {
            let batch: Vec<_> = batch.iter().map(|name| (name.clone(), table.is_wildcard(name))).collect();
            let ca = Arc::clone(ca);
            let issuing = tokio::task::spawn_blocking(move || {
                let names = |name: &DomainName, wildcard: bool| {
                    std::iter::once(name.to_string()).chain(wildcard.then(|| format!("*.{name}"))).collect::<Vec<_>>()
                };
                let issue = |(name, wildcard): (DomainName, bool)| match ca.issue(&names(&name, wildcard)) {
                    Ok(key) => Some((name, Leaf { key: Arc::new(key), wildcard, since: Instant::now() })),
                    Err(error) => {
                        tracing::warn!(domain = %name, %error, "no certificate for a domain");
                        None
                    }
                };
                batch.into_iter().filter_map(issue).collect::<Vec<_>>()
            });
            // A panic in there has been said already.
            let fresh = issuing.await.unwrap_or_default();
            self.change(fresh.iter().map(|(name, leaf)| (name.clone(), Some(leaf.clone()))));
            issued.extend(fresh);
        }
    }

    fn change(&self, changes: impl IntoIterator<Item = (DomainName, Option<Leaf>)>) {
        let changes = changes.into_iter().map(|(name, leaf)| (name.as_str().to_owned(), leaf));
        // The config file's own stay.
        let changes = changes.filter(|(name, _)| !self.fixed.contains(name));
        let slot = |leaf: Leaf| Slot::Loaded(leaf.key.into());
        self.resolver.change(changes.flat_map(|(name, leaf)| {
            let below = leaf.clone().filter(|leaf| leaf.wildcard).map(slot);
            [(format!(".{name}"), below), (name, leaf.map(slot))]
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use router::domains::row::{Claim, Holder};
    use router::domains::{DomainRow, DomainTable};
    use router::names::SpriteName;

    fn row(suspended_at: Option<u64>) -> DomainRow {
        let claim = Claim {
            tenant: "t".into(),
            sprite: SpriteName::parse("a").unwrap(),
            challenge: "c".repeat(43),
            claimed_at: 1,
            wildcard: false,
        };
        let holder = Holder { claim, proved_at: 1, missing_since: None, suspended_at };
        DomainRow { holder: Some(holder), ..DomainRow::empty() }
    }

    #[tokio::test]
    async fn a_proved_domain_has_a_certificate_until_it_is_suspended_or_gone() {
        let dir = tempfile::tempdir().unwrap();
        let ca = LocalCa::load_or_create(dir.path()).unwrap();
        let certificates = DomainCertificates::new(Certificates::default(), Some(ca));
        let table = Arc::new(DomainTable::new(HashMap::new(), &[], &[]));
        let names: Vec<_> = (0..BATCH + 1).map(|at| DomainName::parse(&format!("d{at}.example")).unwrap()).collect();
        let following = tokio::spawn(Arc::clone(&certificates).follow(Arc::new(Arc::clone(&table).into())));
        for name in &names {
            table.apply_put(name.clone(), row(None));
        }
        let until = async |wanted: &dyn Fn() -> bool| {
            let mut rounds = certificates.rounds.subscribe();
            let round = async {
                while !wanted() {
                    rounds.changed().await.unwrap();
                }
            };
            tokio::time::timeout(Duration::from_secs(20), round).await.expect("no further set");
        };
        until(&|| names.iter().all(|name| certificates.covers(name))).await;
        let kept = certificates.resolver.find("d1.example").unwrap();
        assert!(certificates.resolver.find("any.d3.example").is_none());
        let mut wildcard = row(None);
        wildcard.holder.as_mut().unwrap().claim.wildcard = true;
        table.apply_put(names[3].clone(), wildcard);
        until(&|| certificates.resolver.find("any.d3.example").is_some()).await;
        assert!(certificates.covers(&names[3]));
        table.apply_put(names[3].clone(), row(None));
        until(&|| certificates.resolver.find("any.d3.example").is_none()).await;
        assert!(certificates.covers(&names[3]));
        table.apply_put(names[0].clone(), row(Some(2)));
        table.apply_remove(&names[2]);
        until(&|| !certificates.covers(&names[0]) && !certificates.covers(&names[2])).await;
        let same = certificates.resolver.find("d1.example").unwrap();
        assert!(Arc::ptr_eq(&kept, &same), "the others keep theirs");
        following.abort();
    }
}
