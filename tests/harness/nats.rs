//! A real NATS cluster of three servers with JetStream, and the bucket of the routes on it.

use crate::cluster::{Node, addresses};
use crate::nats_users::Users;
use crate::{tools, until};
use async_nats::jetstream::context::DeleteStreamErrorKind;
use async_nats::jetstream::{self, ErrorCode, stream};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// Three servers, three copies of the bucket.
pub const NODES: usize = 3;
/// From the start of the servers to a leader of the bucket (measured: 2 to 5 s).
const START: Duration = Duration::from_secs(60);

/// The cluster. Dropping it kills its servers.
pub struct Nats {
    /// The servers.
    pub nodes: Vec<Node>,
    clients: Vec<SocketAddr>,
    folder: TempDir,
    secured: bool,
    /// Who signs its users' credentials, when it has users.
    pub users: Option<Users>,
}

/// Where `nats-server` is: on `PATH`, or where `tests/run` put it.
#[must_use]
pub fn program() -> Option<PathBuf> {
    let installed = std::env::var_os("HOME")
        .map(|home| PathBuf::from(home).join(".cache/edge-proxy-test-tools/venv/bin/nats-server"))
        .filter(|path| path.is_file());
    installed.or_else(|| tools::find("nats-server"))
}

impl Nats {
    /// Starts one with an empty bucket; `None` when there is no server to start.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start() -> Option<Self> {
        Self::begin(false, None).await
    }

    /// Starts one that speaks TLS alone, with a certificate of its own.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_secured() -> Option<Self> {
        Self::begin(true, None).await
    }

    /// Starts one that lets in whom its operator's account has signed.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_with_users() -> Option<Self> {
        Self::begin(false, Some(Users::new())).await
    }

    /// Credentials of a user; see [`Users::credentials`].
    ///
    /// # Panics
    /// When it has no users.
    #[must_use]
    pub fn credentials(&self, name: &str, publish: &[&str], subscribe: &[&str]) -> PathBuf {
        self.users.as_ref().expect("a cluster with users").credentials(self.folder.path(), name, publish, subscribe)
    }

    async fn begin(secured: bool, users: Option<Users>) -> Option<Self> {
        let Some(program) = program() else {
            let _ = tools::missing("nats-server");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("edge-nats-").tempdir().unwrap();
        let all = addresses(NODES * 2);
        let (clients, routes) = all.split_at(NODES);
        let peers: Vec<_> = routes.iter().map(|address| format!("nats://{address}")).collect();
        let (certificate, key) = crate::cluster::certificate(folder.path(), clients[0].ip());
        let tls = match secured {
            true => format!("tls {{ cert_file: {certificate:?}, key_file: {key:?} }}\n"),
            false => users.as_ref().map(Users::sections).unwrap_or_default(),
        };
        let nodes = (0..NODES).map(|number| {
            let file = folder.path().join(format!("n{number}.conf"));
            let data = folder.path().join(format!("n{number}"));
            let text = format!(
                "server_name: n{number}\nlisten: {}\njetstream {{ store_dir: {data:?}, sync_interval: always }}\n\
                 cluster {{ name: edge, listen: {}, routes: {peers:?} }}\n{tls}",
                clients[number], routes[number]
            );
            std::fs::write(&file, text).unwrap();
            let arguments = vec!["-c".into(), file.to_str().unwrap().into()];
            Node::start(&program, arguments, folder.path().join(format!("n{number}.log")))
        });
        let nats = Self { nodes: nodes.collect(), clients: clients.to_vec(), folder, secured, users };
        nats.make_bucket().await;
        Some(nats)
    }

    /// What an edge is configured with.
    #[must_use]
    pub fn settings(&self) -> config::NatsStore {
        let (scheme, ca_file) = match self.secured {
            true => ("tls", self.folder.path().join("certificate.pem")),
            false => ("nats", PathBuf::new()),
        };
        let servers = self.clients.iter().map(|address| format!("{scheme}://{address}")).collect();
        config::NatsStore { servers, ca_file, ..config::NatsStore::default() }
    }

    /// One server, for clients.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.clients[0]
    }

    /// The same as text of a config file.
    #[must_use]
    pub fn sections(&self) -> String {
        format!("[store]\nengine = \"nats\"\n[store.nats]\nservers = {:?}\n", self.settings().servers)
    }

    async fn context(&self) -> jetstream::Context {
        let mut options = async_nats::ConnectOptions::new().retry_on_initial_connect();
        if self.secured {
            options = options.add_root_certificates(self.settings().ca_file);
        }
        if self.users.is_some() {
            options = options.credentials_file(self.credentials("all", &[">"], &[">"])).await.unwrap();
        }
        let client = options.connect(self.settings().servers).await.unwrap();
        jetstream::ContextBuilder::new().timeout(Duration::from_secs(2)).build(client)
    }

    /// Makes the bucket and waits for its leader.
    ///
    /// # Panics
    /// When that cannot be.
    pub async fn make_bucket(&self) {
        let context = self.context().await;
        let config = stream::Config {
            name: "KV_routes".into(),
            subjects: vec!["$KV.routes.>".into()],
            max_messages_per_subject: 1,
            num_replicas: NODES,
            discard: stream::DiscardPolicy::New,
            allow_rollup: true,
            allow_direct: true,
            ..stream::Config::default()
        };
        // Refused until the servers have found each other.
        until("the bucket", START, async || context.create_stream(config.clone()).await.ok()).await;
        self.leader().await;
    }

    /// Deletes the bucket.
    ///
    /// # Panics
    /// When that cannot be.
    pub async fn delete_bucket(&self) {
        let context = self.context().await;
        until("the bucket to go", START, async || match context.delete_stream("KV_routes").await {
            Ok(_) => Some(()),
            // An earlier request has done it, and its answer was too late.
            Err(error) => match error.kind() {
                DeleteStreamErrorKind::JetStream(why) if why.error_code() == ErrorCode::STREAM_NOT_FOUND => Some(()),
                _ => None,
            },
        })
        .await;
    }

    /// Throws away everything that was written so far.
    ///
    /// # Panics
    /// When that cannot be.
    pub async fn purge(&self) {
        let context = self.context().await;
        until("the purge", START, async || {
            let stream = context.get_stream_no_info("KV_routes").await.ok()?;
            stream.purge().await.ok()
        })
        .await;
    }

    /// Which server leads the bucket; waits until one does.
    ///
    /// # Panics
    /// When none does in time.
    pub async fn leader(&self) -> usize {
        let context = self.context().await;
        until("a leader of the bucket", START, async || {
            let info = context.get_stream_no_info("KV_routes").await.ok()?.get_info().await.ok()?;
            info.cluster?.leader?.strip_prefix('n')?.parse().ok()
        })
        .await
    }
}
