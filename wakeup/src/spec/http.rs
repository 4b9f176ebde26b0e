//! A sprite that some orchestrator wakes and puts to sleep, asked over HTTP.

use super::Wrong;
use http::Uri;
use serde::{Deserialize, Serialize};

/// Longest URL, bytes (chosen).
const URL_BYTES_MAX: usize = 2048;

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpSpec {
    /// `/wake` and `/sleep` are put behind it.
    pub url: String,
}

impl HttpSpec {
    /// Checks what the types alone cannot say.
    ///
    /// # Errors
    /// The first field that is wrong, and what would be right.
    pub fn check(&self) -> Result<(), Wrong> {
        let uri = self.url.parse::<Uri>().ok().filter(|_| self.url.len() <= URL_BYTES_MAX);
        let right = uri.is_some_and(|uri| {
            let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
            matches!(uri.scheme_str(), Some("http" | "https")) && plain && uri.query().is_none()
        });
        match right {
            true => Ok(()),
            false => Err(("http.url", "http:// or https://, a host and perhaps a path; no user, no query")),
        }
    }
}
