//! The worker host of this machine, on a thread of its own: the owner of its sprites and,
//! over the tunnel, the server of its sessions.

mod servers;

pub(crate) use servers::Order;

use crate::door::SpriteDoors;
use crate::fleet::Acks;
use crate::machine_keys::End;
use crate::sessions;
use anyhow::{Context, anyhow};
use backhaul::Backhaul;
use backhaul::session::{AppliedSink, EdgePeer, HostServer, HostServerOptions, Limits};
use config::{Config, Link};
use router::hosts::HostTable;
use router::pops::PopTable;
use router::route::{HostId, HostRow};
use servers::Servers;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use wakeup::drivers::{DoorKeeper, Doors};
use wakeup::ledger::LedgerSettings;
use wakeup::owner::{HostSettings, OwnerHandle, Rang};

/// How long the sessions may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(200);

/// The worker host while it runs.
pub struct Host {
    /// The owner of its sprites.
    pub owner: OwnerHandle,
    /// Changes its keys.
    pub(crate) orders: mpsc::Sender<Order>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Host {
    /// Starts the owner, the link the config names, and the edge's end of it, which runs on the
    /// current runtime: the way of an edge in the same process.
    ///
    /// # Errors
    /// A key, a socket or a thread that cannot be had, and which.
    pub async fn alone(config: &Config, number: HostId, doors: &Arc<SpriteDoors>) -> anyhow::Result<(Self, Backhaul)> {
        if config.backhaul.link == Link::DirectInsecure {
            let (host, _) = Self::start(config, doors, None).await?;
            let backhaul = Backhaul::direct(Arc::new(host.owner.clone()));
            return Ok((host, backhaul));
        }
        let (own, edge) = (End::of_host(config)?, End::of_edge(config)?);
        let row = row(&own, "local", number, config.backhaul.listen);
        // Each end knows the other's public half only.
        let peer = EdgePeer {
            key: edge.key.public(),
            address: edge.key.public().derived_address(),
            pins: vec![edge.identity.pin().into()],
        };
        let (host, endpoint) = Self::start(config, doors, Some(ServerEnd::new(own, Edges::One(peer), config))).await?;
        let hosts = Arc::new(HostTable::new());
        let endpoint = endpoint.context("the host has no socket")?;
        hosts.apply_put(HostRow { endpoint, ..row });
        let edge = sessions::connect(config, edge, hosts)?;
        edge.prewarm(number);
        Ok((host, Backhaul::quic(edge)))
    }

    /// Starts the owner and serves the edges of all PoPs, whichever those are at the time; and where its
    /// WireGuard socket listens. `acks` hears what they have applied.
    ///
    /// # Errors
    /// A key, a socket or a thread that cannot be had, and which.
    pub async fn in_fleet(
        config: &Config,
        doors: &Arc<SpriteDoors>,
        pops: Arc<PopTable>,
        acks: Arc<Acks>,
    ) -> anyhow::Result<(Self, SocketAddr)> {
        let server = ServerEnd::new(End::of_host(config)?, Edges::All(pops), config);
        let server = ServerEnd { applied: Some(Arc::new(move |edge, applied| acks.heard(edge, &applied))), ..server };
        let (host, listens) = Self::start(config, doors, Some(server)).await?;
        Ok((host, listens.context("the host has no socket")?))
    }

    async fn start(
        config: &Config,
        doors: &Arc<SpriteDoors>,
        server: Option<ServerEnd>,
    ) -> anyhow::Result<(Self, Option<SocketAddr>)> {
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
        let (orders, ordered) = mpsc::channel(1);
        let inner_mtu = config.backhaul.inner_mtu;
        let serve = move || serve(settings, server, told, stopped, (inner_mtu, ordered));
        let thread = std::thread::Builder::new().name("host".into()).spawn(serve)?;
        let (owner, endpoint) = hears.await.map_err(|_| anyhow!("the host's thread ended at its start"))??;
        Ok((Self { owner, orders, stop, thread }, endpoint))
    }

    /// Ends every guest and every session.
    pub async fn stop(self) {
        self.owner.shutdown().await;
        // The thread may have ended by itself; then there is nothing to tell.
        let _ = self.stop.send(());
        drop(self.thread.join());
    }
}

/// What the registry says of a host with these keys.
#[must_use]
pub fn row(own: &End, name: &str, number: HostId, endpoint: SocketAddr) -> HostRow {
    let key = own.key.public();
    HostRow {
        name: name.into(),
        number,
        wireguard_key: key.to_string(),
        endpoint,
        address: key.derived_address(),
        spki_pins: vec![own.identity.pin().into()],
        papers: None,
    }
}

type Told = oneshot::Sender<anyhow::Result<(OwnerHandle, Option<SocketAddr>)>>;

/// The host's thread.
fn serve(
    settings: HostSettings,
    server: Option<ServerEnd>,
    told: Told,
    stopped: oneshot::Receiver<()>,
    (inner_mtu, orders): (u16, mpsc::Receiver<Order>),
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(told.send(Err(error.into()))),
    };
    runtime.block_on(async {
        let owner = match OwnerHandle::start(settings).await {
            Ok(owner) => owner,
            Err(error) => return drop(told.send(Err(error.into()))),
        };
        let pops = server.as_ref().and_then(|server| server.edges.all().cloned());
        let applied = server.as_ref().and_then(|server| server.applied.clone());
        let server = match server.map(|server| server.start(&owner)).transpose() {
            Ok(server) => server,
            Err(error) => return drop(told.send(Err(error))),
        };
        let endpoint = server.as_ref().map(HostServer::local_addr);
        let mut servers = Servers::new(server, applied);
        if told.send(Ok((owner.clone(), endpoint))).is_ok() {
            tokio::select! {
                _ = stopped => {}
                () = servers.serve(&owner, pops, inner_mtu, orders) => {}
            }
        }
        drop(owner);
        // An edge that is gone does not answer.
        let _ = tokio::time::timeout(GOODBYE, servers.shutdown()).await;
    });
}

