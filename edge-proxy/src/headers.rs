//! What we add to a request and a response, and what we take away.
//!
//! The codec (`upstream/encode.rs`) drops hop-by-hop fields; here is what is ours:
//! rebuilt `X-Forwarded-*`, `Forwarded`, `Via`, `CDN-Loop`, the request id. Inbound
//! copies of the rebuilt ones are dropped, because no peer is trusted to set them.

use crate::client::Client;
use crate::error::RequestError;
use crate::request_id::RequestId;
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};
use std::io::Write;
use std::time::Duration;
use wakeup::hold::Woken;

/// Requests that carry our own `CDN-Loop` entry more often than this are refused (`wake.md` §3).
const LOOPS_MAX: usize = 2;

/// `CDN-Loop` (RFC 8586).
pub const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

/// Whether an inbound request header is one we set ourselves or one only we may set.
#[must_use]
pub fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    // Ordered by what a real request carries: most names fail the first byte.
    match name.as_bytes().first() {
        Some(b'x') => name.starts_with("x-forwarded-") || name == "x-request-id" || name == "x-real-ip",
        Some(b'f') => name == "forwarded",
        Some(b's') => name.starts_with("sprite-"),
        // Many servers take an underscore for a dash.
        Some(b'c') => {
            name.starts_with("client") && matches!(&*name.replace('_', "-"), "client-cert" | "client-cert-chain")
        }
        _ => false,
    }
}

/// Appends our request header lines to `out`.
pub fn render(client: &Client, host: &HeaderValue, version: Version, id: &RequestId, out: &mut Vec<u8>) {
    out.extend_from_slice(&client.forwarded);
    out.extend_from_slice(b"x-forwarded-host: ");
    out.extend_from_slice(host.as_bytes());
    out.extend_from_slice(b"\r\nforwarded: ");
    out.extend_from_slice(client.forwarded_for.as_bytes());
    // A host may carry a port, which only a quoted value may hold (RFC 7239 §4).
    out.extend_from_slice(b";host=\"");
    out.extend_from_slice(host.as_bytes());
    out.extend_from_slice(b"\";proto=https\r\nvia: ");
    out.extend_from_slice(if version == Version::HTTP_2 { b"2" } else { b"1.1" });
    out.extend_from_slice(b" edge-proxy\r\ncdn-loop: edge-proxy\r\nx-request-id: ");
    out.extend_from_slice(id.as_str().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Refuses a request that has been through here too often.
///
/// # Errors
/// [`RequestError::Loop`].
pub fn refuse_loops(headers: &HeaderMap) -> Result<(), RequestError> {
    if !headers.contains_key(CDN_LOOP) {
        return Ok(());
    }
    let ours = headers
        .get_all(CDN_LOOP)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter(|entry| entry.split(';').next().is_some_and(|id| id.trim() == crate::respond::PRODUCT))
        .count();
    if ours > LOOPS_MAX { Err(RequestError::Loop) } else { Ok(()) }
}

/// Appends what a woken sprite's app may want to know.
pub fn render_wake(woken: &Woken, held: Duration, out: &mut Vec<u8>) {
    out.extend_from_slice(b"sprite-wake: ");
    let kind = if woken.lost_memory { crate::respond::LOST_MEMORY } else { woken.kind.as_str() };
    out.extend_from_slice(kind.as_bytes());
    // Writing to a Vec cannot fail.
    let _ = write!(out, "\r\nsprite-hold-ms: {}\r\n", held.as_millis());
}

/// Adds `Via` and the request's id to an answer. Hop-by-hop fields were left out when its
/// head was read.
pub fn add_to_response(headers: &mut HeaderMap, id: &RequestId) {
    headers.append(header::VIA, HeaderValue::from_static("1.1 edge-proxy"));
    if let Ok(mut value) = HeaderValue::from_str(id.as_str()) {
        // Another each time: in the HPACK table it would push out what repeats.
        value.set_sensitive(true);
        headers.insert(crate::respond::REQUEST_ID, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_the_visitor_is_only_the_edge_may_say() {
        for name in ["client-cert", "client-cert-chain", "client_cert", "client_cert-chain", "forwarded", "x-real-ip"] {
            assert!(is_ours(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["client", "client-certificate", "cookie"] {
            assert!(!is_ours(&HeaderName::from_static(name)), "{name}");
        }
    }

    #[test]
    fn the_third_pass_through_here_is_refused() {
        let mut headers = HeaderMap::new();
        headers.append(CDN_LOOP, HeaderValue::from_static("edge-proxy, other; v=1"));
        headers.append(CDN_LOOP, HeaderValue::from_static("edge-proxy"));
        assert!(refuse_loops(&headers).is_ok());
        headers.append(CDN_LOOP, HeaderValue::from_static("edge-proxy;x=1"));
        assert!(refuse_loops(&headers).is_err());
    }
}
