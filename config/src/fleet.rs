//! This machine among others.

use crate::{Link, Store, StoreEngine};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Section `[fleet]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fleet {
    /// Its name in the registry, a DNS label. Empty: it stands alone, edge and worker host in one
    /// process.
    pub name: String,
    /// Where edges reach the WireGuard socket of this worker host (`backhaul.listen`), when that is
    /// another address than it listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// The command that brings a sprite's directory to another host (docs/fleet.md). Empty: none, and no
    /// sprite moves away from here.
    pub move_hook: String,
}

impl Fleet {
    pub(crate) fn check(&self, store: &Store, link: Link) -> Result<(), (&'static str, String)> {
        if self.name.is_empty() {
            return Ok(());
        }
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if self.name.len() > 63 || !self.name.bytes().all(legal) {
            return Err(("fleet.name", "1 to 63 small letters, digits or -".into()));
        }
        if store.engine == StoreEngine::Embedded && store.embedded.serve.is_none() {
            return Err((
                "fleet.name",
                "machines find each other in a store they share: store.engine is \"embedded\" and store.embedded.serve says \
                 nowhere"
                    .into(),
            ));
        }
        if link == Link::DirectInsecure {
            return Err((
                "backhaul.link",
                "\"direct-insecure\" leads nowhere but to this process; a fleet needs the tunnel".into(),
            ));
        }
        if self.endpoint.is_some_and(|endpoint| endpoint.port() == 0 || endpoint.ip().is_unspecified()) {
            return Err(("fleet.endpoint", "an address and a port that edges can reach".into()));
        }
        Ok(())
    }
}
