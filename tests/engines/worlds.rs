//! The engines under test, each with what makes it.

use backhaul::session::{Identity, shared_pins};
use harness::corrosion::Agent;
use harness::etcd::Etcd;
use harness::nats::Nats;
use router::roles::{Role, Writer};
use router::store::corrosion::CorrosionStore;
use router::store::etcd::EtcdStore;
use router::store::nats::NatsStore;
use router::store::primary::{PrimaryStore, server};
use router::store::{Embedded, EmbeddedStore, Store};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const PROTOCOL: &[u8] = b"test";

/// An engine that runs.
pub(crate) trait World: Sized {
    /// Whether the number of a row is that of the change in the feed which wrote it.
    const ONE_NUMBER: bool = true;
    /// A key of another kind than `sprite/`.
    const OTHER: &str = "domain/a.example.org";

    /// Starts it, empty; `None` when its servers are not installed.
    async fn start() -> Option<Self>;

    /// A new client of it.
    async fn store(&self) -> Store;
}

/// An engine of three servers.
pub(crate) trait Cluster: World {
    /// The servers.
    fn nodes(&mut self) -> &mut Vec<harness::cluster::Node>;

    /// Which of them leads; waits until one does.
    async fn leader(&self) -> usize;

    /// Makes the engine forget what happened up to now, but not what is there.
    async fn forget_history(&self);

    /// Makes it anew, empty.
    async fn make_anew(&mut self);
}

pub(crate) struct EmbeddedWorld {
    store: Arc<EmbeddedStore>,
    _folder: tempfile::TempDir,
}

impl World for EmbeddedWorld {
    async fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(&folder.path().join("store")).unwrap());
        Some(Self { store, _folder: folder })
    }

    async fn store(&self) -> Store {
        Arc::new(Embedded(Arc::clone(&self.store)))
    }
}

/// The embedded store, as another machine has it: over TLS from the one whose file it is.
pub(crate) struct PrimaryWorld {
    address: SocketAddr,
    client: Identity,
    pin: String,
    _file: EmbeddedWorld,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for PrimaryWorld {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl World for PrimaryWorld {
    async fn start() -> Option<Self> {
        let file = EmbeddedWorld::start().await?;
        let (server, client) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let pins = shared_pins(std::iter::once(&client.pin().to_owned()));
        let acceptor = TlsAcceptor::from(Arc::new(server.tls_server(&pins, PROTOCOL).unwrap()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let store = file.store().await;
        let serving = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (acceptor, store) = (acceptor.clone(), Arc::clone(&store));
                tokio::spawn(async move {
                    if let Ok(tls) = acceptor.accept(tcp).await {
                        server::serve(tls, Arc::new(Writer::new(store, Role::Operator, None))).await;
                    }
                });
            }
        });
        Some(Self { address, client, pin: server.pin().to_owned(), _file: file, serving })
    }

    async fn store(&self) -> Store {
        let tls = self.client.tls_client(std::slice::from_ref(&self.pin), PROTOCOL).unwrap();
        Arc::new(PrimaryStore::open(&self.address.to_string(), TlsConnector::from(Arc::new(tls))).unwrap())
    }
}

/// An agent of our own ([`harness::corrosion`]).
pub(crate) struct CorrosionWorld(pub(crate) Agent);

impl World for CorrosionWorld {
    const ONE_NUMBER: bool = false;
    const OTHER: &str = "host/1";

    async fn start() -> Option<Self> {
        Some(Self(Agent::start().await))
    }

    async fn store(&self) -> Store {
        Arc::new(CorrosionStore::open(&self.0.settings(), "host/a").unwrap())
    }
}

pub(crate) struct NatsWorld(pub(crate) Nats);

impl World for NatsWorld {
    async fn start() -> Option<Self> {
        Nats::start().await.map(Self)
    }

    async fn store(&self) -> Store {
        Arc::new(NatsStore::connect(&self.0.settings()).await.unwrap())
    }
}

impl Cluster for NatsWorld {
    fn nodes(&mut self) -> &mut Vec<harness::cluster::Node> {
        &mut self.0.nodes
    }

    async fn leader(&self) -> usize {
        self.0.leader().await
    }

    /// Everything is purged, marks of deletions too, and what was there is written again.
    async fn forget_history(&self) {
        let store = self.store().await;
        let entries = store.scan("sprite/").await.unwrap();
        self.0.purge().await;
        for entry in entries {
            store.compare_and_set(&entry.key, None, Some(&entry.value)).await.unwrap();
        }
    }

    async fn make_anew(&mut self) {
        self.0.delete_bucket().await;
        self.0.make_bucket().await;
    }
}

pub(crate) struct EtcdWorld(pub(crate) Etcd);

impl World for EtcdWorld {
    async fn start() -> Option<Self> {
        Etcd::start().await.map(Self)
    }

    async fn store(&self) -> Store {
        Arc::new(EtcdStore::open(&self.0.settings()).unwrap())
    }
}

impl Cluster for EtcdWorld {
    fn nodes(&mut self) -> &mut Vec<harness::cluster::Node> {
        &mut self.0.nodes
    }

    async fn leader(&self) -> usize {
        self.0.leader().await
    }

    async fn forget_history(&self) {
        self.0.compact().await;
    }

    async fn make_anew(&mut self) {
        self.0.make_anew().await;
    }
}
