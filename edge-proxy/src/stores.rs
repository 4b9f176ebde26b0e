//! The two places this process writes to: its own file, and the store of the routes.

use crate::signed_rows::Own;
use anyhow::{Context, bail};
use config::{Config, StoreEngine};
use router::roles::{Role, Writer};
use router::store::etcd::EtcdStore;
use router::store::nats::NatsStore;
use router::store::{Embedded, EmbeddedStore, Store};
use std::sync::Arc;

/// Both stores. With engine `embedded` they are one file.
#[derive(Clone)]
pub struct Stores {
    /// Definitions of this host's sprites, and the seeds of their share links: nobody else's business.
    pub local: Arc<EmbeddedStore>,
    /// The routes, for every edge.
    pub routes: Store,
    /// What this host signs with, where operators sign.
    pub own: Option<Arc<Own>>,
}

impl Stores {
    /// Opens the file and begins to connect to the engine; an engine that is away is waited for later.
    ///
    /// # Errors
    /// The file cannot be opened, or what the engine needs (credentials, roots) cannot be read.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let path = config.data_dir.join("store.redb");
        let local = EmbeddedStore::open(&path).with_context(|| format!("store {}", path.display()))?;
        let local = Arc::new(local);
        let routes = match config.store.engine {
            StoreEngine::Embedded => Arc::new(Embedded(Arc::clone(&local))),
            StoreEngine::Etcd | StoreEngine::Nats => shared(config).await?,
        };
        Ok(Self { local, routes, own: None })
    }

    /// From here on the routes' store takes only what this role may write; `own` is the key of its own row.
    #[must_use]
    pub fn acting(self, role: Role, own: String) -> Self {
        Self { routes: Arc::new(Writer::new(self.routes, role, Some(own))), ..self }
    }
}

/// The store that machines share.
///
/// # Errors
/// There is none, or what the engine needs cannot be read.
pub async fn shared(config: &Config) -> anyhow::Result<Store> {
    match config.store.engine {
        StoreEngine::Embedded => bail!("store.engine: \"embedded\" is a file of one process; nothing is shared"),
        StoreEngine::Etcd => Ok(Arc::new(EtcdStore::open(&config.store.etcd).context("store engine etcd")?)),
        StoreEngine::Nats => Ok(Arc::new(NatsStore::connect(&config.store.nats).await.context("store engine nats")?)),
    }
}
