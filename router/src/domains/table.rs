//! The domains of this process: readers can never be blocked by a writer, as in
//! [`crate::table::RouteTable`], and answers are owned.

use super::name::{DOMAIN_BYTES_MAX, DomainName};
use super::row::DomainRow;
use crate::changed::{Changed, Lookers};
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
    lookers: Lookers,
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
            lookers: Lookers::default(),
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
            lookers: Lookers::default(),
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
        match self.exact(host) {
            found @ DomainLookup::Sprite(_) => found,
            other => self.wildcard(host).map_or(other, DomainLookup::Sprite),
        }
    }

    /// The same for a domain that is exactly this.
    pub(crate) fn exact(&self, host: &str) -> DomainLookup {
        lower(host, |host| self.exact_lower(host)).unwrap_or(DomainLookup::Unknown)
    }

    /// Where a domain leads that `host` is one label below, if that is proved for such names.
    pub(crate) fn wildcard(&self, host: &str) -> Option<SpriteName> {
        let (_, above) = host.split_once('.').filter(|(label, _)| !label.is_empty())?;
        let found = |above: &str| self.rows.pin().get(above).filter(|row| row.is_wildcard())?.sprite().cloned();
        lower(above, found)?
    }

    fn exact_lower(&self, host: &str) -> DomainLookup {
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

    /// Whether a stored row is none that may count: its name is ours, or what it wants below itself is.
    #[must_use]
    pub fn refuses(&self, name: &DomainName, row: &DomainRow) -> bool {
        self.is_ours(name) || (row.is_wildcard() && self.is_above_ours(name))
    }

    /// Whether a name of ours is at or under it: then nobody has all names below it.
    #[must_use]
    pub fn is_above_ours(&self, name: &DomainName) -> bool {
        let is_under =
            |ours: &str| ours.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        self.ours.iter().any(|ours| is_under(&ours.to_ascii_lowercase()))
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

    /// Puts what is stored of a domain in place of what was known. What is known already is no change: at a start the store
    /// says once more what the last run's file has said.
    pub fn apply_put(&self, name: DomainName, row: DomainRow) {
        let rows = self.rows.pin();
        if rows.get(name.as_str()).is_some_and(|known| **known == row) {
            return;
        }
        rows.insert(name.clone(), Arc::new(row));
        self.changed(&name);
    }

    /// Forgets a domain.
    pub fn apply_remove(&self, name: &DomainName) {
        self.rows.pin().remove(name.as_str());
        self.changed(name);
    }

    fn changed(&self, name: &DomainName) {
        self.lookers.note(name.as_str());
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Sees each change; many at once are seen as one.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The domains of this table, not of other regions', that have changed: known before [`Self::changes`] says so.
    #[must_use]
    pub fn changed_names(&self) -> Arc<Changed> {
        self.lookers.follow()
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

/// Does it with `host` in small letters; nothing when it is too long for one.
fn lower<T>(host: &str, does: impl FnOnce(&str) -> T) -> Option<T> {
    let mut lower = [0; DOMAIN_BYTES_MAX];
    let lower = lower.get_mut(..host.len())?;
    if !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Some(does(host));
    }
    lower.copy_from_slice(host.as_bytes());
    lower.make_ascii_lowercase();
    Some(does(std::str::from_utf8(lower).unwrap_or(host)))
}

#[cfg(test)]
mod tests {
    use super::super::row::Claim;
    use super::super::row::tests::{claim, held};
    use super::*;
    use std::collections::BTreeSet;

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
    fn a_wildcard_leads_names_one_label_below_it_unless_one_of_them_leads_elsewhere() {
        let table = table();
        table.followed().mark_synced();
        let mut row = held("t", "a");
        row.holder.as_mut().unwrap().claim.wildcard = true;
        table.apply_put(domain("a.example"), row.clone());
        for host in ["a.example", "www.a.example", "WWW.A.Example"] {
            assert_eq!(table.lookup(host), sprite("a"), "{host}");
        }
        for host in ["x.www.a.example", ".a.example", "xa.example", "example"] {
            assert_eq!(table.lookup(host), DomainLookup::Unknown, "{host}");
        }
        let mut claimed = DomainRow::empty();
        assert!(claimed.claim(claim("u", "b")));
        table.apply_put(domain("shop.a.example"), claimed);
        assert_eq!(table.lookup("shop.a.example"), sprite("a"), "a claim takes nothing away");
        table.apply_put(domain("shop.a.example"), held("u", "b"));
        assert_eq!(table.lookup("shop.a.example"), sprite("b"));
        row.holder.as_mut().unwrap().suspended_at = Some(1);
        table.apply_put(domain("a.example"), row.clone());
        assert_eq!(table.lookup("www.a.example"), DomainLookup::Unknown);
        // A claim for more is none before it is proved.
        let mut row = held("t", "a");
        assert!(row.claim(Claim { wildcard: true, ..claim("t", "a") }));
        table.apply_put(domain("a.example"), row);
        assert_eq!(table.lookup("www.a.example"), DomainLookup::Unknown);
    }

    #[test]
    fn nobody_has_all_names_beside_ours() {
        let fixed = HashMap::new();
        let table = DomainTable::new(fixed, &[Suffix::parse("sprites.example.com").unwrap()], &["ns.other.net".into()]);
        let mut row = held("t", "a");
        for name in ["example.com", "other.net"] {
            assert!(!table.refuses(&domain(name), &row), "{name} by itself is nobody's of us");
        }
        row.holder.as_mut().unwrap().claim.wildcard = true;
        for (name, refused) in [("example.com", true), ("other.net", true), ("ample.com", false), ("x.net", false)] {
            assert_eq!(table.refuses(&domain(name), &row), refused, "{name}");
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
        let names = table.changed_names();
        assert_eq!(names.take(), None);
        table.apply_put(domain("a.example"), held("t", "a"));
        assert!(!changes.has_changed().unwrap(), "it was known");
        assert_eq!(names.take(), Some(BTreeSet::new()));
        table.apply_put(domain("a.example"), held("t", "b"));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        table.apply_remove(&domain("a.example"));
        assert!(changes.has_changed().unwrap());
        assert_eq!(names.take(), Some(["a.example".into()].into()));
    }
}
