//! Which certificates are wanted: a wildcard for each suffix from every CA, and one for each custom domain that was proved.
//!
//! No sprite has a certificate of its own: its name is under a suffix, and a name in an order is in public logs.

use super::accounts::Accounts;
use super::table::{CertificateTable, newest};
use acme::ca::{Authority, Kind};
use acme::certificate::CertRow;
use acme::manager::{Wish, Wishes};
use config::Config;
use router::domains::{DomainName, DomainTable};
use std::sync::Arc;
use tokio::sync::watch;

/// Wishes for wildcards begin with this, those for domains with [`DOMAIN`].
const WILDCARD: &str = "wild";
const DOMAIN: &str = "domain";

/// What is known of all that.
pub(super) struct Known {
    ours: Vec<Wish>,
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
        let fixed = fixed.map(|name| domain(&name.to_ascii_lowercase(), &cas));
        let ours = suffixes.flat_map(|suffix| wildcards(&suffix, &cas)).chain(fixed).collect();
        Arc::new(Self { ours, cas, domains, certificates, accounts })
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

fn domain(name: &str, cas: &[(String, String)]) -> Wish {
    Wish { id: format!("{DOMAIN}.{name}"), names: vec![name.to_owned()], kind: Kind::Http01, cas: cas.to_vec() }
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
        // A row under a name of ours is nobody's domain, whoever wrote it: it would be a sprite's name.
        let theirs = |name: &DomainName| !self.domains.is_ours(name);
        let proved = self
            .domains
            .pick(|name, row| (row.sprite().is_some() && theirs(name)).then(|| domain(name.as_str(), &self.cas)));
        // Ours first: every sprite hangs on them.
        self.ours.iter().cloned().chain(proved).collect()
    }

    fn changes(&self) -> Vec<watch::Receiver<u64>> {
        vec![self.domains.changes(), self.certificates.changes()]
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

    #[test]
    fn a_row_under_one_of_our_suffixes_is_no_wish() {
        let config = "[names]\nsuffixes = [\"sprites.test\"]\n";
        let config = Config::parse(config, "f").unwrap();
        let suffixes = [router::names::Suffix::parse("sprites.test").unwrap()];
        let domains = Arc::new(DomainTable::new(std::collections::HashMap::new(), &suffixes, &[]));
        let challenge = "c".repeat(router::domains::row::CHALLENGE_BYTES);
        let claim = format!(r#"{{"tenant":"t","sprite":"a","challenge":"{challenge}","claimed_at":1}}"#);
        let row = format!(r#"{{"version":1,"holder":{{"claim":{claim},"proved_at":2}}}}"#);
        for name in ["shop.example", "a.sprites.test", "a.b.sprites.test", "sprites.test", "notsprites.test"] {
            let (name, row) = router::domains::DomainRow::decode(&format!("domain/{name}"), row.as_bytes()).unwrap();
            domains.apply_put(name, row);
        }
        let accounts = Accounts::new(&config.acme).unwrap();
        let known = Known::new(&config, domains, Arc::new(CertificateTable::new()), accounts);
        let mut names: Vec<_> = known.all().into_iter().flat_map(|wish| wish.names).collect();
        names.sort();
        assert_eq!(names, ["notsprites.test", "shop.example"]);
    }
}
