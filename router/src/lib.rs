//! Knows where every sprite lives, as seen from this PoP.
//!
//! A *route* says on which host a sprite is placed, under which generation, and who may
//! ask for it: never whether it runs ([`route`]). Facts come from a store
//! ([`store::Engine`]) as a feed of rows ([`rows`]); [`apply`] checks each one and
//! puts it into the [`table::RouteTable`], where a higher generation wins. Nothing here
//! serves a client or wakes anything.

pub mod access;
pub mod applied;
pub mod apply;
mod brake;
mod bulk;
pub mod changed;
pub mod client_certificate;
pub mod cors;
pub mod domains;
mod follow;
pub mod followed;
pub mod handover;
pub mod hints;
pub mod hosts;
mod last_known_good;
pub mod names;
pub mod papers;
pub mod placement;
pub mod pops;
mod publish;
pub mod regions;
pub mod registry;
pub mod roles;
pub mod route;
pub mod rows;
pub mod signing;
pub mod store;
pub mod subscriber;
pub mod table;
pub mod trust;
pub mod wake;
