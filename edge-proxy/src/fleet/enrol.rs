//! `edge-proxy fleet`: who belongs to it. It works on the store itself, with the config file of whoever
//! may write there; no machine can enrol another one.

use super::{add_host, endpoint};
use crate::cli::{Exit, failed};
use crate::machine_keys::End;
use crate::stores;
use anyhow::{Context, bail, ensure};
use backhaul::keys::PublicKey;
use clap::Subcommand;
use config::Config;
use router::hosts::is_name;
use router::pops::{EdgeProcess, PROCESSES_MAX, PopRow};
use router::registry::RegistryRow;
use router::route::{HostId, HostRow};
use router::rows::{ROW_VERSION, SPRITE_PREFIX, SpriteRow};
use router::store::{Entry, Store};
use serde_json::{Value, json};
use std::net::SocketAddr;

/// What is done to the fleet.
#[derive(Debug, Subcommand)]
pub enum FleetCommand {
    /// The public halves of this machine's keys, and the commands that enrol it.
    Keys,
    /// Worker hosts.
    #[command(subcommand)]
    Host(MachineCommand),
    /// `PoPs`.
    #[command(subcommand)]
    Pop(MachineCommand),
}

/// What is done to one kind of machine.
#[derive(Debug, Subcommand)]
pub enum MachineCommand {
    /// Enrol it, or change what is known of it. A PoP may have two edge processes: a second key is
    /// added beside the first.
    Add {
        /// Its name, as in its own config file (fleet.name).
        name: String,
        /// Its WireGuard public key.
        #[arg(long, value_name = "BASE64")]
        key: String,
        /// The pin of its certificate, SHA-256 of its public key.
        #[arg(long, value_name = "HEX")]
        pin: String,
        /// A host: where edges reach its WireGuard socket.
        #[arg(long, value_name = "ADDRESS")]
        endpoint: Option<SocketAddr>,
        /// A PoP: forget its other keys.
        #[arg(long)]
        replace: bool,
    },
    /// Let it go: nobody speaks with it any more.
    Remove {
        /// Its name.
        name: String,
        /// A host: although sprites are placed on it.
        #[arg(long)]
        force: bool,
    },
    /// Those there are.
    List,
}

/// Runs it.
pub fn run(config: &Config, command: FleetCommand, json: bool) -> Exit {
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(work(config, command)));
    match done {
        Ok(value) => {
            print(&value, json);
            Exit::Done
        }
        Err(error) => failed(&format!("{error:#}")),
    }
}

async fn work(config: &Config, command: FleetCommand) -> anyhow::Result<Value> {
    if let FleetCommand::Keys = command {
        return keys(config);
    }
    let store = stores::shared(config).await?;
    match command {
        FleetCommand::Keys => unreachable!("answered above"),
        FleetCommand::Host(MachineCommand::Add { name, key, pin, endpoint, .. }) => {
            let endpoint = endpoint.context("--endpoint: where edges reach its WireGuard socket")?;
            add(&store, &name, &key, &pin, endpoint).await
        }
        FleetCommand::Host(MachineCommand::Remove { name, force }) => remove_host(&store, &name, force).await,
        FleetCommand::Host(MachineCommand::List) => list::<HostRow>(&store).await,
        FleetCommand::Pop(MachineCommand::Add { name, key, pin, endpoint: None, replace }) => {
            add_pop(&store, &name, &key, &pin, replace).await
        }
        FleetCommand::Pop(MachineCommand::Add { .. }) => bail!("--endpoint: edges call, nobody calls them"),
        FleetCommand::Pop(MachineCommand::Remove { name, .. }) => {
            let (_, entry) = find::<PopRow>(&store, |row| row.name == name).await?.with_context(|| no("PoP", &name))?;
            store.compare_and_set(&entry.key, Some(entry.version), None).await?;
            Ok(json!({ "removed": name }))
        }
        FleetCommand::Pop(MachineCommand::List) => list::<PopRow>(&store).await,
    }
}

fn no(what: &str, name: &str) -> String {
    format!("there is no {what} {name}")
}

/// The public halves only.
fn keys(config: &Config) -> anyhow::Result<Value> {
    ensure!(!config.fleet.name.is_empty(), "fleet.name: this machine has none");
    let (host, edge) = (End::of_host(config)?, End::of_edge(config)?);
    let (key, pin, name) = (edge.key.public(), edge.identity.pin(), &config.fleet.name);
    // A PoP needs no address; a host that has none yet is told so in its place.
    let host = endpoint(config).and_then(|_| add_host(config, &host)).unwrap_or_else(|error| error.to_string());
    Ok(json!({
        "as_pop": format!("edge-proxy fleet pop add {name} --key {key} --pin {pin} --config FILE"),
        "as_host": host,
    }))
}

