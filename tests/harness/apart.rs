//! An edge and a worker host that are apart: each on threads of its own, and between them
//! only the tunnel over a [`Relay`]. All parts are the product's; the program itself puts edge
//! and host side by side, where no way can be made long.
//!
//! The client's side is plain HTTP/1.1: its handshake is over before anything is measured.

use crate::client::{Answer, empty, whole};
use crate::{Relay, binary, guest, until, within};
use backhaul::Backhaul;
use backhaul::keys::PrivateKey;
use backhaul::session::{EdgeOptions, EdgePeer, HostServer, HostServerOptions, Identity, Limits, QuicEdge};
use edge_proxy::client::{Client, SharedSocket};
use edge_proxy::connection::{self, Protocol};
use edge_proxy::worker::{Edge, EdgeParts, Worker};
use http::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use router::access::Access;
use router::names::{SpriteName, Suffix};
use router::route::{Generation, HostId, HostRow, Route, Tenant};
use router::table::RouteTable;
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::oneshot;
use wakeup::drivers::DoorKeeper;
use wakeup::hold::{HoldLimits, SourceBudget, Waker};
use wakeup::ledger::LedgerSettings;
use wakeup::owner::{HostSettings, OwnerHandle, Rang};
use wakeup::spec::{Depth, DriverSpec, SpriteSpec};

const HOST: HostId = HostId(0);
const SUFFIX: &str = "sprites.test";
const INNER_MTU: u16 = 1420;
/// Whatever is awaited here takes round trips and a guest's start.
const LIMIT: Duration = Duration::from_secs(60);

/// The pair while it runs.
pub struct Apart {
    /// The way between them.
    pub relay: Relay,
    /// The owner of the host's sprites.
    pub owner: OwnerHandle,
    /// What the edge knows of routes.
    pub table: Arc<RouteTable>,
    waker: Waker,
    http: SocketAddr,
    /// Dropped, they end their threads.
    ends: Vec<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
    data: TempDir,
}

struct Keys {
    key: PrivateKey,
    identity: Identity,
}

impl Keys {
    fn new() -> Self {
        Self { key: PrivateKey::generate().expect("a key"), identity: Identity::generate().expect("a certificate") }
    }
}

impl Apart {
    /// Starts both, `one_way` apart, with these sprites (the sample `hello`, asleep).
    ///
    /// # Panics
    /// When a part cannot be had.
    pub async fn start(one_way: Duration, seed: u64, sprites: &[SpriteName]) -> Self {
        let data = tempfile::Builder::new().prefix("edge-apart-").tempdir().expect("a temporary folder");
        let (host, edge) = (Keys::new(), Keys::new());
        let peer = EdgePeer {
            key: edge.key.public(),
            address: edge.key.public().derived_address(),
            pins: vec![edge.identity.pin().into()],
        };
        let mut row = HostRow {
            name: "far".into(),
            number: HOST,
            wireguard_key: host.key.public().to_string(),
            endpoint: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            address: host.key.public().derived_address(),
            spki_pins: vec![host.identity.pin().into()],
            papers: None,
        };
        let settings = HostSettings {
            directory: data.path().join("sprites"),
            host: config::Host { idle_timeout: Duration::from_secs(600), wakes_per_hour: 0, ..config::Host::default() },
            drivers: config::Drivers::default(),
            doors: DoorKeeper::default(),
            rang: Rang::default(),
            ledger: LedgerSettings {
                directory: data.path().join("ledger"),
                segment_bytes: config::Ledger::default().segment_bytes,
                keep_bytes: config::Ledger::default().keep_bytes,
            },
        };
        let (told, hears) = oneshot::channel();
        let (end_host, host_ends) = oneshot::channel();
        let host_thread = std::thread::spawn(move || run_host(settings, host, peer, told, host_ends));
        let (owner, endpoint) = hears.await.expect("the host serves");
        let table = Arc::new(RouteTable::new());
        for name in sprites {
            owner.upsert(hello(name)).await;
            table.apply_put(name, route());
        }
        owner.settle().await;
        table.followed().mark_synced();

        let relay = Relay::start(endpoint, one_way, seed);
        row.endpoint = relay.address();
        let (told, hears) = oneshot::channel();
        let (end_edge, edge_ends) = oneshot::channel();
        let known = Arc::clone(&table);
        let edge_thread = std::thread::spawn(move || run_edge(edge, row, known, told, edge_ends));
        let (waker, http) = hears.await.expect("the edge serves");
        let (ends, threads) = (vec![end_edge, end_host], vec![edge_thread, host_thread]);
        Self { relay, owner, table, waker, http, ends, threads, data }
    }

    /// A connection of a visitor.
    ///
    /// # Panics
    /// When there is none.
    pub async fn visitor(&self) -> Visitor {
        let stream = TcpStream::connect(self.http).await.expect("the edge listens");
        stream.set_nodelay(true).expect("a TCP socket");
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("an HTTP server");
        tokio::spawn(async move { connection.await.is_ok() });
        Visitor(sender)
    }

