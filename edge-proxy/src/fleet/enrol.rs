//! `edge-proxy fleet`: who belongs to it. It works on the store itself, with the config file of whoever
//! may write there; no machine can enrol another one.

use super::{add_host, endpoint, place};
use crate::cli::{Exit, failed};
use crate::machine_keys::{self, End};
use crate::stores;
use anyhow::{Context, bail, ensure};
use backhaul::keys::PublicKey;
use clap::Subcommand;
use config::Config;
use router::hosts::is_name;
use router::papers::{self, Enrolled, KEYS_MAX};
use router::pops::{EdgeProcess, PROCESSES_MAX, PopRow};
use router::registry::{Merged, Registry, RegistryRow};
use router::roles::{self, Role, Writer};
use router::route::{HostId, HostRow};
use router::rows::{ROW_VERSION, SPRITE_PREFIX, SpriteRow};
use router::signing::{Operators, PublicKey as Signs, SigningKey};
use router::store::{Entry, Store};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

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
    /// Say that a sprite may be made on a host; asked for where operators sign. For one whose host is lost too: it
    /// may be made again on another one.
    Place {
        /// The sprite.
        name: String,
        /// The host.
        #[arg(long)]
        host: String,
        /// Whose it will be; a name that was in use stays its tenant's.
        #[arg(long, default_value = "local")]
        tenant: String,
        /// The first generation there, when the store no longer says which was the last.
        #[arg(long, value_name = "NUMBER")]
        generation: Option<u64>,
    },
    /// Sign sprites anew where they are.
    Sign {
        /// Which.
        names: Vec<String>,
        /// Every sprite and every machine: before an operator's key goes out of use.
        #[arg(long, conflicts_with = "names")]
        all: bool,
        /// Also what nobody has signed, as it stands: when a fleet begins to sign.
        #[arg(long)]
        unsigned: bool,
    },
    /// Who may write what in the store.
    Roles,
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
        /// The key it signs its rows with; needed where operators sign.
        #[arg(long, value_name = "BASE64URL", allow_hyphen_values = true)]
        signing: Option<String>,
        /// A new host: its number; the next that is free in all regions of this config file when left out.
        #[arg(long)]
        number: Option<u32>,
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

/// Who runs `fleet`: a key where operators sign, none elsewhere.
pub(super) struct Operator {
    /// Whose word counts.
    pub(super) all: Operators,
    /// Its own.
    pub(super) key: Option<SigningKey>,
}

impl Operator {
    /// The row with papers of this operator, if one signs here.
    fn enrols<R: RegistryRow + Enrolled>(&self, row: R, keys: Vec<Signs>, removed: bool, before: Option<&R>) -> R {
        let before = before.filter(|row| self.believes(*row)).and_then(Enrolled::papers);
        match &self.key {
            Some(key) => papers::enrol(row, keys, removed, before, now(), key),
            None => row,
        }
    }

    /// Whether who wrote a row may have.
    fn believes<R: RegistryRow>(&self, row: &R) -> bool {
        row.check(None, &self.all).is_ok()
    }

