//! A certificate's row as it lies on this machine's disk: in a third of the room it takes in the store.
//!
//! In the store it is JSON, so that people and later versions can read it: base64 of a chain whose intermediates all rows of a
//! CA share, and of a key. Here chain and key are bytes, intermediates lie once for all, and the rest has short names. A
//! row of which not the very same bytes would come back lies as it is.

use acme::ca::Window;
use acme::certificate::{CertRow, parse_cert_key};
use acme::revoke::Revocation;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

/// Characters of a line of PEM (RFC 7468 §3).
const LINE: usize = 64;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----\n";
const END: &str = "-----END CERTIFICATE-----\n";

/// A row in parts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Packed {
    /// All but chain and key, as JSON.
    pub(super) rest: Vec<u8>,
    /// Nothing when `rest` is the row as it is.
    pub(super) parts: Option<Parts>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts {
    /// DER.
    pub(super) leaf: Vec<u8>,
    /// DER, as they come after the leaf.
    pub(super) issuers: Vec<Vec<u8>>,
    /// An empty line is between certificates.
    pub(super) has_gaps: bool,
    /// The sealed key.
    pub(super) key: Vec<u8>,
}

/// What is in a row besides chain and key; what its key says is left out.
#[derive(Serialize, Deserialize)]
struct Rest<'a> {
    /// Left out where they are the domain of the wish alone.
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    names: Option<Vec<String>>,
    #[serde(rename = "c")]
    ca: std::borrow::Cow<'a, str>,
    #[serde(rename = "b")]
    not_before: u64,
    #[serde(rename = "e")]
    not_after: u64,
    #[serde(rename = "i")]
    issued_at: u64,
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    ari: Option<String>,
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    window: Option<(u64, u64, u64)>,
    #[serde(rename = "x", default, skip_serializing_if = "std::ops::Not::not")]
    compromised: bool,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    renew_asked: Option<u64>,
    #[serde(rename = "v", default, skip_serializing_if = "Option::is_none")]
    revocation: Option<Revocation>,
}

/// The row of `key` in parts, or as it is.
pub(super) fn pack(key: &str, value: &[u8]) -> Packed {
    let packed = in_parts(key, value).filter(|packed| unpack(key, packed).as_deref() == Some(value));
    packed.unwrap_or_else(|| Packed { rest: value.to_vec(), parts: None })
}

fn in_parts(key: &str, value: &[u8]) -> Option<Packed> {
    let row: CertRow = serde_json::from_slice(value).ok()?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(row.chain.as_bytes()).collect::<Result<_, _>>().ok()?;
    let mut chain = chain.into_iter().map(|certificate| certificate.to_vec());
    let (leaf, issuers) = (chain.next()?, chain.collect());
    let has_gaps = row.chain.contains(&format!("{END}\n"));
    let parts = Parts { leaf, issuers, has_gaps, key: STANDARD.decode(&row.sealed_key).ok()? };
    let names = (row.names != implied(key)).then_some(row.names);
    let rest = serde_json::to_vec(&Rest {
        names,
        ca: row.ca.into(),
        not_before: row.not_before,
        not_after: row.not_after,
        issued_at: row.issued_at,
        ari: row.ari,
        window: row.window.map(|window| (window.start, window.end, window.ask_again)),
        compromised: row.compromised,
        renew_asked: row.renew_asked,
        revocation: row.revocation,
    });
    Some(Packed { rest: rest.ok()?, parts: Some(parts) })
}

/// The row's value, as it came from the store; nothing when the disk has it wrong.
pub(super) fn unpack(key: &str, packed: &Packed) -> Option<Vec<u8>> {
    let Some(parts) = &packed.parts else { return Some(packed.rest.clone()) };
    let rest: Rest<'_> = serde_json::from_slice(&packed.rest).ok()?;
    let (_, generation) = parse_cert_key(key)?;
    let all = std::iter::once(&parts.leaf).chain(&parts.issuers);
    let chain: Vec<_> = all.map(|certificate| pem(certificate)).collect();
    let row = CertRow {
        names: rest.names.unwrap_or_else(|| implied(key)),
        ca: rest.ca.into_owned(),
        generation,
        chain: chain.join(if parts.has_gaps { "\n" } else { "" }),
        sealed_key: STANDARD.encode(&parts.key),
        not_before: rest.not_before,
        not_after: rest.not_after,
        issued_at: rest.issued_at,
        ari: rest.ari,
        window: rest.window.map(|(start, end, ask_again)| Window { start, end, ask_again }),
        compromised: rest.compromised,
        renew_asked: rest.renew_asked,
        revocation: rest.revocation,
    };
    Some(row.encode())
}

