//! Driver `http`: machines of some orchestrator, woken and put to sleep by signed requests.
//!
//! `POST URL/wake` is answered with where the machine will answer, `POST URL/sleep` when it
//! sleeps; `docs/drivers.md` has the contract. A request that got no answer, or 500 and up,
//! is sent again with the same id until its time is up, so both must be idempotent. The
//! owner watches the machine's port; nobody tells us when the machine ends.

use super::DriverError;
use super::http_client::{Answer, Call, HttpClient, HttpError};
use super::remote::{Orchestrator, Remote, Woken};
use crate::signature::{Secret, event_id};
use crate::spec::{Depth, DriverSpec, HttpSpec, SpriteSpec};
use bytes::Bytes;
use config::HttpDriver as Settings;
use http::{Method, StatusCode, Uri};
use router::trust::trusting;
use serde_json::json;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

/// First pause before another try; doubled up to [`PAUSE_MAX`] (both chosen: an
/// orchestrator that restarts needs a second, somebody waits for its answer).
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The driver.
pub type HttpDriver = Remote<HttpOrchestrator>;

/// Whoever answers at the URLs of a host's sprites.
pub struct HttpOrchestrator {
    settings: Settings,
    /// Made for the first machine behind `https:`: it reads the system's certificates.
    tls: OnceCell<TlsConnector>,
}

#[derive(Clone, Copy)]
enum Action {
    Wake { resume: bool },
    Sleep(Depth),
}

impl HttpDriver {
    /// With section `[drivers.http]`.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self::of(HttpOrchestrator { settings, tls: OnceCell::new() })
    }
}

impl Action {
    const fn name(self) -> &'static str {
        match self {
            Self::Wake { .. } => "wake",
            Self::Sleep(_) => "sleep",
        }
    }

    fn body(self, spec: &SpriteSpec) -> Bytes {
        let mut body = json!({ "action": self.name(), "sprite": spec.name.as_str(), "generation": spec.generation });
        match self {
            Self::Wake { resume } => body["resume"] = resume.into(),
            Self::Sleep(Depth::Warm) => body["depth"] = "warm".into(),
            Self::Sleep(Depth::Cold) => body["depth"] = "cold".into(),
        }
        body.to_string().into()
    }

    fn failed(self, reason: impl ToString) -> DriverError {
        DriverError::Refused { who: "its orchestrator", what: self.name(), reason: reason.to_string() }
    }
}

impl Orchestrator for HttpOrchestrator {
    async fn wake(&self, spec: &SpriteSpec, resume: bool) -> Result<SocketAddr, DriverError> {
        let action = Action::Wake { resume };
        let answer = self.ask(spec, action, self.settings.wake_timeout).await?;
        let said = serde_json::from_slice::<Woken>(&answer.body);
        said.map(|woken| woken.address)
            .map_err(|error| action.failed(format!("it answered no {{\"address\":\"IP:PORT\"}}: {error}")))
    }

    async fn sleep(&self, spec: &SpriteSpec, depth: Depth) -> Result<(), DriverError> {
        self.ask(spec, Action::Sleep(depth), self.settings.sleep_timeout).await.map(drop)
    }
}

impl HttpOrchestrator {
    /// Asks until there is an answer that another try would not change, or the time is up.
    async fn ask(&self, spec: &SpriteSpec, action: Action, within: Duration) -> Result<Answer, DriverError> {
        let DriverSpec::Http(to) = &spec.driver else { return Err(DriverError::NoGuest) };
        let end = Instant::now() + within;
        let client = self.client(to).await.map_err(|reason| action.failed(reason))?;
        let secret = self.secret().map_err(|reason| action.failed(reason))?;
        let (id, body, path) = (event_id(), action.body(spec), format!("/{}", action.name()));
        let (mut pause, mut reason) = (PAUSE, None);
        loop {
            let headers = secret.sign(&id, &body).headers();
            let left = end.saturating_duration_since(Instant::now());
            let call =
                Call { method: Method::POST, path: &path, headers: &headers, body: Some(body.clone()), within: left };
            match client.call(call).await {
                Ok(answer) if answer.status.is_success() => return Ok(answer),
                Ok(answer) if !may_change(answer.status) => return Err(action.failed(said(&answer))),
                Ok(answer) => reason = Some(said(&answer)),
                // That the rest of the time was too short says less than what came before.
                Err(HttpError::Timeout(_)) if reason.is_some() => {}
                Err(error) => reason = Some(error.to_string()),
            }
            if end.saturating_duration_since(Instant::now()) <= pause {
                return Err(action.failed(reason.unwrap_or_default()));
            }
            tracing::debug!(sprite = %spec.name, reason, "its orchestrator is asked again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn client(&self, to: &HttpSpec) -> Result<HttpClient, String> {
        let uri: Uri = to.url.parse().map_err(|error| format!("{}: {error}", to.url))?;
        let tls = match uri.scheme_str() {
            Some("https") => Some(self.tls().await?),
            _ => None,
        };
        HttpClient::url(&uri, tls).ok_or_else(|| format!("{}: no http or https URL", to.url))
    }

    async fn tls(&self) -> Result<&TlsConnector, String> {
        let made = self.tls.get_or_try_init(async || {
            let ca_file = self.settings.ca_file.clone();
            // Hundreds of small files.
            let made = tokio::task::spawn_blocking(move || trusting(&ca_file));
            made.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
        });
        made.await
    }

    /// Read for each request: a new secret counts at once, and none is kept.
    fn secret(&self) -> Result<Secret, String> {
        let path = &self.settings.secret_file;
        if path.as_os_str().is_empty() {
            return Err("requests cannot be signed: drivers.http.secret_file is not set".into());
        }
        Secret::load(path).map_err(|error| format!("drivers.http.{error}"))
    }
}

/// Whether another try of the same request may be answered otherwise.
fn may_change(status: StatusCode) -> bool {
    status.is_server_error()
}

fn said(answer: &Answer) -> String {
    format!("it answered {}", answer.told(&["detail", "error", "message"]))
}

#[cfg(test)]
mod tests;
