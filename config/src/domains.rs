//! Custom domains.

use crate::listen::is_domain;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// Longest host name, bytes (RFC 1035 §2.3.4, without the dot at its end).
const DOMAIN_BYTES_MAX: usize = 253;
/// Most entries of each list (chosen).
const ENTRIES_MAX: usize = 64;

/// Section `[domains]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Domains {
    /// DNS servers that are asked for proofs; empty for those of `/etc/resolv.conf`.
    pub resolvers: Vec<SocketAddr>,
    /// Where this edge is reached: what a domain's A and AAAA records should say.
    pub addresses: Vec<IpAddr>,
    /// The name a domain's CNAME record should point at; empty for none.
    pub cname: String,
    /// Names that are ours besides the suffixes: nobody's domain is at or under one.
    pub reserved: Vec<String>,
}

impl Domains {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        let many = [
            ("domains.resolvers", self.resolvers.len()),
            ("domains.addresses", self.addresses.len()),
            ("domains.reserved", self.reserved.len()),
        ];
        if let Some((key, _)) = many.into_iter().find(|(_, count)| *count > ENTRIES_MAX) {
            return Err((key, format!("at most {ENTRIES_MAX}")));
        }
        if self.resolvers.iter().any(|server| server.port() == 0 || server.ip().is_unspecified()) {
            return Err(("domains.resolvers", "an address and a port, \"192.0.2.53:53\"".into()));
        }
        if !self.cname.is_empty() && !is_domain(&self.cname, DOMAIN_BYTES_MAX) {
            return Err(("domains.cname", format!("{:?} is no domain name", self.cname)));
        }
        match self.reserved.iter().find(|name| !is_domain(name, DOMAIN_BYTES_MAX)) {
            Some(wrong) => Err(("domains.reserved", format!("{wrong:?} is no domain name"))),
            None => Ok(()),
        }
    }
}
