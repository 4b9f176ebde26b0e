//! Whether secrets in rows open on this machine.

use acme::seal::Sealer;
use std::sync::Arc;

/// How that is.
#[derive(Debug)]
pub(super) enum KeysHere {
    /// They do.
    Open(Arc<Sealer>),
    /// The store has not said the data keys.
    Away(String),
    /// The KEK is not the fleet's.
    Wrong(String),
}
