//! Sprites that exist by configuration.

use crate::listen::is_domain;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
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
    /// The most memory the command may have, MiB; no bound when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Ports that may be asked for as `8080--name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Whole host names that lead to it besides `name.suffix`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
}

/// Longest host name, bytes (RFC 1035 §2.3.4, without the dot at its end).
const DOMAIN_BYTES_MAX: usize = 253;
/// What a command may be limited to, MiB (chosen: below, no shell begins for sure; above is 1 TiB).
pub const MEMORY_MIB: std::ops::RangeInclusive<u32> = 4..=1 << 20;
/// Most declared ports of one sprite (chosen; the routing table has the same limit).
const PORTS_MAX: usize = 16;

/// Checks each sprite, and that no two share a name or a domain.
pub(crate) fn check_all(sprites: &[StaticSprite]) -> Result<(), (String, String)> {
    let (mut names, mut domains) = (BTreeSet::new(), BTreeSet::new());
    for (index, sprite) in sprites.iter().enumerate() {
        let wrong = |field: &str, message: String| Err((format!("sprite[{index}].{field}"), message));
        if let Err((field, message)) = sprite.check() {
            return wrong(field, message);
        }
        if !names.insert(sprite.name.to_ascii_lowercase()) {
            return wrong("name", format!("{:?} stands here twice", sprite.name));
        }
        if let Some(twice) = sprite.domains.iter().find(|domain| !domains.insert(domain.to_ascii_lowercase())) {
            return wrong("domains", format!("{twice:?} stands here twice"));
        }
    }
    Ok(())
}

impl StaticSprite {
    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.address.is_some() == self.command.is_some() {
            return Err(("name", format!("{:?} needs an address or a command, and not both", self.name)));
        }
        if self.memory_mib.is_some_and(|mib| self.command.is_none() || !MEMORY_MIB.contains(&mib)) {
            return Err(("memory_mib", "4 to 1048576, for a command".into()));
        }
        if self.ports.len() > PORTS_MAX || self.ports.contains(&0) {
            return Err(("ports", format!("at most {PORTS_MAX} ports, none of them 0")));
        }
        match self.domains.iter().find(|domain| !is_domain(domain, DOMAIN_BYTES_MAX)) {
            Some(domain) => Err(("domains", format!("{domain:?} is no domain name"))),
            None => Ok(()),
        }
    }
}