    /// The signing key of a machine, which must have one where operators sign.
    fn signing(&self, text: Option<&String>) -> anyhow::Result<Vec<Signs>> {
        let key = text.map(|text| text.parse::<Signs>()).transpose();
        let key = key.map_err(|error| anyhow::anyhow!("--signing: {error}"))?;
        ensure!(key.is_some() || self.key.is_none(), "--signing: the key it signs its rows with (`fleet keys` has it)");
        Ok(key.into_iter().collect())
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn work(config: &Config, command: FleetCommand) -> anyhow::Result<Value> {
    match command {
        FleetCommand::Keys => return keys(config),
        FleetCommand::Roles => return Ok(table()),
        _ => {}
    }
    let store: Store = Arc::new(Writer::new(stores::shared(config).await?, Role::Operator, None));
    match &command {
        FleetCommand::Host(MachineCommand::List) => return list::<HostRow>(config, &store).await,
        FleetCommand::Pop(MachineCommand::List) => return list::<PopRow>(config, &store).await,
        _ => {}
    }
    let operator = Operator { all: machine_keys::operators(config)?, key: machine_keys::operator(config)? };
    match command {
        FleetCommand::Keys | FleetCommand::Roles => unreachable!("answered above"),
        FleetCommand::Host(MachineCommand::List) | FleetCommand::Pop(MachineCommand::List) => {
            unreachable!("answered above")
        }
        FleetCommand::Host(MachineCommand::Add { name, key, pin, endpoint, signing, number, .. }) => {
            let endpoint = endpoint.context("--endpoint: where edges reach its WireGuard socket")?;
            let signing = operator.signing(signing.as_ref())?;
            let number = Number { asked: number.map(HostId), config };
            add(&store, &operator, number, &name, &key, &pin, endpoint, signing).await
        }
        FleetCommand::Host(MachineCommand::Remove { name, force }) => {
            remove_host(&store, &operator, &name, force).await
        }
        FleetCommand::Pop(MachineCommand::Add { name, key, pin, endpoint: None, number: None, signing, replace }) => {
            let signing = operator.signing(signing.as_ref())?;
            add_pop(&store, &operator, &name, &key, &pin, signing, replace).await
        }
        FleetCommand::Pop(MachineCommand::Add { number: Some(_), .. }) => bail!("--number: a PoP has none"),
        FleetCommand::Pop(MachineCommand::Add { .. }) => bail!("--endpoint: edges call, nobody calls them"),
        FleetCommand::Pop(MachineCommand::Remove { name, .. }) => {
            let present = find::<PopRow>(&store, |row| row.name == name && !row.is_removed()).await?;
            let (row, entry) = present.with_context(|| no("PoP", &name))?;
            let_go(&store, &operator, row, &entry).await?;
            Ok(json!({ "removed": name }))
        }
        FleetCommand::Place { name, host, tenant, generation } => {
            place::place(&store, &operator, &name, &host, &tenant, generation).await
        }
        FleetCommand::Sign { names, all, unsigned } => place::sign(&store, &operator, &names, all, unsigned).await,
    }
}

/// The table of `router/src/roles.rs`.
fn table() -> Value {
    let line = |line: &roles::Rights| {
        json!({
            "prefix": line.prefix,
            "operator": line.operator.to_string(),
            "host": line.host.to_string(),
            "edge": line.edge.to_string(),
            "what": line.what,
        })
    };
    roles::TABLE.iter().map(line).collect::<Vec<_>>().into()
}

/// Deletes the row of a machine; where operators sign, leaves one that says that it was let go.
async fn let_go<R: RegistryRow + Enrolled>(
    store: &Store,
    operator: &Operator,
    row: R,
    entry: &Entry,
) -> anyhow::Result<()> {
    let gone = operator.key.as_ref().map(|_| {
        let keys = row.papers().map(|papers| papers.enrolment.keys.clone()).unwrap_or_default();
        let row = operator.enrols(row.clone(), keys, true, Some(&row));
        RegistryRow::encode(&row)
    });
    store.compare_and_set(&entry.key, Some(entry.version), gone.as_deref()).await?;
    Ok(())
}

fn no(what: &str, name: &str) -> String {
    format!("there is no {what} {name}")
}

/// The public halves only.
fn keys(config: &Config) -> anyhow::Result<Value> {
    ensure!(!config.fleet.name.is_empty(), "fleet.name: this machine has none");
    let (host, edge) = (End::of_host(config)?, End::of_edge(config)?);
    let (key, pin, name) = (edge.key.public(), edge.identity.pin(), &config.fleet.name);
    let signing = edge.signing.public();
    // A PoP needs no address; a host that has none yet is told so in its place.
    let host = endpoint(config).and_then(|_| add_host(config, &host)).unwrap_or_else(|error| error.to_string());
    Ok(json!({
        "as_pop": format!("edge-proxy fleet pop add {name} --key {key} --pin {pin} --signing {signing} --config FILE"),
        "as_host": host,
    }))
}

#[expect(clippy::too_many_arguments, reason = "each is what its option of the command says")]
async fn add(
    store: &Store,
    operator: &Operator,
    number: Number<'_>,
    name: &str,
    key: &str,
    pin: &str,
    endpoint: SocketAddr,
    signing: Vec<Signs>,
) -> anyhow::Result<Value> {
    let key = public_key(key)?;
    let all = rows::<HostRow>(store).await?;
    let named = all.iter().filter(|(row, _)| row.name == name && !row.is_removed());
    // One that was written before operators signed is better than none.
    let present = named.max_by_key(|(row, _)| operator.believes(row));
    let number = match present {
        Some((row, _)) => row.number,
        None => number.pick(&all).await?,
    };
    let address = key.derived_address();
    let row = HostRow {
        name: name.into(),
        number,
        wireguard_key: key.to_string(),
        endpoint,
        address,
        spki_pins: vec![pin.to_ascii_lowercase()],
        papers: None,
    };
    let taken = |other: &HostRow| other.number != number && other.address == address && !other.is_removed();
    let taken = all.iter().find(|(other, _)| taken(other));
    if let Some((other, _)) = taken {
        bail!("--key: it is host {}'s", other.name);
    }
    let row = operator.enrols(row, signing, false, present.map(|(row, _)| row));
    write(store, &HostRow::key(number), &row, present.map(|(_, entry)| entry.version)).await
}

/// Which number a new host gets.
struct Number<'a> {
    asked: Option<HostId>,
    config: &'a Config,
}

impl Number<'_> {
    /// Numbers stand in routes, and routes of several regions in one table: one that was given away is not given to
    /// another while any is left, here or in another region. `own` are the hosts of this one.
    async fn pick(&self, own: &[(HostRow, Entry)]) -> anyhow::Result<HostId> {
        let mut taken: BTreeSet<HostId> = own.iter().map(|(row, _)| row.number).collect();
        for region in &self.config.regions {
            let rows = async { rows::<HostRow>(&stores::other(self.config, region, true).await?).await };
            match rows.await {
                Ok(rows) => taken.extend(rows.iter().map(|(row, _)| row.number)),
                // The operator knows what he does.
                Err(_) if self.asked.is_some() => {}
                Err(error) => {
                    let name = &region.name;
                    return Err(
                        error.context(format!("region {name} does not say which numbers are taken; --number says one"))
                    );
                }
            }
        }
        match self.asked {
            Some(asked) if taken.contains(&asked) => bail!("--number: {} is another host's", asked.0),
            Some(asked) => Ok(asked),
            None => Ok(HostId(taken.last().map_or(1, |highest| highest.0 + 1))),
        }
    }
}

