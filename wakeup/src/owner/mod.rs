//! The owner: the only one that decides whether a sprite runs or sleeps.
//!
//! `core.rs` decides and does nothing; `handle.rs` does what it decides and tells it
//! what happened.

pub mod core;
mod handle;
mod sprite;

pub use handle::{HostSettings, OwnerHandle, SleepError};
