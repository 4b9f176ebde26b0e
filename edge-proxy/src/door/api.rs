//! What a guest may ask at its door, and in which words. `docs/door.md` describes it.

use crate::admin::Admin;
use crate::admin::api::{Answer, Problem, failed, json_answer, optional, problem};
use crate::admin::sprites;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use router::names::SpriteName;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use wakeup::owner::core::{TASK_MAX, TaskError};

/// Largest request body, bytes (chosen: none needs a tenth of it).
const BODY_BYTES_MAX: usize = 4 * 1024;
/// Timers of one sprite (chosen).
const TIMERS_MAX: usize = 16;
/// Furthest timer (chosen: a year; what is further away is a mistake).
const TIMER_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Answers one request of the guest of `name`.
pub(super) async fn answer(admin: Option<Arc<Admin>>, name: &SpriteName, request: Request<Incoming>) -> Answer {
    let Some(admin) = admin else { return problem(StatusCode::SERVICE_UNAVAILABLE, "the edge is still starting") };
    let (parts, body) = request.into_parts();
    let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return problem(StatusCode::BAD_REQUEST, &format!("the body cannot be read: {error}")),
    };
    let path: Vec<_> = parts.uri.path().trim_matches('/').split('/').collect();
    let door = Door { admin: &admin, name };
    let outcome = match (&parts.method, &path[..]) {
        (&Method::GET, ["v1", "self"]) => door.about().await,
        (&Method::POST, ["v1", "share"]) => door.share(&body).await,
        (&Method::GET, ["v1", "ports"]) => door.ports(),
        (&Method::POST, ["v1", "ports"]) => door.expose(&body).await,
        (&Method::DELETE, ["v1", "ports", port]) => door.hide(port).await,
        (&Method::POST, ["v1", "tasks"]) => door.begin_task(&body).await,
        (&Method::DELETE, ["v1", "tasks", id]) => door.end_task(id).await,
        (&Method::GET, ["v1", "wake-at"]) => door.timers(),
        (&Method::POST, ["v1", "wake-at"]) => door.set_timer(&body).await,
        (&Method::DELETE, ["v1", "wake-at", at]) => door.drop_timer(at).await,
        (&Method::POST, ["v1", "sleep"]) => door.sleep(&body),
        _ => Err((StatusCode::NOT_FOUND, format!("there is no {} {}", parts.method, parts.uri.path()))),
    };
    match outcome {
        Ok(value) => json_answer(StatusCode::OK, "application/json", &value),
        Err((status, detail)) => problem(status, &detail),
    }
}

/// A timer has rung.
pub(super) fn forget_timer(admin: &Admin, name: &SpriteName, at_unix_ms: u64) {
    let forgot = sprites::change(&admin.stores.local, name, |spec| {
        spec.wake_at.retain(|at| *at != at_unix_ms);
        Ok::<_, Problem>(())
    });
    if let Err(error) = forgot {
        tracing::warn!(sprite = %name, %error, "a timer that rang will ring again after a restart");
    }
}

struct Door<'a> {
    admin: &'a Arc<Admin>,
    name: &'a SpriteName,
}

