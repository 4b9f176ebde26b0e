//! Who may pass: decided before any wake, and with the same answer whether the sprite
//! runs, sleeps, has failed or is gone.
//!
//! How to add a mode: a variant of [`Access`], its check here, its refusal in `error.rs`.

mod cookies;
mod cors;
pub mod share;
pub mod token;

pub use cookies::{drop_foreign_cookies, strip_own_cookie};

use crate::body::EdgeBody;
use crate::client::Client;
use crate::error::RequestError;
use crate::target::NamedTarget;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use router::access::{Access, Private};
use std::time::{SystemTime, UNIX_EPOCH};

/// What becomes of a request that may pass.
pub enum Admission {
    /// It goes on to the sprite. Credentials that were ours to read are taken off.
    Passes {
        /// It brought some.
        authenticated: bool,
    },
    /// A share link became a cookie: the client is sent to the link without its secret.
    Exchanged(Box<Response<EdgeBody>>),
    /// A browser asks whether a script of another site may: answered by the sprite's policy.
    Preflight(Box<Response<EdgeBody>>),
}

/// Lets a request pass, or says why not.
///
/// # Errors
/// [`RequestError::Unauthorized`]: it brings nothing that opens this sprite.
pub fn admit(
    access: &Access,
    named: &NamedTarget,
    parts: &mut Parts,
    client: &Client,
) -> Result<Admission, RequestError> {
    let Access::Private(private) = access else {
        // Left from when it was private, or set by somebody else: ours is never the guest's.
        strip_own_cookie(&mut parts.headers);
        return Ok(Admission::Passes { authenticated: false });
    };
    if token::opens(private, &mut parts.headers) || has_share_cookie(private, named, parts, client) {
        strip_own_cookie(&mut parts.headers);
        return Ok(Admission::Passes { authenticated: true });
    }
    if let Some(response) = exchanged(private, named, parts) {
        return Ok(Admission::Exchanged(Box::new(response)));
    }
    match cors::preflight(private, parts) {
        Some(response) => Ok(Admission::Preflight(Box::new(response))),
        None => Err(RequestError::Unauthorized),
    }
}

fn has_share_cookie(private: &Private, named: &NamedTarget, parts: &Parts, client: &Client) -> bool {
    let Some(key) = private.share_key else { return false };
    let Some(grant) = cookies::own_cookie(&parts.headers) else { return false };
    // A connection brings the same cookie again and again; its signature is checked once.
    let mut last = client.last_grant.borrow_mut();
    if let Some(known) = last.as_ref()
        && known.is_for(grant, key, named)
    {
        return now() < known.expires;
    }
    match share::verify(key, &named.target, grant, now()) {
        Some(expires) => {
            *last = Some(VerifiedGrant { text: grant.into(), key, host: named.host.clone(), expires });
            true
        }
        None => false,
    }
}

/// A share link in the query of a navigation becomes a cookie; the secret leaves the
/// address, so that neither history, referrers nor the guest see it.
fn exchanged(private: &Private, named: &NamedTarget, parts: &Parts) -> Option<Response<EdgeBody>> {
    let navigates = parts.headers.get("sec-fetch-mode").is_none_or(|mode| mode == "navigate");
    if !navigates || !(parts.method == Method::GET || parts.method == Method::HEAD) {
        return None;
    }
    let (grant, rest) = share::taken_from(parts.uri.query()?)?;
    let now = now();
    let expires = share::verify(private.share_key?, &named.target, grant, now)?;
    // Whole, because a path may begin with two slashes, which would name another host.
    let host = named.host.to_str().ok()?;
    let separator = if rest.is_empty() { "" } else { "?" };
    let location = format!("https://{host}{}{separator}{rest}", parts.uri.path());
    let mut response = Response::new(EdgeBody::empty());
    *response.status_mut() = StatusCode::FOUND;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, HeaderValue::try_from(location).ok()?);
    headers.insert(header::SET_COOKIE, HeaderValue::try_from(share::cookie(grant, expires - now)).ok()?);
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    Some(response)
}

/// The last grant a connection brought whose signature was right.
pub struct VerifiedGrant {
    text: Box<str>,
    key: router::access::Key,
    host: HeaderValue,
    expires: u64,
}

impl VerifiedGrant {
    fn is_for(&self, text: &str, key: router::access::Key, named: &NamedTarget) -> bool {
        *self.text == *text && self.key == key && self.host == named.host
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
