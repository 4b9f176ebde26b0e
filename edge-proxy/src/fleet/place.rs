//! `edge-proxy fleet place` and `sign`: an operator's word about where sprites live.

use super::enrol::{Operator, now};
use anyhow::{Context, bail, ensure};
use router::hosts::HOST_PREFIX;
use router::names::SpriteName;
use router::papers::{self, Enrolled};
use router::placement::{Grant, Placement, Proof};
use router::pops::{POP_PREFIX, PopRow};
use router::registry::RegistryRow;
use router::route::{Generation, HostRow};
use router::rows::{ROW_VERSION, SPRITE_PREFIX, SpriteRow};
use router::signing::PublicKey;
use router::store::{Entry, Store};
use serde_json::{Value, json};

/// Says that a sprite may be made on a host, or made again there when its own is lost.
pub(super) async fn place(
    store: &Store,
    operator: &Operator,
    name: &str,
    host: &str,
    tenant: &str,
    generation: Option<u64>,
) -> anyhow::Result<Value> {
    let name = SpriteName::parse(name).map_err(|error| anyhow::anyhow!("{name:?}: {error}"))?;
    let Some(key) = &operator.key else { bail!("fleet.operator_key: none; without operators every host may") };
    let (host, signing) = signer(store, operator, |row| row.name == host)
        .await?
        .with_context(|| format!("there is no host {host} that an operator has enrolled with a signing key"))?;
    let sprite_key = SpriteRow::key(&name);
    let present = match store.get(&sprite_key).await?.map(|entry| believed(operator, &entry)) {
        None => None,
        Some(Ok(row)) => Some(row),
        Some(Err(_)) if generation.is_some() => None,
        Some(Err(error)) => {
            let advice = format!("{sprite_key} is not to be believed; --generation says where {name} is to begin");
            return Err(error.context(advice));
        }
    };
    ensure!(
        present.as_ref().is_none_or(|row| row.deleted || row.host != host.number),
        "{name} is on {} already; `fleet sign {name}` signs it anew",
        host.name
    );
    let next = present.as_ref().map_or(0, |row| row.generation.0) + 1;
    let generation = Generation(generation.unwrap_or(next).max(next));
    ensure!(generation <= Generation::MAX, "--generation: at most {}", Generation::MAX.0);
    let from = present.as_ref().map(|row| row.host);
    let tenant = present.as_ref().map_or(tenant, |row| &row.tenant);
    let link = Placement { name: &name, tenant, generation, from, to: host.number, key: signing }.sign(None, key);
    let grant = Grant { version: ROW_VERSION, tenant: tenant.into(), link };
    let grant_key = Grant::key(&name);
    let version = store.get(&grant_key).await?.map(|entry| entry.version);
    store.compare_and_set(&grant_key, version, Some(&grant.encode())).await?;
    Ok(json!({ "placed": name, "on": host.name, "generation": generation }))
}

/// Signs sprites where they are, and with `all` every machine too: what an operator key that is to go has signed,
/// and chains that have become long. With `unsigned` also what nobody has signed, as it stands.
pub(super) async fn sign(
    store: &Store,
    operator: &Operator,
    names: &[String],
    all: bool,
    unsigned: bool,
) -> anyhow::Result<Value> {
    ensure!(all == names.is_empty(), "name sprites, or --all");
    let (mut signed, mut left_out) = (0, Vec::new());
    let mut done = |key: &str, result: anyhow::Result<()>| match result {
        Ok(()) => signed += 1,
        Err(error) => left_out.push(format!("{key}: {error:#}")),
    };
    if all {
        for entry in store.scan(HOST_PREFIX).await? {
            done(&entry.key, enrol_again::<HostRow>(store, operator, &entry).await);
        }
        for entry in store.scan(POP_PREFIX).await? {
            done(&entry.key, enrol_again::<PopRow>(store, operator, &entry).await);
        }
        for entry in store.scan(SPRITE_PREFIX).await? {
            done(&entry.key, sign_again(store, operator, &entry, unsigned).await);
        }
    }
    for name in names {
        let key = format!("{SPRITE_PREFIX}{name}");
        let entry = store.get(&key).await?.with_context(|| format!("there is no sprite {name}"))?;
        done(&key, sign_again(store, operator, &entry, unsigned).await);
    }
    ensure!(left_out.is_empty(), "{signed} rows signed; left out: {}", left_out.join("; "));
    Ok(json!({ "signed": signed }))
}

async fn enrol_again<R: RegistryRow + Enrolled>(
    store: &Store,
    operator: &Operator,
    entry: &Entry,
) -> anyhow::Result<()> {
    let key = operator.key.as_ref().context("fleet.operator_key: none")?;
    let row = R::decode(&entry.key, &entry.value)?;
    row.check(None, &operator.all)?;
    let before = row.papers().cloned().context("it has no papers")?;
    let (keys, removed) = (before.enrolment.keys.clone(), before.enrolment.removed);
    let row = papers::enrol(row, keys, removed, Some(&before), now(), key);
    store.compare_and_set(&entry.key, Some(entry.version), Some(&RegistryRow::encode(&row))).await?;
    Ok(())
}

async fn sign_again(store: &Store, operator: &Operator, entry: &Entry, unsigned: bool) -> anyhow::Result<()> {
    let key = operator.key.as_ref().context("fleet.operator_key: none")?;
    let (name, row) = SpriteRow::decode(&entry.key, &entry.value)?;
    if !(unsigned && row.proof.is_empty()) {
        row.check_proof(&name, None, &operator.all)?;
    }
    let (_, signing) = signer(store, operator, |host| host.number == row.host)
        .await?
        .with_context(|| format!("its host, number {}, is not enrolled with a signing key", row.host.0))?;
    let link = Placement {
        name: &name,
        tenant: &row.tenant,
        generation: row.generation,
        from: None,
        to: row.host,
        key: signing,
    };
    let proof = Proof { serial: row.proof.serial + 1, chain: vec![link.sign(None, key)], seal: None };
    let mut row = SpriteRow { proof, ..row };
    row.seal(&name, key);
    store.compare_and_set(&entry.key, Some(entry.version), Some(&row.encode())).await?;
    Ok(())
}

fn believed(operator: &Operator, entry: &Entry) -> anyhow::Result<SpriteRow> {
    let (name, row) = SpriteRow::decode(&entry.key, &entry.value)?;
    row.check_proof(&name, None, &operator.all)?;
    Ok(row)
}

/// A host and its signing key. What nobody may have written is passed over: it would lend its name to
/// another's key.
async fn signer(
    store: &Store,
    operator: &Operator,
    is: impl Fn(&HostRow) -> bool,
) -> anyhow::Result<Option<(HostRow, PublicKey)>> {
    let rows = store.scan(HOST_PREFIX).await?;
    let rows = rows.iter().filter_map(|entry| HostRow::decode(&entry.key, &entry.value).ok());
    let mut rows = rows.filter(|row| is(row) && !row.is_removed() && row.check(None, &operator.all).is_ok());
    Ok(rows.find_map(|row| row.signing_key().map(|key| (row, key))))
}