impl Door<'_> {
    /// What the sprite may know of itself: nothing of the host, nothing of other sprites.
    async fn about(&self) -> Result<Value, Problem> {
        let shown = self.admin.show(self.name.as_str()).await?;
        let mut about = json!({ "name": self.name });
        for field in ["url", "state", "run", "access", "held"] {
            about[field] = shown[field].clone();
        }
        about["ports"] = self.ports()?["ports"].clone();
        Ok(about)
    }

    async fn share(&self, body: &[u8]) -> Result<Value, Problem> {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct Asked {
            port: Option<u16>,
            ttl: Option<String>,
        }
        let asked: Asked = optional(body, "the body is no link")?;
        let link = json!({ "port": asked.port, "expires": asked.ttl });
        self.admin.share(self.name.as_str(), link.to_string().as_bytes()).await
    }

    fn ports(&self) -> Result<Value, Problem> {
        let route = self.admin.route(self.name).ok_or_else(|| (StatusCode::NOT_FOUND, "it has no route".to_owned()))?;
        let url = |port: u16| self.admin.url(self.name).replacen("https://", &format!("https://{port}--"), 1);
        let ports = route.ports.iter().map(|&port| (port.to_string(), url(port).into()));
        Ok(json!({ "ports": ports.collect::<serde_json::Map<_, Value>>() }))
    }

    async fn expose(&self, body: &[u8]) -> Result<Value, Problem> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Asked {
            port: u16,
        }
        let Asked { port } = parsed(body, "it is {\"port\":5173}")?;
        self.set_ports(|ports| {
            if !ports.contains(&port) {
                ports.push(port);
            }
        })
        .await
    }

    async fn hide(&self, port: &str) -> Result<Value, Problem> {
        let hidden: u16 = port.parse().map_err(|_| (StatusCode::BAD_REQUEST, format!("{port:?} is no port")))?;
        self.set_ports(|ports| ports.retain(|port| *port != hidden)).await
    }

    async fn set_ports(&self, change: impl Fn(&mut Vec<u16>)) -> Result<Value, Problem> {
        let spec = sprites::set_ports(&self.admin.stores, self.name, change).await.map_err(failed)?;
        self.admin.owner()?.upsert(spec).await;
        // A guest is not told who the PoPs are.
        drop(self.admin.visible(self.name).await);
        self.ports()
    }

    async fn begin_task(&self, body: &[u8]) -> Result<Value, Problem> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Asked {
            #[serde(rename = "for")]
            span: String,
            /// Renews the task with this id.
            id: Option<u64>,
        }
        let asked: Asked = parsed(body, "it is {\"for\":\"20m\"}")?;
        let span = duration("for", &asked.span)?;
        if span > TASK_MAX {
            return Err((StatusCode::BAD_REQUEST, "for: at most 1h; renew it before it ends".into()));
        }
        // Small enough for every JSON parser to keep.
        let id = asked.id.unwrap_or_else(|| u64::from(rand::random::<u32>()));
        match self.admin.owner()?.task(self.name, id, span).await {
            Ok(until) => Ok(json!({ "id": id, "seconds": until.saturating_duration_since(Instant::now()).as_secs() })),
            Err(error @ TaskError::NoSuchSprite) => Err((StatusCode::NOT_FOUND, error.to_string())),
            Err(error) => Err((StatusCode::CONFLICT, error.to_string())),
        }
    }

    async fn end_task(&self, id: &str) -> Result<Value, Problem> {
        let known: u64 = id.parse().map_err(|_| (StatusCode::BAD_REQUEST, format!("{id:?} is no task")))?;
        match self.admin.owner()?.task_done(self.name, known).await {
            true => Ok(json!({ "done": known })),
            false => Err((StatusCode::NOT_FOUND, format!("there is no task {known}"))),
        }
    }

    fn timers(&self) -> Result<Value, Problem> {
        let spec = sprites::stored(&self.admin.stores.local).map_err(failed)?;
        let own = spec.into_iter().find(|spec| spec.name == *self.name).map(|spec| spec.wake_at).unwrap_or_default();
        Ok(json!({ "wake_at_unix_ms": own }))
    }

    async fn set_timer(&self, body: &[u8]) -> Result<Value, Problem> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Asked {
            /// RFC 3339.
            at: Option<String>,
            /// From now.
            #[serde(rename = "in")]
            after: Option<String>,
        }
        let asked: Asked = parsed(body, "it is {\"in\":\"2h\"} or {\"at\":\"2030-01-01T00:00:00Z\"}")?;
        let now = SystemTime::now();
        let at = match (asked.at, asked.after) {
            (Some(at), None) => {
                humantime::parse_rfc3339(&at).map_err(|error| (StatusCode::BAD_REQUEST, format!("at: {error}")))?
            }
            (None, Some(after)) => now + duration("in", &after)?,
            _ => return Err((StatusCode::BAD_REQUEST, "either \"at\" or \"in\"".into())),
        };
        if at > now + TIMER_MAX {
            return Err((StatusCode::BAD_REQUEST, "at most a year from now".into()));
        }
        let at = u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        self.change_timers(|timers| {
            if timers.len() >= TIMERS_MAX {
                return Err((StatusCode::CONFLICT, format!("it has {TIMERS_MAX} timers already")));
            }
            timers.push(at);
            timers.sort_unstable();
            timers.dedup();
            Ok(())
        })
        .await
    }

    async fn drop_timer(&self, at: &str) -> Result<Value, Problem> {
        let dropped: u64 = at.parse().map_err(|_| (StatusCode::BAD_REQUEST, format!("{at:?} is no timer")))?;
        self.change_timers(|timers| {
            timers.retain(|at| *at != dropped);
            Ok(())
        })
        .await
    }

    async fn change_timers(&self, change: impl FnOnce(&mut Vec<u64>) -> Result<(), Problem>) -> Result<Value, Problem> {
        let changed = sprites::change(&self.admin.stores.local, self.name, |spec| change(&mut spec.wake_at));
        let spec = changed.map_err(failed)??;
        self.admin.owner()?.upsert(spec).await;
        self.timers()
    }

    /// Answers before it sleeps: the guest would not live to read it.
    fn sleep(&self, body: &[u8]) -> Result<Value, Problem> {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        struct Asked {
            depth: Option<wakeup::spec::Depth>,
        }
        let asked: Asked = optional(body, "depth is \"warm\" or \"cold\"")?;
        let depth = asked.depth.unwrap_or(wakeup::spec::Depth::Warm);
        let (owner, name) = (self.admin.owner()?.clone(), self.name.clone());
        tokio::spawn(async move {
            // So that this answer leaves first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            if let Err(error) = owner.sleep(&name, depth).await {
                tracing::debug!(sprite = %name, %error, "it wanted to sleep and does not");
            }
        });
        Ok(json!({ "sleeps": depth }))
    }
}

fn parsed<T: for<'de> Deserialize<'de>>(body: &[u8], right: &str) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| (StatusCode::BAD_REQUEST, format!("{right}: {error}")))
}

fn duration(field: &str, text: &str) -> Result<Duration, Problem> {
    humantime::parse_duration(text).map_err(|error| (StatusCode::BAD_REQUEST, format!("{field}: {error}")))
}
