//! The rows a store carries: one encoded value each, so that nothing can tear.

use crate::access::Access;
use crate::client_certificate::ClientCertificate;
use crate::names::{NameError, SpriteName};
use crate::placement::{LINKS_MAX, Proof};
use crate::route::{Generation, HostId, Route};
use crate::wake::WakeRules;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Version inside every row; a newer one is quarantined, not guessed at.
pub const ROW_VERSION: u32 = 1;
/// Most declared ports of a sprite (chosen).
pub const PORTS_MAX: usize = 16;
/// Furthest a generation moves at once: one further on is a mistake, or an attempt to put a
/// route beyond correction (chosen).
pub const GENERATION_JUMP_MAX: u64 = 1 << 20;
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
    /// Who may wake it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub wake: WakeRules,
    /// Which client certificates it asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<ClientCertificate>,
    /// Destroyed.
    pub deleted: bool,
    /// Why it is to be believed.
    #[serde(default, skip_serializing_if = "Proof::is_empty")]
    pub proof: Proof,
}

fn is_default(rules: &WakeRules) -> bool {
    *rules == WakeRules::default()
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
    /// The generation is more than [`GENERATION_JUMP_MAX`] above the one known.
    #[error("generation {to} is too far from {from}")]
    Jump {
        /// The generation known.
        from: u64,
        /// The generation of the row.
        to: u64,
    },
    /// Nobody who may has written it ([`crate::placement`], [`crate::papers`]).
    #[error("nobody who may has written it: {0}")]
    Forged(&'static str),
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
        let label = key.strip_prefix(SPRITE_PREFIX).ok_or(NameError::Foreign);
        let name = label.and_then(SpriteName::parse).map_err(|source| RowError::Key { key: key.into(), source })?;
        Ok((name, Self::decode_value(value)?))
    }

    /// As [`SpriteRow::decode`], of the value alone.
    ///
    /// # Errors
    /// [`RowError`].
    pub(crate) fn decode_value(value: &[u8]) -> Result<Self, RowError> {
        let row: Self = serde_json::from_slice(value).map_err(RowError::Value)?;
        if row.version != ROW_VERSION {
            return Err(RowError::Version(row.version));
        }
        if row.ports.len() > PORTS_MAX || row.ports.contains(&0) {
            return Err(RowError::Field("ports"));
        }
        if !row.wake.is_bounded() {
            return Err(RowError::Field("wake"));
        }
        if !row.access.is_bounded() {
            return Err(RowError::Field("access"));
        }
        if !row.client_certificate.as_ref().is_none_or(ClientCertificate::is_bounded) {
            return Err(RowError::Field("client_certificate"));
        }
        if row.generation.0 == 0 || row.generation > Generation::MAX {
            return Err(RowError::Field("generation"));
        }
        if row.proof.chain.len() > LINKS_MAX {
            return Err(RowError::Field("proof"));
        }
        Ok(row)
    }

    /// The route the row describes.
    #[must_use]
    pub fn route(&self) -> Route {
        Route {
            generation: self.generation,
            host: self.host,
            tenant: self.tenant.as_str().into(),
            access: self.access.clone(),
            wake: (!is_default(&self.wake)).then(|| Arc::new(self.wake.clone())),
            ports: self.ports.as_slice().into(),
            client_certificate: self.client_certificate.clone().map(Arc::new),
            deleted: self.deleted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client_certificate::ClientMode;

    fn row() -> SpriteRow {
        SpriteRow {
            version: ROW_VERSION,
            tenant: "t".into(),
            generation: Generation(1),
            host: HostId(1),
            ports: vec![8080],
            access: Access::Public,
            wake: WakeRules::default(),
            client_certificate: None,
            deleted: false,
            proof: Proof::default(),
        }
    }

    #[test]
    fn a_row_reads_back_as_it_was_written() {
        let name = SpriteName::parse("a").unwrap();
        assert_eq!(SpriteRow::decode(&SpriteRow::key(&name), &row().encode()).unwrap(), (name, row()));
    }

    #[test]
    fn a_row_that_is_not_certain_is_refused() {
        for key in ["a", "host/a", "sprite/", "sprite/a--b", "sprite/www"] {
            assert!(matches!(SpriteRow::decode(key, &row().encode()), Err(RowError::Key { .. })), "{key}");
        }
        let decode = |row: &SpriteRow| SpriteRow::decode("sprite/a", &row.encode());
        assert!(matches!(decode(&SpriteRow { version: 2, ..row() }), Err(RowError::Version(2))));
        assert!(matches!(decode(&SpriteRow { ports: vec![0], ..row() }), Err(RowError::Field("ports"))));
        assert!(matches!(decode(&SpriteRow { ports: vec![1; 17], ..row() }), Err(RowError::Field("ports"))));
        for generation in [Generation(0), Generation(u64::MAX)] {
            assert!(matches!(decode(&SpriteRow { generation, ..row() }), Err(RowError::Field("generation"))));
        }
        let wrong = WakeRules { paths: vec!["no-slash".into()], ..WakeRules::default() };
        assert!(matches!(decode(&SpriteRow { wake: wrong, ..row() }), Err(RowError::Field("wake"))));
        let wrong = ClientCertificate { mode: ClientMode::Require, ca_pem: String::new() };
        let wrong = SpriteRow { client_certificate: Some(wrong), ..row() };
        assert!(matches!(decode(&wrong), Err(RowError::Field("client_certificate"))));
        let text = String::from_utf8(row().encode()).unwrap();
        assert!(
            !text.contains("certificate") && !text.contains("wake") && !text.contains("proof"),
            "the defaults take no room: {text}"
        );
        for wrong in [
            text.replace("public", "anybody"),
            text.replace("8080", "65536"),
            text.replace('}', ",\"new\":1}"),
            text[..text.len() - 1].to_owned(),
        ] {
            assert!(matches!(SpriteRow::decode("sprite/a", wrong.as_bytes()), Err(RowError::Value(_))), "{wrong}");
        }
    }
}