async fn add_pop(
    store: &Store,
    operator: &Operator,
    name: &str,
    key: &str,
    pin: &str,
    signing: Vec<Signs>,
    replace: bool,
) -> anyhow::Result<Value> {
    ensure!(is_name(name), "{name:?}: a name is 1 to 63 small letters, digits or -");
    let key = public_key(key)?;
    let present = find::<PopRow>(store, |row| row.name == name).await?;
    let process = EdgeProcess {
        wireguard_key: key.to_string(),
        address: key.derived_address(),
        spki_pins: vec![pin.to_ascii_lowercase()],
    };
    // Nothing of a row is kept that somebody else may have put there.
    let known = present.as_ref().map(|(row, _)| row).filter(|row| operator.key.is_none() || operator.believes(*row));
    let known = known.filter(|row| !replace && !row.is_removed());
    let mut processes = known.map(|row| row.processes.clone()).unwrap_or_default();
    let before = known.and_then(|row| row.papers.as_ref());
    let mut keys = before.map(|papers| papers.enrolment.keys.clone()).unwrap_or_default();
    keys.retain(|known| !signing.contains(known));
    keys.extend(signing);
    ensure!(keys.len() <= KEYS_MAX, "PoP {name} has {KEYS_MAX} signing keys already; --replace forgets them");
    processes.retain(|known| known.wireguard_key != process.wireguard_key);
    processes.push(process);
    ensure!(
        processes.len() <= PROCESSES_MAX,
        "PoP {name} has {PROCESSES_MAX} edge processes already; --replace forgets them"
    );
    let row = PopRow { version: ROW_VERSION, name: name.into(), processes, papers: None };
    let row = operator.enrols(row, keys, false, present.as_ref().map(|(row, _)| row));
    write(store, &PopRow::key(name), &row, present.map(|(_, entry)| entry.version)).await
}

