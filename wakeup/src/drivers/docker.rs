//! Driver `docker`: a sprite is a container of an engine on this machine, Docker or
//! whatever answers as Docker does.
//!
//! Warm sleep pauses the container, cold sleep stops it; its disk is the engine's and stays.
//! A container of ours is made of an image when it is first woken and removed with the
//! sprite; one that somebody made is never removed. Containers outlive the owner, which
//! finds them again by name. No image is pulled and no network is made here.

mod engine;

use self::engine::{Engine, Found, Listed};
use super::probe::stays_open;
use super::{Adopted, DriverError, Started, WakeDriver, probe};
use crate::spec::{Depth, DockerSpec, DriverSpec, SpriteSpec};
use backhaul::owner::BoxFuture;
use config::DockerDriver as Settings;
use router::names::SpriteName;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Between two looks at a container whose end could not be waited for (chosen).
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Labels of a container of ours.
const SPRITE: &str = "edge-proxy.sprite";
const GENERATION: &str = "edge-proxy.generation";
/// Where its owner keeps its sprites: another owner's container of the same name is not ours.
const OWNER: &str = "edge-proxy.owner";

/// The driver.
#[derive(Clone)]
pub struct DockerDriver(Arc<Inner>);

struct Inner {
    engine: Engine,
    /// Tells owners apart.
    owner: String,
    machines: Mutex<HashMap<SpriteName, Machine>>,
}

struct Machine {
    container: String,
    /// Made by us.
    ours: bool,
    /// None before its first start.
    place: Option<Place>,
    /// Waits for its end.
    watch: Option<Watch>,
}

/// Where it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    address: SocketAddr,
    /// By a port of this host, where a proxy may accept before the container does.
    published: bool,
}

