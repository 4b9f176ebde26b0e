//! Making and destroying sprites: the definition on this host, the route for everybody.

use crate::signed_rows::Read;
use crate::stores::Stores;
use router::access::Access;
use router::names::SpriteName;
use router::route::HostId;
use router::rows::{PORTS_MAX, ROW_VERSION, SpriteRow};
use router::store::{EmbeddedStore, StoreError};
use router::wake::WakeRules;
use std::time::Duration;
use wakeup::drivers::DriverError;
use wakeup::owner::OwnerHandle;
use wakeup::spec::{DriverSpec, SpriteSpec};

/// Definitions of this host's sprites are stored under this prefix; they are not replicated.
const SPEC_PREFIX: &str = "spec/";
/// Longest command, bytes (chosen).
const COMMAND_BYTES_MAX: usize = 16 * 1024;

/// A sprite to be made.
#[derive(Clone, Debug)]
pub struct NewSprite {
    /// Its name.
    pub name: SpriteName,
    /// What it is.
    pub driver: DriverSpec,
    /// Declared ports.
    pub ports: Vec<u16>,
    /// Its own idle timeout.
    pub idle_timeout: Option<Duration>,
    /// Who may ask for it.
    pub access: Access,
    /// Who may wake it.
    pub wake: WakeRules,
}

/// Why a sprite was not made or destroyed. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum SpriteError {
    /// There is one by this name.
    #[error("a sprite {0} exists already")]
    Exists(SpriteName),
    /// There is none by this name.
    #[error("there is no sprite {0}")]
    Unknown(SpriteName),
    /// It stands in the config file, and only there can it be changed.
    #[error("{0} is defined in the config file; change it there")]
    Defined(SpriteName),
    /// A field is out of its bounds.
    #[error("{field}: {rule}")]
    Field {
        /// Which.
        field: &'static str,
        /// What would be right.
        rule: &'static str,
    },
    /// This host cannot do what it needs.
    #[error(transparent)]
    Host(DriverError),
    /// It is public: there is nothing to open.
    #[error("it is public; make it private first")]
    Public,
    /// Where operators sign, one has to say that it may be made here.
    #[error("no operator has placed {0} on this host: edge-proxy fleet place {0} --host HOST")]
    NotPlaced(SpriteName),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
    /// What is stored cannot be understood.
    #[error("what is stored for {0} cannot be read")]
    Corrupt(SpriteName),
    /// The store failed, or somebody else wrote at the same time.
    #[error("the store did not take it: {0}")]
    Store(#[from] StoreError),
}

/// Makes a sprite. When this returns it is on disk, has a route and can be woken.
///
/// # Errors
/// [`SpriteError`].
pub async fn create(
    stores: &Stores,
    owner: &OwnerHandle,
    host: HostId,
    new: NewSprite,
) -> Result<SpriteSpec, SpriteError> {
    check(&new)?;
    owner.check(&new.driver).map_err(SpriteError::Host)?;
    let NewSprite { name, driver, ports, idle_timeout, access, wake } = new;
    let (present, version) = present(stores, &name).await?;
    if present.as_ref().is_some_and(|row| !row.deleted && (row.host == host || stores.own.is_none())) {
        return Err(SpriteError::Exists(name));
    }
    let (proof, placed, tenant) = stores.placed(&name, present.as_ref()).await?;
    let generation = placed.0;
    let spec = SpriteSpec { ports: ports.clone(), idle_timeout, ..SpriteSpec::new(name.clone(), generation, driver) };
    let spec_key = format!("{SPEC_PREFIX}{name}");
    let encoded = serde_json::to_vec(&spec).map_err(|_| SpriteError::Corrupt(name.clone()))?;
    let spec_version = stores.local.get(&spec_key)?.map(|entry| entry.version);
    // The definition first: a route without one would lead to an owner that knows nothing.
    stores.local.compare_and_set(&spec_key, spec_version, Some(&encoded))?;
    let row = SpriteRow {
        version: ROW_VERSION,
        tenant,
        generation: placed,
        host,
        ports,
        access,
        wake,
        client_certificate: None,
        deleted: false,
        proof,
    };
    stores.publish(&name, row, version).await?;
    owner.upsert(spec.clone()).await;
    Ok(spec)
}

