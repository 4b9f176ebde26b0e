//! The Engine API as far as we need it: what is asked, and what is read of the answers.
//!
//! Paths carry no version: each engine answers with its newest, and what is used here has
//! not changed since 1.41, while engines refuse versions that have become too old. What
//! failed because it was done already (Podman says 500 where Docker says 304 or 409) is found out by
//! looking, not by the status.

use super::super::DriverError;
use super::super::http_client::{Answer, Call, HttpClient};
use config::DockerDriver as Settings;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Longest wait for the end of a container before it is asked for again (chosen).
const WAIT: Duration = Duration::from_secs(3600);

/// The engine behind one socket.
#[derive(Clone)]
pub(super) struct Engine {
    client: HttpClient,
    timeout: Duration,
    stop_timeout: Duration,
}

/// A container as it is.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Also while it is paused.
    pub(super) running: bool,
    pub(super) paused: bool,
    /// Of its last run.
    pub(super) exit_code: i64,
    /// In the first of its networks that gave it one.
    pub(super) address: Option<IpAddr>,
    /// It has no network of its own.
    pub(super) shares_our_network: bool,
    published: HashMap<u16, SocketAddr>,
    labels: HashMap<String, String>,
}

impl Found {
    /// Where this host has published its port.
    pub(super) fn published(&self, port: u16) -> Option<SocketAddr> {
        self.published.get(&port).copied()
    }

    /// Empty when there is none.
    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

impl Engine {
    pub(super) fn new(settings: Settings) -> Self {
        let Settings { socket, timeout, stop_timeout } = settings;
        Self { client: HttpClient::unix(socket), timeout, stop_timeout }
    }

    /// The container by its name or id; none when there is none.
    pub(super) async fn inspect(&self, container: &str) -> Result<Option<Found>, DriverError> {
        let answer = self.ask("describe it", Method::GET, &format!("/containers/{container}/json"), None).await?;
        match answer.status {
            StatusCode::OK => {
                let read = serde_json::from_slice::<Inspect>(&answer.body);
                read.map(|read| Some(read.into())).map_err(|error| failed("describe it", error.to_string()))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(refused("describe it", &answer)),
        }
    }

    /// Containers with this label that run or are paused.
    pub(super) async fn running(&self, label: &str) -> Result<Vec<Listed>, DriverError> {
        // {"label":["…"],"status":["running","paused"]}
        let path = format!(
            "/containers/json?all=true&filters=%7B%22label%22%3A%5B%22{label}%22%5D%2C%22status%22%3A%5B%22running%22%2C%22paused%22%5D%7D"
        );
        let answer = self.ask("list them", Method::GET, &path, None).await?;
        if answer.status != StatusCode::OK {
            return Err(refused("list them", &answer));
        }
        serde_json::from_slice(&answer.body).map_err(|error| failed("list them", error.to_string()))
    }

    pub(super) async fn create(&self, name: &str, definition: &Value) -> Result<(), DriverError> {
        let path = format!("/containers/create?name={name}");
        let answer = self.ask("make it", Method::POST, &path, Some(definition)).await?;
        match answer.status {
            StatusCode::CREATED => Ok(()),
            StatusCode::NOT_FOUND => {
                Err(failed("make it", format!("{}; the engine must have the image", told(&answer))))
            }
            _ => Err(refused("make it", &answer)),
        }
    }

    pub(super) async fn start(&self, container: &str) -> Result<(), DriverError> {
        self.act("start it", container, "start", self.timeout, |found| found.running && !found.paused).await
    }

    pub(super) async fn pause(&self, container: &str) -> Result<(), DriverError> {
        self.act("pause it", container, "pause", self.timeout, |found| found.paused).await
    }

    pub(super) async fn unpause(&self, container: &str) -> Result<(), DriverError> {
        self.act("continue it", container, "unpause", self.timeout, |found| found.running && !found.paused).await
    }

    /// Stops it, gently with its own time to end. One that is not there is stopped.
    pub(super) async fn stop(&self, container: &str, gently: bool) -> Result<(), DriverError> {
        let Some(found) = self.inspect(container).await? else { return Ok(()) };
        if found.paused {
            // A paused one cannot act on a signal, and Podman refuses to try.
            self.unpause(container).await?;
        }
        if !found.running {
            return Ok(());
        }
        let grace = if gently { self.stop_timeout } else { Duration::ZERO };
        let action = format!("stop?t={}", grace.as_secs());
        self.act("stop it", container, &action, self.timeout + grace, |found| !found.running).await
    }

    /// Ends and removes it, with the volumes that have no name.
    pub(super) async fn remove(&self, container: &str) -> Result<(), DriverError> {
        let path = format!("/containers/{container}?force=true&v=true");
        let answer = self.ask("remove it", Method::DELETE, &path, None).await?;
        match answer.status {
            StatusCode::NO_CONTENT | StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
            _ => Err(refused("remove it", &answer)),
        }
    }

    /// Waits until it runs no more; its exit status. At most an hour: ask again then.
    pub(super) async fn wait(&self, container: &str) -> Result<i64, DriverError> {
        let path = format!("/containers/{container}/wait?condition=not-running");
        let answer = self.ask_within("wait for its end", Method::POST, &path, None, WAIT).await?;
        if answer.status != StatusCode::OK {
            return Err(refused("wait for its end", &answer));
        }
        answer.json()["StatusCode"].as_i64().ok_or_else(|| failed("wait for its end", "no StatusCode".into()))
    }

    /// Asks for a change; that it was so before is no failure.
    async fn act(
        &self,
        what: &'static str,
        container: &str,
        action: &str,
        within: Duration,
        done: impl Fn(&Found) -> bool,
    ) -> Result<(), DriverError> {
        let path = format!("/containers/{container}/{action}");
        let error = match self.ask_within(what, Method::POST, &path, None, within).await {
            Ok(answer) if matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) => return Ok(()),
            Ok(answer) => refused(what, &answer),
            Err(error) => error,
        };
        match self.inspect(container).await {
            Ok(Some(found)) if done(&found) => Ok(()),
            _ => Err(error),
        }
    }

