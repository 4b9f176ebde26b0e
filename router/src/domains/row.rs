//! What the store keeps under `domain/<fqdn>`: who claims the name and who has proved that it is his.
//!
//! Claims and proof are one value, so *first proved wins* is one compare-and-set: a claim becomes the
//! holder only where there is none that counts.

use super::name::{DomainError, DomainName};
use crate::names::SpriteName;
use serde::{Deserialize, Serialize};

/// Keys of domain rows begin with this.
pub const DOMAIN_PREFIX: &str = "domain/";
/// Version inside every domain row; a newer one is quarantined, not guessed at.
pub const DOMAIN_ROW_VERSION: u32 = 1;
/// Most tenants that may claim one domain at a time (chosen: one is usual, and two when it is sold); a
/// further one takes the place of the oldest claim, so that nobody keeps the owner out.
pub const CLAIMS_MAX: usize = 4;
/// Letters and digits of a challenge: 32 random bytes in base64url.
pub const CHALLENGE_BYTES: usize = 43;
/// Letters and digits of an id: 128 bits in hexadecimal.
pub const ID_BYTES: usize = 32;
/// Longest tenant name, bytes (chosen).
const TENANT_BYTES_MAX: usize = 128;

/// A domain as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainRow {
    /// [`DOMAIN_ROW_VERSION`].
    pub version: u32,
    /// Who has proved it, if anybody has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// Who says it is his and has not proved it; one for each tenant, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<Claim>,
    /// What stands for the domain in our own zone: 128 random bits, hexadecimal; empty in rows of before there was one.
    /// Whoever sets `_acme-challenge.FQDN CNAME ID.acme.ZONE` lets us prove the domain to a certification authority.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
}

/// One tenant's wish to serve a sprite under the domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Whose the sprite is.
    pub tenant: String,
    /// The sprite.
    pub sprite: SpriteName,
    /// Random; what the TXT record must say is derived from it, and from tenant, sprite and domain.
    /// It is no secret: who reads it still cannot write into the domain's zone.
    pub challenge: String,
    /// When it was made, seconds since 1970.
    pub claimed_at: u64,
    /// It is for every name one label below the domain too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub wildcard: bool,
}

/// A claim that was proved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// What was proved.
    pub claim: Claim,
    /// When it was proved last, seconds since 1970.
    pub proved_at: u64,
    /// Since when the record has been missing; none while it is there, as far as anybody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_since: Option<u64>,
    /// When it was suspended: the name is served no more, and free for whoever proves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_at: Option<u64>,
}

