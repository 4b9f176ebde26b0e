//! One edge, one host, one owner that does what it is told.

use backhaul::activity::RunActivity;
use backhaul::keys::PrivateKey;
use backhaul::owner::{Admitted, AnswerSink, BoxFuture, EdgeId, Owner};
use backhaul::session::{EdgeOptions, EdgePeer, HostServer, HostServerOptions, Identity, Limits, QuicEdge};
use backhaul::wire::{Open, Opened, Reply, ToEdge, ToOwner, VERSION, WakeKind};
use backhaul::{Backhaul, EdgeEvents};
use router::route::{HostId, HostRow};
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

pub(crate) const HOST: HostId = HostId(7);
pub(crate) const RUN: u64 = 3;
/// Far beyond what anything here takes: a test that waits so long has failed.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// What the owner heard.
#[derive(Debug)]
pub(crate) enum Heard {
    Control(EdgeId, ToOwner),
    Open(Open),
    Gone(EdgeId),
    Unreachable(String, u64),
}

/// What the edge heard.
#[derive(Debug)]
pub(crate) enum Told {
    Answer(HostId, ToEdge),
    Down(HostId),
}

pub(crate) struct FakeOwner {
    /// Where a sprite's guest listens.
    pub(crate) guests: Mutex<HashMap<String, SocketAddr>>,
    /// What is answered instead of admitting.
    pub(crate) refusal: Mutex<Option<Reply>>,
    /// What is answered to every control message.
    pub(crate) answer: Mutex<Option<ToEdge>>,
    pub(crate) activity: Arc<RunActivity>,
    heard: mpsc::UnboundedSender<Heard>,
}

impl Owner for FakeOwner {
    fn control(&self, edge: EdgeId, message: ToOwner, answers: &AnswerSink) {
        let _ = self.heard.send(Heard::Control(edge, message));
        if let Some(answer) = self.answer.lock().unwrap().clone() {
            answers(answer);
        }
    }

    fn open(&self, _edge: EdgeId, open: Open) -> BoxFuture<Result<Admitted, Reply>> {
        let refusal = self.refusal.lock().unwrap().clone();
        let guest = self.guests.lock().unwrap().get(&open.sprite).copied();
        let opened = Opened {
            generation: open.generation,
            run: RUN,
            kind: WakeKind::Warm.into(),
            wake_ms: 5,
            joined: false,
            lost_memory: false,
        };
        let _ = self.heard.send(Heard::Open(open));
        let activity = Arc::clone(&self.activity);
        Box::pin(async move {
            match (refusal, guest) {
                (Some(reply), _) => Err(reply),
                (None, Some(guest)) => Ok(Admitted { opened, guest, activity }),
                (None, None) => Err(Reply::Unknown(backhaul::wire::Unknown { my_generation: 0 })),
            }
        })
    }

    fn edge_gone(&self, edge: EdgeId) {
        let _ = self.heard.send(Heard::Gone(edge));
    }

    fn guest_unreachable(&self, sprite: &str, run: u64) {
        let _ = self.heard.send(Heard::Unreachable(sprite.into(), run));
    }
}

struct Events(mpsc::UnboundedSender<Told>);

impl EdgeEvents for Events {
    fn answer(&self, host: HostId, message: ToEdge) {
        let _ = self.0.send(Told::Answer(host, message));
    }

    fn host_down(&self, host: HostId) {
        let _ = self.0.send(Told::Down(host));
    }
}

pub(crate) struct World {
    pub(crate) backhaul: Backhaul,
    pub(crate) owner: Arc<FakeOwner>,
    pub(crate) heard: mpsc::UnboundedReceiver<Heard>,
    pub(crate) told: mpsc::UnboundedReceiver<Told>,
    tell: mpsc::UnboundedSender<Told>,
    /// `None` over the direct link.
    pub(crate) server: Option<HostServer>,
    pub(crate) edge: Option<QuicEdge>,
    pub(crate) row: Arc<Mutex<HostRow>>,
    /// The edge as the host knows it; `None` over the direct link.
    pub(crate) peer: Option<EdgePeer>,
}

/// What a test may want to be different.
pub(crate) struct Changes {
    pub(crate) limits: Limits,
    /// The host knows the edge's WireGuard key.
    pub(crate) known_key: bool,
    /// The host knows the edge's certificate.
    pub(crate) known_edge_pin: bool,
    /// The edge knows the host's certificate.
    pub(crate) known_host_pin: bool,
    /// The edge has somebody who hears of answers; else from [`World::hear`] on.
    pub(crate) hears: bool,
}

impl Default for Changes {
    fn default() -> Self {
        Self { limits: Limits::default(), known_key: true, known_edge_pin: true, known_host_pin: true, hears: true }
    }
}

