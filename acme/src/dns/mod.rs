//! The DNS authority inside the edge: it answers for our own zones and for nothing else.
//!
//! ```text
//! udp.rs, tcp.rs → answer.rs  query.rs (what was asked) → zone.rs (what there is) → records, copied
//!                             challenges.rs (what comes and goes) → nobody knows: others are asked, 250 ms
//!            ← limit.rs       how many answers a network gets over UDP
//! ```
//!
//! What answers is a function of bytes to bytes ([`answer()`]); [`server`] has the sockets and threads around it. Records are
//! written once by hickory-proto, when a [`ZoneView`] is made; hickory's server is not used, because it makes a task of every
//! datagram without a bound, takes connections without a bound, limits no rate and lets the asker say how long an answer may be.
//!
//! Deliberately absent: answers for others (recursion), transfers of zones, changes by DNS messages, DNSSEC.

mod answer;
mod authority;
mod challenges;
mod codes;
mod counters;
mod explain;
mod limit;
mod name;
mod query;
mod records;
pub mod server;
mod tcp;
mod udp;
mod zone;

pub use answer::{Answer, Transport, UDP_BYTES_MAX, answer};
pub use authority::Authority;
pub use challenges::{Challenges, PublishError, Published, Pull, Pulling, VALUE_BYTES_MAX, VALUES_MAX, Values};
pub use counters::Counts;
pub use explain::{ExplainError, Explained};
pub use zone::ZoneView;

#[cfg(test)]
mod tests;