/// Who may have a session.
enum Edges {
    One(EdgePeer),
    All(Arc<PopTable>),
}

impl Edges {
    const fn all(&self) -> Option<&Arc<PopTable>> {
        match self {
            Self::One(_) => None,
            Self::All(pops) => Some(pops),
        }
    }
}

/// Every edge process of every PoP. Rows were checked when they came.
fn peers(pops: &PopTable) -> Vec<EdgePeer> {
    let rows = pops.all();
    let processes = rows.iter().flat_map(|pop| &pop.processes);
    let peers = processes.filter_map(|process| {
        let key = process.wireguard_key.parse().ok()?;
        Some(EdgePeer { key, address: process.address, pins: process.spki_pins.clone() })
    });
    peers.collect()
}

/// What the host's end of the sessions is made of.
struct ServerEnd {
    own: End,
    edges: Edges,
    listen: SocketAddr,
    inner_mtu: u16,
    /// Of an edge in this process the table is at hand.
    applied: Option<AppliedSink>,
}

impl ServerEnd {
    const fn new(own: End, edges: Edges, config: &Config) -> Self {
        Self { own, edges, listen: config.backhaul.listen, inner_mtu: config.backhaul.inner_mtu, applied: None }
    }

    fn start(self, owner: &OwnerHandle) -> anyhow::Result<HostServer> {
        let address = self.own.key.public().derived_address();
        let options = HostServerOptions {
            listen: self.listen,
            key: self.own.key,
            identity: self.own.identity,
            address,
            inner_mtu: self.inner_mtu,
            edges: match self.edges {
                Edges::One(edge) => vec![edge],
                // In a moment, by the same way as every later change.
                Edges::All(_) => Vec::new(),
            },
            owner: Arc::new(owner.clone()),
            applied: self.applied,
            limits: Limits::default(),
        };
        HostServer::start(options).with_context(|| format!("backhaul.listen {}", self.listen))
    }
}
