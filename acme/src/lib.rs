//! Certificates: a CA of this machine's own, files, and the resolver that hands the right
//! one to rustls by server name; and the DNS of our zones, which proves to others' CAs that they are ours. It knows nothing
//! of sprites.

pub mod account;
pub mod alpn;
pub mod ca;
pub mod certificate;
pub mod clock;
pub mod compression;
pub mod dns;
pub mod lease;
pub mod limits;
pub mod load;
pub mod local_ca;
pub mod manager;
pub mod order;
pub mod resolver;
pub mod revoke;
pub mod rows;
pub mod seal;
pub mod tickets;
pub mod validity;

/// Now, seconds since 1970, by the system's clock.
#[must_use]
pub fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
