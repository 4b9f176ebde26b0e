//! The store of a measured fleet: one etcd, in memory as far as a figure is concerned.

use anyhow::{Context, ensure};
use router::store::etcd::EtcdStore;
use router::store::{Engine, StoreError};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// How long it may take to start (chosen: it takes half a second).
const START: Duration = Duration::from_secs(20);
/// Pause between two looks at it.
const LOOK: Duration = Duration::from_millis(20);

/// A server, ended when this is dropped.
pub(crate) struct Etcd {
    _child: Child,
    pub(crate) store: EtcdStore,
    /// `[store]` of those who share it.
    pub(crate) sections: String,
}

impl Etcd {
    /// Starts `etcd` and waits until it answers.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub(crate) async fn start(directory: &Path) -> anyhow::Result<Self> {
        let (client, peer) = (format!("http://127.0.0.1:{}", port()?), format!("http://127.0.0.1:{}", port()?));
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(directory.join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("etcd, which is the store of the measured fleet (Debian: etcd-server)")?;
        let settings = config::EtcdStore { servers: vec![client.clone()], ..config::EtcdStore::default() };
        let store = EtcdStore::open(&settings)?;
        let end = tokio::time::Instant::now() + START;
        while let Err(StoreError::Unavailable(why)) = store.get("host/1").await {
            ensure!(tokio::time::Instant::now() < end, "etcd did not start: {why}");
            tokio::time::sleep(LOOK).await;
        }
        let sections = format!("[store]\nengine = \"etcd\"\n[store.etcd]\nservers = [{client:?}]\n");
        Ok(Self { _child: child, store, sections })
    }
}

/// A port that was free a moment ago, for those who cannot choose one and say which.
pub(crate) fn port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
