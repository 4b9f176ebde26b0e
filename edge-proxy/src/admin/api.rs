//! The server's half: routes, JSON in and out, problems.

use super::sprites::{self, NewSprite, SpriteError};
use super::{access, limits};
use crate::domains::Domains;
use crate::fleet::{self, Moving};
use crate::stores::Stores;
use crate::webhook;
use crate::worker::Edge;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use router::access::Access;
use router::cors::CorsPolicy;
use router::hosts::HostTable;
use router::names::SpriteName;
use router::route::{HostId, Route};
use router::rows::SpriteRow;
use router::store::StoreError;
use router::table::{Lookup, RouteTable};
use router::wake::{WakePolicy, WakeRules};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
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
use wakeup::owner::core::HOLD_MAX;
use wakeup::owner::{OwnerHandle, SleepError};
use wakeup::spec::{Depth, DriverSpec, SpriteStatus, StateName};

/// Largest request body, bytes (chosen: four times the longest command).
const BODY_BYTES_MAX: usize = 64 * 1024;
/// Requests at once; further ones wait (chosen).
const REQUESTS_MAX: usize = 64;
/// Longest request: a wake has its own bound below it (chosen).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);
/// How long `wake` waits (`wake.md` §6: the cap of every hold).
const WAKE_PATIENCE: Duration = Duration::from_secs(60);
/// Life of a share link when none is asked for (chosen: a working day and the next morning).
const LINK_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long `stop` waits for the end of a guest: a start of 20 s, a port wait of 10 s, the
/// grace of what is open.
const STOP_PATIENCE: Duration = Duration::from_secs(40);
/// The description of this API.
pub const OPENAPI: &str = include_str!("openapi.json");

