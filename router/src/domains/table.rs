//! The domains of this process: readers can never be blocked by a writer, as in
//! [`crate::table::RouteTable`], and answers are owned.

use super::name::{DOMAIN_BYTES_MAX, DomainName};
use super::row::DomainRow;
use crate::followed::Followed;
use crate::names::{SpriteName, Suffix};
use foldhash::quality::RandomState;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::watch;

/// Domain → what is stored of it, and what the config file says.
#[derive(Debug)]
pub struct DomainTable {
    rows: papaya::HashMap<DomainName, Arc<DomainRow>, RandomState>,
    /// Domains of the config file: they need no proof and no row can take them.
    fixed: HashMap<DomainName, SpriteName>,
    /// Names that are ours; nobody else's domain is at or under one.
    ours: Vec<Box<str>>,
    followed: Followed,
    /// One for the tables of all regions.
    changes: Arc<watch::Sender<u64>>,
}

/// What the table knows about a host name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainLookup {
    /// It leads to this sprite.
    Sprite(SpriteName),
    /// It leads nowhere: nobody claims it, or nobody has proved it.
    Unknown,
    /// Nothing has been loaded yet, so absence means nothing.
    NotReady,
}

impl DomainTable {
    /// With the domains of the config file, and the names that can be nobody's domain: those at or under
    /// `suffixes` and `reserved`.
    #[must_use]
    pub fn new(fixed: HashMap<DomainName, SpriteName>, suffixes: &[Suffix], reserved: &[String]) -> Self {
        let ours = suffixes.iter().map(Suffix::as_str).chain(reserved.iter().map(String::as_str));
        Self {
            rows: papaya::HashMap::default(),
            fixed,
            ours: ours.map(Box::from).collect(),
            followed: Followed::default(),
            changes: Arc::new(watch::Sender::new(0)),
        }
    }