/// A task that ends with its machine.
struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl DockerDriver {
    /// With section `[drivers.docker]`, for the sprites whose directories are in `directory`.
    #[must_use]
    pub fn new(settings: Settings, directory: &Path) -> Self {
        let absolute = std::path::absolute(directory).unwrap_or_else(|_| PathBuf::from(directory));
        let owner = absolute.to_string_lossy().into_owned();
        Self(Arc::new(Inner { engine: Engine::new(settings), owner, machines: Mutex::default() }))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<SpriteName, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, name: &SpriteName) -> Result<String, DriverError> {
        self.lock().get(name).map(|machine| machine.container.clone()).ok_or(DriverError::NoGuest)
    }

    async fn start(self: Arc<Self>, spec: SpriteSpec) -> Result<Started, DriverError> {
        let DriverSpec::Docker(docker) = &spec.driver else { return Err(DriverError::NoGuest) };
        let container = container_of(&spec.name, docker);
        let found = self.found_or_made(&spec, docker, &container).await?;
        self.lock().insert(spec.name.clone(), Machine::new(&container, docker));
        let at = Instant::now();
        match found {
            Found { paused: true, .. } => self.engine.unpause(&container).await?,
            Found { running: true, .. } => {}
            _ => self.engine.start(&container).await?,
        }
        let failed = |reason| DriverError::Refused { who: "the container engine", what: "start it", reason };
        // Anew: an engine gives out addresses and ports when it starts a container.
        let found = self.engine.inspect(&container).await?.ok_or(DriverError::NoGuest)?;
        if !found.running {
            return Err(failed(format!("it ended at once: exit status {}", found.exit_code)));
        }
        let place = place_of(&found, docker).ok_or_else(|| failed(nowhere(docker)))?;
        let exited = self.watch(&spec.name, &container, place);
        Ok(Started { address: place.address, at, exited })
    }

    /// The container, made if it has to be.
    async fn found_or_made(
        &self,
        spec: &SpriteSpec,
        docker: &DockerSpec,
        container: &str,
    ) -> Result<Found, DriverError> {
        let failed = |what, reason| DriverError::Refused { who: "the container engine", what, reason };
        let found = self.engine.inspect(container).await?;
        let Some(image) = &docker.image else {
            return found.ok_or_else(|| failed("start it", format!("there is no container {container}")));
        };
        match found {
            Some(found) if self.is_ours(&found, spec) => return Ok(found),
            Some(found) if self.is_of_an_earlier_one(&found, spec) => {
                tracing::info!(sprite = %spec.name, container, "removing the container of a sprite that is no more");
                self.engine.remove(container).await?;
            }
            Some(_) => {
                let reason = format!("there is a container {container} that this owner did not make");
                return Err(failed("make it", reason));
            }
            None => {}
        }
        self.engine.create(container, &self.definition(spec, docker, image)).await?;
        self.engine.inspect(container).await?.ok_or(DriverError::NoGuest)
    }

    /// Body of `POST /containers/create`.
    fn definition(&self, spec: &SpriteSpec, docker: &DockerSpec, image: &str) -> Value {
        let port = format!("{}/tcp", docker.port);
        let mut environment: Vec<_> =
            docker.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        environment.push(format!("PORT={}", docker.port));
        environment.push(format!("SPRITE_NAME={}", spec.name));
        let mut definition = json!({
            "Image": image,
            "Env": environment,
            "Labels": { SPRITE: spec.name.as_str(), GENERATION: spec.generation.to_string(), OWNER: &self.owner },
            "ExposedPorts": { &port: {} },
            // Who starts it is the owner, and nobody else.
            "HostConfig": { "RestartPolicy": { "Name": "no" } },
        });
        if !docker.command.is_empty() {
            definition["Cmd"] = json!(docker.command);
        }
        let host = &mut definition["HostConfig"];
        if docker.publish {
            // An empty port lets the engine choose; this host alone may use it.
            host["PortBindings"] = json!({ port: [{ "HostIp": "127.0.0.1", "HostPort": "" }] });
        }
        if !docker.volumes.is_empty() {
            host["Binds"] = json!(docker.volumes);
        }
        if let Some(network) = &docker.network {
            host["NetworkMode"] = json!(network);
        }
        if let Some(memory) = docker.memory_mib {
            host["Memory"] = json!(u64::from(memory) << 20);
        }
        if let Some(millis) = docker.cpu_millis {
            host["NanoCpus"] = json!(u64::from(millis) * 1_000_000);
        }
        definition
    }

    fn is_ours(&self, found: &Found, spec: &SpriteSpec) -> bool {
        self.is_named(found, spec) && found.label(GENERATION) == spec.generation.to_string()
    }

    fn is_of_an_earlier_one(&self, found: &Found, spec: &SpriteSpec) -> bool {
        self.is_named(found, spec) && found.label(GENERATION).parse().is_ok_and(|made: u64| made < spec.generation)
    }

    fn is_named(&self, found: &Found, spec: &SpriteSpec) -> bool {
        found.label(OWNER) == self.owner && found.label(SPRITE) == spec.name.as_str()
    }

    /// Waits for the end of a container that runs, and knows where it answers.
    fn watch(&self, name: &SpriteName, container: &str, place: Place) -> oneshot::Receiver<String> {
        let (sender, exited) = oneshot::channel();
        let task = tokio::spawn(tell_when_it_ends(self.engine.clone(), container.to_owned(), sender));
        if let Some(machine) = self.lock().get_mut(name) {
            machine.place = Some(place);
            machine.watch = Some(Watch(task));
        }
        exited
    }

    async fn resume(self: Arc<Self>, name: SpriteName) -> Result<Instant, DriverError> {
        let container = self.container(&name)?;
        let at = Instant::now();
        self.engine.unpause(&container).await?;
        Ok(at)
    }

    async fn freeze(self: Arc<Self>, name: SpriteName) -> Result<(), DriverError> {
        let container = self.container(&name)?;
        self.engine.pause(&container).await
    }

    /// Stops it: with its own time to end when it is to sleep, at once otherwise.
    async fn stop(self: Arc<Self>, name: SpriteName, gently: bool) {
        let Ok(container) = self.container(&name) else { return };
        if let Err(error) = self.engine.stop(&container, gently).await {
            tracing::warn!(sprite = %name, container, %error, "a container may still run");
        }
        if let Some(machine) = self.lock().get_mut(&name) {
            machine.watch = None;
        }
    }

    async fn destroy(self: Arc<Self>, name: SpriteName) {
        let Some(Machine { container, ours, .. }) = self.lock().remove(&name) else { return };
        let ended = match ours {
            true => self.engine.remove(&container).await,
            false => self.engine.stop(&container, true).await,
        };
        if let Err(error) = ended {
            tracing::warn!(sprite = %name, container, %error, "a container is left");
        }
    }

    async fn adopt(self: Arc<Self>, spec: SpriteSpec) -> Option<Adopted> {
        let DriverSpec::Docker(docker) = &spec.driver else { return None };
        let container = container_of(&spec.name, docker);
        let found = match self.engine.inspect(&container).await {
            Ok(found) => found?,
            Err(error) => {
                tracing::warn!(sprite = %spec.name, container, %error, "a container that runs would not be found");
                return None;
            }
        };
        if docker.image.is_some() && !self.is_ours(&found, &spec) {
            return None;
        }
        // Known even when it is stopped: it is removed with its sprite.
        self.lock().insert(spec.name.clone(), Machine::new(&container, docker));
        let place = place_of(&found, docker).filter(|_| found.running)?;
        let exited = self.watch(&spec.name, &container, place);
        let guest = Some(Started { address: place.address, at: Instant::now(), exited });
        Some(Adopted { depth: found.paused.then_some(Depth::Warm), guest })
    }

    /// Stops them, and no more: an engine's disk of a sprite may be worth something, and a sprite
    /// that is made again by this name removes it.
    async fn end_unowned(self: Arc<Self>, own: BTreeSet<SpriteName>) -> Vec<SpriteName> {
        let listed = match self.engine.running(OWNER).await {
            Ok(listed) => listed,
            // A host without an engine is none of our business.
            Err(error) if own.is_empty() => {
                tracing::debug!(%error, "no container of a sprite that is no more was looked for");
                return Vec::new();
            }
            Err(error) => {
                tracing::warn!(%error, "containers of sprites that are no more would not be found");
                return Vec::new();
            }
        };
        let mut ended = Vec::new();
        for Listed { id, labels } in listed {
            let label = |name| labels.get(name).map_or("", String::as_str);
            let Ok(name) = SpriteName::parse(label(SPRITE)) else { continue };
            // One that was begun meanwhile is its sprite's.
            if label(OWNER) != self.owner || own.contains(&name) || self.lock().contains_key(&name) {
                continue;
            }
            tracing::warn!(sprite = %name, container = id, "stopping a container that belongs to no sprite");
            match self.engine.stop(&id, true).await {
                Ok(()) => ended.push(name),
                Err(error) => tracing::error!(sprite = %name, %error, "a container of no sprite may run"),
            }
        }
        ended
    }

    fn place(&self, name: &SpriteName) -> Option<Place> {
        self.lock().get(name)?.place
    }

    async fn ready(self: Arc<Self>, name: SpriteName, address: SocketAddr, fresh: bool) -> SocketAddr {
        let published = self.place(&name).is_some_and(|place| place.published);
        loop {
            let open = probe(address).await;
            if !fresh || !published || stays_open(open).await {
                return open;
            }
        }
    }
}