/// Checked as everybody will check it, so that no row is written that all would set aside.
async fn write<R: RegistryRow>(store: &Store, key: &str, row: &R, version: Option<u64>) -> anyhow::Result<Value> {
    let value = row.encode();
    R::decode(key, &value)?;
    store.compare_and_set(key, version, Some(&value)).await?;
    Ok(serde_json::from_slice(&value)?)
}

async fn remove_host(store: &Store, operator: &Operator, name: &str, force: bool) -> anyhow::Result<Value> {
    let present = find::<HostRow>(store, |row| row.name == name && !row.is_removed()).await?;
    let (row, entry) = present.with_context(|| no("host", name))?;
    let sprites = store.scan(SPRITE_PREFIX).await?;
    let placed = sprites.iter().filter_map(|entry| SpriteRow::decode(&entry.key, &entry.value).ok());
    let placed = placed.filter(|(_, sprite)| sprite.host == row.number && !sprite.deleted).count();
    ensure!(placed == 0 || force, "{placed} sprites are placed on host {name}; move them first, or --force");
    let_go(store, operator, row, &entry).await?;
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

/// Those there are; of several regions also whose they are, and which of them do not count where this machine's own
/// region comes first.
async fn list<R: RegistryRow>(config: &Config, store: &Store) -> anyhow::Result<Value> {
    let mut regions: Vec<(&str, Vec<R>)> = vec![(&config.fleet.region, all_rows(store).await?)];
    for region in &config.regions {
        let rows = async { all_rows(&stores::other(config, region, true).await?).await };
        match rows.await {
            Ok(rows) => regions.push((&region.name, rows)),
            Err(error) => eprintln!("edge-proxy: region {} is left out: {error:#}", region.name),
        }
    }
    let mut feeds = regions.iter().map(|(name, rows)| {
        let registry = Registry::new();
        rows.iter().cloned().for_each(|row| registry.apply_put(row));
        (Box::from(*name), Arc::new(registry))
    });
    let own = feeds.next().context("there is the own region")?;
    let merged = Merged::new(own, feeds.collect());
    let overruled = merged.overruled();
    let mut shown = Vec::new();
    for (name, rows) in &regions {
        for row in rows.iter().filter(|row| !row.is_removed()) {
            let mut value: Value = serde_json::from_slice(&row.encode())?;
            if !config.regions.is_empty() {
                let by = overruled.iter().find(|other| *other.region == **name && other.id == row.id());
                value["region"] = (*name).into();
                value["overruled_by"] = by.map(|row| &*row.by).into();
            }
            shown.push(value);
        }
    }
    Ok(shown.into())
}

async fn all_rows<R: RegistryRow>(store: &Store) -> anyhow::Result<Vec<R>> {
    Ok(rows::<R>(store).await?.into_iter().map(|(row, _)| row).collect())
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
                let region = match (row["region"].as_str(), row["overruled_by"].as_str()) {
                    (Some(region), Some(by)) => format!(" {region:12} does not count: it is another machine of {by}"),
                    (Some(region), None) => format!(" {region}"),
                    (None, _) => String::new(),
                };
                match row.get("number") {
                    _ if row.get("prefix").is_some() => println!(
                        "{:12} operator: {:14} host: {:14} edge: {:14} {}",
                        text("prefix"),
                        text("operator"),
                        text("host"),
                        text("edge"),
                        text("what")
                    ),
                    Some(number) => println!("{:4} {:20} {}{region}", number, text("name"), text("endpoint")),
                    None => println!(
                        "{:20} {} edge processes{region}",
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: MachineCommand,
    }

    #[test]
    fn a_key_that_begins_with_a_dash_is_a_key() {
        // One of 64 does.
        let line = ["x", "add", "a", "--key", "k", "--pin", "p", "--signing", "-Fx_", "--replace"];
        let MachineCommand::Add { signing, replace, .. } = Line::parse_from(line).command else { panic!("no add") };
        assert_eq!((signing.as_deref(), replace), (Some("-Fx_"), true));
    }
}
