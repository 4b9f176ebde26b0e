//! Forward it: the request out, the answer back, upgrades, and the one retry rule.
//!
//! The rule: a request is sent again only when nothing of it can have reached a guest:
//! the owner said so, or the idle stream it was written to had ended and the method may
//! be repeated (RFC 9110 §9.2.2). What was read of its body until then is kept by
//! [`crate::upstream::Upload`], so the second try sends the same bytes. Nothing else is ever retried.

use crate::access::drop_foreign_cookies;
use crate::body::EdgeBody;
use crate::client::Client;
use crate::error::RequestError;
use crate::headers;
use crate::request::{Destination, Exchange};
use crate::resolve::{self, Elsewhere};
use crate::respond;
use crate::sleep_mark::{EventBody, SleepMark};
use crate::tunnel::Tunnel;
use crate::upstream::{
    Asked, GuestBody, GuestConnection, Place, Received, RequestFraming, RequestHead, ResponseHead, UpstreamError,
    encode_head,
};
use crate::worker::Worker;
use backhaul::OpenError;
use backhaul::wire::{Asleep, Open, Reply, StreamClass, VERSION};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header};
use router::names::{SpriteName, Suffix};
use std::cell::RefCell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::time::{Duration, Instant};
use wakeup::hold::SocketKey;

thread_local! {
    /// The core's buffer for request heads: one write per request, no allocation.
    static HEAD: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Stands for a run in a place whose run the owner has to name; runs begin at 1.
const UNKNOWN_RUN: u64 = 0;

/// Largest head buffer a core keeps between requests, bytes (chosen).
const HEAD_KEPT: usize = 128 * 1024;

/// The way to a guest: an idle stream, or one that is still to be opened.
pub enum Guest {
    /// Kept from an earlier request.
    Idle(GuestConnection),
    /// To be opened with the expectation of this run.
    Fresh {
        /// What it leads to.
        place: Place,
    },
}

impl Guest {
    /// A way that needs no wake, as far as this process knows: it may prove wrong, which
    /// costs one round trip and never an error.
    #[must_use]
    pub fn warm(worker: &Worker, exchange: &Exchange<'_>, to: Destination<'_>) -> Option<Self> {
        let fits = |place: &Place| {
            place.port == to.port && place.generation == to.route.generation && place.host == to.route.host
        };
        if may_use_idle(worker, exchange)
            && let Some(connection) = worker.pool.take(to.name, fits)
        {
            return Some(Self::Idle(connection));
        }
        let run = worker.edge.waker.view(to.name, to.route.generation.0)?;
        Some(Self::fresh(to, run))
    }

    /// A stream to be opened to whatever run there is, if there is one.
    #[must_use]
    pub fn unknown(to: Destination<'_>) -> Self {
        Self::fresh(to, UNKNOWN_RUN)
    }

    /// A stream to be opened to this run.
    #[must_use]
    pub fn fresh(to: Destination<'_>, run: u64) -> Self {
        let Destination { name, route, port } = to;
        Self::Fresh { place: Place { host: route.host, name: name.clone(), generation: route.generation, run, port } }
    }
}

/// An idle stream may end in the moment it is used. That is harmless when the owner tells
/// what was delivered or the request may be repeated, and when its body can be sent again.
fn may_use_idle(worker: &Worker, exchange: &Exchange<'_>) -> bool {
    exchange.upload.is_complete() && (exchange.parts.method.is_idempotent() || worker.edge.backhaul.gives_receipts())
}

/// Why nothing of a request reached a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missed {
    /// Its sprite sleeps.
    Asleep,
    /// It is held by order, while something else works on it: it will go on.
    Held,
    /// It runs and did not take the connection.
    NotConnected,
    /// It lives somewhere else.
    Elsewhere(Elsewhere),
}

/// How a try ended.
pub enum Attempt {
    /// The sprite answered.
    Answered(Response<EdgeBody>),
    /// Nothing of the request reached a guest; it may be sent again as it is.
    Missed(Missed),
}

