//! The two places this process writes to: its own file, and the store of the routes.

use crate::machine_keys::End;
use crate::primary;
use crate::signed_rows::Own;
use anyhow::{Context, bail};
use config::{Config, StoreEngine};
use router::roles::{Reader, Role, Writer};
use router::store::corrosion::{CorrosionStore, OPERATOR};
use router::store::etcd::EtcdStore;
use router::store::nats::NatsStore;
use router::store::{Embedded, EmbeddedStore, Store, StoreError};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

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
    /// Opens the file and begins to connect to the engine, for an edge or for a worker host; an engine that is
    /// away is waited for later.
    ///
    /// # Errors
    /// The file cannot be opened, or what the engine needs (credentials, roots, keys) cannot be read.
    pub async fn open(config: &Config, is_host: bool) -> anyhow::Result<Self> {
        let path = file(config);
        let local = EmbeddedStore::open(&path).with_context(|| format!("store {}", path.display()))?;
        let local = Arc::new(local);
        let routes = match config.store.engine {
            StoreEngine::Embedded => Arc::new(Embedded(Arc::clone(&local))),
            StoreEngine::Corrosion | StoreEngine::Etcd | StoreEngine::Nats | StoreEngine::Primary => {
                engine(config, &config.store, is_host, &machine(config, is_host)).await?
            }
        };
        Ok(Self { local, routes, own: None })
    }

    /// From here on the routes' store takes only what this role may write; `own` is the key of its own row.
    #[must_use]
    pub fn acting(self, role: Role, own: String) -> Self {
        Self { routes: Arc::new(Writer::new(self.routes, role, Some(own))), ..self }
    }
}

/// One region's store, as it is followed.
pub struct RegionStore {
    /// What the configuration calls it.
    pub name: Box<str>,
    /// Its store; another region's takes no write.
    pub store: Store,
    /// How long changes wait that are too many at once.
    pub bulk_delay: Duration,
    /// Where what was known of it last is kept.
    pub folder: PathBuf,
}

/// What this machine follows: its own region, whose store is `own`, and the others in the order of the
/// configuration. A store that is away is waited for later.
///
/// # Errors
/// A folder cannot be made, or what an engine needs cannot be read.
pub async fn feeds(config: &Config, own: &Store, is_host: bool) -> anyhow::Result<Vec<RegionStore>> {
    let mut feeds = vec![RegionStore {
        name: config.fleet.region.as_str().into(),
        store: Arc::clone(own),
        bulk_delay: config.store.bulk_delay,
        folder: config.data_dir.clone(),
    }];
    for region in &config.regions {
        let folder = config.data_dir.join("regions").join(&region.name);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let (name, bulk_delay) = (region.name.as_str().into(), region.store.bulk_delay);
        feeds.push(RegionStore { name, store: other(config, region, is_host).await?, bulk_delay, folder });
    }
    Ok(feeds)
}

/// Another region's store, to read.
///
/// # Errors
/// What the engine needs cannot be read.
pub async fn other(config: &Config, region: &config::Region, is_host: bool) -> anyhow::Result<Store> {
    let store = engine(config, &region.store, is_host, &machine(config, is_host))
        .await
        .with_context(|| format!("region {}", region.name))?;
    Ok(Arc::new(Reader::new(store)))
}

fn file(config: &Config) -> PathBuf {
    config.data_dir.join("store.redb")
}

/// The store that machines share, for who works on it from the command line.
///
/// # Errors
/// There is none, or what the engine needs cannot be read.
pub async fn shared(config: &Config) -> anyhow::Result<Store> {
    match (config.store.engine, config.store.embedded.serve) {
        (StoreEngine::Embedded, Some(serve)) => of_this_machine(config, serve),
        _ => engine(config, &config.store, true, OPERATOR).await,
    }
}

/// The file itself, or whoever has it open.
fn of_this_machine(config: &Config, serve: SocketAddr) -> anyhow::Result<Store> {
    let path = file(config);
    std::fs::create_dir_all(&config.data_dir).with_context(|| config.data_dir.display().to_string())?;
    match EmbeddedStore::open(&path) {
        Ok(file) => Ok(Arc::new(Embedded(Arc::new(file)))),
        Err(StoreError::InUse) => {
            let ends = primary::own(config)?;
            let pins = [ends[0].identity.pin().to_owned(), ends[1].identity.pin().to_owned()];
            // On all addresses is on this one too.
            let at = if serve.ip().is_unspecified() { SocketAddr::from(([127, 0, 0, 1], serve.port())) } else { serve };
            primary::client(&at.to_string(), &pins, &ends[0].identity)
        }
        Err(error) => Err(error).with_context(|| format!("store {}", path.display())),
    }
}

/// Under which name this process writes where an engine keeps the rows of each writer apart.
fn machine(config: &Config, is_host: bool) -> String {
    match config.fleet.name.as_str() {
        "" => "alone".into(),
        name if is_host => format!("host/{name}"),
        name => format!("edge/{name}"),
    }
}

async fn engine(config: &Config, store: &config::Store, is_host: bool, writer: &str) -> anyhow::Result<Store> {
    match store.engine {
        StoreEngine::Embedded => bail!(
            "store.engine: \"embedded\" is a file of one process; nothing is shared unless store.embedded.serve says where"
        ),
        StoreEngine::Corrosion => {
            let opened = CorrosionStore::open(&store.corrosion, writer).context("store engine corrosion")?;
            Ok(Arc::new(opened))
        }
        StoreEngine::Etcd => Ok(Arc::new(EtcdStore::open(&store.etcd).context("store engine etcd")?)),
        StoreEngine::Nats => Ok(Arc::new(NatsStore::connect(&store.nats).await.context("store engine nats")?)),
        StoreEngine::Primary => {
            let end = if is_host { End::of_host(config)? } else { End::of_edge(config)? };
            let primary = &store.primary;
            primary::client(&primary.server, std::slice::from_ref(&primary.pin), &end.identity)
        }
    }
}
