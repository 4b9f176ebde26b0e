//! Which certificates are wanted: a wildcard for each suffix from every CA, and one for each custom domain that was proved.
//!
//! No sprite has a certificate of its own: its name is under a suffix, and a name in an order is in public logs.

use super::accounts::Accounts;
use super::causes::Records;
use super::distrust::Distrusted;
use super::table::{CertificateTable, names};
use crate::domains::{record_name, record_value};
use acme::ca::{Authority, Kind};
use acme::certificate::CertRow;
use acme::manager::{Newest, Wish, Wishes};
use config::{AcmeChallenge, Config};
use router::changed::Changed;
use router::domains::{DomainName, DomainRow, DomainTable};
use std::cell::RefCell;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Wishes for wildcards begin with this, those for domains with [`DOMAIN`].
pub(super) const WILDCARD: &str = "wild";
pub(super) const DOMAIN: &str = "domain";

/// Certificates at a time whose CA is only to be asked when it wants them renewed: while it does not answer, or is asked
/// by nobody, all would come to be (chosen: some 35 MiB; a million are asked for in a quarter of a day by then).
const ASKED_MAX: usize = 50_000;

/// What is known of all that.
pub(super) struct Known {
    ours: Vec<Wish>,
    /// How a custom domain is proved, unless that fails.
    kind: Kind,
    cas: Vec<(String, String)>,
    domains: Arc<DomainTable>,
    certificates: Arc<CertificateTable>,
    accounts: Arc<Accounts>,
    distrusted: Arc<Distrusted>,
    /// What has changed since the manager asked.
    changed_names: Arc<Changed>,
    changed_wishes: Arc<Changed>,
    distrust_seen: Mutex<Vec<u32>>,
    suffixes: Vec<String>,
    /// What names of others and of ours are to say.
    leads_here: Vec<String>,
    name_servers: Vec<String>,
    caa: String,
}

impl Known {
    pub(super) fn new(
        config: &Config,
        domains: Arc<DomainTable>,
        certificates: Arc<CertificateTable>,
        accounts: Arc<Accounts>,
        distrusted: Arc<Distrusted>,
    ) -> Arc<Self> {
        let cas: Vec<_> = config.acme.cas().into_iter().map(|ca| (ca.name, ca.profile)).collect();
        let suffixes: Vec<_> = config.names.suffixes.iter().map(|suffix| suffix.to_ascii_lowercase()).collect();
        let fixed = config.sprites.iter().flat_map(|sprite| sprite.domains.iter());
        let kind = kind(config);
        let fixed = fixed.map(|name| domain(&name.to_ascii_lowercase(), false, "", kind, &cas));
        let ours = suffixes.iter().flat_map(|suffix| wildcards(suffix, &cas)).chain(fixed).collect();
        let cname = Some(&config.domains.cname).filter(|cname| !cname.is_empty());
        let addresses = config.domains.addresses.iter().map(|address| match address {
            std::net::IpAddr::V4(_) => format!("A {address}"),
            std::net::IpAddr::V6(_) => format!("AAAA {address}"),
        });
        let leads_here = cname.map(|cname| format!("CNAME {cname}")).into_iter().chain(addresses).collect();
        let name_servers = config.dns.name_servers.iter().map(|server| server.name.clone()).collect();
        let issuer = config.dns.issuers.first().map_or("the CA's name", |issuer| &issuer.ca);
        let caa = format!("CAA 0 issue \"{issuer}\"");
        let (changed_names, changed_wishes) = (domains.changed_names(), certificates.changed_wishes());
        Arc::new(Self {
            ours,
            kind,
            cas,
            changed_names,
            changed_wishes,
            distrust_seen: Mutex::default(),
            domains,
            certificates,
            accounts,
            distrusted,
            suffixes,
            leads_here,
            name_servers,
            caa,
        })
    }

