//! `rotate-keys`: a worker host changes its WireGuard key and its certificate while it serves.
//!
//! ```text
//! next keys → a second socket that serves with them → the host's row names them → edges make sessions to them
//!           → what is open on the old ones ends in its own time → the old ones are out of use
//! ```
//!
//! Until the row is written nothing has changed, and a failure leaves it so. The files of the next keys take the
//! place of the old ones after that; a host that ended in between finds its row with the next keys, and
//! goes by it ([`super::own_row`]).

use super::HostTable;
use crate::admin::api::{Admin, Problem};
use crate::host::{Order, row};
use crate::machine_keys::End;
use anyhow::{Context, ensure};
use config::Config;
use http::StatusCode;
use router::papers;
use router::registry::RegistryRow;
use router::route::{HostId, HostRow};
use router::store::Store;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, oneshot};

/// How long the old keys are good for, unless it is said (chosen: a long download, and an edge cut off from the store).
const OLD_FOR: Duration = Duration::from_secs(3600);

/// What a worker host needs to change its keys.
pub struct Rotation {
    /// Its config.
    pub config: Config,
    /// Its thread.
    pub(crate) orders: mpsc::Sender<Order>,
    /// One at a time.
    pub(crate) turn: Mutex<()>,
}

/// Body of `POST /v1/rotate-keys`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Asked {
    /// Where the next socket listens; the address of the present one and a free port.
    listen: Option<SocketAddr>,
    /// How long the old keys are good for, seconds.
    old_for_s: Option<u64>,
}

/// Changes the keys of this host.
///
/// # Errors
/// Nothing has changed then: what was wrong.
pub(crate) async fn rotate(admin: &Admin, asked: Asked) -> Result<Value, Problem> {
    let alone = || (StatusCode::CONFLICT, "this process is no worker host of a fleet".to_owned());
    let rotation = admin.rotation.as_ref().ok_or_else(alone)?;
    let hosts = admin.hosts.as_ref().ok_or_else(alone)?.own();
    let _turn = rotation.turn.lock().await;
    let old_for = asked.old_for_s.map_or(OLD_FOR, Duration::from_secs);
    let done = change(rotation, hosts, &admin.stores.routes, admin.host, asked.listen, old_for).await;
    if done.is_err() {
        drop(rotation.orders.send(Order::GiveUp).await);
    }
    done.map_err(|error| (StatusCode::CONFLICT, format!("{error:#}; the keys are as they were")))
}

async fn change(
    rotation: &Rotation,
    hosts: &HostTable,
    store: &Store,
    own: HostId,
    listen: Option<SocketAddr>,
    old_for: Duration,
) -> anyhow::Result<Value> {
    let Rotation { config, orders, .. } = rotation;
    let next = End::next_of_host(config)?;
    let signing = next.signing.clone();
    let named = row(&next, &config.fleet.name, own, SocketAddr::from(([0, 0, 0, 0], 0)));
    let listen = listen.unwrap_or_else(|| SocketAddr::new(config.backhaul.listen.ip(), 0));
    let (told, hears) = oneshot::channel();
    orders.send(Order::Begin(Box::new(next), listen, told)).await.context("the host ends")?;
    let listens = hears.await.context("the host ends")??;

    let key = HostRow::key(own);
    let entry = store.get(&key).await?.context("its row is gone")?;
    let present = hosts.believed(HostRow::decode(&key, &entry.value)?)?;
    let known = hosts.lookup(own).context("it was let go")?;
    ensure!(present.wireguard_key == known.wireguard_key, "its row has another key");
    let ip = match config.fleet.endpoint {
        Some(endpoint) => endpoint.ip(),
        None if listens.ip().is_unspecified() => present.endpoint.ip(),
        None => listens.ip(),
    };
    let endpoint = SocketAddr::new(ip, listens.port());
    let HostRow { wireguard_key, address, spki_pins, .. } = named;
    let changed = papers::renew(HostRow { wireguard_key, address, spki_pins, endpoint, ..present }, &signing);
    store.compare_and_set(&key, Some(entry.version), Some(&RegistryRow::encode(&changed))).await?;
    // From here on it has happened.
    if let Err(error) = End::promote(config) {
        tracing::error!(
            error = format!("{error:#}"),
            "the next keys serve, but their files are not in place; the next start does it"
        );
    }
    drop(orders.send(Order::Change(old_for)).await);
    Ok(json!({ "key": changed.wireguard_key, "endpoint": endpoint, "old_for_s": old_for.as_secs() }))
}

/// The `Rotation` of a host.
#[must_use]
pub(crate) fn rotation(config: &Config, orders: mpsc::Sender<Order>) -> Arc<Rotation> {
    Arc::new(Rotation { config: config.clone(), orders, turn: Mutex::new(()) })
}
