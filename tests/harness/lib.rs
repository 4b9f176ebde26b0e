//! What the end-to-end tests stand on: the real program in its own process, real
//! clients, guests that misbehave on request, and waits that are bounded.
//!
//! Nothing here reaches into the product: a test sees what a visitor, an operator or
//! the operating system sees. Only `apart` puts the product's parts together itself, so that a
//! long way can lie between them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics where it stands")]

pub mod admin;
pub mod apart;
pub mod binary;
pub mod blind;
pub mod ca_fleet;
pub mod ca_proxy;
pub mod chromium;
pub mod client;
pub mod cluster;
pub mod corrosion;
pub mod curl;
pub mod demo;
pub mod dns;
pub mod etcd;
pub mod fleet;
pub mod guest;
pub mod helper;
pub mod late;
pub mod nats;
pub mod nats_users;
pub mod pebble;
pub mod processes;
pub mod raw;
pub mod relay;
pub mod service;
pub mod store_gate;
pub mod tools;
pub mod vm;
pub mod wait;

pub use ca_fleet::CaFleet;
pub use ca_proxy::CaProxy;
pub use client::{Answer, Client, Version};
pub use demo::{Demo, Options};
pub use dns::DnsServer;
pub use guest::Gate;
pub use helper::Helper;
pub use raw::Raw;
pub use relay::Relay;
pub use store_gate::StoreGate;
pub use tools::requires;
pub use wait::{until, within};
