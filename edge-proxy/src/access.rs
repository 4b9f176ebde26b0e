//! Who may pass: decided before any wake, and with the same answer whether the sprite
//! runs, sleeps or is gone.
//!
//! How to add a mode: a variant of [`Access`], its check here, its refusal in `error.rs`.

use crate::error::RequestError;
use http::request::Parts;
use router::route::Access;

/// Lets a request pass, or says why not.
///
/// # Errors
/// None in the only mode there is; the signature is what the modes to come need.
pub const fn check(access: &Access, _request: &Parts) -> Result<(), RequestError> {
    match access {
        Access::Public => Ok(()),
    }
}