/// Sends the request once.
///
/// # Errors
/// What cannot be tried again.
pub async fn attempt(
    worker: &Rc<Worker>,
    client: &Rc<Client>,
    exchange: &mut Exchange<'_>,
    host: &HeaderValue,
    guest: Guest,
) -> Result<Attempt, RequestError> {
    let began = Instant::now();
    let mut connection = match guest {
        Guest::Idle(connection) => connection,
        Guest::Fresh { place } => match Box::pin(open(worker, exchange, place)).await? {
            Ok(connection) => connection,
            Err(missed) => return Ok(Attempt::Missed(missed)),
        },
    };
    if connection.link().is_decided() && !connection.begin() {
        return Ok(Attempt::Missed(not_running(worker, &mut connection)));
    }
    // What the client sent together with its head leaves together with the head.
    exchange.upload.prefetch().await.map_err(|_| RequestError::BadRequest("its body broke off"))?;
    let framing = exchange.upload.framing(&exchange.parts.headers);
    if let Err(error) = send(client, exchange, host, framing, &mut connection).await {
        return Box::pin(broke(worker, exchange, connection, error)).await;
    }
    if let Err(missed) = decided(worker, &mut connection).await? {
        return Ok(Attempt::Missed(missed));
    }
    let connect = began.elapsed();
    if connection.place().run == UNKNOWN_RUN {
        learn_run(worker, &mut connection).await;
    }
    if !exchange.upload.is_complete() {
        connection.relay(exchange.upload.take(), framing);
    }
    let head = match receive(exchange, &mut connection).await {
        Ok(head) => head,
        Err(error) => return Box::pin(broke(worker, exchange, connection, error)).await,
    };
    Ok(Attempt::Answered(answer(worker, client, exchange, connection, head, connect)))
}

/// Opens a stream, unless the owner says that this run does not run.
async fn open(
    worker: &Worker,
    exchange: &Exchange<'_>,
    place: Place,
) -> Result<Result<GuestConnection, Missed>, RequestError> {
    let left = exchange.deadline.map_or(worker.edge.hold_timeout, |at| at.saturating_duration_since(Instant::now()));
    let open = Open {
        version: VERSION,
        sprite: place.name.as_str().into(),
        generation: place.generation.0,
        expect_run: (place.run != UNKNOWN_RUN).then_some(place.run),
        port: place.port.into(),
        wake: false,
        deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
        request_id: exchange.id.as_str().into(),
        client_class: 0,
        class: class(&exchange.parts.headers).into(),
    };
    match worker.edge.backhaul.open(place.host, open).await {
        Ok(stream) => Ok(Ok(GuestConnection::new(stream, place))),
        Err(error) => not_opened(worker, &place, error).map(Err),
    }
}

/// The owner's decision, when it comes behind what was written.
async fn decided(worker: &Worker, connection: &mut GuestConnection) -> Result<Result<(), Missed>, RequestError> {
    if connection.link().is_decided() {
        return Ok(Ok(()));
    }
    let opened = Box::pin(connection.link().opened()).await.map(|_| ());
    match opened {
        Ok(()) => {
            // The guest has the request. A cordon of this very moment keeps the next one
            // from beginning; this one is no longer to be sent again.
            let _ = connection.begin();
            Ok(Ok(()))
        }
        // The end of a guest overtakes the word that it was opened; what it got is told with it.
        // Boxed: no request that goes well needs the room.
        Err(OpenError::Unreachable) => match Box::pin(connection.link().delivered()).await {
            Some(0) => Ok(Err(Missed::NotConnected)),
            Some(_) => Err(RequestError::Upstream(UpstreamError::ConnectionClosed { before_response: true })),
            None => not_opened(worker, connection.place(), OpenError::Unreachable).map(Err),
        },
        Err(error) => not_opened(worker, connection.place(), error).map(Err),
    }
}

/// The owner has named the run: the next request knows the way.
async fn learn_run(worker: &Worker, connection: &mut GuestConnection) {
    let Ok(run) = connection.link().opened().await.map(|opened| opened.run) else { return };
    connection.set_run(run);
    let place = connection.place();
    worker.edge.waker.note_running(&place.name, place.generation.0, run);
}