/// What the API works on.
pub struct Admin {
    /// The sprites of this host, if it is one.
    pub owner: Option<OwnerHandle>,
    /// Where definitions and routes are stored.
    pub stores: Stores,
    /// What this edge believes about routes.
    pub table: Arc<RouteTable>,
    /// The edge itself, if it is one.
    pub edge: Option<Arc<Edge>>,
    /// Whole host names of other people.
    pub domains: Arc<Domains>,
    /// The hosts of the fleet; none for a machine that stands alone.
    pub hosts: Option<Arc<HostTable>>,
    /// What a host of a fleet needs to give sprites away; none elsewhere.
    pub moving: Option<Arc<Moving>>,
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

/// Body of `POST /v1/sprites`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// Name.
    pub name: String,
    /// Driver `process`: for `sh -c`, with `$PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Driver `process`: the most memory it may have, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    /// Driver `command`: wakes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake_command: Option<String>,
    /// Driver `command`: puts it to sleep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep_command: Option<String>,
    /// Any driver, as `docs/drivers.md` describes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<DriverSpec>,
    /// Declared ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// "30s".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<String>,
    /// "private" (the default) or "public".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
    /// Which requests may wake it: "any" (the default), "people", "authenticated", "paths", "never".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake: Option<String>,
    /// Beginnings of paths that may wake it under "people" and "paths".
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wake_paths: Vec<String>,
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
            (&Method::POST, ["v1", "accept-removals"]) => Ok(self.accept_removals()),
            (&Method::POST, ["v1", "rotate-keys"]) => match optional(&body, "the body says no listen or old_for_s") {
                Ok(asked) => fleet::rotate(self, asked).await,
                Err(wrong) => Err(wrong),
            },
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
            "domains": self.domains.table.len(),
            "synced": self.table.is_synced() && self.domains.table.is_synced(),
            "store": self.store_status(),
            "ledger": self.ledger_status(),
            "webhook": self.webhook_status(),
        })
    }

    /// Who keeps the routes, and how well this edge follows.
    pub(super) fn store_status(&self) -> Value {
        json!({
            "engine": self.stores.routes.name(),
            "stale_s": self.table.stale_for().map(|since| since.as_secs()),
            "quarantined": self.table.quarantined() + self.domains.table.quarantined(),
            "held_removals": self.table.held_removals() + self.domains.table.held_removals(),
        })
    }

    /// What vanished is meant to be gone.
    fn accept_removals(&self) -> Value {
        let accepted = self.table.held_removals() + self.domains.table.held_removals();
        self.table.accept_removals();
        self.domains.table.accept_removals();
        json!({ "accepted": accepted })
    }

    /// The owner of this host's sprites.
    pub(crate) fn owner(&self) -> Result<&OwnerHandle, Problem> {
        let none = "this process is no worker host: sprites are worked on at the admin socket of the host they are on";
        self.owner.as_ref().ok_or_else(|| (StatusCode::CONFLICT, none.into()))
    }

    async fn list(&self) -> Result<Value, Problem> {
        Ok(self.owner()?.statuses().await.iter().map(|status| self.shown(status)).collect())
    }

    fn shown(&self, status: &SpriteStatus) -> Value {
        let mut value = serde_json::to_value(status).unwrap_or(Value::Null);
        value["url"] = self.url(&status.name).into();
        value
    }

    /// The URL of a sprite.
    #[must_use]
    pub fn url(&self, name: &SpriteName) -> String {
        match self.https_port {
            443 => format!("https://{name}.{}/", self.suffix),
            port => format!("https://{name}.{}:{port}/", self.suffix),
        }
    }

    pub(super) async fn known(&self, name: &str) -> Result<(SpriteName, SpriteStatus), Problem> {
        let name = SpriteName::parse(name).map_err(|error| (StatusCode::BAD_REQUEST, format!("name: {error}")))?;
        let status = self.owner()?.status(&name).await;
        status
            .map(|status| (name.clone(), status))
            .ok_or_else(|| (StatusCode::NOT_FOUND, format!("there is no sprite {name}")))
    }

    pub(crate) async fn show(&self, name: &str) -> Result<Value, Problem> {
        let (name, status) = self.known(name).await?;
        let mut value = self.shown(&status);
        let specs = sprites::stored(&self.stores.local).map_err(failed)?;
        if let Some(route) = self.route(&name) {
            value["access"] = route.access.mode().into();
            if let Access::Private(private) = &route.access {
                value["cors"] = serde_json::to_value(&private.cors).unwrap_or_default();
            }
            value["wake"] =
                serde_json::to_value(route.wake.as_deref().cloned().unwrap_or_default()).unwrap_or_default();
        }
        if let Some(spec) = specs.into_iter().find(|spec| spec.name == name) {
            value["limits"] = limits::shown(&spec);
            value["ports"] = spec.ports.into();
            value["idle_timeout_s"] = spec.idle_timeout.map_or(Value::Null, |timeout| timeout.as_secs_f64().into());
            match spec.driver {
                DriverSpec::Process { command, memory_mib } => {
                    value["command"] = command.into();
                    value["memory_mib"] = memory_mib.into();
                }
                DriverSpec::Command { wake, sleep } => {
                    value["wake_command"] = wake.into();
                    value["sleep_command"] = sleep.into();
                }
                driver => value["driver"] = serde_json::to_value(driver).unwrap_or_default(),
            }
        }
        Ok(value)
    }

    async fn create(&self, body: &[u8]) -> Result<Value, Problem> {
        let wrong = |detail: String| (StatusCode::BAD_REQUEST, detail);
        let asked: CreateRequest =
            serde_json::from_slice(body).map_err(|error| wrong(format!("the body is no sprite: {error}")))?;
        let name = SpriteName::parse(&asked.name).map_err(|error| wrong(format!("name: {error}")))?;
        let public = is_public(asked.access.as_deref().unwrap_or("private"))?;
        let idle_timeout = asked.idle_timeout.map(|text| humantime::parse_duration(&text)).transpose();
        let idle_timeout = idle_timeout.map_err(|error| wrong(format!("idle_timeout: {error}")))?;
        let new = NewSprite {
            name: name.clone(),
            driver: limited(
                driver(asked.driver, asked.command, asked.wake_command, asked.sleep_command)?,
                asked.memory_mib,
            )?,
            ports: asked.ports,
            idle_timeout,
            access: Access::Public,
            wake: rules(asked.wake.as_deref(), asked.wake_paths)?,
        };
        let (access, token) = match public {
            true => (Access::Public, None),
            // Its secrets must stay as they are.
            false if self.owner()?.status(&name).await.is_some() => return Err(failed(SpriteError::Exists(name))),
            false => access::private(&self.stores.local, &name)
                .map(|(access, token)| (access, Some(token)))
                .map_err(failed)?,
        };
        let new = NewSprite { access, ..new };
        sprites::create(&self.stores, self.owner()?, self.host, new).await.map_err(failed)?;
        self.visible(&name).await;
        let mut value = self.show(name.as_str()).await?;
        if let Some(token) = token {
            value["token"] = token.into();
        }
        Ok(value)
    }

    async fn set_access(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Asked {
            access: String,
        }
        let asked: Asked = serde_json::from_slice(body)
            .map_err(|error| (StatusCode::BAD_REQUEST, format!("access is \"public\" or \"private\": {error}")))?;
        let (name, _) = self.known(name).await?;
        let mut token = None;
        match is_public(&asked.access)? {
            true => access::make_public(&self.stores, &name).await.map_err(failed)?,
            false => token = Some(access::make_private(&self.stores, &name).await.map_err(failed)?),
        }
        self.visible(&name).await;
        let mut value = self.show(name.as_str()).await?;
        if let Some(token) = token {
            value["token"] = token.into();
        }
        Ok(value)
    }

    async fn set_wake_rules(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
        let rules: WakeRules = serde_json::from_slice(body)
            .map_err(|error| (StatusCode::BAD_REQUEST, format!("these are no wake rules: {error}")))?;
        let (name, _) = self.known(name).await?;
        access::set_wake_rules(&self.stores, &name, rules).await.map_err(failed)?;
        self.visible(&name).await;
        self.show(name.as_str()).await
    }

    async fn set_cors(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
        let policy: Option<CorsPolicy> = serde_json::from_slice(body)
            .map_err(|error| (StatusCode::BAD_REQUEST, format!("this is neither a CORS policy nor null: {error}")))?;
        let (name, _) = self.known(name).await?;
        access::set_cors(&self.stores, &name, policy).await.map_err(failed)?;
        self.visible(&name).await;
        self.show(name.as_str()).await
    }

    async fn new_token(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        if self.route(&name).is_some_and(|route| route.access == Access::Public) {
            return Err(failed(SpriteError::Public));
        }
        let token = access::make_private(&self.stores, &name).await.map_err(failed)?;
        self.visible(&name).await;
        Ok(json!({ "token": token }))
    }

    async fn revoke_tokens(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        let revoked = access::revoke_tokens(&self.stores, &name).await.map_err(failed)?;
        self.visible(&name).await;
        Ok(json!({ "revoked": revoked }))
    }

    pub(crate) async fn share(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct Asked {
            expires: Option<String>,
            port: Option<u16>,
        }
        let asked: Asked = optional(body, "the body is no link")?;
        let life = asked.expires.map_or(Ok(LINK_LIFE), |text| humantime::parse_duration(&text));
        let life = life.map_err(|error| (StatusCode::BAD_REQUEST, format!("expires: {error}")))?;
        let (name, _) = self.known(name).await?;
        let port = asked.port.unwrap_or(0);
        let (query, expires) = access::link(&self.stores, &name, port, life).await.map_err(failed)?;
        let url = match port {
            0 => self.url(&name),
            port => self.url(&name).replacen("https://", &format!("https://{port}--"), 1),
        };
        Ok(json!({ "url": format!("{url}?{query}"), "expires_unix_s": expires }))
    }

    async fn revoke_links(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        access::revoke_links(&self.stores, &name).await.map_err(failed)?;
        self.visible(&name).await;
        Ok(json!({ "revoked": "every link made so far" }))
    }

    pub(crate) fn route(&self, name: &SpriteName) -> Option<Route> {
        match self.table.lookup(name) {
            Lookup::Found(route) if !route.deleted => Some(route),
            _ => None,
        }
    }

    /// Waits until this edge's own table says what the store does, so that the next request
    /// is not told what was true before. Bounded: the table follows within a turn, or it is
    /// cut off and says so in its status.
    pub(crate) async fn visible(&self, name: &SpriteName) {
        let key = SpriteRow::key(name);
        let Ok(stored) = self.stores.routes.get(&key).await else { return };
        let stored = stored.and_then(|entry| SpriteRow::decode(&key, &entry.value).ok());
        let stored = stored.map(|(_, row)| row.route());
        for _ in 0..200 {
            if stored == self.route(name) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn give(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Asked {
            to: String,
        }
        let asked: Asked = serde_json::from_slice(body)
            .map_err(|error| (StatusCode::BAD_REQUEST, format!("to: the name of a host: {error}")))?;
        let (name, _) = self.known(name).await?;
        fleet::give(self, &name, &asked.to).await
    }

    async fn delete(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        sprites::delete(&self.stores, self.owner()?, &name).await.map_err(failed)?;
        Ok(json!({ "deleted": name }))
    }

    async fn wake(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        match self.owner()?.wake(&name, WAKE_PATIENCE).await {
            Ok(_) => self.show(name.as_str()).await,
            Err(reply) => Err((StatusCode::CONFLICT, format!("{name} was not woken: {}", said(&reply)))),
        }
    }

    async fn sleep(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct Asked {
            depth: Option<Depth>,
        }
        let asked: Asked = optional(body, "depth is \"warm\" or \"cold\"")?;
        let (name, _) = self.known(name).await?;
        match self.owner()?.sleep(&name, asked.depth.unwrap_or(Depth::Warm)).await {
            Ok(()) => self.show(name.as_str()).await,
            Err(SleepError::NoSuchSprite) => Err((StatusCode::NOT_FOUND, format!("there is no sprite {name}"))),
            Err(SleepError::NotNow) => Err((StatusCode::CONFLICT, format!("{name}: {}", SleepError::NotNow))),
        }
    }

    async fn stop(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        sprites::set_stopped(&self.stores.local, &name, true).map_err(failed)?;
        if !self.owner()?.stop(&name).await {
            return Err((StatusCode::CONFLICT, format!("{name} never sleeps, so it cannot be stopped")));
        }
        // A start that is under way ends first, an open request has a little time.
        let end = Instant::now() + STOP_PATIENCE;
        while self.owner()?.status(&name).await.is_some_and(|status| status.state != StateName::Stopped) {
            if Instant::now() > end {
                return Err((StatusCode::GATEWAY_TIMEOUT, format!("{name} is stopped, but has not ended yet")));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.show(name.as_str()).await
    }

    async fn start(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        sprites::set_stopped(&self.stores.local, &name, false).map_err(failed)?;
        self.owner()?.start_again(&name).await;
        self.show(name.as_str()).await
    }

    async fn hold(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct Asked {
            max: Option<String>,
        }
        let asked: Asked = optional(body, "the body is no hold")?;
        let longest = asked.max.map_or(Ok(HOLD_MAX), |text| humantime::parse_duration(&text));
        let longest = longest.map_err(|error| (StatusCode::BAD_REQUEST, format!("max: {error}")))?;
        if longest > HOLD_MAX {
            return Err((StatusCode::BAD_REQUEST, format!("max: at most {HOLD_MAX:?}")));
        }
        let (name, _) = self.known(name).await?;
        self.owner()?.hold(&name, longest).await;
        self.show(name.as_str()).await
    }

    async fn release(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        self.owner()?.release(&name).await;
        self.show(name.as_str()).await
    }

    async fn why(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        Ok(serde_json::to_value(self.owner()?.why(&name).await).unwrap_or(Value::Null))
    }

    async fn receipts(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        Ok(serde_json::to_value(self.owner()?.receipts(&name)).unwrap_or(Value::Null))
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

fn driver(
    driver: Option<DriverSpec>,
    command: Option<String>,
    wake: Option<String>,
    sleep: Option<String>,
) -> Result<DriverSpec, Problem> {
    match (driver, command, wake, sleep) {
        (Some(driver), None, None, None) => Ok(driver),
        (None, Some(command), None, None) => Ok(DriverSpec::Process { command, memory_mib: None }),
        (None, None, Some(wake), Some(sleep)) => Ok(DriverSpec::Command { wake, sleep }),
        _ => Err((
            StatusCode::BAD_REQUEST,
            "command: exactly one of command, driver, and wake_command with sleep_command".into(),
        )),
    }
}

/// With the limit that is asked for beside a command.
fn limited(driver: DriverSpec, asked: Option<u32>) -> Result<DriverSpec, Problem> {
    match (driver, asked) {
        (DriverSpec::Process { command, memory_mib }, asked) => {
            Ok(DriverSpec::Process { command, memory_mib: asked.or(memory_mib) })
        }
        (driver, None) => Ok(driver),
        _ => Err((StatusCode::BAD_REQUEST, "memory_mib: it belongs to a command; other drivers have their own".into())),
    }
}

fn rules(policy: Option<&str>, paths: Vec<String>) -> Result<WakeRules, Problem> {
    let policy = policy.map_or(Ok(WakePolicy::Any), str::parse);
    let policy = policy.map_err(|known| (StatusCode::BAD_REQUEST, format!("wake: it is one of {known}")))?;
    Ok(WakeRules { policy, paths, ..WakeRules::default() })
}

fn is_public(access: &str) -> Result<bool, Problem> {
    match access {
        "public" => Ok(true),
        "private" => Ok(false),
        other => Err((StatusCode::BAD_REQUEST, format!("access: {other:?} is neither public nor private"))),
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

fn said(reply: &backhaul::wire::Reply) -> String {
    use backhaul::wire::Reply;
    match reply {
        Reply::Refused(refused) if refused.detail.is_empty() => format!("{:?}", refused.cause()),
        Reply::Refused(refused) => format!("{:?}: {}", refused.cause(), refused.detail),
        other => format!("{other:?}"),
    }
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
