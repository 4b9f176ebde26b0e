//! The rows of the store: `stek/POLICY/EPOCH`, one for each key, and `stek/ack/POLICY/MEMBER`, what each edge process has.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Keys of all of them begin with this.
pub const PREFIX: &str = "stek/";
const ACK: &str = "ack/";
const ROW_VERSION: u32 = 1;

/// Which names a ring is for. A ticket of one ring means nothing in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Those that ask for no client certificate.
    Normal,
    /// Those that do.
    ClientCertificate,
}

impl Policy {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Normal, Self::ClientCertificate];

    /// In keys and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::ClientCertificate => "client-certificate",
        }
    }

    /// The key of a row. The epoch has 20 digits, so that keys sort as epochs do.
    #[must_use]
    pub fn key_of(self, epoch: u64) -> String {
        format!("{PREFIX}{self}/{epoch:020}")
    }

    /// The key of what a member has.
    #[must_use]
    pub fn ack_of(self, member: &str) -> String {
        format!("{PREFIX}{ACK}{self}/{member}")
    }

    /// Whether the row under this key has a ticket key of this policy.
    #[must_use]
    pub fn is_key(self, key: &str) -> bool {
        matches!(self.about(key), Some(About::Key(_)))
    }

    /// What a key is about, if it is about this policy.
    #[must_use]
    pub fn about(self, key: &str) -> Option<About<'_>> {
        let rest = key.strip_prefix(PREFIX)?;
        let ack = rest.strip_prefix(ACK);
        let rest = ack.unwrap_or(rest).strip_prefix(self.name())?.strip_prefix('/')?;
        if ack.is_some() {
            return Some(About::Ack(rest));
        }
        let is_epoch = rest.len() == 20 && rest.bytes().all(|byte| byte.is_ascii_digit());
        rest.parse().ok().filter(|_| is_epoch).map(About::Key)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the key of a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About<'a> {
    /// The ticket key of this epoch.
    Key(u64),
    /// What this member has.
    Ack(&'a str),
}

/// A ticket key, sealed. Old ones are told by what is newer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRow {
    version: u32,
    /// Base64 of the sealed key.
    pub sealed: String,
    /// When it was made, ms of Unix time by the clock of who made it.
    pub made_at: u64,
    /// From when on it makes tickets; not yet: it is staged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_at: Option<u64>,
}

impl KeyRow {
    /// A row of this version.
    #[must_use]
    pub const fn new(sealed: String, made_at: u64, active_at: Option<u64>) -> Self {
        Self { version: ROW_VERSION, sealed, made_at, active_at }
    }

    /// `None` for what is no such row, or one of another version.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok().filter(|row: &Self| row.version == ROW_VERSION)
    }

    /// As it is stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of plain fields always encodes")
    }
}

/// What an edge process can open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AckRow {
    version: u32,
    /// The newest epoch it has.
    pub epoch: u64,
}

impl AckRow {
    /// A row of this version.
    #[must_use]
    pub const fn new(epoch: u64) -> Self {
        Self { version: ROW_VERSION, epoch }
    }

    /// `None` for what is no such row, or one of another version.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok().filter(|row: &Self| row.version == ROW_VERSION)
    }

    /// As it is stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of plain fields always encodes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_about_what_it_was_made_for() {
        for policy in Policy::ALL {
            let (key, ack) = (policy.key_of(7), policy.ack_of("fra-1"));
            assert_eq!((policy.about(&key), policy.about(&ack)), (Some(About::Key(7)), Some(About::Ack("fra-1"))));
            for other in Policy::ALL.into_iter().filter(|other| *other != policy) {
                assert_eq!((other.about(&key), other.about(&ack)), (None, None));
            }
        }
        for wrong in ["stek/normal/7", "stek/normal/", "stek/normal", "pop/a", "stek/normalx/00000000000000000007"] {
            assert_eq!(Policy::Normal.about(wrong), None, "{wrong}");
        }
    }
}
