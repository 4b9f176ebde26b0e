//! One sprite over the admin API: made, shown, who may ask for it, ordered about.

use super::api::{Admin, Problem, failed, optional};
use super::sprites::{self, NewSprite, SpriteError};
use super::{access, limits};
use crate::fleet;
use http::StatusCode;
use router::access::Access;
use router::client_certificate::ClientCertificate;
use router::cors::CorsPolicy;
use router::names::SpriteName;
use router::route::Route;
use router::table::Lookup;
use router::wake::{WakePolicy, WakeRules};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use wakeup::owner::SleepError;
use wakeup::owner::core::HOLD_MAX;
use wakeup::spec::{Depth, DriverSpec, SpriteStatus, StateName};

/// How long `wake` waits (`wake.md` §6: the cap of every hold).
const WAKE_PATIENCE: Duration = Duration::from_secs(60);
/// Life of a share link when none is asked for (chosen: a working day and the next morning).
const LINK_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How long `stop` waits for the end of a guest: a start of 20 s, a port wait of 10 s, the
/// grace of what is open.
const STOP_PATIENCE: Duration = Duration::from_secs(40);

/// Body of `POST /v1/sprites`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateRequest {
    /// Name.
    name: String,
    /// Driver `process`: for `sh -c`, with `$PORT`.
    #[serde(default)]
    command: Option<String>,
    /// Driver `process`: the most memory it may have, MiB.
    #[serde(default)]
    memory_mib: Option<u32>,
    /// Driver `command`: wakes it.
    #[serde(default)]
    wake_command: Option<String>,
    /// Driver `command`: puts it to sleep.
    #[serde(default)]
    sleep_command: Option<String>,
    /// Any driver, as `docs/drivers.md` describes it.
    #[serde(default)]
    driver: Option<DriverSpec>,
    /// Declared ports.
    #[serde(default)]
    ports: Vec<u16>,
    /// "30s".
    #[serde(default)]
    idle_timeout: Option<String>,
    /// "private" (the default) or "public".
    #[serde(default)]
    access: Option<String>,
    /// Which requests may wake it: "any" (the default), "people", "authenticated", "paths", "never".
    #[serde(default)]
    wake: Option<String>,
    /// Beginnings of paths that may wake it under "people" and "paths".
    #[serde(default)]
    wake_paths: Vec<String>,
}

impl Admin {
    pub(super) async fn list(&self) -> Result<Value, Problem> {
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
            if let Some(rules) = route.client_certificate.as_deref() {
                value["client_certificate"] = serde_json::to_value(rules.mode).unwrap_or_default();
            }
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

    pub(super) async fn create(&self, body: &[u8]) -> Result<Value, Problem> {
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
        let known = self.visible(&name).await;
        let mut value = known.told(self.show(name.as_str()).await?);
        if let Some(token) = token {
            value["token"] = token.into();
        }
        Ok(value)
    }

    pub(super) async fn set_access(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
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
        let known = self.visible(&name).await;
        let mut value = known.told(self.show(name.as_str()).await?);
        if let Some(token) = token {
            value["token"] = token.into();
        }
        Ok(value)
    }

    pub(super) async fn set_wake_rules(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
        let rules: WakeRules = serde_json::from_slice(body)
            .map_err(|error| (StatusCode::BAD_REQUEST, format!("these are no wake rules: {error}")))?;
        let (name, _) = self.known(name).await?;
        access::set_wake_rules(&self.stores, &name, rules).await.map_err(failed)?;
        let known = self.visible(&name).await;
        Ok(known.told(self.show(name.as_str()).await?))
    }

    pub(super) async fn set_cors(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
        let policy: Option<CorsPolicy> = serde_json::from_slice(body)
            .map_err(|error| (StatusCode::BAD_REQUEST, format!("this is neither a CORS policy nor null: {error}")))?;
        let (name, _) = self.known(name).await?;
        access::set_cors(&self.stores, &name, policy).await.map_err(failed)?;
        let known = self.visible(&name).await;
        Ok(known.told(self.show(name.as_str()).await?))
    }

    pub(super) async fn set_client_certificate(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
        let rules: Option<ClientCertificate> = serde_json::from_slice(body)
            .map_err(|error| (StatusCode::BAD_REQUEST, format!("neither mode and ca_pem nor null: {error}")))?;
        let (name, _) = self.known(name).await?;
        access::set_client_certificate(&self.stores, &name, rules).await.map_err(failed)?;
        let known = self.visible(&name).await;
        Ok(known.told(self.show(name.as_str()).await?))
    }

    pub(super) async fn new_token(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        if self.route(&name).is_some_and(|route| route.access == Access::Public) {
            return Err(failed(SpriteError::Public));
        }
        let token = access::make_private(&self.stores, &name).await.map_err(failed)?;
        let known = self.visible(&name).await;
        Ok(known.told(json!({ "token": token })))
    }

    pub(super) async fn revoke_tokens(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        let revoked = access::revoke_tokens(&self.stores, &name).await.map_err(failed)?;
        let known = self.visible(&name).await;
        Ok(known.told(json!({ "revoked": revoked })))
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

    pub(super) async fn revoke_links(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        access::revoke_links(&self.stores, &name).await.map_err(failed)?;
        let known = self.visible(&name).await;
        Ok(known.told(json!({ "revoked": "every link made so far" })))
    }

    pub(crate) fn route(&self, name: &SpriteName) -> Option<Route> {
        match self.table.own().lookup(name) {
            Lookup::Found(route) if !route.deleted => Some(route),
            _ => None,
        }
    }

    pub(super) async fn give(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
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

    pub(super) async fn delete(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        sprites::delete(&self.stores, self.owner()?, &name).await.map_err(failed)?;
        let known = self.visible(&name).await;
        Ok(known.told(json!({ "deleted": name })))
    }

    pub(super) async fn wake(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        match self.owner()?.wake(&name, WAKE_PATIENCE).await {
            Ok(_) => self.show(name.as_str()).await,
            Err(reply) => Err((StatusCode::CONFLICT, format!("{name} was not woken: {}", said(&reply)))),
        }
    }

    pub(super) async fn sleep(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
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

    pub(super) async fn stop(&self, name: &str) -> Result<Value, Problem> {
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

    pub(super) async fn start(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        sprites::set_stopped(&self.stores.local, &name, false).map_err(failed)?;
        self.owner()?.start_again(&name).await;
        self.show(name.as_str()).await
    }

    pub(super) async fn hold(&self, name: &str, body: &[u8]) -> Result<Value, Problem> {
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

    pub(super) async fn release(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        self.owner()?.release(&name).await;
        self.show(name.as_str()).await
    }

    pub(super) async fn why(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        Ok(serde_json::to_value(self.owner()?.why(&name).await).unwrap_or(Value::Null))
    }

    pub(super) async fn receipts(&self, name: &str) -> Result<Value, Problem> {
        let (name, _) = self.known(name).await?;
        Ok(serde_json::to_value(self.owner()?.receipts(&name)).unwrap_or(Value::Null))
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

fn said(reply: &backhaul::wire::Reply) -> String {
    use backhaul::wire::Reply;
    match reply {
        Reply::Refused(refused) if refused.detail.is_empty() => format!("{:?}", refused.cause()),
        Reply::Refused(refused) => format!("{:?}: {}", refused.cause(), refused.detail),
        other => format!("{other:?}"),
    }
}
