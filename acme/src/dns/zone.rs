//! Everything that is in our zones, as one value that never changes: another one replaces it.

use super::codes::kind;
use super::name::Name;
use super::records::{self, RrSet, STABLE_TTL};
use config::{Dns, NameServer, Names};
use foldhash::fast::RandomState;
use hickory_proto::ProtoError;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// Letters of an id that others' challenges are delegated to: 128 bits, in hexadecimal (design §4).
const ID_LETTERS: usize = 32;
/// The label under a zone where those ids are.
const DELEGATED: &str = "acme";

/// What an authority answers from.
///
/// A zone has, at its apex, SOA, NS, CAA and TXT; at each suffix (an apex is one, usually) A, AAAA and HTTPS, and the same for
/// every name under it that has no node of its own; at each name server in it, its addresses; at `_acme-challenge.` of each
/// suffix and at `ID.acme.` of each zone the TXT records of challenges, which are asked for when a question comes.
#[derive(Debug)]
pub struct ZoneView {
    nodes: HashMap<Box<[u8]>, Arc<Node>, RandomState>,
    /// Labels of the longest name that has a node.
    deepest: usize,
    zones: Vec<Zone>,
    /// What ANY is answered with.
    pub(super) any: RrSet,
}

#[derive(Debug)]
pub(super) struct Zone {
    /// Bytes of its apex on the wire.
    pub(super) apex: usize,
    /// Its SOA as it stands beside an answer that something is not there (RFC 2308 §3).
    pub(super) negative: RrSet,
}

/// A name that exists.
#[derive(Debug, Default)]
pub(super) struct Node {
    zone: usize,
    sets: Vec<RrSet>,
    /// Addresses of the name servers, beside an answer with their names.
    pub(super) glue: Vec<RrSet>,
    /// What names under it have that do not exist.
    wildcard: Option<Arc<Self>>,
    pub(super) place: Place,
}

/// Whether challenges are at a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// None.
    #[default]
    Plain,
    /// At the name itself.
    Challenge,
    /// At ids under it.
    Delegated,
}

/// What there is of a name that was asked for.
pub(super) enum Found<'a> {
    /// It is in none of our zones.
    Outside,
    /// It exists, or a wildcard stands for it.
    Node(&'a Zone, &'a Node),
    /// It is an id: it exists while it has a challenge.
    Id(&'a Zone),
    /// It does not exist.
    NoName(&'a Zone),
}

impl Node {
    pub(super) fn set(&self, kind: u16) -> Option<&RrSet> {
        self.sets.iter().find(|set| set.kind == kind)
    }

    /// It is there only because others are under it.
    pub(super) fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }
}

impl ZoneView {
    /// The zones of a configuration that was checked. `addresses` are those of `[domains]`.
    ///
    /// # Errors
    /// A record that cannot be written.
    pub fn new(dns: &Dns, names: &Names, addresses: &[IpAddr]) -> Result<Self, ProtoError> {
        let zones = dns.zones(names);
        let addresses = if dns.addresses.is_empty() { addresses } else { &dns.addresses };
        let mut tree = Tree { zones: zones.iter().map(|zone| records::owner(zone)).collect(), nodes: BTreeMap::new() };
        for zone in &zones {
            tree.apex(zone, dns)?;
        }
        let ttl = u32::try_from(dns.address_ttl.as_secs()).unwrap_or(u32::MAX);
        let mut sprites = records::addresses(&records::ASKED, ttl, addresses);
        sprites.push(records::https(ttl, dns.http3)?);
        for suffix in &names.suffixes {
            tree.add(suffix, &sprites);
            tree.add(&format!("*.{suffix}"), &sprites);
            tree.at(&format!("_acme-challenge.{suffix}"), |node| node.place = Place::Challenge);
        }
        let mut texts = BTreeMap::<String, Vec<&str>>::new();
        for text in &dns.texts {
            texts.entry(text.name.to_ascii_lowercase()).or_default().push(&text.value);
        }
        for (name, values) in texts {
            tree.add(&name, &[records::txt(&values)?]);
        }
        tree.finish(&zones, dns)
    }

    /// Looks for a name as RFC 4592 §3.3.1 says: the longest name above it that exists, and then a wildcard under that.
    pub(super) fn find(&self, name: &Name) -> Found<'_> {
        let labels = name.labels();
        for skip in labels.saturating_sub(self.deepest)..=labels {
            let Some(node) = self.nodes.get(name.without(skip)) else { continue };
            let Some(zone) = self.zones.get(node.zone) else { continue };
            return match (skip, node.place, &node.wildcard) {
                (0, ..) => Found::Node(zone, node),
                (1, Place::Delegated, _) if is_id(name.first()) => Found::Id(zone),
                (_, _, Some(wildcard)) => Found::Node(zone, wildcard),
                _ => Found::NoName(zone),
            };
        }
        Found::Outside
    }
}

fn is_id(label: &[u8]) -> bool {
    label.len() == ID_LETTERS && label.iter().all(u8::is_ascii_hexdigit)
}

