//! One server of a store engine on this machine, empty, for as long as the measurement.

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use router::store::etcd::EtcdStore;
use router::store::nats::NatsStore;
use router::store::{Embedded, EmbeddedStore, Store};
use serde::Serialize;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// How long a server may take to start (chosen: it takes a second).
const START: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    Embedded,
    Nats,
    Etcd,
}

impl Engine {
    /// The store at `address`; a file for `embedded`.
    ///
    /// # Errors
    /// It cannot be opened. A server that is away is waited for later.
    pub(crate) async fn open(self, address: &str) -> anyhow::Result<Store> {
        Ok(match self {
            Self::Embedded => Arc::new(Embedded(Arc::new(EmbeddedStore::open(Path::new(address))?))),
            Self::Nats => {
                let servers = vec![address.to_owned()];
                let settings = config::NatsStore { servers, create: true, replicas: 1, ..config::NatsStore::default() };
                Arc::new(NatsStore::connect(&settings).await?)
            }
            Self::Etcd => {
                let servers = vec![address.to_owned()];
                Arc::new(EtcdStore::open(&config::EtcdStore { servers, ..config::EtcdStore::default() })?)
            }
        })
    }
}

/// When NATS has written what it acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Before it does.
    Each,
    /// Some time: for what is put there to be read.
    Later,
}

/// A server, or the folder of an embedded store. Dropping it ends and removes it.
pub(crate) struct Server {
    /// For [`Engine::open`].
    pub(crate) address: String,
    _child: Option<Child>,
    _folder: TempDir,
}

impl Server {
    /// Starts it, and waits until a store on it answers.
    ///
    /// # Errors
    /// The program is not there, or does not come up.
    pub(crate) async fn start(engine: Engine) -> anyhow::Result<(Self, Store)> {
        Self::start_with(engine, Durability::Each).await
    }

    /// The same; how often NATS waits for its disk is said.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn start_with(engine: Engine, durability: Durability) -> anyhow::Result<(Self, Store)> {
        let folder = tempfile::Builder::new().prefix("loadtest-").tempdir()?;
        let (address, child) = match engine {
            Engine::Embedded => (folder.path().join("store.redb").display().to_string(), None),
            Engine::Nats => {
                let [at] = free_addresses()?;
                let file = folder.path().join("nats.conf");
                let data = folder.path().join("data");
                let text = format!(
                    "listen: \"{at}\"\njetstream {{ store_dir: {data:?}, {} }}\n",
                    match durability {
                        Durability::Each => "sync_interval: always",
                        Durability::Later => "",
                    }
                );
                std::fs::write(&file, text)?;
                let child = spawn(&nats_server()?, &["-c".into(), file.display().to_string()])?;
                (format!("nats://{at}"), Some(child))
            }
            Engine::Etcd => {
                let [client, peer] = free_addresses::<2>()?.map(|at| format!("http://{at}"));
                let arguments = [
                    format!("--data-dir={}", folder.path().join("data").display()),
                    format!("--listen-client-urls={client}"),
                    format!("--advertise-client-urls={client}"),
                    format!("--listen-peer-urls={peer}"),
                    format!("--initial-advertise-peer-urls={peer}"),
                    format!("--initial-cluster=default={peer}"),
                ];
                let program = find("etcd").context("etcd is not on PATH (Debian: etcd-server)")?;
                (client, Some(spawn(&program, &arguments)?))
            }
        };
        let store = engine.open(&address).await?;
        let end = Instant::now() + START;
        // A bucket is made by who subscribes first.
        while let Err(error) = store.scan("sprite/").await {
            ensure!(Instant::now() < end, "the server does not come up: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok((Self { address, _child: child, _folder: folder }, store))
    }
}

fn spawn(program: &Path, arguments: &[String]) -> anyhow::Result<Child> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn().with_context(|| format!("starting {}", program.display()))
}

/// Where `tests/run` puts it, or on `PATH`.
fn nats_server() -> anyhow::Result<PathBuf> {
    let installed = std::env::var_os("HOME")
        .map(|home| PathBuf::from(home).join(".cache/edge-proxy-test-tools/venv/bin/nats-server"))
        .filter(|path| path.is_file());
    match installed.or_else(|| find("nats-server")) {
        Some(program) => Ok(program),
        None => bail!("nats-server is neither on PATH nor where tests/run installs it"),
    }
}

/// The program of that name on `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Addresses for servers that are about to start. Nobody else takes them meanwhile: they are on a loopback address
/// of their own, where no outgoing connection is given a port.
pub(crate) fn free_addresses<const COUNT: usize>() -> anyhow::Result<[SocketAddr; COUNT]> {
    static CALLS: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, 128 + CALLS.fetch_add(1, Ordering::Relaxed) % 64, high, low.clamp(1, 254));
    let mut addresses = [SocketAddr::from((own, 0)); COUNT];
    // All are held until each has another one.
    let mut held = Vec::new();
    for address in &mut addresses {
        let listener = TcpListener::bind(*address)?;
        *address = listener.local_addr()?;
        held.push(listener);
    }
    Ok(addresses)
}
