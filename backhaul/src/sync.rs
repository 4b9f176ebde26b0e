//! The atomics of `activity.rs`. `tests/activity_schedules.rs` has others of the same names.

pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