/// Why a domain row was not applied.
#[derive(Debug, thiserror::Error)]
pub enum DomainRowError {
    /// The key is not `domain/<fqdn>`.
    #[error("key {key:?} names no domain")]
    Key {
        /// The key.
        key: String,
        /// The rule it breaks.
        #[source]
        source: DomainError,
    },
    /// The name is ours: at or under a suffix, or reserved.
    #[error("{0} is a name of ours")]
    Ours(DomainName),
    /// The value is no row.
    #[error("the value is no domain row")]
    Value(#[source] serde_json::Error),
    /// Written by a newer release.
    #[error("domain row version {0} is not known here")]
    Version(u32),
    /// A field is out of its bounds.
    #[error("{0} is out of bounds")]
    Field(&'static str),
}

impl DomainRow {
    /// Nobody claims it.
    #[must_use]
    pub const fn empty() -> Self {
        Self { version: DOMAIN_ROW_VERSION, holder: None, claims: Vec::new(), id: String::new() }
    }

    /// The key of a domain's row.
    #[must_use]
    pub fn key(name: &DomainName) -> String {
        format!("{DOMAIN_PREFIX}{name}")
    }

    /// The encoded value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of plain fields always encodes")
    }

    /// Decodes and checks a stored row. Whether the name is one of ours is for [`super::table`] to say.
    ///
    /// # Errors
    /// [`DomainRowError`]: what is wrong with it; the row is to be quarantined.
    pub fn decode(key: &str, value: &[u8]) -> Result<(DomainName, Self), DomainRowError> {
        let fqdn = key.strip_prefix(DOMAIN_PREFIX).ok_or(DomainError::Length);
        let name = fqdn.and_then(DomainName::parse);
        let name = name.map_err(|source| DomainRowError::Key { key: key.into(), source })?;
        if Self::key(&name) != key {
            // Two keys for one name would be two rows of it.
            return Err(DomainRowError::Key { key: key.into(), source: DomainError::Character });
        }
        let row: Self = serde_json::from_slice(value).map_err(DomainRowError::Value)?;
        if row.version != DOMAIN_ROW_VERSION {
            return Err(DomainRowError::Version(row.version));
        }
        let held = row.holder.as_ref().map(|holder| &holder.claim);
        if !row.claims.iter().chain(held).all(Claim::is_bounded) {
            return Err(DomainRowError::Field("claim"));
        }
        let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if !row.id.is_empty() && (row.id.len() != ID_BYTES || !row.id.bytes().all(hexadecimal)) {
            return Err(DomainRowError::Field("id"));
        }
        let twice = |at: usize| row.claims[..at].iter().any(|other| other.tenant == row.claims[at].tenant);
        if row.claims.len() > CLAIMS_MAX || (0..row.claims.len()).any(twice) {
            return Err(DomainRowError::Field("claims"));
        }
        Ok((name, row))
    }

    /// The sprite it leads to: what its holder proved, unless that is suspended.
    #[must_use]
    pub fn sprite(&self) -> Option<&SpriteName> {
        self.held().map(|holder| &holder.claim.sprite)
    }

    /// Whether it leads every name one label below it there too.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.held().is_some_and(|holder| holder.claim.wildcard)
    }

    /// Who holds it, unless suspended.
    #[must_use]
    pub fn held(&self) -> Option<&Holder> {
        self.holder.as_ref().filter(|holder| holder.suspended_at.is_none())
    }

    /// Puts a claim in place of its tenant's earlier one; `false` when another tenant holds the domain.
    /// Over [`CLAIMS_MAX`] the oldest claim goes.
    pub fn claim(&mut self, claim: Claim) -> bool {
        if self.held().is_some_and(|holder| holder.claim.tenant != claim.tenant) {
            return false;
        }
        self.claims.retain(|other| other.tenant != claim.tenant);
        if self.claims.len() >= CLAIMS_MAX {
            self.claims.remove(0);
        }
        self.claims.push(claim);
        true
    }

    /// Takes a tenant's claim and hold away; whether there was either.
    pub fn withdraw(&mut self, tenant: &str) -> bool {
        let before = self.claims.len();
        self.claims.retain(|claim| claim.tenant != tenant);
        let held = self.holder.take_if(|holder| holder.claim.tenant == tenant);
        held.is_some() || self.claims.len() != before
    }

    /// Whether nothing is left in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.holder.is_none() && self.claims.is_empty()
    }
}

