//! The rows a store carries: one encoded value each, so that nothing can tear.

use crate::names::{NameError, SpriteName};
use crate::route::{Access, Generation, HostId, Route};
use serde::{Deserialize, Serialize};

/// Version inside every row; a newer one is quarantined, not guessed at.
pub const ROW_VERSION: u32 = 1;
/// Most declared ports of a sprite (chosen).
pub const PORTS_MAX: usize = 16;
/// Keys of sprite rows begin with this.
pub const SPRITE_PREFIX: &str = "sprite/";

/// A sprite's placement as stored under `sprite/<name>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpriteRow {
    /// [`ROW_VERSION`].
    pub version: u32,
    /// Who owns it.
    pub tenant: String,
    /// Number of this placement.
    pub generation: Generation,
    /// The host it is placed on.
    pub host: HostId,
    /// Declared ports.
    pub ports: Vec<u16>,
    /// Who may ask.
    pub access: Access,
    /// Destroyed.
    pub deleted: bool,
}

/// Why a row was not applied.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The key is not `sprite/<name>`.
    #[error("key {key:?} names no sprite")]
    Key {
        /// The key.
        key: String,
        /// The rule it breaks.
        #[source]
        source: NameError,
    },
    /// The value is no row.
    #[error("the value is no sprite row")]
    Value(#[source] serde_json::Error),
    /// Written by a newer release.
    #[error("row version {0} is not known here")]
    Version(u32),
    /// A field is out of its bounds.
    #[error("{0} is out of bounds")]
    Field(&'static str),
}

impl SpriteRow {
    /// The key of a sprite's row.
    #[must_use]
    pub fn key(name: &SpriteName) -> String {
        format!("{SPRITE_PREFIX}{name}")
    }

    /// The encoded value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of plain fields always encodes")
    }

    /// Decodes and checks a stored row.
    ///
    /// # Errors
    /// [`RowError`]: what is wrong with it; the row is to be quarantined.
    pub fn decode(key: &str, value: &[u8]) -> Result<(SpriteName, Self), RowError> {
        let label = key.strip_prefix(SPRITE_PREFIX).unwrap_or(key);
        let name = SpriteName::parse(label).map_err(|source| RowError::Key { key: key.into(), source })?;
        let row: Self = serde_json::from_slice(value).map_err(RowError::Value)?;
        if row.version != ROW_VERSION {
            return Err(RowError::Version(row.version));
        }
        if row.ports.len() > PORTS_MAX || row.ports.contains(&0) {
            return Err(RowError::Field("ports"));
        }
        if row.generation.0 == 0 {
            return Err(RowError::Field("generation"));
        }
        Ok((name, row))
    }

    /// The route the row describes.
    #[must_use]
    pub fn route(&self) -> Route {
        Route {
            generation: self.generation,
            host: self.host,
            access: self.access,
            ports: self.ports.as_slice().into(),
            deleted: self.deleted,
        }
    }
}
