//! Which certificates are wanted: a wildcard for each suffix from every CA, and one for each custom domain that was proved.
//!
//! No sprite has a certificate of its own: its name is under a suffix, and a name in an order is in public logs.

use super::accounts::Accounts;
use super::table::{CertificateTable, newest};
use acme::ca::{Authority, Kind};
use acme::certificate::CertRow;
use acme::manager::{Wish, Wishes};
use config::{AcmeChallenge, Config};
use router::domains::DomainTable;
use std::sync::Arc;

/// Wishes for wildcards begin with this, those for domains with [`DOMAIN`].
const WILDCARD: &str = "wild";
const DOMAIN: &str = "domain";

/// What is known of all that.
pub(super) struct Known {
    ours: Vec<Wish>,
    /// How a custom domain is proved, unless that fails.
    kind: Kind,
    cas: Vec<(String, String)>,
    domains: Arc<DomainTable>,
    certificates: Arc<CertificateTable>,
    accounts: Arc<Accounts>,
}

impl Known {
    pub(super) fn new(
        config: &Config,
        domains: Arc<DomainTable>,
        certificates: Arc<CertificateTable>,
        accounts: Arc<Accounts>,
    ) -> Arc<Self> {
        let cas: Vec<_> = config.acme.cas().into_iter().map(|ca| (ca.name, ca.profile)).collect();
        let suffixes = config.names.suffixes.iter().map(|suffix| suffix.to_ascii_lowercase());
        let fixed = config.sprites.iter().flat_map(|sprite| sprite.domains.iter());
        let kind = kind(config);
        let fixed = fixed.map(|name| domain(&name.to_ascii_lowercase(), false, kind, &cas));
        let ours = suffixes.flat_map(|suffix| wildcards(&suffix, &cas)).chain(fixed).collect();
        Arc::new(Self { ours, kind, cas, domains, certificates, accounts })
    }
}

/// How a custom domain is proved first.
pub(super) const fn kind(config: &Config) -> Kind {
    match config.acme.challenge {
        AcmeChallenge::Http01 => Kind::Http01,
        AcmeChallenge::TlsAlpn01 => Kind::TlsAlpn01,
    }
}

/// One from each CA, so that one that is distrusted is nobody's worry.
fn wildcards(suffix: &str, cas: &[(String, String)]) -> Vec<Wish> {
    let wish = |ca: &(String, String)| Wish {
        id: format!("{WILDCARD}.{}.{suffix}", ca.0),
        names: vec![format!("*.{suffix}"), suffix.to_owned()],
        kind: Kind::Dns01,
        cas: vec![ca.clone()],
    };
    cas.iter().map(wish).collect()
}

fn domain(name: &str, wildcard: bool, kind: Kind, cas: &[(String, String)]) -> Wish {
    let names = std::iter::once(name.to_owned()).chain(wildcard.then(|| format!("*.{name}")));
    Wish { id: format!("{DOMAIN}.{name}"), names: names.collect(), kind, cas: cas.to_vec() }
}

/// What a wish is for, by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For<'a> {
    /// All names under a suffix, from this CA.
    Suffix {
        /// The CA.
        ca: &'a str,
        /// The suffix.
        suffix: &'a str,
    },
    /// One whole name.
    Domain(&'a str),
}

impl<'a> For<'a> {
    pub(super) fn of(id: &'a str) -> Option<Self> {
        let (kind, rest) = id.split_once('.')?;
        match kind {
            WILDCARD => rest.split_once('.').map(|(ca, suffix)| Self::Suffix { ca, suffix }),
            DOMAIN => Some(Self::Domain(rest)),
            _ => None,
        }
    }
}

impl Wishes for Known {
    fn all(&self) -> Vec<Wish> {
        let proved = self.domains.pick(|name, row| {
            row.sprite().is_some().then(|| domain(name.as_str(), row.is_wildcard(), self.kind, &self.cas))
        });
        // Ours first: every sprite hangs on them.
        self.ours.iter().cloned().chain(proved).collect()
    }

    fn newest(&self, id: &str) -> Option<Arc<CertRow>> {
        newest(&self.certificates, id)
    }

    fn authority(&self, name: &str) -> Option<Arc<dyn Authority>> {
        self.accounts.authority(name)
    }

    fn reopen(&self, name: &str) {
        self.accounts.reopen(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_wanted_from_every_ca_and_its_id_says_what_it_is_for() {
        let cas = [("first".to_owned(), String::new()), ("second".to_owned(), "short".to_owned())];
        let wishes = wildcards("sprites.test", &cas);
        let ids: Vec<_> = wishes.iter().map(|wish| wish.id.as_str()).collect();
        assert_eq!(ids, ["wild.first.sprites.test", "wild.second.sprites.test"]);
        assert_eq!(wishes[1].cas, [cas[1].clone()]);
        assert!(wishes.iter().all(|wish| wish.names == ["*.sprites.test", "sprites.test"]));
        assert_eq!(For::of(ids[0]), Some(For::Suffix { ca: "first", suffix: "sprites.test" }));
        assert_eq!(For::of("domain.shop.example"), Some(For::Domain("shop.example")));
        assert_eq!(For::of("nonsense"), None);
    }
}
