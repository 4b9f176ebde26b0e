//! Whether secrets in rows open on this machine.

/// How that is.
#[derive(Debug)]
pub(super) enum KeysHere {
    /// They do.
    Open,
    /// The store has not said the data keys.
    Away(String),
    /// The KEK is not the fleet's.
    Wrong(String),
}
