//! The owner: the only one that decides whether a sprite runs or sleeps.
//!
//! `core.rs` decides and does nothing; `task.rs` does what it decides and tells it what
//! happened; `handle.rs` is what everybody else holds.

mod answers;
mod clock;
mod cordons;
pub mod core;
mod grace;
mod handle;
pub(crate) mod runs;
mod sprite;
mod task;
mod teller;
mod timers;

pub use handle::{HostSettings, OwnerHandle, SleepError};
pub use timers::Rang;