    async fn ask(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, DriverError> {
        self.ask_within(what, method, path, body, self.timeout).await
    }

    async fn ask_within(
        &self,
        what: &'static str,
        method: Method,
        path: &str,
        body: Option<&Value>,
        within: Duration,
    ) -> Result<Answer, DriverError> {
        let body = body.map(|body| body.to_string().into());
        let call = Call { method, path, headers: &[], body, within };
        self.client.call(call).await.map_err(|error| failed(what, error.to_string()))
    }
}

fn failed(what: &'static str, reason: String) -> DriverError {
    DriverError::Refused { who: "the container engine", what, reason }
}

fn refused(what: &'static str, answer: &Answer) -> DriverError {
    failed(what, told(answer))
}

fn told(answer: &Answer) -> String {
    answer.told(&["message"])
}

/// What is read of an entry of `GET /containers/json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub(super) id: String,
    pub(super) labels: HashMap<String, String>,
}

/// What is read of `GET /containers/{id}/json`; an engine may say `null` for any list.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspect {
    state: State,
    config: Option<Labels>,
    host_config: Option<HostConfig>,
    network_settings: Option<NetworkSettings>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    running: bool,
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    exit_code: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Labels {
    labels: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    network_mode: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    ports: Option<HashMap<String, Option<Vec<Binding>>>>,
    networks: Option<BTreeMap<String, Network>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Binding {
    host_ip: Option<String>,
    host_port: String,
}

#[derive(Deserialize)]
struct Network {
    #[serde(rename = "IPAddress")]
    ipv4: Option<String>,
    #[serde(rename = "GlobalIPv6Address")]
    ipv6: Option<String>,
}

impl From<Inspect> for Found {
    fn from(read: Inspect) -> Self {
        let (ports, networks) = read.network_settings.map_or((None, None), |network| (network.ports, network.networks));
        let address = networks.into_iter().flatten().find_map(|(_, Network { ipv4, ipv6 })| {
            [ipv4, ipv6].into_iter().flatten().find_map(|address| address.parse().ok())
        });
        let published = ports.into_iter().flatten().filter_map(|(port, bindings)| {
            let port = port.strip_suffix("/tcp")?.parse().ok()?;
            bindings.into_iter().flatten().find_map(|binding| Some((port, binding.address()?)))
        });
        let network_mode = read.host_config.and_then(|host| host.network_mode);
        Self {
            running: read.state.running,
            paused: read.state.paused,
            exit_code: read.state.exit_code,
            address,
            shares_our_network: network_mode.as_deref() == Some("host"),
            published: published.collect(),
            labels: read.config.and_then(|config| config.labels).unwrap_or_default(),
        }
    }
}

impl Binding {
    /// An empty address is every address.
    fn address(&self) -> Option<SocketAddr> {
        let ip = self.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0");
        Some(SocketAddr::new(ip.parse().ok()?, self.host_port.parse().ok()?))
    }
}