/// What stands in the place of a sprite that is to be made. What nobody who may has written is written over.
async fn present(stores: &Stores, name: &SpriteName) -> Result<(Option<SpriteRow>, Option<u64>), SpriteError> {
    match stores.own_row(name).await {
        Ok(read) => Ok(read.map_or((None, None), |(row, version)| (Some(row), Some(version)))),
        Err(SpriteError::Corrupt(_)) if stores.own.is_some() => {
            let entry = stores.routes.get(&SpriteRow::key(name)).await?;
            Ok((None, entry.map(|entry| entry.version)))
        }
        Err(error) => Err(error),
    }
}

/// The row of a sprite that exists and, where operators sign, is this host's.
pub(super) async fn living(stores: &Stores, name: &SpriteName) -> Result<Read, SpriteError> {
    let read = stores.own_row(name).await?;
    let own = |row: &SpriteRow| stores.own.as_ref().is_none_or(|own| own.host == row.host);
    read.filter(|(row, _)| !row.deleted && own(row)).ok_or_else(|| SpriteError::Unknown(name.clone()))
}

pub(super) fn wrong_rules() -> SpriteError {
    SpriteError::Field {
        field: "wake rules",
        rule: "at most 16 paths and 16 answers, each path begins with / and has at most 256 bytes, a status is 200 to \
               599, a body has at most 4096 bytes, held is 1 to 1024, other figures are at least 1",
    }
}

fn check(new: &NewSprite) -> Result<(), SpriteError> {
    let field = |(field, rule)| SpriteError::Field { field, rule };
    let wrong = |command: &String| command.trim().is_empty() || command.len() > COMMAND_BYTES_MAX;
    let commands: &[&String] = match &new.driver {
        DriverSpec::Process { command, .. } => &[command],
        DriverSpec::Command { wake, sleep } => &[wake, sleep],
        DriverSpec::Fixed { .. } | DriverSpec::Qemu(_) => &[],
        DriverSpec::Docker(docker) => docker.check().map(|()| &[][..]).map_err(field)?,
        DriverSpec::Firecracker(firecracker) => firecracker.check().map(|()| &[][..]).map_err(field)?,
        DriverSpec::Http(http) => http.check().map(|()| &[][..]).map_err(field)?,
    };
    new.driver.check_memory().map_err(field)?;
    if commands.iter().any(|command| wrong(command)) {
        return Err(SpriteError::Field { field: "command", rule: "1 to 16384 bytes" });
    }
    if let DriverSpec::Qemu(machine) = &new.driver {
        machine.check(&new.ports).map_err(|(field, rule)| SpriteError::Field { field, rule })?;
    }
    if new.ports.len() > PORTS_MAX || new.ports.contains(&0) {
        return Err(SpriteError::Field { field: "ports", rule: "at most 16 ports, none of them 0" });
    }
    if !new.wake.is_bounded() {
        return Err(wrong_rules());
    }
    if new.idle_timeout.is_some_and(|timeout| timeout < Duration::from_millis(100)) {
        return Err(SpriteError::Field { field: "idle_timeout", rule: "at least 100ms" });
    }
    Ok(())
}

/// Destroys a sprite: its route becomes a tombstone, its guest is ended. Its directory stays.
///
/// # Errors
/// [`SpriteError`].
pub async fn delete(stores: &Stores, owner: &OwnerHandle, name: &SpriteName) -> Result<(), SpriteError> {
    let (mut row, version) = living(stores, name).await?;
    row.deleted = true;
    row.generation.0 += 1;
    row.proof.serial = 0;
    stores.publish(name, row, Some(version)).await?;
    let spec_key = format!("{SPEC_PREFIX}{name}");
    if let Some(spec) = stores.local.get(&spec_key)? {
        stores.local.compare_and_set(&spec_key, Some(spec.version), None)?;
    }
    owner.remove(name).await;
    Ok(())
}

/// Changes a sprite's stored definition; the new one, for the owner. What `change` refuses
/// is not written.
///
/// # Errors
/// [`SpriteError`].
pub fn change<E>(
    store: &EmbeddedStore,
    name: &SpriteName,
    change: impl FnOnce(&mut SpriteSpec) -> Result<(), E>,
) -> Result<Result<SpriteSpec, E>, SpriteError> {
    let key = format!("{SPEC_PREFIX}{name}");
    let corrupt = || SpriteError::Corrupt(name.clone());
    let entry = store.get(&key)?.ok_or_else(|| SpriteError::Defined(name.clone()))?;
    let mut spec: SpriteSpec = serde_json::from_slice(&entry.value).map_err(|_| corrupt())?;
    if let Err(refusal) = change(&mut spec) {
        return Ok(Err(refusal));
    }
    let encoded = serde_json::to_vec(&spec).map_err(|_| corrupt())?;
    store.compare_and_set(&key, Some(entry.version), Some(&encoded))?;
    Ok(Ok(spec))
}

