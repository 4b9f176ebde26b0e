//! End to end: the real program, real clients, one module per promise.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics where it stands")]

mod access;
mod bodies;
mod client_gone;
mod cold_and_warm_wake;
mod command_driver;
mod demo_contract;
mod docker_driver;
mod door;
mod herd;
mod http2;
mod http_driver;
mod hygiene;
mod ledger;
mod links;
mod neighbours;
mod orders;
mod qemu_driver;
mod real_apps;
mod streaming;
mod tidy;

mod waiting;
mod wake_fails;
mod wake_policy;
mod websocket;
