//! A client's network, which is what bounds are kept for.

use std::net::IpAddr;

/// /32 of IPv4, /56 of IPv6 (`wake.md` §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Prefix(u128);

impl From<IpAddr> for Prefix {
    fn from(client: IpAddr) -> Self {
        match client.to_canonical() {
            IpAddr::V4(v4) => Self(u128::from(v4.to_bits())),
            // The marker in the cut-off part keeps `::/56` apart from IPv4's 0.0.0.0.
            IpAddr::V6(v6) => Self((v6.to_bits() >> 72) << 72 | 1 << 71),
        }
    }
}