    /// Freezes a sprite, and waits until the edge has heard of it.
    ///
    /// # Panics
    /// When it does not fall asleep.
    pub async fn lull(&self, name: &SpriteName) {
        within("a sleep", LIMIT, self.owner.sleep(name, Depth::Warm)).await.expect("it runs");
        until("the edge to hear of the sleep", LIMIT, async || self.waker.view(name, 1).is_none().then_some(())).await;
    }

    /// Ends every guest and both threads.
    pub async fn stop(mut self) {
        self.owner.shutdown().await;
        self.ends.clear();
        for thread in self.threads.drain(..) {
            thread.join().expect("it ended well");
        }
    }
}

impl Drop for Apart {
    /// However its test ends, its guests do.
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            crate::demo::end_all(self.data.path());
        }
    }
}

/// One connection to the edge.
pub struct Visitor(http1::SendRequest<crate::client::RequestBody>);

impl Visitor {
    /// GET `/` of a sprite, whole.
    ///
    /// # Panics
    /// When the connection breaks, or there is no answer.
    pub async fn get(&mut self, name: &SpriteName) -> Answer {
        let request = Request::builder().uri("/").header("host", format!("{name}.{SUFFIX}"));
        within("an answer", LIMIT, async {
            self.0.ready().await.expect("the connection stands");
            let sent = self.0.send_request(request.body(empty()).expect("a proper request")).await;
            whole(sent.expect("an answer")).await.expect("a whole answer")
        })
        .await
    }
}

/// The definition of a sprite that says hello.
#[must_use]
pub fn hello(name: &SpriteName) -> SpriteSpec {
    let command = format!("exec {} sample hello", guest::shell(&binary::edge_proxy()));
    SpriteSpec::new(name.clone(), 1, DriverSpec::Process { command, memory_mib: None })
}

/// A route to the host.
#[must_use]
pub fn route() -> Route {
    Route {
        generation: Generation(1),
        host: HOST,
        tenant: Tenant::default(),
        access: Access::Public,
        wake: None,
        ports: [].into(),
        client_certificate: None,
        deleted: false,
    }
}

fn run_host(
    settings: HostSettings,
    keys: Keys,
    edge: EdgePeer,
    told: oneshot::Sender<(OwnerHandle, SocketAddr)>,
    ends: oneshot::Receiver<()>,
) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let owner = OwnerHandle::start(settings).await.expect("an owner");
        let address = keys.key.public().derived_address();
        let server = HostServer::start(HostServerOptions {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            key: keys.key,
            identity: keys.identity,
            address,
            inner_mtu: INNER_MTU,
            edges: vec![edge],
            owner: Arc::new(owner.clone()),
            applied: None,
            limits: Limits::default(),
        });
        let server = server.expect("a tunnel");
        if told.send((owner, server.local_addr())).is_ok() {
            let _ = ends.await;
        }
    });
}

fn run_edge(
    keys: Keys,
    host: HostRow,
    table: Arc<RouteTable>,
    told: oneshot::Sender<(Waker, SocketAddr)>,
    ends: oneshot::Receiver<()>,
) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    runtime.expect("a runtime").block_on(async move {
        let address = keys.key.public().derived_address();
        let sessions = QuicEdge::new(EdgeOptions {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            key: keys.key,
            identity: keys.identity,
            address,
            inner_mtu: INNER_MTU,
            hosts: Arc::new(move |number| (number == HOST).then(|| host.clone())),
        });
        let sessions = sessions.expect("a tunnel");
        sessions.prewarm(HOST);
        let backhaul = Backhaul::quic(sessions);
        let waker = Waker::new(HoldLimits::from(&config::Hold::default()), backhaul.clone());
        let edge = Edge::new(EdgeParts {
            table: Arc::new(table.into()),
            hosts: None,
            waker: waker.clone(),
            backhaul,
            suffixes: vec![Suffix::parse(SUFFIX).expect("a suffix")],
            domains: Arc::new(Arc::new(router::domains::DomainTable::new(HashMap::new(), &[], &[])).into()),
            limits: config::Limits::default(),
            handshake_timeout: Duration::from_secs(10),
            hold_timeout: config::Hold::default().timeout,
            wake_at_client_hello: false,
            hsts: Duration::ZERO,
            unknown_as_private: false,
            budget: SourceBudget::new(0),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let http = listener.local_addr().expect("it is bound");
        let worker = Rc::new(Worker::new(edge));
        if told.send((waker, http)).is_ok() {
            tokio::select! {
                () = accept(&worker, &listener, http.port()) => {}
                _ = ends => {}
            }
        }
    });
}

async fn accept(worker: &Rc<Worker>, listener: &TcpListener, port: u16) {
    loop {
        let (stream, peer) = listener.accept().await.expect("connections");
        stream.set_nodelay(true).expect("a TCP socket");
        let socket = SharedSocket::new(stream);
        let client = Rc::new(Client::new(socket.clone(), peer, port, None));
        tokio::task::spawn_local(connection::serve(Rc::clone(worker), client, socket, Protocol::Http1));
    }
}
