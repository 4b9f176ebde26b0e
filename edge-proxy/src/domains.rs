//! Custom domains: claiming one, proving it, taking it away, and looking at proofs again.
//!
//! What a look into the DNS changes is decided in `router/src/domains/proof.rs`; this is the shell
//! around it: store, DNS and clock. Every edge may look: a row is written by compare-and-set, and
//! who comes second finds that nothing is due any more.

pub mod delegation;
pub mod dns;
pub mod explain;

use crate::domain_certificates::DomainCertificates;
use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use dns::{Dns, NoAnswer};
use router::domains::name::{DOMAIN_BYTES_MAX, DomainError};
use router::domains::proof::{self, Seen};
use router::domains::row::{Claim, Holder};
use router::domains::{DomainName, DomainRow, DomainTable, apply};
use router::names::SpriteName;
use router::store::{Store, StoreError};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// Label in front of a domain under which its proof stands.
const CHALLENGE_LABEL: &str = "_sprite-challenge";
/// What the value of the TXT record begins with; a zone has other records for other services.
const VALUE_PREFIX: &str = "sprite-domain=";
/// How often a row is tried again when somebody else wrote it at the same time (chosen).
const TRIES: usize = 4;
/// Looks into the DNS at once, by hand and by themselves (chosen).
const LOOKS_MAX: usize = 8;
/// Between searches for rows that are due (chosen: below the shortest pause of a claim).
const SEARCH_EVERY: Duration = Duration::from_secs(15);
/// Most rows that are looked at after one search (chosen: 16,000 an hour; further ones wait).
const LOOKS_PER_SEARCH: usize = 64;
/// How long the caller of a change waits for this edge to serve by it (chosen; it takes a turn).
const VISIBLE: Duration = Duration::from_secs(2);

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum DomainsError {
    /// It is no domain.
    #[error("domain: {0}")]
    Name(#[from] DomainError),
    /// Its letters cannot be written as A-labels.
    #[error("domain: it has letters that no domain can have")]
    Letters,
    /// Too long for the name its proof would stand under.
    #[error("domain: with {CHALLENGE_LABEL} before it, it is longer than {DOMAIN_BYTES_MAX} bytes")]
    TooLong,
    /// At or under a suffix, reserved, or in the config file.
    #[error("{0} is a name of ours and cannot be added")]
    Ours(DomainName),
    /// Another tenant has proved it.
    #[error("{0} is taken: somebody else has proved that it is his")]
    Taken(DomainName),
    /// Nobody claims it.
    #[error("there is no domain {0}")]
    Unknown(DomainName),
    /// The sprite it is to lead to does not exist.
    #[error("there is no sprite {0}")]
    NoSprite(SpriteName),
    /// What is stored cannot be understood.
    #[error("what is stored for {0} cannot be read")]
    Corrupt(DomainName),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
    /// The store failed, or others wrote again and again.
    #[error("the store did not take it: {0}")]
    Store(#[from] StoreError),
}

/// What the admin API works on.
pub struct Domains {
    /// What this edge serves by.
    pub table: Arc<DomainTable>,
    /// The certificates of domains.
    pub certificates: Arc<DomainCertificates>,
    store: Store,
    dns: Dns,
    config: config::Domains,
    /// Our zone, in which answers to others' challenges are, if there are any.
    zone: Option<String>,
    looks: Semaphore,
}

impl Domains {
    /// Puts the parts together. `zone` is ours with the answers to challenges, where certificates come from public CAs.
    #[must_use]
    pub fn new(
        config: &config::Domains,
        store: Store,
        table: Arc<DomainTable>,
        certificates: Arc<DomainCertificates>,
        zone: Option<String>,
    ) -> Self {
        let dns = Dns::new(&config.resolvers);
        Self { table, certificates, store, dns, config: config.clone(), zone, looks: Semaphore::new(LOOKS_MAX) }
    }

    /// Claims a domain for a tenant's sprite, as a wildcard with all names one label below it. With `proved`, on an operator's word, it is served at once; its
    /// proof is due in 30 days as everybody's.
    ///
    /// # Errors
    /// [`DomainsError`]; nothing was written.
    pub async fn add(
        &self,
        Asked { name, wildcard }: &Asked,
        tenant: &str,
        sprite: &SpriteName,
        proved: bool,
    ) -> Result<DomainRow, DomainsError> {
        if self.table.is_ours(name) || (*wildcard && self.table.is_above_ours(name)) {
            return Err(DomainsError::Ours(name.clone()));
        }
        if record_name(name).len() > DOMAIN_BYTES_MAX {
            return Err(DomainsError::TooLong);
        }
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|_| DomainsError::Random)?;
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(random);
        let claim =
            Claim { tenant: tenant.into(), sprite: sprite.clone(), challenge, claimed_at: now(), wildcard: *wildcard };
        self.change(name, |mut row| {
            // Whoever asks again for the same keeps the record he may have set already.
            let same = |other: &Claim| {
                (&other.tenant, &other.sprite, other.wildcard) == (&claim.tenant, &claim.sprite, claim.wildcard)
            };
            let held = row.held().map(|holder| &holder.claim);
            let known = row.claims.iter().chain(held).find(|other| same(other)).cloned();
            let claim = known.clone().unwrap_or_else(|| claim.clone());
            match (known.is_some(), proved) {
                (true, false) => return Ok(None),
                (_, true) if row.held().is_none_or(|holder| holder.claim.tenant == claim.tenant) => {
                    row.claims.retain(|other| other.tenant != claim.tenant);
                    row.holder = Some(Holder { claim, proved_at: now(), missing_since: None, suspended_at: None });
                }
                (false, false) if row.claim(claim) => {}
                _ => return Err(DomainsError::Taken(name.clone())),
            }
            Ok(Some(row))
        })
        .await
    }

    /// Takes a domain away, whoever claims or holds it.
    ///
    /// # Errors
    /// [`DomainsError`]; nothing was written.
    pub async fn remove(&self, name: &DomainName) -> Result<(), DomainsError> {
        if self.table.fixed(name).is_some() {
            return Err(DomainsError::Ours(name.clone()));
        }
        let gone = self.change(name, |row| match row.is_empty() {
            true => Err(DomainsError::Unknown(name.clone())),
            false => Ok(Some(DomainRow::empty())),
        });
        gone.await.map(drop)
    }

    /// Looks into the DNS for the proofs of a domain, and lets a claim that is proved hold it. The row after that.
    ///
    /// # Errors
    /// [`DomainsError`]. An answer that cannot be had is none: it changes nothing.
    pub async fn check(&self, name: &DomainName) -> Result<DomainRow, DomainsError> {
        if self.stored(name).await?.is_none() {
            return Err(DomainsError::Unknown(name.clone()));
        }
        let records = self.records(name).await;
        self.change(name, |row| match row.is_empty() {
            true => Err(DomainsError::Unknown(name.clone())),
            false => Ok(proof::judge(&row, now(), |claim| seen(&records, name, claim))),
        })
        .await
    }

    /// What the TXT records of a domain's challenge say.
    async fn records(&self, name: &DomainName) -> Result<Vec<Vec<u8>>, NoAnswer> {
        // It is never closed.
        let _looking = self.looks.acquire().await;
        self.dns.txt(&record_name(name)).await
    }

    /// Looks at every row that is due, for ever.
    ///
    /// # Cancel safety
    /// Dropping it loses nothing that was written; looks begin anew with the next process.
    pub async fn keep_proving(self: Arc<Self>) {
        // Only rows that are looked at have an entry, and one that is gone loses it.
        let mut looked: HashMap<DomainName, u64> = HashMap::new();
        loop {
            tokio::time::sleep(SEARCH_EVERY).await;
            looked.retain(|name, _| self.table.row(name).is_some());
            let at = now();
            let due = self.table.pick(|name, row| {
                let last = looked.get(name).copied().unwrap_or(0);
                proof::due(row, last).filter(|due| *due <= at).map(|_| name.clone())
            });
            let looks = due.into_iter().take(LOOKS_PER_SEARCH).map(|name| async {
                if let Err(error) = self.check(&name).await {
                    tracing::warn!(domain = %name, %error, "a domain's proof was not looked at; trying again");
                }
                name
            });
            for name in futures_util::future::join_all(looks).await {
                looked.insert(name, at);
            }
        }
    }

    async fn stored(&self, name: &DomainName) -> Result<Option<(u64, DomainRow)>, DomainsError> {
        let key = DomainRow::key(name);
        let Some(entry) = self.store.get(&key).await? else { return Ok(None) };
        let row = DomainRow::decode(&key, &entry.value).map_err(|_| DomainsError::Corrupt(name.clone()))?;
        Ok(Some((entry.version, row.1)))
    }

    /// Writes what `change` makes of the row as it is now, if that is something else; the row after that, once
    /// this edge serves by it.
    async fn change(
        &self,
        name: &DomainName,
        change: impl Fn(DomainRow) -> Result<Option<DomainRow>, DomainsError>,
    ) -> Result<DomainRow, DomainsError> {
        let mut tries = 0;
        loop {
            let (version, before) = self.stored(name).await?.unzip();
            let before = before.unwrap_or_else(DomainRow::empty);
            let mut after = match change(before.clone())? {
                Some(after) => after,
                None if before.is_empty() || !before.id.is_empty() => return Ok(before),
                None => before.clone(),
            };
            if !after.is_empty() && after.id.is_empty() {
                after.id = delegation::new_id().ok_or(DomainsError::Random)?;
            }
            tries += 1;
            match apply::publish(&*self.store, name, &after, version).await {
                Err(StoreError::Conflict { .. }) if tries < TRIES => {}
                written => {
                    written?;
                    tracing::info!(domain = %name, sprite = ?after.sprite(), "custom domain changed");
                    self.visible(name, &after).await;
                    return Ok(after);
                }
            }
        }
    }

    /// Waits until this edge's own table says what was written, and its certificate is there if it is to have one.
    async fn visible(&self, name: &DomainName, row: &DomainRow) {
        let mut changes = self.table.changes();
        let seen = async {
            while self.table.row(name).as_deref().unwrap_or(&DomainRow::empty()) != row {
                // The table lives as long as we do.
                let _ = changes.changed().await;
            }
            if row.sprite().is_some() {
                self.certificates.tried(name).await;
            }
        };
        // Cut off from the store: the change is written all the same, and status says that we are.
        let _ = tokio::time::timeout(VISIBLE, seen).await;
    }
}

fn seen(records: &Result<Vec<Vec<u8>>, NoAnswer>, name: &DomainName, claim: &Claim) -> Seen {
    match records {
        Err(_) => Seen::Unavailable,
        Ok(records) if records.iter().any(|record| *record == record_value(name, claim).into_bytes()) => Seen::Proof,
        Ok(_) => Seen::Missing,
    }
}

/// The name of the TXT record that proves a domain.
#[must_use]
pub fn record_name(name: &DomainName) -> String {
    format!("{CHALLENGE_LABEL}.{name}")
}

/// What that record says for one claim. It is bound to domain, tenant and sprite: a record set for one proves no other.
#[must_use]
pub fn record_value(name: &DomainName, claim: &Claim) -> String {
    let mut hash = digest::Context::new(&digest::SHA256);
    let covered = if claim.wildcard { format!("*.{name}") } else { name.to_string() };
    // Lengths first, so that no two claims hash the same bytes.
    for part in [claim.challenge.as_str(), covered.as_str(), claim.sprite.as_str(), claim.tenant.as_str()] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    format!("{VALUE_PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(hash.finish()))
}

/// A domain somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its name.
    pub name: DomainName,
    /// Whether all names one label below it are asked for too.
    pub wildcard: bool,
}

impl From<DomainName> for Asked {
    fn from(name: DomainName) -> Self {
        Self { name, wildcard: false }
    }
}

/// The same with `*.` in front of it, or without.
///
/// # Errors
/// As [`parse`].
pub fn parse_asked(text: &str) -> Result<Asked, DomainsError> {
    let below = text.strip_prefix("*.");
    Ok(Asked { name: parse(below.unwrap_or(text))?, wildcard: below.is_some() })
}

/// A domain as people write it: in any letters and case.
///
/// # Errors
/// [`DomainsError::Name`], [`DomainsError::Letters`].
pub fn parse(text: &str) -> Result<DomainName, DomainsError> {
    if text.is_ascii() && !text.to_ascii_lowercase().contains("xn--") {
        return Ok(DomainName::parse(text)?);
    }
    let ascii = idna::domain_to_ascii(text).map_err(|_| DomainsError::Letters)?;
    Ok(DomainName::parse(&ascii)?)
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use acme::resolver::Certificates;
    use router::store::{Embedded, EmbeddedStore};

    fn claim(tenant: &str, sprite: &str) -> Claim {
        let sprite = SpriteName::parse(sprite).unwrap();
        Claim { tenant: tenant.into(), sprite, challenge: "c".repeat(43), claimed_at: 1, wildcard: false }
    }

    #[test]
    fn a_record_proves_one_domain_of_one_tenant_for_one_sprite() {
        let name = DomainName::parse("a.example").unwrap();
        let value = record_value(&name, &claim("t", "a"));
        assert!(value.starts_with(VALUE_PREFIX) && value.len() <= 255);
        let records = |value: &str| Ok(vec![b"v=spf1".to_vec(), value.as_bytes().to_vec()]);
        assert_eq!(seen(&records(&value), &name, &claim("t", "a")), Seen::Proof);
        for other in [
            claim("u", "a"),
            claim("t", "b"),
            Claim { challenge: "d".repeat(43), ..claim("t", "a") },
            Claim { wildcard: true, ..claim("t", "a") },
        ] {
            assert_eq!(seen(&records(&value), &name, &other), Seen::Missing);
        }
        assert_eq!(seen(&records(&value), &DomainName::parse("b.example").unwrap(), &claim("t", "a")), Seen::Missing);
        assert_eq!(seen(&records(&value[1..]), &name, &claim("t", "a")), Seen::Missing);
        assert_eq!(seen(&Err(NoAnswer("gone".into())), &name, &claim("t", "a")), Seen::Unavailable);
    }

    /// Domains of one edge on `store`, which follows it.
    fn edge(store: &Store, dir: &std::path::Path) -> Domains {
        let table = Arc::new(DomainTable::new(HashMap::new(), &[], &[]));
        tokio::spawn(apply::follow(Arc::clone(store), Arc::clone(&table), dir.join("good")));
        let nobody = config::Domains { resolvers: vec![([127, 0, 0, 1], 1).into()], ..config::Domains::default() };
        Domains::new(&nobody, Arc::clone(store), table, DomainCertificates::new(Certificates::default(), None), None)
    }

    #[tokio::test]
    async fn of_two_tenants_who_are_both_proved_one_holds_the_domain() {
        let (one_dir, two_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store: Store = Arc::new(Embedded(Arc::new(EmbeddedStore::open(&one_dir.path().join("s")).unwrap())));
        let (one, two) = (edge(&store, one_dir.path()), edge(&store, two_dir.path()));
        let sprite = SpriteName::parse("a").unwrap();
        for round in 0..8 {
            let name = DomainName::parse(&format!("d{round}.example")).unwrap();
            let asked = Asked::from(name.clone());
            let both = tokio::join!(one.add(&asked, "one", &sprite, true), two.add(&asked, "two", &sprite, true));
            let (row, lost) = match both {
                (Ok(row), Err(lost)) | (Err(lost), Ok(row)) => (row, lost),
                both => panic!("{both:?}"),
            };
            assert!(matches!(lost, DomainsError::Taken(_)), "{lost}");
            assert_eq!(one.stored(&name).await.unwrap().unwrap().1, row);
            // Nor does a claim get in beside it.
            let loser = if row.held().unwrap().claim.tenant == "one" { "two" } else { "one" };
            assert!(matches!(one.add(&asked, loser, &sprite, false).await, Err(DomainsError::Taken(_))));
        }
        let name = DomainName::parse("d0.example").unwrap();
        one.remove(&name).await.unwrap();
        assert!(matches!(two.check(&name).await, Err(DomainsError::Unknown(_))));
    }

    #[test]
    fn other_letters_become_a_labels() {
        assert_eq!(parse("Bücher.Example").unwrap().as_str(), "xn--bcher-kva.example");
        assert_eq!(parse("XN--bcher-kva.example.").unwrap().as_str(), "xn--bcher-kva.example");
        for wrong in ["xn--\u{e9}.example", "xn--99999999.example", "a b.example", "b\u{fc}\u{1}.example"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