/// Sorts out why a stream was not opened: `Ok` when a wake may help.
fn not_opened(worker: &Worker, place: &Place, error: OpenError) -> Result<Missed, RequestError> {
    worker.edge.waker.forget(&place.name, place.run);
    worker.pool.forget(&place.name);
    match error {
        // The port refused: the owner looks again and the next hold says `port_closed` if it must.
        OpenError::GuestConnect(_) => Ok(Missed::NotConnected),
        OpenError::NotOpened(Reply::Asleep(Asleep { held: true, .. })) => Ok(Missed::Held),
        OpenError::NotOpened(Reply::Asleep(Asleep { not_connected: true, .. })) => Ok(Missed::NotConnected),
        OpenError::NotOpened(Reply::Asleep(_)) => Ok(Missed::Asleep),
        OpenError::NotOpened(Reply::Moved(moved)) => Ok(Missed::Elsewhere(resolve::hear_moved(
            &worker.edge,
            &place.name,
            place.host,
            &moved.host,
            moved.generation,
        ))),
        OpenError::NotOpened(Reply::Unknown(unknown)) if unknown.my_generation > place.generation.0 => {
            Ok(Missed::Elsewhere(Elsewhere { known: unknown.my_generation }))
        }
        OpenError::NotOpened(Reply::Gone(gone)) => {
            resolve::hear_gone(&worker.edge, &place.name, place.host, gone.generation).map(Missed::Elsewhere)
        }
        OpenError::NotOpened(Reply::Refused(refused)) => Err(RequestError::Refused {
            cause: refused.cause(),
            retry_after: Duration::from_millis(refused.retry_after_ms.into()),
            detail: refused.detail,
        }),
        OpenError::NotOpened(Reply::Unknown(_)) => {
            Ok(Missed::Elsewhere(resolve::hear_nothing(&worker.edge, &place.name, place.host)))
        }
        OpenError::NotOpened(Reply::Opened(_)) => Err(RequestError::HopBudget),
        OpenError::Unreachable => Err(RequestError::HostUnreachable),
    }
}

fn not_running(worker: &Worker, connection: &mut GuestConnection) -> Missed {
    let held = connection.link().activity().is_held();
    let place = connection.place();
    worker.edge.waker.forget(&place.name, place.run);
    worker.pool.forget(&place.name);
    if held { Missed::Held } else { Missed::Asleep }
}

/// Writes the head and what there is of the body in one go.
async fn send(
    client: &Client,
    exchange: &Exchange<'_>,
    host: &HeaderValue,
    framing: RequestFraming,
    connection: &mut GuestConnection,
) -> Result<(), UpstreamError> {
    let mut bytes = HEAD.take();
    bytes.clear();
    let parts = &exchange.parts;
    let upgrade = upgrade(&parts.headers, parts.version);
    let head = RequestHead {
        method: &parts.method,
        target: parts.uri.path_and_query(),
        host,
        headers: &parts.headers,
        framing,
        upgrade,
    };
    let ours = |out: &mut Vec<u8>| {
        headers::render(client, host, parts.version, &exchange.id, out);
        if let Some(woken) = &exchange.woken {
            headers::render_wake(woken, exchange.held.unwrap_or_default(), out);
        }
    };
    encode_head(&head, headers::is_ours, ours, &mut bytes);
    exchange.upload.encode_kept(framing, &mut bytes);
    let asked = Asked { head: parts.method == Method::HEAD, upgrade: upgrade.is_some() };
    let sent = connection.send_head_and_small_body(asked, &bytes, &[]).await;
    if bytes.capacity() <= HEAD_KEPT {
        HEAD.set(bytes);
    }
    sent
}

/// Reads heads until the answer's, and passes interim ones on: `100 Continue` too is the
/// guest's word, never ours (`client.rs` drops what hyper would say by itself).
async fn receive(exchange: &Exchange<'_>, connection: &mut GuestConnection) -> Result<ResponseHead, UpstreamError> {
    loop {
        match connection.read_head().await? {
            Received::Final(head) => return Ok(head),
            Received::Interim(head) => exchange.interim.push(head),
        }
    }
}

