//! Both ends of a wake: the holds at the edge ([`hold`]), the owner on the worker host
//! ([`owner`]), and the drivers that make a guest run ([`drivers`]).
//!
//! Both decide in cores without clock or socket, so that the races, which are the
//! product, are simulated with seeds. What travels between them is `backhaul::wire`.

pub mod drivers;
pub mod hold;
pub mod ledger;
pub mod metrics;
pub mod owner;
pub mod signature;
pub mod spec;