async fn add(store: &Store, name: &str, key: &str, pin: &str, endpoint: SocketAddr) -> anyhow::Result<Value> {
    let key = public_key(key)?;
    let all = rows::<HostRow>(store).await?;
    let present = all.iter().find(|(row, _)| row.name == name);
    let highest = all.iter().map(|(row, _)| row.number.0).max();
    // Numbers stand in routes: one that was given away is not given to another while any is left.
    let next = HostId(highest.map_or(1, |number| number + 1));
    let number = present.map_or(next, |(row, _)| row.number);
    let address = key.derived_address();
    let row = HostRow {
        name: name.into(),
        number,
        wireguard_key: key.to_string(),
        endpoint,
        address,
        spki_pins: vec![pin.to_ascii_lowercase()],
    };
    let taken = all.iter().find(|(other, _)| other.number != number && other.address == address);
    if let Some((other, _)) = taken {
        bail!("--key: it is host {}'s", other.name);
    }
    write(store, &HostRow::key(number), &row, present.map(|(_, entry)| entry.version)).await
}

async fn add_pop(store: &Store, name: &str, key: &str, pin: &str, replace: bool) -> anyhow::Result<Value> {
    ensure!(is_name(name), "{name:?}: a name is 1 to 63 small letters, digits or -");
    let key = public_key(key)?;
    let present = find::<PopRow>(store, |row| row.name == name).await?;
    let process = EdgeProcess {
        wireguard_key: key.to_string(),
        address: key.derived_address(),
        spki_pins: vec![pin.to_ascii_lowercase()],
    };
    let mut processes = match &present {
        Some((row, _)) if !replace => row.processes.clone(),
        _ => Vec::new(),
    };
    processes.retain(|known| known.wireguard_key != process.wireguard_key);
    processes.push(process);
    ensure!(
        processes.len() <= PROCESSES_MAX,
        "PoP {name} has {PROCESSES_MAX} edge processes already; --replace forgets them"
    );
    let row = PopRow { version: ROW_VERSION, name: name.into(), processes };
    write(store, &PopRow::key(name), &row, present.map(|(_, entry)| entry.version)).await
}

/// Checked as everybody will check it, so that no row is written that all would set aside.
async fn write<R: RegistryRow>(store: &Store, key: &str, row: &R, version: Option<u64>) -> anyhow::Result<Value> {
    let value = row.encode();
    R::decode(key, &value)?;
    store.compare_and_set(key, version, Some(&value)).await?;
    Ok(serde_json::from_slice(&value)?)
}

async fn remove_host(store: &Store, name: &str, force: bool) -> anyhow::Result<Value> {
    let (row, entry) = find::<HostRow>(store, |row| row.name == name).await?.with_context(|| no("host", name))?;
    let sprites = store.scan(SPRITE_PREFIX).await?;
    let placed = sprites.iter().filter_map(|entry| SpriteRow::decode(&entry.key, &entry.value).ok());
    let placed = placed.filter(|(_, sprite)| sprite.host == row.number && !sprite.deleted).count();
    ensure!(placed == 0 || force, "{placed} sprites are placed on host {name}; move them first, or --force");
    store.compare_and_set(&entry.key, Some(entry.version), None).await?;
    Ok(json!({ "removed": name, "sprites_left": placed }))
}

fn public_key(text: &str) -> anyhow::Result<PublicKey> {
    text.parse().map_err(|error| anyhow::anyhow!("--key: {error}"))
}

async fn rows<R: RegistryRow>(store: &Store) -> anyhow::Result<Vec<(R, Entry)>> {
    let mut rows = Vec::new();
    for entry in store.scan(R::PREFIX).await? {
        match R::decode(&entry.key, &entry.value) {
            Ok(row) => rows.push((row, entry)),
            Err(error) => eprintln!("edge-proxy: {} is left out: {error}", entry.key),
        }
    }
    Ok(rows)
}

async fn find<R: RegistryRow>(store: &Store, is: impl Fn(&R) -> bool) -> anyhow::Result<Option<(R, Entry)>> {
    Ok(rows(store).await?.into_iter().find(|(row, _)| is(row)))
}

async fn list<R: RegistryRow>(store: &Store) -> anyhow::Result<Value> {
    let rows = rows::<R>(store).await?;
    let shown: Result<Vec<Value>, _> = rows.iter().map(|(row, _)| serde_json::from_slice(&row.encode())).collect();
    Ok(shown?.into())
}

/// One line for each row or field.
fn print(value: &Value, json: bool) {
    if json {
        return println!("{value}");
    }
    match value {
        Value::Array(rows) => {
            for row in rows {
                let text = |field: &str| row[field].as_str().unwrap_or("").to_owned();
                match row.get("number") {
                    Some(number) => println!("{:4} {:20} {}", number, text("name"), text("endpoint")),
                    None => println!(
                        "{:20} {} edge processes",
                        text("name"),
                        row["processes"].as_array().map_or(0, Vec::len)
                    ),
                }
            }
        }
        Value::Object(fields) => {
            for (field, value) in fields {
                println!("{field:14} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            }
        }
        other => println!("{other}"),
    }
}
