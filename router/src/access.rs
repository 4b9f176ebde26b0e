//! Who may ask for a sprite, as the table carries it: hashes and public keys, no secret.
//!
//! Nothing here computes; `edge-proxy/src/access.rs` checks requests against it.

use crate::cors::CorsPolicy;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::sync::Arc;

/// Most tokens of a sprite (chosen: one per place that calls it, and some to spare).
pub const TOKENS_MAX: usize = 16;

/// Who may ask for a sprite.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Anybody.
    Public,
    /// Who brings a token or a share link; without either, nobody.
    Private(#[serde(with = "shared")] Arc<Private>),
}

/// What lets a request pass to a private sprite.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Private {
    /// SHA-256 of each token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<Key>,
    /// Ed25519 public key of the sprite's share links.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_key: Option<Key>,
    /// Which other sites' scripts may ask; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Box<CorsPolicy>>,
}

/// 32 bytes: a SHA-256, or an Ed25519 public key. Base64url without padding in text.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(pub [u8; 32]);

impl Access {
    /// Whether its lists are within their bounds.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        match self {
            Self::Public => true,
            Self::Private(private) => {
                private.tokens.len() <= TOKENS_MAX
                    && private.cors.as_ref().is_none_or(|cors| cors.broken_rule().is_none())
            }
        }
    }

    /// "public" or "private".
    #[must_use]
    pub const fn mode(&self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private(_) => "private",
        }
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The start tells two apart; the whole has no business in a log.
        write!(f, "Key({}…)", &URL_SAFE_NO_PAD.encode(self.0)[..6])
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom("not 32 bytes in base64url"))
    }
}

/// serde for what is shared by every copy of a route.
mod shared {
    use super::Private;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::sync::Arc;

    pub(super) fn serialize<S: Serializer>(private: &Arc<Private>, serializer: S) -> Result<S::Ok, S::Error> {
        (**private).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Private>, D::Error> {
        Private::deserialize(deserializer).map(Arc::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_first_release_stay_readable() {
        assert_eq!(serde_json::from_str::<Access>("\"public\"").unwrap(), Access::Public);
        assert_eq!(serde_json::to_string(&Access::Public).unwrap(), "\"public\"");
    }

    #[test]
    fn a_private_one_reads_back_and_tells_its_keys_to_nobody() {
        let private = Private { tokens: vec![Key([7; 32])], share_key: Some(Key([9; 32])), cors: None };
        let access = Access::Private(Arc::new(private));
        let text = serde_json::to_string(&access).unwrap();
        assert_eq!(serde_json::from_str::<Access>(&text).unwrap(), access);
        let whole = URL_SAFE_NO_PAD.encode([7; 32]);
        assert!(text.contains(&whole) && !format!("{access:?}").contains(&whole));
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        for text in ["\"\"", "\"AAAA\"", "\"!\"", "1"] {
            assert!(serde_json::from_str::<Key>(text).is_err(), "{text}");
        }
    }
}