impl Machine {
    fn new(container: &str, docker: &DockerSpec) -> Self {
        Self { container: container.into(), ours: docker.image.is_some(), place: None, watch: None }
    }
}

fn container_of(name: &SpriteName, docker: &DockerSpec) -> String {
    docker.container.clone().unwrap_or_else(|| format!("sprite-{name}"))
}

/// Its published port if that is asked for; else its own address; else what there is.
fn place_of(found: &Found, docker: &DockerSpec) -> Option<Place> {
    let published = found.published(docker.port).map(|address| Place { address: reachable(address), published: true });
    let own = found.address.map(|ip| Place { address: SocketAddr::new(ip, docker.port), published: false });
    let of_this_host = found.shares_our_network.then(|| {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, docker.port));
        Place { address, published: false }
    });
    if docker.publish { published.or(of_this_host) } else { own.or(published).or(of_this_host) }
}

/// A port published on every address is reached over loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn nowhere(docker: &DockerSpec) -> String {
    let port = docker.port;
    match docker.publish {
        true => format!("its port {port} is not published on this host"),
        false => format!("it has no address, and its port {port} is not published on this host"),
    }
}

/// Waits at the engine; when the engine goes away, asks until it is back.
async fn tell_when_it_ends(engine: Engine, container: String, exited: oneshot::Sender<String>) {
    let detail = loop {
        if let Ok(status) = engine.wait(&container).await {
            break format!("exit status {status}");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        match engine.inspect(&container).await {
            Ok(None) => break "it was removed".into(),
            Ok(Some(found)) if !found.running => break format!("exit status {}", found.exit_code),
            // It runs, or nobody can say: ended with its machine.
            Ok(Some(_)) | Err(_) => {}
        }
    };
    // Nobody listens any more when the owner has gone.
    let _ = exited.send(detail);
}

impl WakeDriver for DockerDriver {
    fn start(&self, spec: &SpriteSpec) -> BoxFuture<Result<Started, DriverError>> {
        Box::pin(Arc::clone(&self.0).start(spec.clone()))
    }

    fn resume(&self, name: &SpriteName) -> BoxFuture<Result<Instant, DriverError>> {
        Box::pin(Arc::clone(&self.0).resume(name.clone()))
    }

    fn freeze(&self, name: &SpriteName) -> BoxFuture<Result<(), DriverError>> {
        Box::pin(Arc::clone(&self.0).freeze(name.clone()))
    }

    fn suspend(&self, name: &SpriteName) -> BoxFuture<()> {
        Box::pin(Arc::clone(&self.0).stop(name.clone(), true))
    }

    fn end(&self, name: &SpriteName) -> BoxFuture<()> {
        Box::pin(Arc::clone(&self.0).stop(name.clone(), false))
    }

    fn destroy(&self, name: &SpriteName) -> BoxFuture<()> {
        Box::pin(Arc::clone(&self.0).destroy(name.clone()))
    }

    fn leaves_running(&self) -> bool {
        true
    }

    fn leave(&self, name: &SpriteName) -> BoxFuture<()> {
        // It goes on; only our watch over it ends.
        self.0.lock().remove(name);
        Box::pin(async {})
    }

    fn adopt(&self, spec: &SpriteSpec) -> BoxFuture<Option<Adopted>> {
        Box::pin(Arc::clone(&self.0).adopt(spec.clone()))
    }

    fn end_unowned(&self, own: BTreeSet<SpriteName>) -> BoxFuture<Vec<SpriteName>> {
        Box::pin(Arc::clone(&self.0).end_unowned(own))
    }

    fn ready(self: Arc<Self>, name: SpriteName, address: SocketAddr, fresh: bool) -> BoxFuture<SocketAddr> {
        Box::pin(Arc::clone(&self.0).ready(name, address, fresh))
    }

    /// The engine says where it is; nobody here can know better.
    fn owns_listener(&self, _name: &SpriteName, _address: SocketAddr) -> bool {
        true
    }

    fn address(&self, name: &SpriteName) -> Option<SocketAddr> {
        self.0.place(name).map(|place| place.address)
    }
}

#[cfg(test)]
mod podman;
#[cfg(test)]
mod tests;
