//! The locks of `desk.rs`. `schedules.rs` has others of the same names.

pub(super) use std::sync::{Mutex, MutexGuard};