impl Claim {
    fn is_bounded(&self) -> bool {
        let of_base64 = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        self.challenge.len() == CHALLENGE_BYTES
            && self.challenge.bytes().all(of_base64)
            && (1..=TENANT_BYTES_MAX).contains(&self.tenant.len())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn claim(tenant: &str, sprite: &str) -> Claim {
        Claim {
            tenant: tenant.into(),
            sprite: SpriteName::parse(sprite).unwrap(),
            challenge: "c".repeat(CHALLENGE_BYTES),
            claimed_at: 1_000,
            wildcard: false,
        }
    }

    pub(crate) fn held(tenant: &str, sprite: &str) -> DomainRow {
        let holder = Holder { claim: claim(tenant, sprite), proved_at: 1_000, missing_since: None, suspended_at: None };
        DomainRow { holder: Some(holder), ..DomainRow::empty() }
    }

    #[test]
    fn a_row_reads_back_as_it_was_written() {
        let name = DomainName::parse("a.example").unwrap();
        let mut row = held("t", "a");
        assert!(row.claim(Claim { wildcard: true, ..claim("t", "b") }));
        row.id = "0f".repeat(ID_BYTES / 2);
        assert_eq!(DomainRow::decode(&DomainRow::key(&name), &row.encode()).unwrap(), (name, row));
    }

    #[test]
    fn a_row_that_is_not_certain_is_refused() {
        let row = held("t", "a");
        for key in
            ["a.example", "domain/", "domain/example", "domain/A.example", "domain/a.example.", "domain/a_b.example"]
        {
            assert!(matches!(DomainRow::decode(key, &row.encode()), Err(DomainRowError::Key { .. })), "{key}");
        }
        let decode = |row: &DomainRow| DomainRow::decode("domain/a.example", &row.encode());
        assert!(matches!(decode(&DomainRow { version: 2, ..row.clone() }), Err(DomainRowError::Version(2))));
        let many = (0..=CLAIMS_MAX).map(|number| claim(&format!("t{number}"), "a")).collect();
        assert!(matches!(decode(&DomainRow { claims: many, ..row.clone() }), Err(DomainRowError::Field("claims"))));
        for id in ["a", &"A".repeat(ID_BYTES), &"g".repeat(ID_BYTES), &"a".repeat(ID_BYTES + 1)] {
            let row = DomainRow { id: id.into(), ..row.clone() };
            assert!(matches!(decode(&row), Err(DomainRowError::Field("id"))), "{id}");
        }
        let twice = vec![claim("t", "a"), claim("t", "b")];
        assert!(matches!(decode(&DomainRow { claims: twice, ..row.clone() }), Err(DomainRowError::Field("claims"))));
        for wrong in [
            Claim { challenge: "short".into(), ..claim("t", "a") },
            Claim { challenge: ".".repeat(CHALLENGE_BYTES), ..claim("t", "a") },
            Claim { tenant: String::new(), ..claim("t", "a") },
            Claim { tenant: "t".repeat(TENANT_BYTES_MAX + 1), ..claim("t", "a") },
        ] {
            let row = DomainRow { claims: vec![wrong], ..row.clone() };
            assert!(matches!(decode(&row), Err(DomainRowError::Field("claim"))));
        }
        let text = String::from_utf8(row.encode()).unwrap();
        for wrong in [text.replace("\"sprite\":\"a\"", "\"sprite\":\"www\""), text.replacen('{', "{\"new\":1,", 1)] {
            let decoded = DomainRow::decode("domain/a.example", wrong.as_bytes());
            assert!(matches!(decoded, Err(DomainRowError::Value(_))), "{wrong}");
        }
    }

    #[test]
    fn another_tenants_hold_keeps_claims_out_until_it_is_suspended() {
        let mut row = held("one", "a");
        assert!(!row.claim(claim("two", "b")));
        assert!(row.claim(claim("one", "c")), "its holder may lead it elsewhere");
        assert_eq!(row.sprite().unwrap().as_str(), "a", "once that is proved");
        row.holder.as_mut().unwrap().suspended_at = Some(2_000);
        assert_eq!(row.sprite(), None);
        assert!(row.claim(claim("two", "b")));
        assert!(row.withdraw("one") && !row.withdraw("one"));
        assert_eq!((row.holder.is_none(), row.claims.len()), (true, 1));
    }

    #[test]
    fn many_claims_do_not_keep_the_next_one_out() {
        let mut row = DomainRow::empty();
        for number in 0..10 {
            assert!(row.claim(claim(&format!("t{number}"), "a")));
            assert!(row.claims.len() <= CLAIMS_MAX);
        }
        assert_eq!(row.claims.last().unwrap().tenant, "t9");
    }
}
