//! `/.well-known/acme-challenge/`: certificates are the edge's matter. What a certificate authority
//! asks there is never forwarded, never redirected, wakes nothing, and tells nobody which
//! names there are (`wake.md` §3, step 5).

use crate::body::EdgeBody;
use http::{HeaderValue, Response, StatusCode, header};

/// Paths below this one (RFC 8555 §8.3).
const PREFIX: &str = "/.well-known/acme-challenge/";

/// The answer if `path` is one of a challenge.
#[must_use]
pub fn answer(path: &str) -> Option<Response<EdgeBody>> {
    if !path.starts_with(PREFIX) {
        return None;
    }
    let mut response = Response::new(EdgeBody::full("There is no such challenge.\n".into()));
    *response.status_mut() = StatusCode::NOT_FOUND;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
}
