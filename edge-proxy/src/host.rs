//! The worker host of this machine, on a thread of its own: the owner of its sprites and,
//! over the tunnel, the server of its sessions.

use crate::door::SpriteDoors;
use anyhow::{Context, anyhow};
use backhaul::keys::PrivateKey;
use backhaul::session::{EdgeOptions, EdgePeer, HostServer, HostServerOptions, Identity, Limits};
use backhaul::{Backhaul, QuicEdge};
use config::{Config, Link};
use router::hosts::HostTable;
use router::route::{HostId, HostRow};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;
use wakeup::drivers::{DoorKeeper, Doors};
use wakeup::ledger::LedgerSettings;
use wakeup::owner::{HostSettings, OwnerHandle, Rang};

/// How long the sessions may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(200);

/// The worker host while it runs.
pub struct Host {
    /// The owner of its sprites.
    pub owner: OwnerHandle,
    /// The edge's way to it.
    pub backhaul: Backhaul,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Host {
    /// Starts the owner and the link the config names. The edge's end runs on the current
    /// runtime.
    ///
    /// # Errors
    /// A key, a socket or a thread that cannot be had, and which.
    pub async fn start(config: &Config, number: HostId, doors: &Arc<SpriteDoors>) -> anyhow::Result<Self> {
        let tunnel = match config.backhaul.link {
            Link::DirectInsecure => None,
            Link::Userspace => Some(Tunnel::load(config)?),
        };
        let (server, edge) = tunnel.map(Tunnel::split).unzip();
        let ledger = LedgerSettings {
            directory: config.data_dir.join("ledger"),
            segment_bytes: config.ledger.segment_bytes,
            keep_bytes: config.ledger.keep_bytes,
        };
        let settings = HostSettings {
            directory: config.data_dir.join("sprites"),
            host: config.host.clone(),
            drivers: config.drivers.clone(),
            ledger,
            doors: DoorKeeper::new(Arc::clone(doors) as Arc<dyn Doors>),
            rang: Rang::new({
                let doors = Arc::clone(doors);
                move |name, at| doors.rang(name, at)
            }),
        };
        let (told, hears) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let thread =
            std::thread::Builder::new().name("host".into()).spawn(move || serve(settings, server, told, stopped))?;
        let (owner, endpoint) = hears.await.map_err(|_| anyhow!("the host's thread ended at its start"))??;
        let backhaul = match (edge, endpoint) {
            (Some(edge), Some(endpoint)) => Backhaul::quic(edge.connect(config, number, endpoint)?),
            _ => Backhaul::direct(Arc::new(owner.clone())),
        };
        Ok(Self { owner, backhaul, stop, thread })
    }

    /// Ends every guest and every session.
    pub async fn stop(self) {
        self.owner.shutdown().await;
        // The thread may have ended by itself; then there is nothing to tell.
        let _ = self.stop.send(());
        drop(self.thread.join());
    }
}

type Told = oneshot::Sender<anyhow::Result<(OwnerHandle, Option<SocketAddr>)>>;

/// The host's thread.
fn serve(settings: HostSettings, server: Option<ServerEnd>, told: Told, stopped: oneshot::Receiver<()>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(told.send(Err(error.into()))),
    };
    runtime.block_on(async {
        let owner = match OwnerHandle::start(settings).await {
            Ok(owner) => owner,
            Err(error) => return drop(told.send(Err(error.into()))),
        };
        let server = match server.map(|server| server.start(&owner)).transpose() {
            Ok(server) => server,
            Err(error) => return drop(told.send(Err(error))),
        };
        let endpoint = server.as_ref().map(HostServer::local_addr);
        if told.send(Ok((owner, endpoint))).is_ok() {
            let _ = stopped.await;
        }
        if let Some(server) = server {
            // An edge that is gone does not answer.
            let _ = tokio::time::timeout(GOODBYE, server.shutdown()).await;
        }
    });
}

/// Keys and certificates of both ends, from `DATA_DIR/keys`.
struct Tunnel {
    host: End,
    edge: End,
    listen: SocketAddr,
    inner_mtu: u16,
}

struct End {
    key: PrivateKey,
    identity: Identity,
}

impl End {
    fn load(config: &Config, name: &str) -> anyhow::Result<Self> {
        let directory = config.data_dir.join("keys");
        std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        let key = PrivateKey::load_or_generate(&directory.join(format!("{name}.key")))?;
        let identity = Identity::load_or_generate(&directory.join(format!("{name}.identity")))?;
        Ok(Self { key, identity })
    }
}

/// What the host's end is made of.
struct ServerEnd {
    own: End,
    edge: EdgePeer,
    listen: SocketAddr,
    inner_mtu: u16,
}

/// What the edge's end is made of.
struct EdgeEnd {
    own: End,
    host: HostRow,
}

impl Tunnel {
    fn load(config: &Config) -> anyhow::Result<Self> {
        Ok(Self {
            host: End::load(config, "host")?,
            edge: End::load(config, "edge")?,
            listen: config.backhaul.listen,
            inner_mtu: config.backhaul.inner_mtu,
        })
    }

    /// Each end knows the other's public half only.
    fn split(self) -> (ServerEnd, EdgeEnd) {
        let edge_key = self.edge.key.public();
        let edge = EdgePeer {
            key: edge_key,
            address: edge_key.derived_address(),
            pins: vec![self.edge.identity.pin().into()],
        };
        let host_key = self.host.key.public();
        let host = HostRow {
            name: "local".into(),
            number: HostId(0),
            wireguard_key: host_key.to_string(),
            endpoint: self.listen,
            address: host_key.derived_address(),
            spki_pins: vec![self.host.identity.pin().into()],
        };
        let server = ServerEnd { own: self.host, edge, listen: self.listen, inner_mtu: self.inner_mtu };
        (server, EdgeEnd { own: self.edge, host })
    }
}

impl ServerEnd {
    fn start(self, owner: &OwnerHandle) -> anyhow::Result<HostServer> {
        let address = self.own.key.public().derived_address();
        let options = HostServerOptions {
            listen: self.listen,
            key: self.own.key,
            identity: self.own.identity,
            address,
            inner_mtu: self.inner_mtu,
            edges: vec![self.edge],
            owner: Arc::new(owner.clone()),
            limits: Limits::default(),
        };
        HostServer::start(options).with_context(|| format!("backhaul.listen {}", self.listen))
    }
}

impl EdgeEnd {
    /// The edge's sessions; `endpoint` is where the host really listens.
    fn connect(self, config: &Config, number: HostId, endpoint: SocketAddr) -> anyhow::Result<QuicEdge> {
        let hosts = Arc::new(HostTable::new());
        hosts.apply_put(HostRow { number, endpoint, ..self.host });
        let address = self.own.key.public().derived_address();
        let edge = QuicEdge::new(EdgeOptions {
            listen: SocketAddr::new(config.backhaul.listen.ip(), 0),
            key: self.own.key,
            identity: self.own.identity,
            address,
            inner_mtu: config.backhaul.inner_mtu,
            hosts: Arc::new(move |host| hosts.lookup(host).map(|row| (*row).clone())),
        });
        let edge = edge.context("the edge's WireGuard socket")?;
        edge.prewarm(number);
        Ok(edge)
    }
}