fn owner() -> (Arc<FakeOwner>, mpsc::UnboundedReceiver<Heard>) {
    let (heard, hearing) = mpsc::unbounded_channel();
    let owner = FakeOwner {
        guests: Mutex::default(),
        refusal: Mutex::default(),
        answer: Mutex::default(),
        activity: RunActivity::new(Instant::now()),
        heard,
    };
    (Arc::new(owner), hearing)
}

impl World {
    pub(crate) fn direct() -> Self {
        let (owner, heard) = owner();
        let row = HostRow {
            name: "host".into(),
            number: HOST,
            wireguard_key: String::new(),
            endpoint: ([127, 0, 0, 1], 1).into(),
            address: "fd00::1".parse().unwrap(),
            spki_pins: Vec::new(),
            papers: None,
        };
        let world = Self::with(Backhaul::direct(owner.clone()), owner, heard, None, None, Arc::new(Mutex::new(row)));
        world.hear();
        world
    }

    pub(crate) fn quic() -> Self {
        Self::quic_with(Changes::default())
    }

    pub(crate) fn quic_with(changes: Changes) -> Self {
        let (owner, heard) = owner();
        let (host_key, edge_key) = (PrivateKey::generate().unwrap(), PrivateKey::generate().unwrap());
        let (host_identity, edge_identity) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let other = Identity::generate().unwrap();
        let pin = |known, identity: &Identity| vec![if known { identity.pin() } else { other.pin() }.to_owned()];
        let listen = ([127, 0, 0, 1], 0).into();
        let (address, edge_address) = (host_key.public().derived_address(), edge_key.public().derived_address());
        let known = if changes.known_key { edge_key.public() } else { PrivateKey::generate().unwrap().public() };
        let mut row = HostRow {
            name: "host".into(),
            number: HOST,
            wireguard_key: host_key.public().to_string(),
            endpoint: listen,
            address,
            spki_pins: pin(changes.known_host_pin, &host_identity),
            papers: None,
        };
        let peer = EdgePeer { key: known, address: edge_address, pins: pin(changes.known_edge_pin, &edge_identity) };
        let server = HostServer::start(HostServerOptions {
            listen,
            key: host_key,
            address,
            inner_mtu: 1420,
            edges: vec![peer.clone()],
            identity: host_identity,
            owner: owner.clone(),
            applied: None,
            limits: changes.limits,
        })
        .unwrap();
        row.endpoint = server.local_addr();
        let row = Arc::new(Mutex::new(row));
        let table = Arc::clone(&row);
        let edge = QuicEdge::new(EdgeOptions {
            listen,
            key: edge_key,
            identity: edge_identity,
            address: edge_address,
            inner_mtu: 1420,
            hosts: Arc::new(move |host| (host == HOST).then(|| table.lock().unwrap().clone())),
        })
        .unwrap();
        let mut world = Self::with(Backhaul::quic(edge.clone()), owner, heard, Some(server), Some(edge), row);
        world.peer = Some(peer);
        if changes.hears {
            world.hear();
        }
        world
    }

    fn with(
        backhaul: Backhaul,
        owner: Arc<FakeOwner>,
        heard: mpsc::UnboundedReceiver<Heard>,
        server: Option<HostServer>,
        edge: Option<QuicEdge>,
        row: Arc<Mutex<HostRow>>,
    ) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        Self { backhaul, owner, heard, told, tell, server, edge, row, peer: None }
    }

    /// From now on somebody hears of answers.
    pub(crate) fn hear(&self) {
        self.backhaul.set_events(Arc::new(Events(self.tell.clone())));
    }

    /// Both ways to a guest, for what must not depend on it.
    pub(crate) fn both() -> [Self; 2] {
        [Self::direct(), Self::quic()]
    }

    /// A guest that runs `serve` for each connection.
    pub(crate) async fn guest<F>(&self, sprite: &str, serve: impl Fn(TcpStream) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.owner.guests.lock().unwrap().insert(sprite.into(), listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(serve(tcp));
            }
        });
    }

    /// A guest that sends back what it gets, and ends when the other side does.
    pub(crate) async fn echo(&self) {
        self.guest("echo", |mut tcp| async move {
            let (mut read, mut write) = tcp.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        })
        .await;
    }

    pub(crate) async fn hears(&mut self, what: impl Fn(&Heard) -> bool) -> Heard {
        within(async {
            loop {
                let heard = self.heard.recv().await.expect("the owner lives");
                if what(&heard) {
                    return heard;
                }
            }
        })
        .await
    }
}

pub(crate) fn open(sprite: &str) -> Open {
    Open {
        version: VERSION,
        sprite: sprite.into(),
        generation: 1,
        expect_run: Some(RUN),
        deadline_ms: 30_000,
        ..Open::default()
    }
}

/// Waits for what must happen.
pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("it happens at all")
}
