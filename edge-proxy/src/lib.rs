//! The binary as a library: listeners, the path of a request, forwarding, admin, CLI.
//!
//! Start reading at [`request`].

pub mod access;
pub mod acme_challenge;
pub mod admin;
pub mod asleep;
pub mod body;
pub mod cli;
pub mod client;
pub mod client_body;
pub mod client_class;
pub mod connection;
mod core_dumps;
pub mod date;
pub mod demo;
pub mod dns;
pub mod domain_certificates;
pub mod domains;
pub mod door;
pub mod early_wake;
pub mod edge_answers;
pub mod error;
pub mod fleet;
pub mod forward;
pub mod from_cas;
pub mod headers;
pub mod hold;
pub mod host;
pub mod interim;
pub mod jitter;
pub mod listen;
pub mod machine_keys;
mod primary;
pub mod request;
pub mod request_id;
pub mod resolve;
pub mod respond;
pub mod run;
pub mod sample;
pub mod sessions;
pub mod signed_rows;
pub mod sleep_mark;
pub mod stores;
mod tables;
pub mod target;
pub mod tickets;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod waiting;
pub mod wake_attempt;
pub mod watchdog;
pub mod webhook;
pub mod websocket;
pub mod worker;

pub use cli::run_from_arguments;
