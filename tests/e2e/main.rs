//! End to end: the real program, real clients, one module per promise.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics where it stands")]

mod access;
mod answers;
mod bodies;
mod client_gone;
mod cold_and_warm_wake;
mod command_driver;
mod cors;
mod demo_contract;
mod docker_driver;
mod domains;
mod door;
mod early_wake;
mod event_streams;
mod first_request;
mod fleet;
mod fleet_forgeries;
mod fleet_rotation;
mod herd;
mod http2;
mod http_driver;
mod hygiene;
mod latency;
mod leader_cancel;
mod ledger;
mod links;
mod memory_limit;
mod neighbours;
mod never_sleeps;
mod oracle;
mod orders;
mod qemu_driver;
mod real_apps;
mod reconnects;
mod sleep_race;
mod slow_apps;
mod stores;
mod streaming;
mod tidy;
mod unwanted_wakes;

mod waiting;
mod wake_fails;
mod wake_policy;
mod websocket;