/// The nodes while they are put together.
struct Tree {
    /// The apexes, on the wire.
    zones: Vec<Box<[u8]>>,
    nodes: BTreeMap<Box<[u8]>, Node>,
}

impl Tree {
    /// The node of `name`, made if it is in a zone; names in none are not ours to answer for.
    fn at(&mut self, name: &str, change: impl FnOnce(&mut Node)) {
        let wire = records::owner(name);
        if let Some(zone) = self.zones.iter().position(|apex| is_under(&wire, apex)) {
            let node = self.nodes.entry(wire).or_default();
            node.zone = zone;
            change(node);
        }
    }

    fn add(&mut self, name: &str, sets: &[RrSet]) {
        self.at(name, |node| {
            for set in sets {
                if node.set(set.kind).is_none() {
                    node.sets.push(set.clone());
                }
            }
        });
    }

    fn apex(&mut self, zone: &str, dns: &Dns) -> Result<(), ProtoError> {
        let servers: Vec<_> = dns.name_servers.iter().map(|server| server.name.as_str()).collect();
        let mut sets = vec![records::name_servers(&servers)?];
        if !dns.issuers.is_empty() {
            sets.push(records::caa(&dns.issuers)?);
        }
        self.add(zone, &sets);
        let mut glue = Vec::new();
        for NameServer { name, addresses } in &dns.name_servers {
            glue.extend(records::addresses(&records::owner(name), STABLE_TTL, addresses));
            self.add(name, &records::addresses(&records::ASKED, STABLE_TTL, addresses));
        }
        self.at(zone, |node| node.glue = glue);
        self.at(&format!("{DELEGATED}.{zone}"), |node| node.place = Place::Delegated);
        Ok(())
    }

    fn finish(mut self, zones: &[String], dns: &Dns) -> Result<ZoneView, ProtoError> {
        self.fill();
        let serial = self.serial();
        let primary = dns.name_servers.first().map_or("", |server| server.name.as_str());
        let mut finished = Vec::new();
        for (name, apex) in zones.iter().zip(self.zones.clone()) {
            let mailbox = Some(&dns.hostmaster).filter(|mailbox| !mailbox.is_empty());
            let mailbox = mailbox.cloned().unwrap_or_else(|| format!("hostmaster@{name}"));
            self.add(name, &[records::soa(STABLE_TTL, primary, &mailbox, serial)?]);
            let negative = records::soa(records::NEGATIVE_TTL, primary, &mailbox, serial)?;
            finished.push(Zone { apex: apex.len(), negative });
        }
        let mut nodes: HashMap<_, Arc<Node>, _> = HashMap::default();
        let mut deepest = 0;
        // Those under it first: a wildcard is made before the node that leads to it.
        let mut left: Vec<_> = self.nodes.into_iter().collect();
        left.sort_by_key(|(wire, _)| std::cmp::Reverse(wire.len()));
        for (wire, mut node) in left {
            node.wildcard = nodes.get(&[b"\x01*", &*wire].concat()[..]).cloned();
            deepest = deepest.max(Name::read(&wire).map_or(0, |name| name.labels()));
            nodes.insert(wire, Arc::new(node));
        }
        Ok(ZoneView { nodes, deepest, zones: finished, any: records::any()? })
    }

    /// Whatever is between a node and its apex exists too, empty (RFC 4592 §2.2.2).
    fn fill(&mut self) {
        let all: Vec<_> = self.nodes.iter().map(|(wire, node)| (wire.clone(), node.zone)).collect();
        for (wire, zone) in all {
            let mut rest = &wire[..];
            while rest.len() > self.zones[zone].len() {
                rest = &rest[1 + usize::from(rest[0])..];
                self.nodes.entry(rest.into()).or_insert_with(|| Node { zone, ..Node::default() });
            }
        }
    }

    /// A number of what is in the zones, so that two edges with the same records say the same one (FNV-1a).
    fn serial(&self) -> u32 {
        let mut hash: u32 = 0x811c_9dc5;
        let mut take = |bytes: &[u8]| {
            for &byte in bytes {
                hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
            }
        };
        for (wire, node) in &self.nodes {
            take(wire);
            node.sets.iter().for_each(|set| take(&set.wire));
        }
        hash
    }
}

/// Whether a name is `apex` or under it, both on the wire.
fn is_under(mut name: &[u8], apex: &[u8]) -> bool {
    while name.len() > apex.len() {
        name = &name[1 + usize::from(name[0])..];
    }
    name == apex
}

/// The types of which a question is counted by its own name; the others are "other".
pub(super) const COUNTED: [(u16, &str); 8] = [
    (kind::A, "A"),
    (kind::AAAA, "AAAA"),
    (kind::HTTPS, "HTTPS"),
    (kind::TXT, "TXT"),
    (kind::CAA, "CAA"),
    (kind::NS, "NS"),
    (kind::SOA, "SOA"),
    (kind::ANY, "ANY"),
];
