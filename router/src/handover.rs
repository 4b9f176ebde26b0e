//! Sprites on their way from one host to another: what the two say to each other, by the store.
//!
//! The host that has the sprite writes that another shall have it, the other one says when it is
//! ready, and only then the route changes. Hosts have no tunnel between them; data and
//! secrets travel by the operator's own way.

use crate::names::SpriteName;
use crate::registry::{self, Registry, RegistryRow};
use crate::route::{Generation, HostId};
use crate::rows::{ROW_VERSION, RowError};
use crate::signing::{PublicKey, Seal, SigningKey};
use crate::store::Store;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// Keys of these rows begin with this; the sprite's name follows.
pub const HANDOVER_PREFIX: &str = "handover/";

/// One sprite on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandoverRow {
    /// [`ROW_VERSION`].
    pub version: u32,
    /// The sprite.
    pub name: SpriteName,
    /// The host that has it.
    pub from: HostId,
    /// The host that shall have it.
    pub to: HostId,
    /// The placement it will have there.
    pub generation: Generation,
    /// That host has its definition and can wake it.
    pub ready: bool,
    /// Of the host that speaks: the one that has it, or the other one when it is ready. None where no
    /// operator's key is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Seal>,
}

impl HandoverRow {
    /// The key of a sprite's row.
    #[must_use]
    pub fn key(name: &SpriteName) -> String {
        format!("{HANDOVER_PREFIX}{name}")
    }

    /// Sealed as it stands.
    #[must_use]
    pub fn sealed(self, by: &SigningKey) -> Self {
        let unsealed = Self { seal: None, ..self };
        let seal = Seal::new(&Self::key(&unsealed.name), &unsealed.encode(), by);
        Self { seal: Some(seal), ..unsealed }
    }

    /// Whether the host with this key has said it.
    #[must_use]
    pub fn is_of(&self, host: &PublicKey) -> bool {
        let Some(seal) = &self.seal else { return false };
        let unsealed = Self { seal: None, ..self.clone() };
        seal.by == *host && seal.fits(&Self::key(&self.name), &unsealed.encode())
    }
}

impl RegistryRow for HandoverRow {
    type Id = SpriteName;
    const PREFIX: &'static str = HANDOVER_PREFIX;
    const WHAT: &'static str = "hand-over";
    const MAY_ALL_GO: bool = true;

    fn id(&self) -> SpriteName {
        self.name.clone()
    }

    fn id_in(key: &str) -> Option<SpriteName> {
        key.strip_prefix(HANDOVER_PREFIX).and_then(|name| SpriteName::parse(name).ok())
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of plain fields always encodes")
    }

    fn decode(key: &str, value: &[u8]) -> Result<Self, RowError> {
        let row: Self = serde_json::from_slice(value).map_err(RowError::Value)?;
        let wrong = if row.version != ROW_VERSION {
            return Err(RowError::Version(row.version));
        } else if key != Self::key(&row.name) {
            "name"
        } else if row.generation.0 == 0 || row.generation > Generation::MAX {
            "generation"
        } else if row.from == row.to {
            "to"
        } else {
            return Ok(row);
        };
        Err(RowError::Field(wrong))
    }
}

/// Every sprite on its way.
pub type Handovers = Registry<HandoverRow>;

/// Applies the store's rows to `handovers`, and keeps them in the file at `path`; never returns.
pub async fn follow(store: Store, handovers: Arc<Handovers>, path: PathBuf) {
    registry::follow(store, handovers, HandoverRow::key, path).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> HandoverRow {
        HandoverRow {
            version: ROW_VERSION,
            name: SpriteName::parse("a").unwrap(),
            from: HostId(1),
            to: HostId(2),
            generation: Generation(3),
            ready: false,
            seal: None,
        }
    }

    #[test]
    fn a_row_that_is_not_certain_is_refused() {
        let row = row();
        assert_eq!(HandoverRow::decode("handover/a", &row.encode()).unwrap(), row);
        let wrong = |row: HandoverRow| HandoverRow::decode("handover/a", &row.encode()).unwrap_err().to_string();
        assert!(wrong(HandoverRow { name: SpriteName::parse("b").unwrap(), ..row.clone() }).starts_with("name"));
        assert!(wrong(HandoverRow { generation: Generation(0), ..row.clone() }).starts_with("generation"));
        assert!(wrong(HandoverRow { to: HostId(1), ..row.clone() }).starts_with("to"));
        assert!(wrong(HandoverRow { version: 2, ..row }).contains("version 2"));
    }

    #[test]
    fn nobody_says_ready_for_another_host() {
        use crate::signing::tests::key;
        let row = row();
        assert!(!row.is_of(&key(1).public()), "it is not sealed");
        let asked = row.sealed(&key(1));
        assert!(asked.is_of(&key(1).public()) && !asked.is_of(&key(2).public()));
        let ready = HandoverRow { ready: true, ..asked };
        assert!(!ready.is_of(&key(1).public()), "the seal is of another row");
        assert!(ready.sealed(&key(2)).is_of(&key(2).public()));
    }
}
