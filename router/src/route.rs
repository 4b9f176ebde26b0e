//! A route: placement only, never run state.

use crate::access::Access;
use crate::client_certificate::ClientCertificate;
use crate::papers::Papers;
use crate::signing::PublicKey;
use crate::wake::WakeRules;
use serde::{Deserialize, Serialize};
use std::net::{Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;

/// Number of a placement; grows with every move and every new sprite under an old name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The highest there can be; a bit of its word is the tombstone's.
    pub const MAX: Self = Self((1 << 63) - 1);
}

/// A worker host's number in the host registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostId(pub u32);

/// Whose a sprite is, as far as bounds are concerned: a hash of the tenant's name, so that a
/// route stays small. Two tenants with the same hash share a bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(u32);

impl From<&str> for Tenant {
    /// FNV-1a, 32 bits: the same in every process and release.
    fn from(name: &str) -> Self {
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Self(hash)
    }
}

impl Tenant {
    /// What is known of it: enough to keep it, and no way back to its name.
    pub(crate) const fn hash(self) -> u32 {
        self.0
    }

    /// The tenant of [`Tenant::hash`].
    pub(crate) const fn from_hash(hash: u32) -> Self {
        Self(hash)
    }
}

/// Declared ports. None at all take no allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ports(Option<Arc<[u16]>>);

impl Deref for Ports {
    type Target = [u16];

    fn deref(&self) -> &[u16] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl From<&[u16]> for Ports {
    fn from(ports: &[u16]) -> Self {
        Self((!ports.is_empty()).then(|| ports.into()))
    }
}

impl<const N: usize> From<[u16; N]> for Ports {
    fn from(ports: [u16; N]) -> Self {
        ports.as_slice().into()
    }
}

/// Where a sprite lives. Cheap to clone: readers always get an owned one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Number of this placement.
    pub generation: Generation,
    /// The host it is placed on.
    pub host: HostId,
    /// Whose it is.
    pub tenant: Tenant,
    /// Who may ask.
    pub access: Access,
    /// Who may wake it; none for the defaults.
    pub wake: Option<Arc<WakeRules>>,
    /// Which client certificates it asks for; none for none.
    pub client_certificate: Option<Arc<ClientCertificate>>,
    /// Ports that may be asked for besides the sprite's own HTTP port.
    pub ports: Ports,
    /// A tombstone: destroyed, and the name is kept.
    pub deleted: bool,
}

/// A worker host as every edge knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRow {
    /// Its id in words.
    pub name: String,
    /// Its number.
    pub number: HostId,
    /// WireGuard public key, base64.
    pub wireguard_key: String,
    /// Where its WireGuard socket listens.
    pub endpoint: SocketAddr,
    /// Its agent's address inside the tunnel.
    pub address: Ipv6Addr,
    /// SHA-256 of its certificate's public key, hexadecimal; any of them is accepted.
    pub spki_pins: Vec<String>,
    /// Why the row is to be believed; none where no operator's key is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub papers: Option<Papers>,
}

impl HostRow {
    /// The key its host signs with.
    #[must_use]
    pub fn signing_key(&self) -> Option<PublicKey> {
        self.papers.as_ref().and_then(|papers| papers.enrolment.keys.last().copied())
    }
}
