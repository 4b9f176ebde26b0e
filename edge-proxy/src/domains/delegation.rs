//! `_acme-challenge.FQDN CNAME ID.acme.ZONE`: a domain whose owner lets us answer for it, and for it alone, when a CA asks its DNS. So
//! it has a certificate before it points here, and a wildcard has one at all.
//!
//! The id is random and in the domain's row: whoever adds the domain anew has another one, and a record that was forgotten
//! leads nowhere.

use super::dns::{Dns, NoAnswer};
use router::domains::row::ID_BYTES;
use router::domains::{DomainName, DomainRow, DomainTable};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// CNAMEs that are followed (`tls-acme-dns.md` §10; what resolvers do as well).
const HOPS_MAX: usize = 8;
/// For all of them (chosen: an order waits for it).
const LOOK: Duration = Duration::from_secs(20);

/// An id nobody has; none without random bytes.
pub(super) fn new_id() -> Option<String> {
    let mut random = [0; ID_BYTES / 2];
    getrandom::fill(&mut random).ok()?;
    Some(random.iter().fold(String::new(), |mut id, byte| {
        // Into a text it never fails.
        let _ = write!(id, "{byte:02x}");
        id
    }))
}

/// Where the CNAME record stands.
pub(super) fn record_name(name: &DomainName) -> String {
    format!("_acme-challenge.{name}")
}

/// What it has to lead to; none for a row without an id.
pub(super) fn target(row: &DomainRow, zone: &str) -> Option<String> {
    (!row.id.is_empty()).then(|| format!("{}.acme.{zone}", row.id))
}

/// Why a domain does not delegate its challenges to us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Astray {
    /// There is no record.
    #[error("_acme-challenge.{0} has no CNAME")]
    None(String),
    /// It leads elsewhere.
    #[error("_acme-challenge.{0} leads to {1}")]
    Elsewhere(String, String),
    /// It leads on and on.
    #[error("_acme-challenge.{0} leads through more than {HOPS_MAX} names")]
    Endless(String),
}

/// Whether the records of a domain lead to `target`.
///
/// # Errors
/// [`NoAnswer`]: nobody knows.
pub(super) async fn leads_to(dns: &Dns, domain: &str, target: &str) -> Result<Result<(), Astray>, NoAnswer> {
    let looks = async {
        let mut walk = Walk::new(domain, target);
        loop {
            if let Some(end) = walk.found(dns.cname(&walk.at).await?) {
                return Ok(end);
            }
        }
    };
    tokio::time::timeout(LOOK, looks).await.unwrap_or_else(|_| Err(NoAnswer("it took too long".into())))
}

/// A walk from one CNAME to the next.
struct Walk<'a> {
    domain: &'a str,
    target: &'a str,
    /// The name whose record is looked at next.
    at: String,
    hops: usize,
}

impl<'a> Walk<'a> {
    fn new(domain: &'a str, target: &'a str) -> Self {
        Self { domain, target, at: format!("_acme-challenge.{domain}"), hops: 0 }
    }

    /// Goes on with what stands at [`Self::at`], or ends.
    fn found(&mut self, cname: Option<String>) -> Option<Result<(), Astray>> {
        self.hops += 1;
        let domain = self.domain.to_owned();
        match cname {
            Some(next) if next == self.target => Some(Ok(())),
            Some(_) if self.hops == HOPS_MAX => Some(Err(Astray::Endless(domain))),
            Some(next) => {
                self.at = next;
                None
            }
            None if self.hops == 1 => Some(Err(Astray::None(domain))),
            None => Some(Err(Astray::Elsewhere(domain, std::mem::take(&mut self.at)))),
        }
    }
}

/// The delegations of all domains of this region.
pub struct Delegations {
    domains: Arc<DomainTable>,
    dns: Dns,
    zone: String,
}

impl Delegations {
    /// To `zone`, looked for at `resolvers` as proofs are.
    #[must_use]
    pub fn new(domains: Arc<DomainTable>, resolvers: &[SocketAddr], zone: String) -> Self {
        Self { domains, dns: Dns::new(resolvers), zone }
    }

    /// Where the answers for a domain are to be, if it has a row.
    pub(crate) fn target(&self, domain: &str) -> Option<String> {
        target(&*self.domains.row(&DomainName::parse(domain).ok()?)?, &self.zone)
    }

    /// Whether a domain delegates its challenges to us now.
    ///
    /// # Errors
    /// Why not, and what to set.
    pub(crate) async fn look(&self, domain: &str) -> Result<(), String> {
        let Some(target) = self.target(domain) else { return Err(format!("{domain} has no id yet; check it")) };
        let set = |why: &dyn std::fmt::Display| format!("{why}; set CNAME _acme-challenge.{domain} {target}");
        match leads_to(&self.dns, domain, &target).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(astray)) => Err(set(&astray)),
            Err(error) => Err(set(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const OURS: &str = "0f.acme.sprites.test";

    fn look(records: &[(&str, &str)]) -> (Result<(), Astray>, usize) {
        let records: HashMap<_, _> = records.iter().copied().collect();
        let mut walk = Walk::new("a.example", OURS);
        loop {
            if let Some(end) = walk.found(records.get(walk.at.as_str()).map(|to| (*to).to_owned())) {
                return (end, walk.hops);
            }
        }
    }

    #[test]
    fn a_chain_is_followed_to_its_end_and_a_loop_is_none_that_ends() {
        let name = "a.example".to_owned();
        assert_eq!(look(&[]), (Err(Astray::None(name.clone())), 1));
        assert_eq!(look(&[("_acme-challenge.a.example", OURS)]), (Ok(()), 1));
        let elsewhere = look(&[("_acme-challenge.a.example", "b.example")]);
        assert_eq!(elsewhere, (Err(Astray::Elsewhere(name.clone(), "b.example".into())), 2));
        let around = [("_acme-challenge.a.example", "b.example"), ("b.example", "_acme-challenge.a.example")];
        assert_eq!(look(&around), (Err(Astray::Endless(name.clone())), HOPS_MAX));
        let names: Vec<_> = (0..HOPS_MAX).map(|at| format!("n{at}.example")).collect();
        for hops in [HOPS_MAX, HOPS_MAX + 1] {
            let mut chain = vec![("_acme-challenge.a.example", names[0].as_str())];
            chain.extend((1..hops - 1).map(|at| (names[at - 1].as_str(), names[at].as_str())));
            chain.push((&names[hops - 2], OURS));
            let wanted = if hops == HOPS_MAX { Ok(()) } else { Err(Astray::Endless(name.clone())) };
            assert_eq!(look(&chain), (wanted, HOPS_MAX), "{hops}");
        }
    }

    #[test]
    fn no_two_ids_are_the_same() {
        let ids: std::collections::HashSet<_> = (0..100).map(|_| new_id().unwrap()).collect();
        assert_eq!(ids.len(), 100);
        assert!(ids.iter().all(|id| id.len() == ID_BYTES));
    }
}
