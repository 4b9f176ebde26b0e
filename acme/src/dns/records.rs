//! Records as they go over the wire, made once: an answer is then a copy.

use super::codes::{IN, kind};
use super::name;
use config::Issuer;
use hickory_proto::ProtoError;
use hickory_proto::rr::rdata::caa::KeyValue;
use hickory_proto::rr::rdata::svcb::{Alpn, SVCB, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{CAA, HINFO, HTTPS, NS, SOA, TXT};
use hickory_proto::rr::{Name, RData};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, NameEncoding};
use std::net::IpAddr;

/// Stands for the name that was asked for: a pointer to behind the header (RFC 1035 §4.1.4).
pub(super) const ASKED: [u8; 2] = [0xc0, 12];
/// How long a resolver keeps what changes with the name servers, seconds (chosen: an hour).
pub(super) const STABLE_TTL: u32 = 3_600;
/// Likewise CAA and TXT, which may have to change while something is wrong (chosen).
pub(super) const POLICY_TTL: u32 = 300;
/// How long a resolver keeps that something is not there, seconds (design: "SOA minimum 5 s").
pub(super) const NEGATIVE_TTL: u32 = 5;
/// How long a resolver keeps a challenge, seconds (design: "TTL 5 s").
pub(super) const CHALLENGE_TTL: u32 = 5;
/// What a secondary would go by, seconds; there is none, each edge has its own copy (values of RFC 1912 §2.2).
const REFRESH: i32 = 3_600;
const RETRY: i32 = 600;
const EXPIRE: i32 = 1_209_600;

/// All records of one name and type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RrSet {
    pub(super) kind: u16,
    pub(super) count: u16,
    /// The records, one behind the other.
    pub(super) wire: Box<[u8]>,
}

impl RrSet {
    /// A set whose records belong to `owner`, which is on the wire already. Data that are there twice are there once.
    pub(super) fn new(owner: &[u8], kind: u16, ttl: u32, mut data: Vec<Vec<u8>>) -> Self {
        let mut seen = std::collections::HashSet::new();
        data.retain(|data| seen.insert(data.clone()));
        let mut wire = Vec::new();
        for data in &data {
            wire.extend(owner);
            push(&mut wire, kind, ttl, data);
        }
        Self { kind, count: u16::try_from(data.len()).unwrap_or(u16::MAX), wire: wire.into() }
    }

    /// A set of whatever name is asked for.
    pub(super) fn of_asked(ttl: u32, data: &[RData]) -> Result<Self, ProtoError> {
        let kind = data.first().map_or(0, |data| data.record_type().into());
        Ok(Self::new(&ASKED, kind, ttl, data.iter().map(encode).collect::<Result<_, _>>()?))
    }
}

/// What follows the name of a record. Data longer than a record can have are left out: nothing we make is.
fn push(wire: &mut Vec<u8>, kind: u16, ttl: u32, data: &[u8]) {
    let length = u16::try_from(data.len()).unwrap_or(0);
    wire.extend(kind.to_be_bytes());
    wire.extend(IN.to_be_bytes());
    wire.extend(ttl.to_be_bytes());
    wire.extend(length.to_be_bytes());
    wire.extend(&data[..usize::from(length)]);
}

/// The data of a record, no name in it compressed.
fn encode(data: &RData) -> Result<Vec<u8>, ProtoError> {
    let mut bytes = Vec::new();
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    data.emit(&mut encoder)?;
    Ok(bytes)
}

/// The addresses of `owner` (on the wire): an A and an AAAA set, those that have any.
pub(super) fn addresses(owner: &[u8], ttl: u32, addresses: &[IpAddr]) -> Vec<RrSet> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in addresses {
        match address.to_canonical() {
            IpAddr::V4(address) => v4.push(address.octets().to_vec()),
            IpAddr::V6(address) => v6.push(address.octets().to_vec()),
        }
    }
    let sets = [(kind::A, v4), (kind::AAAA, v6)];
    sets.into_iter()
        .filter(|(_, data)| !data.is_empty())
        .map(|(kind, data)| RrSet::new(owner, kind, ttl, data))
        .collect()
}

