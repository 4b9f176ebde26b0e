//! The server's half: routes, JSON in and out, problems.

use super::sprites::SpriteError;
use crate::dns::Dns;
use crate::domains::Domains;
use crate::fleet::{self, Acks, Moving};
use crate::stores::Stores;
use crate::tables::FollowedRegion;
use crate::tls::Tls;
use crate::watchdog;
use crate::webhook;
use crate::worker::Edge;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use router::regions::Routes;
use router::registry::Merged;
use router::route::{HostId, HostRow};
use router::store::StoreError;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tower::{Service, ServiceBuilder, ServiceExt};
use wakeup::owner::OwnerHandle;

/// Largest request body, bytes (chosen: four times the longest command).
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Requests at once; further ones wait (chosen).
const REQUESTS_MAX: usize = 64;
/// Longest request: a wake has its own bound below it (chosen).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);
/// The description of this API.
pub const OPENAPI: &str = include_str!("openapi.json");

/// What the API works on.
pub struct Admin {
    /// The sprites of this host, if it is one.
    pub owner: Option<OwnerHandle>,
    /// Where definitions and routes are stored.
    pub stores: Stores,
    /// What this process believes about routes, of every region it follows.
    pub table: Arc<Routes>,
    /// Each region it follows, its own first.
    pub regions: Arc<[FollowedRegion]>,
    /// The edge itself, if it is one.
    pub edge: Option<Arc<Edge>>,
    /// Its handshakes.
    pub tls: Option<Arc<Tls>>,
    /// What the edge's watchdog sees, if it is one.
    pub watchdog: Option<Arc<watchdog::Status>>,
    /// Whole host names of other people.
    pub domains: Arc<Domains>,
    /// The DNS authority of this edge, if it is one.
    pub dns: Option<Arc<Dns>>,
    /// The hosts of the fleet, of every region it follows; none for a machine that stands alone.
    pub hosts: Option<Arc<Merged<HostRow>>>,
    /// What a host of a fleet needs to give sprites away; none elsewhere.
    pub moving: Option<Arc<Moving>>,
    /// What the edges have said of changes of this host's routes; none where there are no others.
    pub acks: Option<Arc<Acks>>,
    /// What a host of a fleet needs to change its keys; none elsewhere.
    pub rotation: Option<Arc<fleet::Rotation>>,
    /// This host.
    pub host: HostId,
    /// The suffix URLs are shown under.
    pub suffix: String,
    /// The port in them.
    pub https_port: u16,
    /// When the process began.
    pub started: Instant,
    /// Places for those who wait for the ledger's next record.
    pub followers: Semaphore,
    /// Who is told of the ledger, if anybody is.
    pub webhook: Option<Arc<webhook::Status>>,
}

/// Binds the socket for its owner alone. A socket nobody answers on is replaced.
///
/// # Errors
/// `AddrInUse` when another process answers there; whatever the file system says otherwise.
pub async fn bind(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another edge-proxy answers on it"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until the future is dropped.
pub async fn serve(listener: UnixListener, admin: Arc<Admin>) {
    let answer = tower::service_fn(move |request| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(admin.answer(request).await) }
    });
    let limited = ServiceBuilder::new().concurrency_limit(REQUESTS_MAX).timeout(REQUEST_TIMEOUT).service(answer);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "admin accept failed; pausing");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let limited = limited.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let mut limited = limited.clone();
                async move {
                    let outcome = match limited.ready().await {
                        Ok(ready) => ready.call(request).await,
                        Err(error) => Err(error),
                    };
                    let late = |_| problem(StatusCode::GATEWAY_TIMEOUT, "it took too long");
                    Ok::<_, Infallible>(outcome.unwrap_or_else(late))
                }
            });
            let served = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
            // The client left: its business.
            drop(served.await);
        });
    }
}

pub(crate) type Answer = Response<Full<Bytes>>;

