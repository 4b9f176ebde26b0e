//! Sprites that exist by configuration.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// One `[[sprite]]`: an always-running service at an address, or a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticSprite {
    /// Its name.
    pub name: String,
    /// Where an always-running service listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// What to run with `$PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Ports that may be asked for as `8080--name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Whole host names that lead to it besides `name.suffix`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
}

impl StaticSprite {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.address.is_some() == self.command.is_some() {
            return Err(("sprite.name", format!("{:?} needs an address or a command, and not both", self.name)));
        }
        if self.ports.len() > 16 || self.ports.contains(&0) {
            return Err(("sprite.ports", "at most 16 ports, none of them 0".into()));
        }
        Ok(())
    }
}
