//! The path of one request: name it, find it, authenticate it, wake it, reach it, forward it.
//!
//! This is the page to read first. Each step is one call; a step that fails ends the
//! request in `respond.rs`. The only loop is the hop budget: a sprite that fell asleep
//! or moved while the request was on its way gets the same request again, which is
//! exact, because nothing but `Opened` has delivered a byte.

use crate::access::{self, Admission};
use crate::acme_challenge;
use crate::asleep::{self, Way};
use crate::body::EdgeBody;
use crate::client::Client;
use crate::client_body::ClientBody;
use crate::client_certificate;
use crate::edge_answers;
use crate::error::RequestError;
use crate::forward::{self, Attempt, Guest, Missed};
use crate::headers;
use crate::interim::InterimWay;
use crate::request_id::RequestId;
use crate::resolve::{self, Elsewhere};
use crate::respond::{self, Reader};
use crate::target::{self, NamedTarget};
use crate::upstream::Upload;
use crate::waiting;
use crate::wake_attempt::WakeAttempt;
use crate::worker::{Edge, Worker};
use http::request::Parts;
use http::{Method, Request, Response, header};
use router::names::SpriteName;
use router::route::Route;
use router::table::Lookup;
use std::rc::Rc;
use std::time::{Duration, Instant};
use wakeup::hold::{Fared, Turn, Woken};

/// How often one request may find its sprite asleep or elsewhere after it was sent (`wake.md` §6).
const HOPS_MAX: u32 = 2;

/// How often one request may find its sprite running with a full backlog. Each time it waits,
/// in the owner's connect or in a hold, so its deadline comes first; chosen: as many tries of
/// a second as the default of `hold.timeout` has room for.
const CONNECTS_MAX: u32 = 30;

/// One request on its way: what every step may look at.
pub struct Exchange<'a> {
    /// The request line and headers as the client sent them.
    pub parts: Parts,
    /// The client's body, and the copy that makes a replay exact.
    pub upload: Upload<ClientBody>,
    /// Same id in the sprite's headers, our answer and the log.
    pub id: RequestId,
    /// How the last hold ended, if the request was held.
    pub woken: Option<Woken>,
    /// Its turn among those who were held with it, until it is known how it fares.
    pub turn: Option<Turn>,
    /// When it must be answered at the latest, set by the first hold.
    pub deadline: Option<Instant>,
    /// How long it has been held so far.
    pub held: Option<Duration>,
    /// It brought credentials that opened the sprite.
    pub authenticated: bool,
    /// It asks for a stream of events, and its sprite wants such a request told to come back
    /// rather than refused.
    pub comes_back: bool,
    /// The wake it may cause.
    pub attempt: Option<WakeAttempt>,
    /// Where interim answers go.
    pub interim: InterimWay<'a>,
}

/// Where a request is to go.
#[derive(Clone, Copy)]
pub struct Destination<'a> {
    /// The sprite.
    pub name: &'a SpriteName,
    /// Where it lives.
    pub route: &'a Route,
    /// 0 for its own port.
    pub port: u16,
}

/// How a request has fared so far.
#[derive(Clone, Copy, Default)]
pub struct Tried {
    /// How often it was sent and its sprite slept or had moved.
    pub hops: u32,
    /// How often its sprite ran and did not take the connection.
    pub connects: u32,
    /// The last time its sprite ran and was held.
    pub held: bool,
}

/// Answers `request`, whatever happens.
pub async fn handle(
    worker: &Rc<Worker>,
    client: &Rc<Client>,
    request: Request<ClientBody>,
    interim: InterimWay<'_>,
) -> Response<EdgeBody> {
    let mut response = answered(worker, client, request, interim).await;
    if let Some(hsts) = &worker.edge.hsts
        && client.is_at_a_name_of_ours()
    {
        // The sprite's own word counts.
        response.headers_mut().entry(header::STRICT_TRANSPORT_SECURITY).or_insert_with(|| hsts.clone());
    }
    response
}

async fn answered(
    worker: &Rc<Worker>,
    client: &Rc<Client>,
    request: Request<ClientBody>,
    interim: InterimWay<'_>,
) -> Response<EdgeBody> {
    let (parts, body) = request.into_parts();
    let upload = Upload::new(body);
    let id = RequestId::next();
    let mut exchange = Exchange {
        parts,
        upload,
        id,
        woken: None,
        turn: None,
        deadline: None,
        held: None,
        authenticated: false,
        comes_back: false,
        attempt: client.early_wake.take().and_then(|early| early.claim()),
        interim,
    };
    match serve(worker, client, &mut exchange).await {
        Ok(response) => {
            if let Some(attempt) = &mut exchange.attempt {
                attempt.answered(exchange.woken.as_ref(), response.status());
            }
            response
        }
        Err(error) => {
            if let Some(attempt) = &mut exchange.attempt {
                attempt.failed(&error);
            }
            tracing::debug!(request = exchange.id.as_str(), code = error.verdict().code, %error, "not served");
            if exchange.comes_back
                && let Some(answer) = respond::come_back(&error, exchange.id.as_str(), exchange.held)
            {
                return answer;
            }
            let reader = Reader::of(&exchange.parts.method, &exchange.parts.headers);
            respond::failure(&error, reader, exchange.id.as_str(), exchange.held)
        }
    }
}

