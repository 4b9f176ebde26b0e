//! Links: how datagrams of the session reach a peer.
//!
//! There is one today, [`UserspaceLink`]: WireGuard in this process, which needs no
//! privilege and no interface. QUIC runs inside it as if it were a socket.

mod inner;
mod peers;
mod socket;

pub use peers::AddressTaken;
pub use socket::{Counts, LinkOptions, UserspaceLink};

/// UDP port of the session inside the tunnel, at both ends (chosen: the address is the
/// peer's own, so there is nothing to collide with).
pub const SESSION_PORT: u16 = 4433;
