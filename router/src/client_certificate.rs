//! Which client certificates a sprite asks its visitors for.

use serde::{Deserialize, Serialize};

/// Longest `ca_pem`, bytes (chosen: some ten certificates; a row has at most 64 KiB).
pub const CA_PEM_BYTES_MAX: usize = 16 * 1024;

/// What happens to a visitor without a certificate, or with another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientMode {
    /// The handshake fails without a certificate of one of the CAs.
    Require,
    /// A certificate is asked for; one that comes must be of one of the CAs.
    Request,
    /// A certificate is asked for, and handed on whoever made it: the sprite judges.
    Pass,
}

/// The rules of one sprite.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificate {
    /// What is asked for.
    pub mode: ClientMode,
    /// Certificates of the CAs, PEM; empty with [`ClientMode::Pass`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ca_pem: String,
}

impl ClientCertificate {
    /// Whether it is within its bounds. What is in the PEM is not looked at.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.ca_pem.len() <= CA_PEM_BYTES_MAX && (self.mode == ClientMode::Pass) == self.ca_pem.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_cas_or_pass_everybody_on() {
        for (text, fine) in [
            (r#"{"mode":"require","ca_pem":"x"}"#, true),
            (r#"{"mode":"request","ca_pem":"x"}"#, true),
            (r#"{"mode":"pass"}"#, true),
            (r#"{"mode":"require"}"#, false),
            (r#"{"mode":"pass","ca_pem":"x"}"#, false),
        ] {
            assert_eq!(serde_json::from_str::<ClientCertificate>(text).unwrap().is_bounded(), fine, "{text}");
        }
        let long = ClientCertificate { mode: ClientMode::Require, ca_pem: "x".repeat(CA_PEM_BYTES_MAX + 1) };
        assert!(!long.is_bounded());
        assert!(serde_json::from_str::<ClientCertificate>(r#"{"mode":"maybe"}"#).is_err());
    }
}
