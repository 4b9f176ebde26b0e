//! Streams to guests, over the direct link and over the session inside WireGuard, with a
//! fake owner and real sockets on the loopback. Nothing here needs a privilege.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod control;
mod flow;
mod pops;
mod relay;
mod rotation;
mod round_trips;
mod streams;
mod trust;
mod world;
