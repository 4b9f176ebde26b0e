//! Placeholder doc; see the module docs.
pub mod activity;
pub mod owner;
pub mod wire;