/// The stream failed before an answer: again, if nothing can have reached the guest.
async fn broke(
    worker: &Worker,
    exchange: &Exchange<'_>,
    mut connection: GuestConnection,
    error: UpstreamError,
) -> Result<Attempt, RequestError> {
    let kept = exchange.upload.can_replay();
    let idle_race = connection.is_reused()
        && exchange.parts.method.is_idempotent()
        && matches!(error, UpstreamError::ConnectionClosed { before_response: true } | UpstreamError::Io(_));
    if kept && (idle_race || connection.nothing_delivered().await) {
        worker.pool.forget(&connection.place().name);
        return Ok(Attempt::Missed(Missed::Asleep));
    }
    Err(RequestError::Upstream(error))
}

fn answer(
    worker: &Rc<Worker>,
    client: &Client,
    exchange: &Exchange<'_>,
    connection: GuestConnection,
    mut head: ResponseHead,
    connect: Duration,
) -> Response<EdgeBody> {
    let mut response = Response::new(EdgeBody::empty());
    *response.status_mut() = head.status;
    *response.headers_mut() = std::mem::take(&mut head.headers);
    drop_foreign_cookies(response.headers_mut(), worker.edge.suffixes().iter().map(Suffix::as_str));
    headers::add_to_response(response.headers_mut(), &exchange.id);
    if let Some(woken) = &exchange.woken {
        respond::tell_wake(response.headers_mut(), woken, exchange.held.unwrap_or_default(), connect);
    }
    let (asked, class) = (&exchange.parts.headers, class(&exchange.parts.headers));
    let mark = |name: &SpriteName| SleepMark::new(Rc::clone(worker), socket_key(client, asked, name));
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        let mark = mark(&connection.place().name);
        let (stream, early, guard) = connection.into_tunnel();
        client.tunnel.set(Some(Tunnel { read: stream.read, write: stream.write, early, guard, class, mark }));
        return response;
    }
    let socket = (class == StreamClass::Sse).then(|| (mark(&connection.place().name), connection.run()));
    let body = GuestBody::new(connection, &head, Rc::clone(&worker.pool));
    *response.body_mut() = match socket {
        Some((mark, run)) => EdgeBody::Events(Box::new(EventBody::new(body, mark, run))),
        None => EdgeBody::Sprite(body),
    };
    response
}

/// Whose socket a request is, or could be.
pub fn socket_key(client: &Client, headers: &HeaderMap, name: &SpriteName) -> SocketKey {
    let mut session = DefaultHasher::new();
    for cookie in headers.get_all(header::COOKIE) {
        cookie.hash(&mut session);
    }
    SocketKey::new(client.peer.ip(), session.finish(), name.clone())
}

/// Whether a request opens something that a browser opens again by itself.
pub fn is_socket(headers: &HeaderMap) -> bool {
    matches!(class(headers), StreamClass::WebSocket | StreamClass::Sse)
}

/// Whether a request is that of a browser's `EventSource`, or like it.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    class(headers) == StreamClass::Sse
}

/// The protocol an HTTP/1.1 client asks to switch to.
fn upgrade(headers: &HeaderMap, version: Version) -> Option<&HeaderValue> {
    if version != Version::HTTP_11 {
        return None;
    }
    let protocol = headers.get(header::UPGRADE)?;
    let wanted = headers.get_all(header::CONNECTION).iter().filter_map(|line| line.to_str().ok());
    let asked = wanted.flat_map(|line| line.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    // h2c is a matter between two neighbours, not for the guest.
    (asked && !protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).then_some(protocol)
}

fn class(headers: &HeaderMap) -> StreamClass {
    match headers.get(header::UPGRADE) {
        Some(protocol) if protocol.as_bytes().eq_ignore_ascii_case(b"websocket") => StreamClass::WebSocket,
        Some(_) => StreamClass::Tunnel,
        None if headers.get(header::ACCEPT).is_some_and(|accept| accept == "text/event-stream") => StreamClass::Sse,
        None => StreamClass::Http,
    }
}
