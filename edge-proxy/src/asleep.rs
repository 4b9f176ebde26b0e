//! The last step before a wake: what the edge answers itself for a sprite that sleeps,
//! and whether this request may wake it.
//!
//! Only for requests for which no running sprite is known here. One that runs all the same
//! gets those that may not wake it too: they ask its owner without the permission to wake.

use crate::body::EdgeBody;
use crate::client_class;
use crate::request::Exchange;
use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use router::route::Route;
use router::wake::{WakePolicy, WakeRules};

/// Tells crawlers to stay away from what sleeps: they would keep it awake.
const ROBOTS: &str = "User-agent: *\nDisallow: /\n";

/// What becomes of a request for a sprite that is not known to run.
pub enum BeforeWake {
    /// It may wake it.
    MayWake,
    /// It may only have the sprite if that runs after all.
    OnlyIfRunning,
    /// The edge answers it.
    Answered(Box<Response<EdgeBody>>),
}

/// Decides that.
#[must_use]
pub fn before_wake(route: &Route, exchange: &Exchange<'_>) -> BeforeWake {
    // The defaults: no allocation in a table of millions for what nearly all have.
    let rules = route.wake.as_deref();
    if rules.is_none_or(|rules| rules.edge_paths)
        && let Some(response) = edge_path(&exchange.parts.method, exchange.parts.uri.path())
    {
        return BeforeWake::Answered(Box::new(response));
    }
    match rules {
        Some(rules) if !may_wake(rules, exchange) => BeforeWake::OnlyIfRunning,
        _ => BeforeWake::MayWake,
    }
}

fn edge_path(method: &Method, path: &str) -> Option<Response<EdgeBody>> {
    if *method != Method::GET && *method != Method::HEAD {
        return None;
    }
    let (status, text) = match path {
        "/robots.txt" => (StatusCode::OK, ROBOTS),
        "/favicon.ico" => (StatusCode::NOT_FOUND, ""),
        _ => return None,
    };
    let mut response = Response::new(EdgeBody::full(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    // A minute later the sprite may run and answer for itself.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(response)
}

fn may_wake(rules: &WakeRules, exchange: &Exchange<'_>) -> bool {
    let listed = || rules.lists(exchange.parts.uri.path());
    match rules.policy {
        WakePolicy::Any => true,
        WakePolicy::People => exchange.authenticated || listed() || client_class::is_person(&exchange.parts),
        WakePolicy::Authenticated => exchange.authenticated,
        WakePolicy::Paths => listed(),
        WakePolicy::Never => false,
    }
}