/// Changes the declared ports of a sprite: its definition, and its route for every edge. The
/// new definition, for the owner.
///
/// # Errors
/// [`SpriteError`].
pub async fn set_ports(
    stores: &Stores,
    name: &SpriteName,
    change_ports: impl Fn(&mut Vec<u16>),
) -> Result<SpriteSpec, SpriteError> {
    let changed = change(&stores.local, name, |spec| {
        change_ports(&mut spec.ports);
        match spec.ports.len() > PORTS_MAX || spec.ports.contains(&0) {
            true => Err(SpriteError::Field { field: "port", rule: "at most 16 ports, none of them 0" }),
            false => Ok(()),
        }
    });
    let spec = changed??;
    let (mut row, version) = living(stores, name).await?;
    row.ports.clone_from(&spec.ports);
    row.proof.serial += u64::from(stores.own.is_some());
    stores.publish(name, row, Some(version)).await?;
    Ok(spec)
}

/// Writes down whether a sprite is stopped, so that the next start of this owner knows.
///
/// # Errors
/// [`SpriteError`].
pub fn set_stopped(store: &EmbeddedStore, name: &SpriteName, stopped: bool) -> Result<(), SpriteError> {
    let changed = change(store, name, |spec| {
        spec.stopped = stopped;
        Ok::<_, std::convert::Infallible>(())
    })?;
    changed.map(drop).map_err(|never| match never {})
}

/// The key of a definition.
pub(crate) fn spec_key(name: &SpriteName) -> String {
    format!("{SPEC_PREFIX}{name}")
}

/// The definition of a sprite of this host, if it is stored here.
pub(crate) fn find(store: &EmbeddedStore, name: &SpriteName) -> Result<Option<SpriteSpec>, SpriteError> {
    let entry = store.get(&spec_key(name))?;
    let read = entry.map(|entry| serde_json::from_slice(&entry.value)).transpose();
    read.map_err(|_| SpriteError::Corrupt(name.clone()))
}

/// The same for one that must be there.
pub(crate) fn definition(store: &EmbeddedStore, name: &SpriteName) -> Result<SpriteSpec, SpriteError> {
    find(store, name)?.ok_or_else(|| SpriteError::Defined(name.clone()))
}

/// Writes or removes a row of this host's own, whatever is there: nobody else writes it.
pub(crate) fn put_local(store: &EmbeddedStore, key: &str, value: Option<&[u8]>) -> Result<(), StoreError> {
    let present = store.get(key)?.map(|entry| entry.version);
    if present.is_some() || value.is_some() {
        store.compare_and_set(key, present, value)?;
    }
    Ok(())
}

/// Every definition stored on this host.
///
/// # Errors
/// [`SpriteError`]; a definition that cannot be read is left out with a warning.
pub fn stored(store: &EmbeddedStore) -> Result<Vec<SpriteSpec>, SpriteError> {
    let entries = store.scan(SPEC_PREFIX)?;
    let read = entries.into_iter().filter_map(|entry| match serde_json::from_slice(&entry.value) {
        Ok(spec) => Some(spec),
        Err(error) => {
            tracing::warn!(key = entry.key, %error, "a sprite's definition cannot be read; it is left out");
            None
        }
    });
    Ok(read.collect())
}

/// Gives a sprite of the config file its route; the generation it has.
///
/// # Errors
/// [`SpriteError`].
pub async fn publish_static(
    stores: &Stores,
    host: HostId,
    name: &SpriteName,
    ports: &[u16],
) -> Result<u64, SpriteError> {
    let (present, version) = present(stores, name).await?;
    let living = present.as_ref().filter(|row| !row.deleted && (row.host == host || stores.own.is_none()));
    let (proof, generation, tenant) = match living {
        Some(row) => (row.proof.clone(), row.generation, row.tenant.clone()),
        None => stores.placed(name, present.as_ref()).await?,
    };
    let mut row = SpriteRow {
        version: ROW_VERSION,
        tenant,
        generation,
        host,
        ports: ports.into(),
        access: Access::Public,
        wake: WakeRules::default(),
        client_certificate: None,
        deleted: false,
        proof,
    };
    if present.as_ref() == Some(&row) {
        return Ok(generation.0);
    }
    row.proof.serial += u64::from(living.is_some() && stores.own.is_some());
    stores.publish(name, row, version).await?;
    Ok(generation.0)
}
