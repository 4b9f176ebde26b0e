//! The PoPs as every host knows them: whose edges may have a session.

use crate::hosts::{are_pins, is_name, is_wireguard_key};
use crate::papers::{self, Enrolled, Papers};
use crate::registry::{self, Registry, RegistryRow};
use crate::rows::{ROW_VERSION, RowError};
use crate::signing::Operators;
use crate::store::Store;
use serde::{Deserialize, Serialize};
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::Arc;

/// Keys of PoP rows begin with this; the PoP's name follows.
pub const POP_PREFIX: &str = "pop/";
/// Edge processes of one PoP: two, so that a new one can take over from an old one, each with a
/// key of its own (two processes with one key would take the tunnel from each other).
pub const PROCESSES_MAX: usize = 2;

/// One PoP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PopRow {
    /// [`ROW_VERSION`].
    pub version: u32,
    /// Its id in words.
    pub name: String,
    /// Its edge processes.
    pub processes: Vec<EdgeProcess>,
    /// Why the row is to be believed; none where no operator's key is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub papers: Option<Papers>,
}

/// One edge process, as hosts see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeProcess {
    /// WireGuard public key, base64.
    pub wireguard_key: String,
    /// Its only address inside the tunnels.
    pub address: Ipv6Addr,
    /// SHA-256 of its certificate's public key, hexadecimal; any of them is accepted.
    pub spki_pins: Vec<String>,
}

impl PopRow {
    /// The key of a PoP's row.
    #[must_use]
    pub fn key(name: &str) -> String {
        format!("{POP_PREFIX}{name}")
    }
}

impl RegistryRow for PopRow {
    type Id = String;
    const PREFIX: &'static str = POP_PREFIX;
    const WHAT: &'static str = "PoP";
    const SIGNED: bool = true;

    fn id(&self) -> String {
        self.name.clone()
    }

    fn id_in(key: &str) -> Option<String> {
        key.strip_prefix(POP_PREFIX).filter(|name| is_name(name)).map(str::to_owned)
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of plain fields always encodes")
    }

    fn decode(key: &str, value: &[u8]) -> Result<Self, RowError> {
        let row: Self = serde_json::from_slice(value).map_err(RowError::Value)?;
        if row.version != ROW_VERSION {
            return Err(RowError::Version(row.version));
        }
        if !is_name(&row.name) || key != Self::key(&row.name) {
            return Err(RowError::Field("name"));
        }
        if row.processes.is_empty() || row.processes.len() > PROCESSES_MAX {
            return Err(RowError::Field("processes"));
        }
        for process in &row.processes {
            if !is_wireguard_key(&process.wireguard_key) {
                return Err(RowError::Field("wireguard_key"));
            }
            if !process.address.is_unique_local() {
                return Err(RowError::Field("address"));
            }
            if !are_pins(&process.spki_pins) {
                return Err(RowError::Field("spki_pins"));
            }
        }
        if !papers::are_bounded(row.papers.as_ref()) {
            return Err(RowError::Field("papers"));
        }
        Ok(row)
    }

    fn check(&self, known: Option<&Self>, operators: &Operators) -> Result<(), RowError> {
        papers::check(self, known, operators)
    }

    fn is_removed(&self) -> bool {
        papers::are_ended(self.papers.as_ref())
    }

    fn is_same_machine(&self, other: &Self) -> bool {
        self.processes == other.processes
    }

    fn clashes(&self, other: &Self) -> bool {
        let same =
            |one: &EdgeProcess, two: &EdgeProcess| one.wireguard_key == two.wireguard_key || one.address == two.address;
        self.processes.iter().any(|one| other.processes.iter().any(|two| same(one, two)))
    }
}

impl Enrolled for PopRow {
    fn store_key(&self) -> String {
        Self::key(&self.name)
    }

    fn machine(&self) -> &str {
        &self.name
    }

    fn papers(&self) -> Option<&Papers> {
        self.papers.as_ref()
    }

    fn with_papers(self, papers: Option<Papers>) -> Self {
        Self { papers, ..self }
    }
}

/// Every PoP.
pub type PopTable = Registry<PopRow>;

/// Applies the store's PoP rows to `pops`, and keeps them in the file at `path`; never returns.
pub async fn follow(store: Store, pops: Arc<PopTable>, path: PathBuf) {
    registry::follow(store, pops, |name| PopRow::key(name), path).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;

    fn row() -> PopRow {
        let process = EdgeProcess {
            wireguard_key: BASE64_STANDARD.encode([7; 32]),
            address: "fd00::1".parse().unwrap(),
            spki_pins: vec!["0a".repeat(32)],
        };
        PopRow { version: ROW_VERSION, name: "fra-1".into(), processes: vec![process], papers: None }
    }

    #[test]
    fn a_pop_row_that_is_not_certain_is_refused() {
        assert_eq!(PopRow::decode("pop/fra-1", &row().encode()).unwrap(), row());
        let wrong = |row: PopRow| PopRow::decode("pop/fra-1", &row.encode()).unwrap_err().to_string();
        assert!(wrong(PopRow { name: "other".into(), ..row() }).starts_with("name"));
        assert!(wrong(PopRow { version: 2, ..row() }).contains("version 2"));
        assert!(wrong(PopRow { processes: Vec::new(), ..row() }).starts_with("processes"));
        let three = vec![row().processes[0].clone(); 3];
        assert!(wrong(PopRow { processes: three, ..row() }).starts_with("processes"));
        for (field, process) in [
            ("wireguard_key", EdgeProcess { wireguard_key: "AAAA".into(), ..row().processes[0].clone() }),
            ("address", EdgeProcess { address: "2001:db8::1".parse().unwrap(), ..row().processes[0].clone() }),
            ("spki_pins", EdgeProcess { spki_pins: Vec::new(), ..row().processes[0].clone() }),
        ] {
            assert!(wrong(PopRow { processes: vec![process], ..row() }).starts_with(field));
        }
        assert!(PopRow::id_in("pop/A").is_none() && PopRow::id_in("host/a").is_none());
    }
}
