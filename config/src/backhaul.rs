//! The way to the worker host.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Which link carries streams to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Link {
    /// WireGuard in this process, a QUIC session inside it.
    #[serde(rename = "userspace")]
    Userspace,
    /// Plain TCP without any protection: for one machine, and named so.
    #[serde(rename = "direct-insecure")]
    DirectInsecure,
}

/// Section `[backhaul]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackhaulConfig {
    /// See [`Link`].
    pub link: Link,
    /// Where the host's WireGuard socket listens (UDP); port 0 picks a free one.
    pub listen: SocketAddr,
    /// Largest inner packet, bytes: 1500 less the 80 of WireGuard over IPv6.
    pub inner_mtu: u16,
}

impl Default for BackhaulConfig {
    fn default() -> Self {
        Self { link: Link::Userspace, listen: SocketAddr::from(([127, 0, 0, 1], 0)), inner_mtu: 1420 }
    }
}

impl BackhaulConfig {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        // QUIC's 1200 bytes (RFC 9000 §14) and 48 of inner headers must fit.
        if !(1280..=9000).contains(&self.inner_mtu) {
            return Err(("backhaul.inner_mtu", "between 1280 and 9000 bytes".into()));
        }
        Ok(())
    }
}
