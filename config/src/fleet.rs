//! This machine among others.

use crate::region::is_name;
use crate::{Link, Store, StoreEngine};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Most operator keys (chosen: the current, the next, and spare ones; the routing table has the same limit).
const OPERATORS_MAX: usize = 8;

/// Section `[fleet]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fleet {
    /// Its name in the registry, a DNS label. Empty: it stands alone, edge and worker host in one
    /// process.
    pub name: String,
    /// What its own region is called beside others (`[[region]]`): that of the store it writes to. A DNS label.
    pub region: String,
    /// Where edges reach the WireGuard socket of this worker host (`backhaul.listen`), when that is
    /// another address than it listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Where this PoP's UDP socket for other PoPs listens. They ask each other for challenges they have not heard of. None: it asks
    /// nobody, and answers nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers: Option<SocketAddr>,
    /// Where other PoPs reach it, when that is another address than it listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers_endpoint: Option<SocketAddr>,
    /// The command that brings a sprite's directory to another host (docs/fleet.md). Empty: none, and no
    /// sprite moves away from here.
    pub move_hook: String,
    /// Public keys of the operators (`edge-proxy keygen --operator`). With any, this machine believes only
    /// what they, or machines and owners they named, have signed. Empty: whatever the store says.
    pub operators: Vec<String>,
    /// The file with an operator's private key: in the config file `edge-proxy fleet` is run with, and in no
    /// machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator_key: Option<PathBuf>,
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            name: String::new(),
            region: "own".into(),
            endpoint: None,
            peers: None,
            peers_endpoint: None,
            move_hook: String::new(),
            operators: Vec::new(),
            operator_key: None,
        }
    }
}

impl Fleet {
    pub(crate) fn check(&self, store: &Store, link: Link) -> Result<(), (&'static str, String)> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if self.operators.len() > OPERATORS_MAX
            || self.operators.iter().any(|key| key.len() != 43 || !key.bytes().all(legal))
        {
            return Err(("fleet.operators", "at most 8 keys as `edge-proxy keygen --operator` prints them".into()));
        }
        if !is_name(&self.region) {
            return Err(("fleet.region", "1 to 63 small letters, digits or -".into()));
        }
        if self.name.is_empty() {
            return Ok(());
        }
        if !is_name(&self.name) {
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
        if store.engine == StoreEngine::Corrosion && self.operators.is_empty() {
            return Err((
                "fleet.operators",
                "none. Engine \"corrosion\" has no compare-and-set: two hosts that make one sprite at two agents would both \
                 be told that it is theirs. Name operators, who sign where a sprite may be made (docs/fleet.md, \"Who is \
                 believed\"), or take engine \"nats\", \"etcd\" or \"primary\""
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
        if self.peers_endpoint.is_some_and(|endpoint| endpoint.port() == 0 || endpoint.ip().is_unspecified()) {
            return Err(("fleet.peers_endpoint", "an address and a port that other PoPs can reach".into()));
        }
        if self.peers.is_some_and(|peers| peers.ip().is_unspecified()) && self.peers_endpoint.is_none() {
            let why = "which of its addresses other PoPs reach, fleet.peers_endpoint must say";
            return Err(("fleet.peers", why.into()));
        }
        Ok(())
    }
}
