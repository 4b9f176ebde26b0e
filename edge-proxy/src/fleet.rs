//! This machine among others: the registry it follows, and its own place in it.

mod acks;
mod enrol;
mod handover;
mod place;
mod rotate;

pub use acks::{Acks, tell_hosts};
pub use enrol::{FleetCommand, MachineCommand, run};
pub(crate) use handover::give;
pub use handover::{Giving, Moving, call_off_cut_short, clear_up, leaving, receive};
pub use rotate::Rotation;
pub(crate) use rotate::{rotate, rotation};

use crate::host;
use crate::machine_keys::End;
use crate::stores::RegionStore;
use crate::tables::FollowedRegion;
use anyhow::{Context, bail};
use config::Config;
use router::handover::Handovers;
use router::hosts::HostTable;
use router::papers;
use router::pops::PopRow;
use router::registry::{Merged, Registry, RegistryRow};
use router::route::{HostId, HostRow};
use router::signing::{Operators, SigningKey};
use router::store::Store;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a host looks for itself in the registry before it says that it is not there (chosen: an
/// engine answers within a second, and a supervisor starts us again).
const SEARCH: Duration = Duration::from_secs(10);
/// Pause between two looks at it.
const LOOK: Duration = Duration::from_millis(20);
/// Pause before the store is asked again to take this host's address (chosen).
const AGAIN: Duration = Duration::from_secs(1);

/// Every host of these regions, the own one first, as the last run knew them and then as their stores say. FollowedRegion on
/// the current runtime.
#[must_use]
pub fn hosts(feeds: &[RegionStore], operators: &Operators) -> Arc<Merged<HostRow>> {
    merged(feeds, "hosts.last-known-good", operators, router::hosts::follow)
}

/// Every PoP, likewise.
#[must_use]
pub fn pops(feeds: &[RegionStore], operators: &Operators) -> Arc<Merged<PopRow>> {
    merged(feeds, "pops.last-known-good", operators, router::pops::follow)
}

fn merged<R: RegistryRow, F: Future<Output = ()> + Send + 'static>(
    feeds: &[RegionStore],
    file: &str,
    operators: &Operators,
    follow: impl Fn(Store, Arc<Registry<R>>, PathBuf) -> F,
) -> Arc<Merged<R>> {
    let known: Vec<_> = feeds.iter().map(|feed| known::<R>(&feed.folder, file, operators)).collect();
    let of =
        |(feed, (registry, _)): (&RegionStore, &(Arc<Registry<R>>, PathBuf))| (feed.name.clone(), Arc::clone(registry));
    let mut all = feeds.iter().zip(&known).map(of);
    let own = all.next().expect("there is the own region");
    let merged = Merged::new(own, all.collect());
    for (feed, (registry, path)) in feeds.iter().zip(known) {
        let (follows, merged) = (follow(Arc::clone(&feed.store), registry, path), Arc::clone(&merged));
        tokio::spawn(async move {
            // Whoever took only what counts of it relies on its being put together.
            let _merged = merged;
            follows.await;
        });
    }
    merged
}