    /// Every wish that is granted, with something to do about it by then. Ours first: every sprite hangs on them.
    pub(super) fn all(&self, then: u64) -> Vec<Wish> {
        let cas = self.trusted();
        // Those whose CA is only to be asked when it wants them renewed: of very many, the longest overdue.
        let ask = RefCell::new(BinaryHeap::new());
        // One whose names have changed is due, whatever its certificate says.
        let is_due = |wish: &Wish| match self.newest_of(wish) {
            Some(newest) if newest.has_its_names && newest.due > then => {
                let mut ask = ask.borrow_mut();
                if newest.ask <= then {
                    ask.push((newest.ask, wish.id.clone()));
                    if ask.len() > ASKED_MAX {
                        ask.pop();
                    }
                }
                false
            }
            _ => true,
        };
        let proved = self.domains.pick(|name, row| self.theirs(name, row, &cas).filter(is_due));
        let ours = self.ours.iter().cloned().filter_map(|wish| self.possible(wish, &cas));
        let mut all: Vec<_> = ours.chain(proved).collect();
        all.extend(ask.into_inner().into_iter().filter_map(|(_, id)| self.granted(&id)));
        all
    }

    /// The wish for a domain that was proved. A row under a name of ours is nobody's domain, whoever wrote it: it would
    /// be a sprite's name.
    fn theirs(&self, name: &DomainName, row: &DomainRow, cas: &[(String, String)]) -> Option<Wish> {
        let is_theirs = row.sprite().is_some() && !self.domains.is_ours(name);
        is_theirs.then(|| domain(name.as_str(), row.is_wildcard(), tenant(row), self.kind, cas))
    }

    /// The wish with the CAs that are trusted; one that none of them may fulfil waits.
    fn possible(&self, mut wish: Wish, cas: &[(String, String)]) -> Option<Wish> {
        wish.cas.retain(|ca| cas.contains(ca));
        (!wish.cas.is_empty()).then_some(wish)
    }

    /// How many CAs are configured.
    pub(super) const fn cas(&self) -> usize {
        self.cas.len()
    }

    /// Their names.
    pub(super) fn ca_names(&self) -> impl Iterator<Item = String> + '_ {
        self.cas.iter().map(|(name, _)| name.clone())
    }

    /// The CAs to order of, the preferred one first: those that visitors trust; all of them when that is none.
    fn trusted(&self) -> Vec<(String, String)> {
        let trusted: Vec<_> = self.cas.iter().filter(|(ca, _)| !self.distrusted.is(ca)).cloned().collect();
        if trusted.is_empty() { self.cas.clone() } else { trusted }
    }

    /// Whether a wish waits until its one CA is trusted again.
    pub(super) fn is_set_aside(&self, id: &str) -> bool {
        let Some(For::Suffix { ca, .. }) = For::of(id) else { return false };
        !self.trusted().iter().any(|(trusted, _)| trusted == ca) && self.cas.iter().any(|(known, _)| known == ca)
    }

    /// The ids whose certificates may answer for a name: those of its suffix, from each CA, or its own.
    pub(super) fn ids_of(&self, name: &str) -> Vec<String> {
        let name = name.strip_prefix("*.").unwrap_or(name).trim_end_matches('.');
        let is_under = |suffix: &&String| {
            let label = name.strip_suffix(suffix.as_str()).and_then(|label| label.strip_suffix('.'));
            name == suffix.as_str() || label.is_some_and(|label| !label.is_empty() && !label.contains('.'))
        };
        match self.suffixes.iter().find(is_under) {
            Some(suffix) => wildcards(suffix, &self.cas).into_iter().map(|wish| wish.id).collect(),
            None => vec![format!("{DOMAIN}.{name}")],
        }
    }

    /// Whether somebody claims the domain of an id.
    pub(super) fn is_claimed(&self, id: &str) -> bool {
        let Some(For::Domain(name)) = For::of(id) else { return false };
        DomainName::parse(name).is_ok_and(|name| self.domains.row(&name).is_some_and(|row| !row.is_empty()))
    }

    /// The records that help the certificate of an id.
    pub(super) fn records(&self, id: &str) -> Records {
        let name = match For::of(id) {
            Some(For::Suffix { suffix, .. }) => suffix,
            Some(For::Domain(name)) => name,
            None => return Records::default(),
        };
        let row = DomainName::parse(name).ok().and_then(|name| Some((self.domains.row(&name)?, name)));
        let proof = row.and_then(|(row, name)| {
            let claim = row.claims.last().or_else(|| row.holder.as_ref().map(|holder| &holder.claim))?;
            Some(format!("{} TXT {}", record_name(&name), record_value(&name, claim)))
        });
        let all = |records: &[String]| match records {
            [] => String::new(),
            records => format!("{name} {}", records.join(", or ")),
        };
        let delegation: Vec<_> = self.name_servers.iter().map(|server| format!("NS {server}")).collect();
        Records {
            points_here: all(&self.leads_here),
            proof,
            caa: format!("{name} {}", self.caa),
            delegation: all(&delegation).replace(", or ", ", "),
        }
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
        tenant: String::new(),
        cas: vec![ca.clone()],
    };
    cas.iter().map(wish).collect()
}

