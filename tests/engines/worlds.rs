//! The engines under test, each with what makes it.

use harness::etcd::Etcd;
use harness::nats::Nats;
use router::store::etcd::EtcdStore;
use router::store::nats::NatsStore;
use router::store::{Embedded, EmbeddedStore, Store};
use std::sync::Arc;

/// An engine that runs.
pub(crate) trait World: Sized {
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