/// Waits until every host is known, so that no route leads to one that is not, for as long as their stores are heard:
/// a second at most.
pub async fn read(hosts: &Merged<HostRow>, regions: &[FollowedRegion]) {
    let mut waited = Duration::ZERO;
    let unread = |region: &FollowedRegion| {
        region.routes.followed().stale_for().is_none() && hosts.of(&region.name).is_some_and(|hosts| !hosts.is_read())
    };
    while regions.iter().any(unread) && waited < AGAIN {
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
}

/// Every sprite on its way, likewise.
#[must_use]
pub fn handovers(store: &Store, data_dir: &Path, operators: &Operators) -> Arc<Handovers> {
    let (handovers, path) = known(data_dir, "handovers.last-known-good", operators);
    tokio::spawn(router::handover::follow(Arc::clone(store), Arc::clone(&handovers), path));
    handovers
}

fn known<R: RegistryRow>(data_dir: &Path, file: &str, operators: &Operators) -> (Arc<Registry<R>>, PathBuf) {
    let (registry, path) = (Arc::new(Registry::trusting(operators.clone())), data_dir.join(file));
    if let Err(error) = registry.load(&path) {
        tracing::warn!(path = %path.display(), %error, "last-known-good {} rows not loaded", R::WHAT);
    }
    (registry, path)
}

/// What the registry says of this host.
///
/// # Errors
/// It is not there, or with another key: then nobody could reach it. Says how to enrol it.
pub async fn own_row(config: &Config, hosts: &HostTable) -> anyhow::Result<Arc<HostRow>> {
    let name = &config.fleet.name;
    let mut own = End::of_host(config)?;
    let mut waited = Duration::ZERO;
    loop {
        let row = hosts.all().into_iter().find(|row| row.name == *name);
        match row {
            Some(row) if row.wireguard_key == own.key.public().to_string() => return Ok(row),
            // A change of keys was cut short after the row was written.
            Some(row) if End::has_next(config) && is_next(config, &row)? => {
                End::promote(config)?;
                own = End::of_host(config)?;
            }
            Some(_) if waited >= SEARCH => {
                bail!("the registry has another key for host {name}; enrol it anew: {}", add_host(config, &own)?)
            }
            None if waited >= SEARCH => bail!("no host {name} in the registry; enrol it: {}", add_host(config, &own)?),
            Some(_) | None => {}
        }
        tokio::time::sleep(LOOK).await;
        waited += LOOK;
    }
}

/// Whether the row names the next keys of this host. Of a pair of files the first may have its place already.
fn is_next(config: &Config, row: &HostRow) -> anyhow::Result<bool> {
    Ok(row.wireguard_key == End::next_of_host(config)?.key.public().to_string())
}

/// Corrects this host's own row when edges are to reach it somewhere else than it says; goes on until
/// the store has taken it. Where operators sign it seals the row with `key`, and puts it right when
/// somebody else wrote over it.
///
/// # Cancel safety
/// Dropping it leaves the row as it is.
pub async fn announce(
    config: Config,
    store: Store,
    hosts: Arc<HostTable>,
    own: HostId,
    key: SigningKey,
    at: SocketAddr,
) {
    loop {
        match corrected(&config, &store, &hosts, own, &key, at).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "edges are not told yet where this host is"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn corrected(
    config: &Config,
    store: &Store,
    hosts: &HostTable,
    own: HostId,
    key: &SigningKey,
    listens: SocketAddr,
) -> anyhow::Result<()> {
    let known = hosts.lookup(own).context("it was let go")?;
    let endpoint = match config.fleet.endpoint {
        Some(endpoint) => endpoint,
        // On all addresses: which of them edges can reach, the operator has said.
        None if listens.ip().is_unspecified() => SocketAddr::new(known.endpoint.ip(), listens.port()),
        None => listens,
    };
    let store_key = HostRow::key(own);
    let entry = store.get(&store_key).await?.context("its row is gone")?;
    // What this host seals it has believed before, whatever stands in the store; but what an operator wrote since
    // is not written over.
    let row = match HostRow::decode(&store_key, &entry.value).and_then(|row| hosts.believed(row)) {
        Ok(row) if row.endpoint == endpoint => return Ok(()),
        Ok(row) => row,
        Err(_) if known.papers.is_some() => (*known).clone(),
        Err(error) => return Err(error.into()),
    };
    anyhow::ensure!(row.wireguard_key == known.wireguard_key, "its row has another key");
    let row = papers::renew(HostRow { endpoint, ..row }, key);
    store.compare_and_set(&store_key, Some(entry.version), Some(&row.encode())).await?;
    Ok(())
}

/// The command that enrols this worker host.
fn add_host(config: &Config, own: &End) -> anyhow::Result<String> {
    let endpoint = endpoint(config)?;
    let row = host::row(own, &config.fleet.name, HostId(0), endpoint);
    Ok(format!(
        "edge-proxy fleet host add {} --key {} --pin {} --signing {} --endpoint {endpoint} --config FILE",
        row.name,
        row.wireguard_key,
        row.spki_pins[0],
        own.signing.public()
    ))
}

/// Where edges reach this host.
fn endpoint(config: &Config) -> anyhow::Result<SocketAddr> {
    let endpoint = config.fleet.endpoint.unwrap_or(config.backhaul.listen);
    let reachable = endpoint.port() != 0 && !endpoint.ip().is_unspecified();
    reachable.then_some(endpoint).context("fleet.endpoint or backhaul.listen must say where edges reach this host")
}

#[cfg(test)]
mod tests {
    use super::*;
    use router::pops::EdgeProcess;
    use router::rows::ROW_VERSION;
    use router::store::{Embedded, EmbeddedStore};

    #[tokio::test]
    async fn what_another_region_writes_counts_for_who_kept_no_more_than_what_counts() {
        let dir = tempfile::tempdir().unwrap();
        let stores = ["fra", "ams"].map(|name| {
            let folder = dir.path().join(name);
            std::fs::create_dir_all(&folder).unwrap();
            let store: Store = Arc::new(Embedded(Arc::new(EmbeddedStore::open(&folder.join("s")).unwrap())));
            RegionStore { name: name.into(), store, bulk_delay: Duration::ZERO, folder }
        });
        let pops = Arc::clone(pops(&stores, &Operators::default()).all());
        let row = PopRow {
            version: ROW_VERSION,
            name: "a".into(),
            processes: vec![EdgeProcess {
                wireguard_key: "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=".into(),
                address: "fd00::1".parse().unwrap(),
                spki_pins: vec!["0a".repeat(32)],
            }],
            papers: None,
        };
        let mut changes = pops.changes();
        stores[1].store.compare_and_set("pop/a", None, Some(&row.encode())).await.unwrap();
        let seen = async {
            while pops.lookup("a".into()).is_none() {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(SEARCH, seen).await.expect("it counts");
    }
}