impl Admin {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (parts, body) = request.into_parts();
        let path: Vec<_> = parts.uri.path().trim_matches('/').split('/').collect();
        let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return problem(StatusCode::BAD_REQUEST, &format!("the body cannot be read: {error}")),
        };
        if parts.method == Method::GET && path == ["metrics"] {
            return super::metrics::answer(self);
        }
        let outcome = match (&parts.method, &path[..]) {
            (&Method::GET, ["v1", "status"]) => Ok(self.status().await),
            (&Method::GET, ["v1", "ledger"]) => return self.ledger(parts.uri.query()).await,
            (&Method::GET, ["v1", "openapi.json"]) => Ok(serde_json::from_str(OPENAPI).unwrap_or(Value::Null)),
            (&Method::GET, ["v1", "explain", host]) => self.explain(host),
            (&Method::POST, ["v1", "accept-removals"]) => self.accept_removals(&body),
            (&Method::POST, ["v1", "rotate-keys"]) => match optional(&body, "the body says no listen or old_for_s") {
                Ok(asked) => fleet::rotate(self, asked).await,
                Err(wrong) => Err(wrong),
            },
            (&Method::GET, ["v1", "dns", "query"]) => self.dns_question(parts.uri.query()),
            (&Method::POST, ["v1", "dns", "challenges"]) => self.dns_challenge(&body, true),
            (&Method::DELETE, ["v1", "dns", "challenges"]) => self.dns_challenge(&body, false),
            (&Method::GET, ["v1", "tickets"]) => self.list_tickets(),
            (&Method::DELETE, ["v1", "tickets"]) => self.purge_tickets().await,
            (&Method::POST, ["v1", "tickets", "rotate"]) => self.rotate_tickets(),
            (&Method::GET, ["v1", "certificates"]) => self.list_certificates().await,
            (&Method::GET, ["v1", "certificates", name]) => self.explain_certificate(name).await,
            (&Method::POST, ["v1", "certificates", name, "renew"]) => self.renew_certificate(name).await,
            (&Method::POST, ["v1", "certificates", name, "compromise"]) => self.compromise_certificate(name).await,
            (&Method::POST, ["v1", "cas", name, "distrust"]) => self.distrust_ca(name, true).await,
            (&Method::DELETE, ["v1", "cas", name, "distrust"]) => self.distrust_ca(name, false).await,
            (&Method::GET, ["v1", "kek"]) => self.show_keks().await,
            (&Method::POST, ["v1", "kek", "rewrap"]) => self.rewrap(&body).await,
            (&Method::POST, ["v1", "accounts", "roll-over"]) => self.roll_account_over(&body).await,
            (&Method::GET, ["v1", "domains"]) => Ok(self.list_domains()),
            (&Method::POST, ["v1", "domains"]) => self.add_domain(&body).await,
            (&Method::GET, ["v1", "domains", name]) => self.explain_domain(name).await,
            (&Method::DELETE, ["v1", "domains", name]) => self.remove_domain(name).await,
            (&Method::POST, ["v1", "domains", name, "check"]) => self.check_domain(name).await,
            (&Method::GET, ["v1", "sprites"]) => self.list().await,
            (&Method::POST, ["v1", "sprites"]) => self.create(&body).await,
            (&Method::GET, ["v1", "sprites", name]) => self.show(name).await,
            (&Method::GET, ["v1", "sprites", name, "why"]) => self.why(name).await,
            (&Method::DELETE, ["v1", "sprites", name]) => self.delete(name).await,
            (&Method::POST, ["v1", "sprites", name, "wake"]) => self.wake(name).await,
            (&Method::POST, ["v1", "sprites", name, "sleep"]) => self.sleep(name, &body).await,
            (&Method::POST, ["v1", "sprites", name, "stop"]) => self.stop(name).await,
            (&Method::POST, ["v1", "sprites", name, "start"]) => self.start(name).await,
            (&Method::POST, ["v1", "sprites", name, "hold"]) => self.hold(name, &body).await,
            (&Method::POST, ["v1", "sprites", name, "release"]) => self.release(name).await,
            (&Method::GET, ["v1", "sprites", name, "receipts"]) => self.receipts(name).await,
            (&Method::GET, ["v1", "sprites", name, "usage"]) => self.usage(name, parts.uri.query()).await,
            (&Method::POST, ["v1", "sprites", name, "access"]) => self.set_access(name, &body).await,
            (&Method::POST, ["v1", "sprites", name, "wake-rules"]) => self.set_wake_rules(name, &body).await,
            (&Method::POST, ["v1", "sprites", name, "cors"]) => self.set_cors(name, &body).await,
            (&Method::POST, ["v1", "sprites", name, "client-certificate"]) => {
                self.set_client_certificate(name, &body).await
            }
            (&Method::POST, ["v1", "sprites", name, "move"]) => self.give(name, &body).await,
            (&Method::POST, ["v1", "sprites", name, "limits"]) => self.set_limits(name, &body).await,
            (&Method::POST, ["v1", "sprites", name, "tokens"]) => self.new_token(name).await,
            (&Method::DELETE, ["v1", "sprites", name, "tokens"]) => self.revoke_tokens(name).await,
            (&Method::POST, ["v1", "sprites", name, "links"]) => self.share(name, &body).await,
            (&Method::DELETE, ["v1", "sprites", name, "links"]) => self.revoke_links(name).await,
            _ => Err((StatusCode::NOT_FOUND, format!("there is no {} {}", parts.method, parts.uri.path()))),
        };
        match outcome {
            Ok(value) => json_answer(StatusCode::OK, "application/json", &value),
            Err((status, detail)) => problem(status, &detail),
        }
    }

    async fn status(&self) -> Value {
        let mut states = BTreeMap::new();
        let owned = match &self.owner {
            Some(owner) => owner.statuses().await,
            None => Vec::new(),
        };
        for status in owned {
            *states.entry(format!("{:?}", status.state).to_lowercase()).or_insert(0_usize) += 1;
        }
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_s": self.started.elapsed().as_secs(),
            "sprites": states,
            "held": self.edge.as_ref().map_or(0, |edge| edge.waker.held()),
            "connections": self.edge.as_ref().map_or(0, |edge| edge.connections()),
            "routes": self.table.len(),
            "domains": self.regions.iter().map(|region| region.domains.len()).sum::<usize>(),
            "certificates": self.certificates_status(),
            "synced": self.own_region().is_synced(),
            "store": self.store_status(),
            "regions": self.regions_status(),
            "watchdog": self.watchdog_status(),
            "ledger": self.ledger_status(),
            "webhook": self.webhook_status(),
            "dns": self.dns.as_ref().map(|dns| dns.status()),
        })
    }

    /// Certificates of whole names, as handshakes find them; null where there is no edge.
    fn certificates_status(&self) -> Value {
        self.tls.as_ref().map_or(Value::Null, |tls| {
            let (names, open) = tls.whole_names();
            json!({ "names": names, "open": open })
        })
    }

    /// Whether the table answers and is kept up, seen by a thread of its own; null where there is no edge.
    fn watchdog_status(&self) -> Value {
        self.watchdog.as_ref().map_or(Value::Null, |seen| {
            json!({
                "looked_ms_ago": u64::try_from(seen.looked_ago().as_millis()).unwrap_or(u64::MAX),
                "applier_still_s": seen.still_for().map(|still| still.as_secs()),
                "stalls": seen.stalls(),
                "slow_lookups": seen.slow_lookups(),
            })
        })
    }

    /// The owner of this host's sprites.
    pub(crate) fn owner(&self) -> Result<&OwnerHandle, Problem> {
        let none = "this process is no worker host: sprites are worked on at the admin socket of the host they are on";
        self.owner.as_ref().ok_or_else(|| (StatusCode::CONFLICT, none.into()))
    }
}