async fn serve(
    worker: &Rc<Worker>,
    client: &Rc<Client>,
    exchange: &mut Exchange<'_>,
) -> Result<Response<EdgeBody>, RequestError> {
    let edge = &worker.edge;
    refuse_what_we_do_not_proxy(&exchange.parts)?;
    let named = target::of(&exchange.parts, client, edge)?;
    if let Some(token) = acme_challenge::token(exchange.parts.uri.path()) {
        // Boxed: every other request would keep room for it.
        return Ok(Box::pin(acme_challenge::answer(token, edge.challenged())).await);
    }
    let route = find(edge, &named.target.name)?;
    client_certificate::check(&route, client)?;
    match access::admit(&route.access, &named, &mut exchange.parts, client)? {
        Admission::Passes { authenticated } => exchange.authenticated = authenticated,
        Admission::Exchanged(answer) | Admission::Preflight(answer) => return Ok(*answer),
    }
    if route.deleted {
        return Err(RequestError::Gone);
    }
    // Before it may be sent: what goes to the guest is taken out of the head.
    exchange.comes_back = route.wake.as_deref().is_some_and(|rules| rules.retry_event_streams)
        && exchange.parts.method == Method::GET
        && forward::is_event_stream(&exchange.parts.headers);
    if exchange.parts.uri.path() == waiting::PATH {
        return waiting::events(worker, &exchange.parts, &named.target.name, route.generation.0);
    }
    if let Some(answer) = route.wake.as_deref().and_then(|rules| edge_answers::find(rules, &exchange.parts, false)) {
        return Ok(answer);
    }
    let (mut route, mut tried) = (route, Tried::default());
    loop {
        let port = declared_port(&route, named.target.port)?;
        let to = Destination { name: &named.target.name, route: &route, port };
        let guest = match Guest::warm(worker, exchange, to) {
            Some(guest) => guest,
            // Boxed: a task of a warm request needs no room for a hold.
            None => match Box::pin(asleep::way(worker, client, exchange, to, tried)).await? {
                Way::Guest(guest) => guest,
                Way::Answered(answer) => return Ok(*answer),
                Way::Elsewhere(elsewhere) => {
                    route = Box::pin(resolved(edge, exchange, &named, elsewhere, &mut tried)).await?;
                    continue;
                }
            },
        };
        let attempted = forward::attempt(worker, client, exchange, &named.host, guest).await;
        if let Some(turn) = exchange.turn.take() {
            turn.end(fared(&attempted));
        }
        match attempted? {
            Attempt::Answered(response) => return Ok(response),
            // A hold is no detour: it is waited for, within the request's own deadline.
            Attempt::Missed(Missed::Held) => tried.held = true,
            Attempt::Missed(Missed::Elsewhere(elsewhere)) => {
                route = Box::pin(resolved(edge, exchange, &named, elsewhere, &mut tried)).await?;
            }
            Attempt::Missed(Missed::NotConnected) if tried.connects < CONNECTS_MAX => {
                tried = Tried { connects: tried.connects + 1, held: false, ..tried };
            }
            Attempt::Missed(Missed::Asleep | Missed::NotConnected) => {
                edge.metrics.raced(tried.hops < HOPS_MAX);
                tried = tried.another_hop()?;
            }
        }
    }
}

impl Tried {
    /// One more detour, if there may be one.
    fn another_hop(self) -> Result<Self, RequestError> {
        match self.hops < HOPS_MAX {
            true => Ok(Self { hops: self.hops + 1, held: false, ..self }),
            false => Err(RequestError::HopBudget),
        }
    }
}

/// The request's new route, if it may go one more way.
async fn resolved(
    edge: &Edge,
    exchange: &Exchange<'_>,
    named: &NamedTarget,
    elsewhere: Elsewhere,
    tried: &mut Tried,
) -> Result<Route, RequestError> {
    *tried = tried.another_hop()?;
    resolve::again(edge, &named.target.name, elsewhere, exchange.authenticated, exchange.deadline).await
}

/// What those who were held with this request and still wait are to make of how it went.
fn fared(attempted: &Result<Attempt, RequestError>) -> Fared {
    match attempted {
        Ok(Attempt::Missed(_)) => Fared::Asleep,
        Err(RequestError::Upstream(_)) => Fared::Reset,
        Ok(Attempt::Answered(_)) | Err(_) => Fared::Well,
    }
}

fn refuse_what_we_do_not_proxy(parts: &Parts) -> Result<(), RequestError> {
    if parts.method == Method::CONNECT {
        return Err(RequestError::NotImplemented);
    }
    headers::refuse_loops(&parts.headers)
}

/// A tombstone too is found: who may not ask must not learn that it was one.
fn find(edge: &Edge, name: &SpriteName) -> Result<Route, RequestError> {
    match resolve::lookup(edge, name) {
        Lookup::Found(route) => Ok(route),
        Lookup::Unknown if edge.unknown_as_private => Err(RequestError::Unauthorized),
        Lookup::Unknown => Err(RequestError::NoSuchSprite),
        Lookup::NotReady => Err(RequestError::TableNotReady),
    }
}

/// 0 stands for the sprite's own `$PORT`. The owner holds the same list and checks again.
fn declared_port(route: &Route, asked: Option<u16>) -> Result<u16, RequestError> {
    match asked {
        None => Ok(0),
        Some(port) if route.ports.contains(&port) => Ok(port),
        Some(_) => Err(RequestError::NoSuchPort),
    }
}