fn domain(name: &str, wildcard: bool, tenant: &str, kind: Kind, cas: &[(String, String)]) -> Wish {
    let names = std::iter::once(name.to_owned()).chain(wildcard.then(|| format!("*.{name}")));
    Wish { id: format!("{DOMAIN}.{name}"), names: names.collect(), kind, tenant: tenant.to_owned(), cas: cas.to_vec() }
}

/// Whose a domain is.
fn tenant(row: &DomainRow) -> &str {
    row.held().map_or("", |holder| &holder.claim.tenant)
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
    fn are_known(&self) -> bool {
        self.certificates.is_whole()
    }

    fn due_by(&self, then: u64) -> Vec<Wish> {
        self.all(then)
    }

    fn changes(&self) -> Vec<watch::Receiver<u64>> {
        vec![self.domains.changes(), self.certificates.changes(), self.distrusted.changes()]
    }

    fn changed(&self) -> Option<BTreeSet<Box<str>>> {
        let mut distrusted = self.distrust_seen.lock().unwrap_or_else(PoisonError::into_inner);
        let numbers = self.distrusted.numbers();
        let is_another = *distrusted != numbers;
        *distrusted = numbers;
        drop(distrusted);
        let (names, wishes) = (self.changed_names.take(), self.changed_wishes.take());
        if is_another {
            return None;
        }
        let mut wishes = wishes?;
        wishes.extend(names?.iter().map(|name| format!("{DOMAIN}.{name}").into()));
        Some(wishes)
    }

    fn granted(&self, id: &str) -> Option<Wish> {
        if let Some(ours) = self.ours.iter().find(|wish| wish.id == id) {
            return self.possible(ours.clone(), &self.trusted());
        }
        let Some(For::Domain(name)) = For::of(id) else { return None };
        let name = DomainName::parse(name).ok()?;
        let row = self.domains.row(&name)?;
        self.theirs(&name, &row, &self.trusted())
    }

    fn newest(&self, id: &str) -> Option<Arc<CertRow>> {
        self.certificates.newest(id)
    }

    fn newest_of(&self, wish: &Wish) -> Option<Newest> {
        let (generation, summary) = self.certificates.newest_summary(&wish.id)?;
        let has_its_names = summary.names == names(&wish.names);
        // What nobody trusts is replaced now, unless nobody else is there to ask.
        let others = || wish.cas.iter().any(|(ca, _)| !self.distrusted.is(ca));
        let due = if self.distrusted.is_number(summary.ca) && others() { 0 } else { summary.due };
        Some(Newest { generation, due, ask: summary.ask, has_its_names })
    }

    fn find(&self, id: &str) -> Option<Wish> {
        if let Some(ours) = self.ours.iter().find(|wish| wish.id == id) {
            return Some(ours.clone());
        }
        let Some(For::Domain(name)) = For::of(id) else { return None };
        let row = self.domains.row(&DomainName::parse(name).ok()?)?;
        row.sprite().is_some().then(|| domain(name, row.is_wildcard(), tenant(&row), self.kind, &self.trusted()))
    }

    fn ended_before(&self, then: u64) -> Vec<(String, u64)> {
        let ended = self.certificates.wishes_where(|one| one.not_after < then);
        ended.into_iter().map(|(id, generation, _)| (id.into(), generation)).collect()
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
            let (name, row) = DomainRow::decode(&format!("domain/{name}"), row.as_bytes()).unwrap();
            domains.apply_put(name, row);
        }
        let accounts = Accounts::new(&config.acme).unwrap();
        let known = Known::new(&config, domains, Arc::new(CertificateTable::new()), accounts, Arc::default());
        let mut names: Vec<_> = known.all(u64::MAX).into_iter().flat_map(|wish| wish.names).collect();
        names.sort();
        assert_eq!(names, ["notsprites.test", "shop.example"]);
    }

    #[test]
    fn the_manager_is_told_by_name_what_has_changed_and_lists_what_is_due() {
        let config = Config::parse("[names]\nsuffixes = [\"sprites.test\"]\n", "f").unwrap();
        let suffixes = [router::names::Suffix::parse("sprites.test").unwrap()];
        let domains = Arc::new(DomainTable::new(std::collections::HashMap::new(), &suffixes, &[]));
        let certificates = Arc::new(CertificateTable::new());
        let accounts = Accounts::new(&config.acme).unwrap();
        let known = Known::new(&config, Arc::clone(&domains), Arc::clone(&certificates), accounts, Arc::default());
        assert!(!known.are_known() && known.changed().is_none(), "anything, at first");
        let changed = || known.changed().unwrap().into_iter().map(String::from).collect::<Vec<_>>();
        assert!(changed().is_empty());

        let challenge = "c".repeat(router::domains::row::CHALLENGE_BYTES);
        let put = |name: &str, more: &str| {
            let claim = format!(r#"{{"tenant":"t","sprite":"a","challenge":"{challenge}","claimed_at":1{more}}}"#);
            let row = format!(r#"{{"version":1,"holder":{{"claim":{claim},"proved_at":2}}}}"#);
            let (name, row) = DomainRow::decode(&format!("domain/{name}"), row.as_bytes()).unwrap();
            domains.apply_put(name, row);
        };
        put("shop.example", "");
        put("a.sprites.test", "");
        assert_eq!(changed(), ["domain.a.sprites.test", "domain.shop.example"]);
        assert!(known.granted("domain.a.sprites.test").is_none(), "it would be a sprite's name");
        assert_eq!(known.granted("domain.shop.example").unwrap().names, ["shop.example"]);
        let due_by = |then| {
            let due = known.due_by(then).into_iter().map(|wish| wish.id);
            due.filter(|id| id.starts_with(DOMAIN)).collect::<Vec<_>>()
        };
        assert_eq!(due_by(0), ["domain.shop.example"], "it has none");

        // One that is due at 2/3 of its life, and whose CA is asked before.
        let row = CertRow {
            names: vec!["shop.example".into()],
            ca: "first".into(),
            generation: 1,
            chain: String::new(),
            sealed_key: String::new(),
            not_before: 1_000_000,
            not_after: 4_000_000,
            issued_at: 1_000_000,
            ari: Some("id".into()),
            window: Some(acme::ca::Window { start: 3_000_000, end: 3_000_001, ask_again: 2_000_000 }),
            compromised: false,
            renew_asked: None,
            revocation: None,
        };
        certificates
            .apply_put(super::super::table::CertificateRow { wish: "domain.shop.example".into(), row: Arc::new(row) });
        assert_eq!(changed(), ["domain.shop.example"]);
        for (then, due) in [(1_999_999, 0), (2_000_000, 1), (3_000_001, 1)] {
            assert_eq!(due_by(then).len(), due, "{then}");
        }
        // All names below it too: that is another certificate.
        put("shop.example", ",\"wildcard\":true");
        assert_eq!(changed(), ["domain.shop.example"]);
        assert_eq!(due_by(0), ["domain.shop.example"]);
        domains.apply_remove(&DomainName::parse("shop.example").unwrap());
        assert_eq!(changed(), ["domain.shop.example"]);
        assert!(known.granted("domain.shop.example").is_none() && due_by(u64::MAX).is_empty());
    }
}
