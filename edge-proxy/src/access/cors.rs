//! A CORS preflight to a private sprite. Browsers send none of the visitor's credentials with it,
//! so it can only be answered from what the sprite's people have declared, or refused like
//! every stranger; the sprite never sees it and is never woken by it.

use crate::body::EdgeBody;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use router::access::Private;
use router::cors::CorsPolicy;

/// The answer to a preflight by the sprite's policy; none if it is no preflight, or not of
/// an origin that may ask.
#[must_use]
pub(super) fn preflight(private: &Private, parts: &Parts) -> Option<Response<EdgeBody>> {
    let policy = private.cors.as_deref()?;
    if parts.method != Method::OPTIONS || !parts.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    let origin = parts.headers.get(header::ORIGIN)?;
    if !policy.allows(origin.to_str().ok()?) {
        return None;
    }
    let mut response = Response::new(EdgeBody::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    tell(response.headers_mut(), policy, origin);
    Some(response)
}

fn tell(headers: &mut HeaderMap, policy: &CorsPolicy, origin: &HeaderValue) {
    let origin = if policy.any_origin() { HeaderValue::from_static("*") } else { origin.clone() };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    list(headers, header::ACCESS_CONTROL_ALLOW_METHODS, &policy.methods);
    list(headers, header::ACCESS_CONTROL_ALLOW_HEADERS, &policy.headers);
    if policy.credentials {
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(policy.max_age));
    // Another origin gets another answer.
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

fn list(headers: &mut HeaderMap, name: HeaderName, values: &[String]) {
    // Checked when they were declared; a row by another hand may still carry what no header can.
    if let (false, Ok(value)) = (values.is_empty(), HeaderValue::from_str(&values.join(", "))) {
        headers.insert(name, value);
    }
}
