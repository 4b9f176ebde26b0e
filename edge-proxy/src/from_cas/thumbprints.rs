//! The accounts' thumbprints, kept on disk: a PoP that starts while the store is away answers HTTP-01 all the same.

use acme::account::ACCOUNT_PREFIX;
use router::registry::{Registry, RegistryRow};
use router::rows::RowError;
use serde::{Deserialize, Serialize};

/// What a row `acct/CA` says to everybody; its secrets are left where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Thumbprint {
    pub(super) ca: String,
    pub(super) account: Account,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) directory: String,
    pub(super) thumbprint: String,
}

/// All of them.
pub(super) type Thumbprints = Registry<Thumbprint>;

impl RegistryRow for Thumbprint {
    type Id = String;
    const PREFIX: &'static str = ACCOUNT_PREFIX;
    const WHAT: &'static str = "account";

    fn id(&self) -> String {
        self.ca.clone()
    }

    fn id_in(key: &str) -> Option<String> {
        key.strip_prefix(ACCOUNT_PREFIX).map(str::to_owned)
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(&self.account).unwrap_or_default()
    }

    fn decode(key: &str, value: &[u8]) -> Result<Self, RowError> {
        let ca = Self::id_in(key).ok_or(RowError::Field("key"))?;
        Ok(Self { ca, account: serde_json::from_slice(value).map_err(RowError::Value)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_of_an_account_is_kept() {
        let row = acme::account::AccountRow {
            directory: "https://ca.example/dir".into(),
            generation: 1,
            thumbprint: "thumb".into(),
            sealed: "secret".into(),
        };
        let read = Thumbprint::decode("acct/first", &serde_json::to_vec(&row).unwrap()).unwrap();
        assert_eq!((read.ca.as_str(), read.account.thumbprint.as_str()), ("first", "thumb"));
        let kept = read.encode();
        assert!(!String::from_utf8_lossy(&kept).contains("secret"));
        assert_eq!(Thumbprint::decode("acct/first", &kept).unwrap(), read);
    }
}