/// What a wish for a domain is for, unless its row says more.
fn implied(key: &str) -> Vec<String> {
    let name = parse_cert_key(key).and_then(|(wish, _)| wish.split_once('.')).map(|(_, name)| name.to_owned());
    name.into_iter().collect()
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut all = String::with_capacity(BEGIN.len() + text.len() + text.len() / LINE + 1 + END.len());
    all.push_str(BEGIN);
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, behind) = rest.split_at(rest.len().min(LINE));
        all.push_str(line);
        all.push('\n');
        rest = behind;
    }
    all.push_str(END);
    all
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    pub(in super::super) fn certificate(name: &str) -> String {
        let key = KeyPair::generate().unwrap();
        CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap().pem().replace('\r', "")
    }

    pub(in super::super) fn row(names: &[&str], chain: String) -> CertRow {
        CertRow {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ca: "first".into(),
            generation: 7,
            chain,
            sealed_key: STANDARD.encode([7; 175]),
            not_before: 1_800_000_000,
            not_after: 1_807_776_000,
            issued_at: 1_800_000_001,
            ari: Some("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE3".into()),
            window: Some(Window { start: 1, end: 2, ask_again: 3 }),
            compromised: false,
            renew_asked: None,
            revocation: None,
        }
    }

    #[test]
    fn the_very_same_bytes_come_back() {
        const KEY: &str = "cert/domain.shop.example/0000000007";
        let (leaf, issuer, root) = (certificate("shop.example"), certificate("issuer"), certificate("root"));
        let whole = leaf.clone() + &issuer + &root;
        let plain = row(&["shop.example"], whole.clone());
        let more = CertRow {
            names: vec!["shop.example".into(), "*.shop.example".into()],
            ari: None,
            window: None,
            compromised: true,
            renew_asked: Some(5),
            revocation: Some(Revocation::new(9)),
            ..row(&[], format!("{leaf}\n{issuer}\n{root}"))
        };
        for (row, issuers) in [(&plain, 2), (&more, 2), (&row(&["shop.example"], leaf.clone()), 0)] {
            let value = row.encode();
            let packed = pack(KEY, &value);
            assert_eq!(packed.parts.as_ref().map(|parts| parts.issuers.len()), Some(issuers));
            assert_eq!(unpack(KEY, &packed).as_deref(), Some(&*value));
        }
        let packed = pack(KEY, &plain.encode());
        let parts = packed.parts.unwrap();
        assert!(packed.rest.len() < 140, "{}", String::from_utf8_lossy(&packed.rest));
        assert_eq!(parts.key, [7; 175]);
    }

    #[test]
    fn what_would_come_back_otherwise_lies_as_it_is() {
        const KEY: &str = "cert/domain.shop.example/0000000007";
        let good = row(&["shop.example"], certificate("shop.example"));
        let later = String::from_utf8(good.encode()).unwrap().replacen('{', "{\"of_a_later_version\":1,", 1);
        let odd = [
            later.into_bytes(),
            b"{}".to_vec(),
            Vec::new(),
            CertRow { chain: String::new(), ..good.clone() }.encode(),
            CertRow { chain: good.chain.replace('\n', "\r\n"), ..good.clone() }.encode(),
            CertRow { chain: format!("# of a CA\n{}", good.chain), ..good.clone() }.encode(),
            CertRow { sealed_key: "not base64".into(), ..good.clone() }.encode(),
            CertRow { generation: 8, ..good.clone() }.encode(),
        ];
        for value in odd {
            let packed = pack(KEY, &value);
            assert_eq!((packed.parts.is_none(), unpack(KEY, &packed)), (true, Some(value)));
        }
    }
}