/// Which protocols the asked name speaks, on the same addresses and port (RFC 9460 §9).
pub(super) fn https(ttl: u32, http3: bool) -> Result<RrSet, ProtoError> {
    let protocols = if http3 { &["h3", "h2"][..] } else { &["h2"] };
    let protocols = Alpn(protocols.iter().map(ToString::to_string).collect());
    let parameters = vec![(SvcParamKey::Alpn, SvcParamValue::Alpn(protocols))];
    RrSet::of_asked(ttl, &[RData::HTTPS(HTTPS(SVCB::new(1, Name::root(), parameters)))])
}

/// Who may issue, for the name itself and for wildcards.
pub(super) fn caa(issuers: &[Issuer]) -> Result<RrSet, ProtoError> {
    let mut data = Vec::new();
    for issuer in issuers {
        let ca = Name::from_ascii(&issuer.ca)?;
        let mut options = Vec::new();
        if !issuer.account.is_empty() {
            options.push(KeyValue::new("accounturi", issuer.account.clone()));
        }
        options.push(KeyValue::new("validationmethods", issuer.methods.join(",")));
        data.push(RData::CAA(CAA::new_issue(false, Some(ca.clone()), options.clone())));
        data.push(RData::CAA(CAA::new_issuewild(false, Some(ca), options)));
    }
    RrSet::of_asked(POLICY_TTL, &data)
}

/// TXT records of the asked name.
pub(super) fn txt(values: &[&str]) -> Result<RrSet, ProtoError> {
    let data: Vec<_> = values.iter().map(|value| RData::TXT(TXT::new(vec![(*value).to_owned()]))).collect();
    RrSet::of_asked(POLICY_TTL, &data)
}

/// TXT records of a challenge, which come and go while we run. Longer values are cut into strings of 255 bytes.
pub(super) fn challenge(values: &[Box<str>]) -> RrSet {
    let strings = |value: &str| {
        let mut data = Vec::with_capacity(value.len() + 1 + value.len() / 255);
        for part in value.as_bytes().chunks(255) {
            data.push(u8::try_from(part.len()).unwrap_or(u8::MAX));
            data.extend(part);
        }
        data
    };
    RrSet::new(&ASKED, kind::TXT, CHALLENGE_TTL, values.iter().map(|value| strings(value)).collect())
}

/// What ANY is answered with (RFC 8482 §4.2).
pub(super) fn any() -> Result<RrSet, ProtoError> {
    RrSet::of_asked(STABLE_TTL, &[RData::HINFO(HINFO::new("RFC8482".into(), String::new()))])
}

/// The name servers of the asked name.
pub(super) fn name_servers(names: &[&str]) -> Result<RrSet, ProtoError> {
    let data = names.iter().map(|name| Ok(RData::NS(NS(absolute(name)?)))).collect::<Result<Vec<_>, ProtoError>>()?;
    RrSet::of_asked(STABLE_TTL, &data)
}

/// The SOA of the asked name.
pub(super) fn soa(ttl: u32, primary: &str, mailbox: &str, serial: u32) -> Result<RrSet, ProtoError> {
    let mailbox = absolute(&mailbox.replacen('@', ".", 1))?;
    let soa = SOA::new(absolute(primary)?, mailbox, serial, REFRESH, RETRY, EXPIRE, NEGATIVE_TTL);
    RrSet::of_asked(ttl, &[RData::SOA(soa)])
}

fn absolute(name: &str) -> Result<Name, ProtoError> {
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    Ok(name)
}

/// The wire form of a name that the configuration has checked; the root for one that is none.
pub(super) fn owner(name: &str) -> Box<[u8]> {
    name::wire(name).unwrap_or_else(|| Box::new([0]))
}
