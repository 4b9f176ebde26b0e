//! The embedded store between machines: served by the one whose file it is, used by all others.

use crate::machine_keys::End;
use anyhow::Context;
use backhaul::session::{Identity, Pins, pin_of, shared_pins};
use config::Config;
use router::hosts::HostTable;
use router::pops::{PopRow, PopTable};
use router::roles::{Role, Writer};
use router::route::HostRow;
use router::store::Store;
use router::store::primary::{PrimaryStore, server};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What both ends say they speak (RFC 7301).
const PROTOCOL: &[u8] = b"sprite-store/1";
/// Connections served at the same time (chosen: a machine has one for each of its five feeds, and one for each
/// call that is under way; a fleet on one file has some dozens of machines).
const CONNECTIONS_MAX: usize = 1_024;
/// A handshake that takes longer ends (chosen).
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Pause after an accept that failed: too many files are open (chosen).
const NO_FILES: Duration = Duration::from_millis(100);

/// The store of a primary, for a machine with this identity.
///
/// # Errors
/// The address, and what is wrong with it.
pub(crate) fn client(server: &str, pins: &[String], identity: &Identity) -> anyhow::Result<Store> {
    let tls = TlsConnector::from(Arc::new(identity.tls_client(pins, PROTOCOL)?));
    Ok(Arc::new(PrimaryStore::open(server, tls).context("store engine primary")?))
}

/// Who may come, and as what.
struct Peers {
    hosts: Arc<HostTable>,
    pops: Arc<PopTable>,
    /// Of this machine itself, and of the operators the config file names.
    operators: Vec<String>,
}

impl Peers {
    /// The role of whoever has this pin, and the key of its own row.
    fn role(&self, pin: &str) -> Option<(Role, Option<String>)> {
        if self.operators.iter().any(|operator| operator.eq_ignore_ascii_case(pin)) {
            return Some((Role::Operator, None));
        }
        let host = self.hosts.all().into_iter().find(|host| host.spki_pins.iter().any(|of| of == pin));
        if let Some(host) = host {
            return Some((Role::Host, Some(HostRow::key(host.number))));
        }
        let has = |pop: &PopRow| pop.processes.iter().any(|process| process.spki_pins.iter().any(|of| of == pin));
        let pop = self.pops.all().into_iter().find(|pop| has(pop))?;
        Some((Role::Edge, Some(PopRow::key(&pop.name))))
    }

    fn pins(&self) -> Vec<String> {
        let hosts = self.hosts.all();
        let pops = self.pops.all();
        let of_hosts = hosts.iter().flat_map(|host| host.spki_pins.iter().cloned());
        let of_pops = pops.iter().flat_map(|pop| &pop.processes).flat_map(|process| process.spki_pins.iter().cloned());
        of_hosts.chain(of_pops).chain(self.operators.iter().cloned()).collect()
    }

    fn changes(&self) -> Changes {
        Changes { hosts: self.hosts.changes(), pops: self.pops.changes() }
    }
}

/// Sees each change of the rows since it was made.
struct Changes {
    hosts: watch::Receiver<u64>,
    pops: watch::Receiver<u64>,
}

impl Changes {
    /// Returns when one of the rows has changed, or the tables are gone.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.hosts.changed() => {}
            _ = self.pops.changed() => {}
        }
    }
}

/// Serves `store` at `store.embedded.serve` to the machines that are enrolled in it, on the current runtime;
/// where it listens. A machine that is let go is let go at once. It is known by the certificate of the process which has
/// the file: a worker host's or an edge's.
///
/// # Errors
/// The address cannot be had, or a key not be read.
pub(crate) async fn serve(
    config: &Config,
    is_host: bool,
    at: SocketAddr,
    store: &Store,
    hosts: &Arc<HostTable>,
    pops: &Arc<PopTable>,
) -> anyhow::Result<SocketAddr> {
    let ends = own(config)?;
    let operators = ends.iter().map(|end| end.identity.pin().to_owned());
    let operators = operators.chain(config.store.embedded.operators.iter().cloned()).collect();
    let peers = Arc::new(Peers { hosts: Arc::clone(hosts), pops: Arc::clone(pops), operators });
    let pins = shared_pins(peers.pins().iter());
    let acceptor = TlsAcceptor::from(Arc::new(ends[usize::from(!is_host)].identity.tls_server(&pins, PROTOCOL)?));
    let listener = TcpListener::bind(at).await.with_context(|| format!("store.embedded.serve: {at}"))?;
    let listens = listener.local_addr()?;
    tokio::spawn(keep(Arc::clone(&peers), pins));
    tokio::spawn(accept(listener, acceptor, peers, Arc::clone(store)));
    tracing::info!(%listens, "the store is served to the fleet");
    Ok(listens)
}

/// Both ends of this machine: whichever process has the file, `edge-proxy fleet` beside it is no stranger.
///
/// # Errors
/// A key that cannot be read.
pub(crate) fn own(config: &Config) -> anyhow::Result<[End; 2]> {
    Ok([End::of_host(config)?, End::of_edge(config)?])
}

async fn keep(peers: Arc<Peers>, pins: Pins) {
    let mut changes = peers.changes();
    loop {
        pins.store(Arc::new(peers.pins().iter().map(|pin| pin.to_ascii_lowercase()).collect()));
        changes.next().await;
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, peers: Arc<Peers>, store: Store) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection to the store accepted");
                tokio::time::sleep(NO_FILES).await;
                continue;
            }
        };
        let (acceptor, peers, store) = (acceptor.clone(), Arc::clone(&peers), Arc::clone(&store));
        tokio::spawn(async move {
            if let Err(error) = one(tcp, &acceptor, &peers, store).await {
                tracing::debug!(%from, error = %format!("{error:#}"), "a connection to the store was refused");
            }
            drop(place);
        });
    }
}

async fn one(tcp: TcpStream, acceptor: &TlsAcceptor, peers: &Peers, store: Store) -> anyhow::Result<()> {
    tcp.set_nodelay(true)?;
    let tls = tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await.context("no handshake in time")??;
    let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).context("no certificate")?;
    let pin = pin_of(certificate)?;
    let mut changes = peers.changes();
    let admitted = peers.role(&pin).context("let go meanwhile")?;
    let (role, own) = admitted.clone();
    let let_go = async {
        while peers.role(&pin).as_ref() == Some(&admitted) {
            changes.next().await;
        }
    };
    tokio::select! {
        () = server::serve(tls, Arc::new(Writer::new(store, role, own))) => {}
        () = let_go => tracing::info!(pin, "a machine was let go: its connection to the store ends"),
    }
    Ok(())
}