pub(crate) type Problem = (StatusCode, String);

/// What is our fault and not the caller's.
pub(super) fn failed_inside(detail: &str) -> Problem {
    (StatusCode::INTERNAL_SERVER_ERROR, detail.to_owned())
}

/// A body that may be left out; `wrong` says what one is that cannot be read.
pub(crate) fn optional<T: Default + DeserializeOwned>(body: &[u8], wrong: &str) -> Result<T, Problem> {
    match body {
        b"" => Ok(T::default()),
        body => serde_json::from_slice(body).map_err(|error| (StatusCode::BAD_REQUEST, format!("{wrong}: {error}"))),
    }
}

pub(crate) fn failed(error: SpriteError) -> Problem {
    let status = match &error {
        SpriteError::Exists(_) | SpriteError::Public | SpriteError::Defined(_) | SpriteError::NotPlaced(_) => {
            StatusCode::CONFLICT
        }
        SpriteError::Unknown(_) => StatusCode::NOT_FOUND,
        SpriteError::Field { .. } | SpriteError::Host(_) => StatusCode::BAD_REQUEST,
        SpriteError::Store(StoreError::Conflict { .. }) => StatusCode::CONFLICT,
        SpriteError::Store(StoreError::Unavailable(_) | StoreError::Uncertain(_)) => StatusCode::SERVICE_UNAVAILABLE,
        SpriteError::Corrupt(_) | SpriteError::Store(_) | SpriteError::Random => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, error.to_string())
}

pub(crate) fn json_answer(status: StatusCode, content_type: &'static str, value: &Value) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(format!("{value}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

pub(crate) fn problem(status: StatusCode, detail: &str) -> Answer {
    let title = status.canonical_reason().unwrap_or("Error");
    let value = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail });
    json_answer(status, "application/problem+json", &value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_names_every_route_and_no_other() {
        let description: Value = serde_json::from_str(OPENAPI).unwrap();
        let mut described: Vec<String> = Vec::new();
        for (path, methods) in description["paths"].as_object().unwrap() {
            described
                .extend(methods.as_object().unwrap().keys().map(|method| format!("{} {path}", method.to_uppercase())));
        }
        let source = include_str!("api.rs");
        let mut routed: Vec<String> = Vec::new();
        for line in source.lines().filter(|line| line.trim().starts_with("(&Method::")) {
            let method = line.split("Method::").nth(1).unwrap().split(',').next().unwrap();
            let path = line.split('[').nth(1).unwrap().split(']').next().unwrap();
            let path: String = path
                .split(", ")
                .map(|part| match part.trim_matches('"') {
                    "name" => "/{name}".to_owned(),
                    "host" => "/{host}".to_owned(),
                    part => format!("/{part}"),
                })
                .collect();
            routed.push(format!("{method} {path}"));
        }
        described.sort();
        routed.sort();
        assert_eq!(described, routed);
        assert!(routed.len() >= 9);
    }
}
