//! Commands of this machine.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Section `[drivers.process]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessDriver {
    /// Where each guest gets a cgroup of its own.
    pub cgroup: Cgroup,
}

/// Where the cgroups of guests are made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Cgroup {
    /// In the cgroup (v2) this process is in, if it may; guests are held by signals otherwise.
    Auto,
    /// Nowhere: guests are held by signals.
    #[default]
    None,
    /// In this one, which is empty and ours to write; by signals, with a warning, otherwise.
    At(PathBuf),
}

impl TryFrom<String> for Cgroup {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            path if path.starts_with('/') => Ok(Self::At(text.into())),
            _ => Err("it is \"auto\", \"none\" or the absolute path of a cgroup (v2)"),
        }
    }
}

impl From<Cgroup> for String {
    fn from(cgroup: Cgroup) -> Self {
        match cgroup {
            Cgroup::Auto => "auto".into(),
            Cgroup::None => "none".into(),
            Cgroup::At(path) => path.to_string_lossy().into_owned(),
        }
    }
}