    /// An empty table for another region's rows: what is ours is nobody's there either, and who sees the changes of
    /// this one sees those of that one.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self {
            rows: papaya::HashMap::default(),
            fixed: self.fixed.clone(),
            ours: self.ours.clone(),
            followed: Followed::default(),
            changes: Arc::clone(&self.changes),
        }
    }

    /// How well it follows the store.
    #[must_use]
    pub const fn followed(&self) -> &Followed {
        &self.followed
    }

    /// Looks up a host name in any case, without a port and without a dot at its end. No lock, no allocation.
    #[must_use]
    pub fn lookup(&self, host: &str) -> DomainLookup {
        let mut lower = [0; DOMAIN_BYTES_MAX];
        let host = match lower.get_mut(..host.len()) {
            None => return DomainLookup::Unknown,
            Some(_) if !host.bytes().any(|byte| byte.is_ascii_uppercase()) => host,
            Some(lower) => {
                lower.copy_from_slice(host.as_bytes());
                lower.make_ascii_lowercase();
                std::str::from_utf8(lower).unwrap_or(host)
            }
        };
        if let Some(sprite) = self.fixed.get(host) {
            return DomainLookup::Sprite(sprite.clone());
        }
        // Asked first: a row put between the two reads must not come out as unknown.
        let synced = self.followed.is_synced();
        match self.rows.pin().get(host) {
            Some(row) => row.sprite().map_or(DomainLookup::Unknown, |sprite| DomainLookup::Sprite(sprite.clone())),
            None if synced => DomainLookup::Unknown,
            None => DomainLookup::NotReady,
        }
    }

    /// What is stored of a domain.
    #[must_use]
    pub fn row(&self, name: &DomainName) -> Option<Arc<DomainRow>> {
        self.rows.pin().get(name.as_str()).cloned()
    }

    /// The sprite the config file leads a domain to.
    #[must_use]
    pub fn fixed(&self, name: &DomainName) -> Option<&SpriteName> {
        self.fixed.get(name.as_str())
    }

    /// Every domain of the config file.
    pub fn all_fixed(&self) -> impl Iterator<Item = (&DomainName, &SpriteName)> {
        self.fixed.iter()
    }

    /// Whether the name is ours: at or under a suffix or a reserved name, or in the config file.
    #[must_use]
    pub fn is_ours(&self, name: &DomainName) -> bool {
        self.ours.iter().any(|ours| name.is_at_or_under(ours)) || self.fixed.contains_key(name.as_str())
    }

    /// Every stored domain, in no order.
    #[must_use]
    pub fn rows(&self) -> Vec<(DomainName, Arc<DomainRow>)> {
        self.rows.pin().iter().map(|(name, row)| (name.clone(), Arc::clone(row))).collect()
    }

    /// The stored domains `pick` picks: those that are not cost no copy.
    #[must_use]
    pub fn pick<T>(&self, pick: impl Fn(&DomainName, &DomainRow) -> Option<T>) -> Vec<T> {
        self.rows.pin().iter().filter_map(|(name, row)| pick(name, row)).collect()
    }

    /// Puts what is stored of a domain in place of what was known.
    pub fn apply_put(&self, name: DomainName, row: DomainRow) {
        self.rows.pin().insert(name, Arc::new(row));
        self.changed();
    }

    /// Forgets a domain.
    pub fn apply_remove(&self, name: &DomainName) {
        self.rows.pin().remove(name.as_str());
        self.changed();
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Sees each change; many at once are seen as one.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Stored domains, proved or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::{claim, held};
    use super::*;

    fn domain(text: &str) -> DomainName {
        DomainName::parse_any(text).unwrap()
    }

    fn sprite(text: &str) -> DomainLookup {
        DomainLookup::Sprite(SpriteName::parse(text).unwrap())
    }

    fn table() -> DomainTable {
        let fixed = HashMap::from([(domain("site.localhost"), SpriteName::parse("site").unwrap())]);
        DomainTable::new(fixed, &[Suffix::parse("sprites.dev").unwrap()], &["ns.example".into()])
    }

    #[test]
    fn only_what_is_proved_leads_to_a_sprite() {
        let table = table();
        assert_eq!(table.lookup("a.example"), DomainLookup::NotReady);
        table.followed().mark_synced();
        assert_eq!(table.lookup("a.example"), DomainLookup::Unknown);
        let mut row = DomainRow::empty();
        assert!(row.claim(claim("t", "a")));
        table.apply_put(domain("a.example"), row);
        assert_eq!(table.lookup("a.example"), DomainLookup::Unknown, "a claim is no proof");
        table.apply_put(domain("a.example"), held("t", "a"));
        assert_eq!(table.lookup("A.Example"), sprite("a"));
        assert_eq!(table.lookup("www.a.example"), DomainLookup::Unknown);
        let mut row = held("t", "a");
        row.holder.as_mut().unwrap().suspended_at = Some(1);
        table.apply_put(domain("a.example"), row);
        assert_eq!(table.lookup("a.example"), DomainLookup::Unknown);
        table.apply_remove(&domain("a.example"));
        assert!(table.is_empty());
    }

    #[test]
    fn the_config_files_domains_are_there_from_the_start_and_no_row_takes_them() {
        let table = table();
        assert_eq!(table.lookup("Site.localhost"), sprite("site"));
        table.apply_put(domain("site.localhost"), held("t", "thief"));
        assert_eq!(table.lookup("site.localhost"), sprite("site"));
        for ours in ["site.localhost", "sprites.dev", "a.sprites.dev", "a.b.sprites.dev", "ns.example", "a.ns.example"]
        {
            assert!(table.is_ours(&domain(ours)), "{ours}");
        }
        for theirs in ["xsprites.dev", "example", "dev", "a.site.localhost"] {
            assert!(!table.is_ours(&domain(theirs)), "{theirs}");
        }
    }

    #[test]
    fn a_host_that_can_be_no_domain_is_unknown() {
        let table = table();
        table.followed().mark_synced();
        for host in ["", "é.example", "A\u{e9}.example", &"a".repeat(300), "[::1]"] {
            assert_eq!(table.lookup(host), DomainLookup::Unknown, "{host}");
        }
    }

    #[test]
    fn each_change_is_seen() {
        let table = table();
        let mut changes = table.changes();
        assert!(!changes.has_changed().unwrap());
        table.apply_put(domain("a.example"), held("t", "a"));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        table.apply_remove(&domain("a.example"));
        assert!(changes.has_changed().unwrap());
    }
}
