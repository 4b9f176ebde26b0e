//! The rows of challenges: their answers (`chal/`), and who has heard of them (`here/`).

use router::registry::RegistryRow;
use router::rows::RowError;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// A row `chal/KIND/NAME`: KIND is `txt`, `alpn` or `http`, NAME a record's name, a domain, or a token.
#[derive(Clone, Debug)]
pub(super) struct ChallengeRow {
    pub(super) at: String,
    pub(super) answers: Vec<Given>,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Given {
    pub(super) value: String,
    /// Of which order.
    pub(super) id: String,
    /// Its end, seconds since 1970.
    pub(super) until: u64,
}

pub(super) const PREFIX: &str = "chal/";

impl RegistryRow for ChallengeRow {
    type Id = String;
    const PREFIX: &'static str = PREFIX;
    const WHAT: &'static str = "challenge";
    const MAY_ALL_GO: bool = true;

    fn id(&self) -> String {
        self.at.clone()
    }

    fn id_in(key: &str) -> Option<String> {
        key.strip_prefix(PREFIX).map(str::to_owned)
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&self.answers).unwrap_or_default()
    }

    fn decode(key: &str, value: &[u8]) -> Result<Self, RowError> {
        let at = Self::id_in(key).ok_or(RowError::Field("key"))?;
        Ok(Self { at, answers: serde_json::from_slice(value).map_err(RowError::Value)? })
    }
}

/// A row `here/POP`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HereRow {
    pub(super) pop: String,
    /// The process that says so, and how often it has.
    pub(super) process: String,
    pub(super) beat: u64,
    /// Marks of the challenges it answers.
    pub(super) answers: BTreeSet<String>,
    /// Of the certificates somebody may wait for, which generation it serves; 0 for none.
    #[serde(default)]
    pub(super) serves: BTreeMap<String, u64>,
    /// Where its HTTPS is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) https: Option<SocketAddr>,
    /// The WireGuard key of that process, and where it is reached by other PoPs; none when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) endpoint: Option<SocketAddr>,
    /// Ids of the key encryption keys it knows, the one in use first.
    #[serde(default)]
    pub(super) keks: Vec<String>,
}

pub(super) const HERE: &str = "here/";

impl RegistryRow for HereRow {
    type Id = String;
    const PREFIX: &'static str = HERE;
    const WHAT: &'static str = "PoP's presence";
    const MAY_ALL_GO: bool = true;

    fn id(&self) -> String {
        self.pop.clone()
    }

    fn id_in(key: &str) -> Option<String> {
        key.strip_prefix(HERE).map(str::to_owned)
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn decode(key: &str, value: &[u8]) -> Result<Self, RowError> {
        let row: Self = serde_json::from_slice(value).map_err(RowError::Value)?;
        match Self::id_in(key).as_deref() == Some(&row.pop) {
            true => Ok(row),
            false => Err(RowError::Field("pop")),
        }
    }
}

/// A mark of an answer: short, and the same on every PoP.
pub(super) fn mark(at: &str, value: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, format!("{at}\n{value}").as_bytes());
    digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
