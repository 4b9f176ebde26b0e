//! A real etcd cluster of three members.

use crate::cluster::{Node, addresses};
use crate::{tools, until};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tokio::process::Command;

/// Three members.
pub const NODES: usize = 3;
/// From the start of the members to a leader (measured: 1 to 3 s).
const START: Duration = Duration::from_secs(60);

/// The cluster. Dropping it kills its members.
pub struct Etcd {
    /// The members.
    pub nodes: Vec<Node>,
    clients: Vec<SocketAddr>,
    folder: TempDir,
    secured: bool,
}

impl Etcd {
    /// Starts one; `None` when there is no etcd to start.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start() -> Option<Self> {
        Self::begin(false).await
    }

    /// Starts one whose members speak TLS alone to clients, with a certificate of its own.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn start_secured() -> Option<Self> {
        Self::begin(true).await
    }

    async fn begin(secured: bool) -> Option<Self> {
        if !tools::requires(&["etcd", "curl"]) {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("edge-etcd-").tempdir().unwrap();
        let all = addresses(NODES * 2);
        let (clients, peers) = all.split_at(NODES);
        let url = |address: SocketAddr| format!("http://{address}");
        let members: Vec<_> =
            peers.iter().enumerate().map(|(number, peer)| format!("e{number}={}", url(*peer))).collect();
        let (certificate, key) = crate::cluster::certificate(folder.path(), clients[0].ip());
        let nodes = (0..NODES).map(|number| {
            let (client, peer) = (url(clients[number]), url(peers[number]));
            let client = if secured { client.replacen("http", "https", 1) } else { client };
            let arguments = [
                ("--name", format!("e{number}")),
                ("--data-dir", folder.path().join(format!("e{number}")).display().to_string()),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client),
                ("--listen-peer-urls", peer.clone()),
                ("--initial-advertise-peer-urls", peer),
                ("--initial-cluster", members.join(",")),
                ("--initial-cluster-state", "new".into()),
                ("--logger", "zap".into()),
                ("--log-level", "warn".into()),
            ];
            let mut arguments: Vec<_> =
                arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
            if secured {
                arguments.push(format!("--cert-file={}", certificate.display()));
                arguments.push(format!("--key-file={}", key.display()));
            }
            let program = tools::find("etcd").expect("found above");
            Node::start(&program, arguments, folder.path().join(format!("e{number}.log")))
        });
        let etcd = Self { nodes: nodes.collect(), clients: clients.to_vec(), folder, secured };
        etcd.leader().await;
        Some(etcd)
    }

    /// What an edge is configured with.
    #[must_use]
    pub fn settings(&self) -> config::EtcdStore {
        let (scheme, ca_file) = match self.secured {
            true => ("https", self.folder.path().join("certificate.pem")),
            false => ("http", PathBuf::new()),
        };
        let servers = self.clients.iter().map(|address| format!("{scheme}://{address}")).collect();
        config::EtcdStore { servers, ca_file, ..config::EtcdStore::default() }
    }

    /// The same as text of a config file.
    #[must_use]
    pub fn sections(&self) -> String {
        format!("[store]\nengine = \"etcd\"\n[store.etcd]\nservers = {:?}\n", self.settings().servers)
    }

    /// Asks one member; `None` when it does not answer well.
    pub async fn ask(&self, member: usize, path: &str, body: Value) -> Option<Value> {
        self.answer(member, path, &body).await.filter(|answer| answer["error"].is_null())
    }

    /// Has the first member do something, and asks again as long as it is silent or has no leader. An earlier
    /// request whose answer was lost may have done it.
    ///
    /// # Panics
    /// When it refuses, or does not do it in time.
    pub async fn order(&self, path: &str, body: Value) {
        let mut asked = false;
        until(path, START, async || {
            let again = std::mem::replace(&mut asked, true);
            let answer = self.answer(0, path, &body).await?;
            let Some(error) = answer["error"].as_str() else { return Some(()) };
            let says = |words: &[&str]| words.iter().any(|word| error.contains(word));
            // The last two: users are asked for their names already.
            let done = again && says(&["already exists", "user name is empty", "permission denied"]);
            assert!(done || says(&["timed out", "deadline exceeded", "no leader"]), "{path}: {error}");
            done.then_some(())
        })
        .await;
    }

    /// What a member says, good or bad; `None` when it says nothing in time.
    async fn answer(&self, member: usize, path: &str, body: &Value) -> Option<Value> {
        let url = format!("{}{path}", self.settings().servers[member]);
        let asked =
            Command::new("curl").args(["-sk", "-m", "3", "-d", &body.to_string(), &url]).output().await.unwrap();
        serde_json::from_slice(&asked.stdout).ok()
    }

    /// Which member leads; waits until one does.
    ///
    /// # Panics
    /// When none does in time.
    pub async fn leader(&self) -> usize {
        until("a leader", START, async || {
            for member in 0..NODES {
                let Some(status) = self.ask(member, "/v3/maintenance/status", json!({})).await else { continue };
                let leads = status["leader"].as_str().is_some_and(|leader| leader != "0");
                if leads && status["leader"] == status["header"]["member_id"] {
                    return Some(member);
                }
            }
            None
        })
        .await
    }

    /// Forgets every revision before the present one.
    ///
    /// # Panics
    /// When that cannot be.
    pub async fn compact(&self) {
        until("the compaction", START, async || {
            let read = self.ask(0, "/v3/kv/range", json!({ "key": "AA==" })).await?;
            let body = json!({ "revision": &read["header"]["revision"], "physical": true });
            let answer = self.answer(0, "/v3/kv/compaction", &body).await?;
            // An earlier request has done it, and its answer was too late.
            let done = |error: &str| error.contains("required revision has been compacted");
            answer["error"].as_str().is_none_or(done).then_some(())
        })
        .await;
    }

    /// Kills all members, empties their disks and starts them again as they were started first.
    ///
    /// # Panics
    /// When they do not come up.
    pub async fn make_anew(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill);
        for number in 0..NODES {
            std::fs::remove_dir_all(self.folder.path().join(format!("e{number}"))).unwrap();
        }
        self.nodes.iter_mut().for_each(Node::restart);
        self.leader().await;
    }
}
