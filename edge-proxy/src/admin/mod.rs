//! The admin API: HTTP and JSON on a unix socket, for the CLI and for scripts.
//!
//! `openapi.json` describes it and a test holds the two together. Who can open the socket
//! may do everything, so it is the owner's alone (mode 0600).

pub mod access;
pub mod api;
pub mod cert_client;
mod certificates;
pub mod client;
pub mod dns_client;
pub mod domain_client;
mod domains;
mod explain;
mod known;
mod limits;
mod metrics;
mod regions;
mod sprite_api;
pub mod sprites;
mod table;
pub mod ticket_client;
mod usage;

pub(crate) use api::Problem;
pub use api::{Admin, bind, serve};
pub(crate) use usage::fields;

/// Places for those who wait for the ledger's next record.
#[must_use]
pub fn followers() -> tokio::sync::Semaphore {
    tokio::sync::Semaphore::new(usage::FOLLOWERS_MAX)
}
