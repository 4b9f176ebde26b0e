//! The last step before a wake: what the edge answers itself for a sprite that sleeps,
//! and whether this request may wake it.
//!
//! Only for requests for which no running sprite is known here. One that runs all the same
//! gets those that may not wake it too: they ask its owner without the permission to wake.

use crate::body::EdgeBody;
use crate::client::Client;
use crate::client_class;
use crate::edge_answers;
use crate::error::RequestError;
use crate::forward::{self, Guest};
use crate::hold;
use crate::request::{Destination, Exchange, Tried};
use crate::resolve::{self, Elsewhere};
use crate::wake_attempt::WakeAttempt;
use crate::worker::{Edge, Worker};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use router::names::SpriteName;
use router::wake::{WakePolicy, WakeRules};
use std::rc::Rc;
use std::time::Instant;

/// Tells crawlers to stay away from what sleeps: they would keep it awake.
const ROBOTS: &str = "User-agent: *\nDisallow: /\n";

/// How a request goes on for which no run is known.
pub enum Way {
    /// To this guest, which runs, or may.
    Guest(Guest),
    /// The edge answers it.
    Answered(Box<Response<EdgeBody>>),
    /// It lives somewhere else than the request was told.
    Elsewhere(Elsewhere),
}

/// Finds the way, by a wake if the request may cause one.
///
/// # Errors
/// Why it may cause none, or what ended the hold.
pub async fn way(
    worker: &Rc<Worker>,
    client: &Client,
    exchange: &mut Exchange<'_>,
    to: Destination<'_>,
    tried: Tried,
) -> Result<Way, RequestError> {
    if resolve::is_unheard(&worker.edge, to.name, to.route.host) {
        return Ok(Way::Elsewhere(Elsewhere::UNKNOWN));
    }
    if tried.held {
        // It runs: to wait for the end of its hold wakes nothing.
        return hold::wake(worker, client, exchange, to).await;
    }
    // The defaults: no allocation in a table of millions for what nearly all have.
    let rules = to.route.wake.as_deref();
    if let Some(response) = rules.and_then(|rules| edge_answers::find(rules, &exchange.parts, true)) {
        return Ok(Way::Answered(Box::new(response)));
    }
    if rules.is_none_or(|rules| rules.edge_paths)
        && let Some(response) = edge_path(&exchange.parts.method, exchange.parts.uri.path())
    {
        return Ok(Way::Answered(Box::new(response)));
    }
    if rules.is_none_or(|rules| rules.damping) {
        damp(&worker.edge, client, &exchange.parts, to.name)?;
    }
    match permission(worker, client, exchange, to.name, rules) {
        Ok(()) => hold::wake(worker, client, exchange, to).await,
        // It may run all the same, woken by somebody else: its owner is asked once.
        Err(_) if tried.hops == 0 && tried.connects == 0 => Ok(Way::Guest(Guest::unknown(to))),
        Err(refusal) => Err(refusal),
    }
}

/// A socket whose sprite fell asleep under it may not wake it by itself; anybody else of its
/// session lets it again.
fn damp(edge: &Edge, client: &Client, parts: &Parts, name: &SpriteName) -> Result<(), RequestError> {
    if edge.damping.is_empty() {
        return Ok(());
    }
    let key = forward::socket_key(client, &parts.headers, name);
    let socket = forward::is_socket(&parts.headers);
    let arrives = edge.damping.arrives(Instant::now(), &key, socket, || edge.waker.is_waking(name));
    arrives.map_err(|retry_after| {
        edge.metrics.damped();
        RequestError::AsleepIdle { retry_after }
    })
}

/// Whether the request may cause a wake: by the sprite's rules, and by what its network
/// has wasted.
fn permission(
    worker: &Rc<Worker>,
    client: &Client,
    exchange: &mut Exchange<'_>,
    name: &SpriteName,
    rules: Option<&WakeRules>,
) -> Result<(), RequestError> {
    if rules.is_some_and(|rules| !may_wake(rules, exchange)) {
        return Err(RequestError::WakeNotAllowed);
    }
    // Who joins a wake causes none: a page that is left while it loads wastes one, not forty.
    if exchange.attempt.is_none() && !exchange.authenticated && !worker.edge.waker.is_waking(name) {
        exchange.attempt = Some(WakeAttempt::begin(worker, client)?);
    }
    Ok(())
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
