//! Sprites' rows as a worker host reads and writes them where operators sign.
//!
//! A host signs what it has read, changed a little: so it signs nothing it has not checked first. What it
//! signed last it keeps: when somebody else wrote over it, its next write puts it right, and
//! [`repair`] does so at once.

use crate::admin::sprites::{SpriteError, put_local};
use crate::stores::Stores;
use router::apply;
use router::names::SpriteName;
use router::placement::{Grant, Known, LINKS_MAX, Link, Placement, Proof};
use router::route::{Generation, HostId, HostRow};
use router::rows::{RowError, SpriteRow};
use router::signing::{Operators, SigningKey};
use router::store::StoreError;
use router::table::RouteTable;
use std::sync::Arc;
use std::time::Duration;

/// Rows this host has signed last are stored under this.
const SIGNED_PREFIX: &str = "signed/";
/// Pause between two repairs (chosen: who writes over rows for ever gets no race of it).
const PAUSE: Duration = Duration::from_secs(1);

/// What a host signs with.
pub struct Own {
    /// Its number.
    pub host: HostId,
    /// Its key.
    pub key: SigningKey,
    /// Whose word it believes.
    pub operators: Operators,
}

/// A row that was read, and its version in the store.
pub type Read = (SpriteRow, u64);

impl Stores {
    /// The row of a sprite as the store has it, if it may be believed. For decisions that a host must not
    /// take by what it remembers.
    ///
    /// # Errors
    /// [`SpriteError::Store`]; [`SpriteError::Corrupt`] when it makes no sense or nobody who may has written it.
    pub async fn believed(&self, name: &SpriteName) -> Result<Option<Read>, SpriteError> {
        let key = SpriteRow::key(name);
        let Some(entry) = self.routes.get(&key).await? else { return Ok(None) };
        let row = self.judged(name, &entry.value).map_err(|error| {
            tracing::warn!(key, %error, "a row in the store is not to be believed");
            SpriteError::Corrupt(name.clone())
        })?;
        Ok(Some((row, entry.version)))
    }

    /// The same for what is to be changed: when somebody wrote over the row of a sprite of this host, the one it
    /// signed last, with the version of what is to go.
    ///
    /// # Errors
    /// As [`Stores::believed`].
    pub async fn own_row(&self, name: &SpriteName) -> Result<Option<Read>, SpriteError> {
        match self.believed(name).await {
            Err(SpriteError::Corrupt(_)) if self.own.is_some() => {}
            read => return read,
        }
        let version = self.routes.get(&SpriteRow::key(name)).await?.map(|entry| entry.version);
        let last = self.last(name)?.zip(version);
        last.map(Some).ok_or_else(|| SpriteError::Corrupt(name.clone()))
    }

    fn judged(&self, name: &SpriteName, value: &[u8]) -> Result<SpriteRow, RowError> {
        let (_, row) = SpriteRow::decode(&SpriteRow::key(name), value)?;
        if let Some(own) = &self.own {
            let last = self.last(name).ok().flatten();
            let known = last.map(|last| Known {
                host: last.host,
                generation: last.generation,
                serial: last.proof.serial,
                unchanged: last == row,
            });
            row.check_proof(name, known, &own.operators)?;
        }
        Ok(row)
    }

    /// The row this host signed last, as long as its chain begins with an operator of today.
    fn last(&self, name: &SpriteName) -> Result<Option<SpriteRow>, StoreError> {
        let Some(own) = &self.own else { return Ok(None) };
        let entry = self.local.get(&format!("{SIGNED_PREFIX}{name}"))?;
        let row = entry.and_then(|entry| SpriteRow::decode(&SpriteRow::key(name), &entry.value).ok());
        Ok(row.map(|(_, row)| row).filter(|row| row.check_proof(name, None, &own.operators).is_ok()))
    }

    /// Keeps what an operator has signed since in place of what this host signed last.
    async fn refresh(&self) -> Result<(), SpriteError> {
        for entry in self.local.scan(SIGNED_PREFIX)? {
            let Ok(name) = SpriteName::parse(entry.key.trim_start_matches(SIGNED_PREFIX)) else { continue };
            match self.believed(&name).await {
                Ok(Some((row, _))) if self.own.as_ref().is_some_and(|own| own.host == row.host) => {
                    self.remember(&name, Some(&row))?;
                }
                Ok(_) | Err(SpriteError::Corrupt(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes a sprite's row, sealed where operators sign. `row.proof.serial` is the caller's: one more than
    /// that of the row it replaces within one generation.
    ///
    /// # Errors
    /// [`StoreError`] of the write.
    pub async fn publish(
        &self,
        name: &SpriteName,
        mut row: SpriteRow,
        expected: Option<u64>,
    ) -> Result<u64, StoreError> {
        let Some(own) = &self.own else { return apply::publish(&*self.routes, name, &row, expected).await };
        row.seal(name, &own.key);
        let version = apply::publish(&*self.routes, name, &row, expected).await?;
        // Given away, it is another host's from now on.
        let kept = self.remember(name, (row.host == own.host).then_some(&row));
        if let Err(error) = kept {
            tracing::warn!(sprite = %name, %error, "its row is written but not kept here");
        }
        Ok(version)
    }

    /// Keeps a row of this host's as the one to come back to, or forgets it.
    ///
    /// # Errors
    /// The local file fails.
    pub fn remember(&self, name: &SpriteName, row: Option<&SpriteRow>) -> Result<(), StoreError> {
        put_local(&self.local, &format!("{SIGNED_PREFIX}{name}"), row.map(SpriteRow::encode).as_deref())
    }

    /// Where a sprite that is to be made here begins: its proof, its generation and its tenant. `present` is
    /// the row in its place, if there is one to be believed.
    ///
    /// # Errors
    /// [`SpriteError::NotPlaced`] when no operator has said that it may be made here.
    pub async fn placed(
        &self,
        name: &SpriteName,
        present: Option<&SpriteRow>,
    ) -> Result<(Proof, Generation, String), SpriteError> {
        // A name that is made again goes on where its tombstone stands, never from the start.
        let next = Generation(present.map_or(0, |row| row.generation.0) + 1);
        let Some(own) = &self.own else { return Ok((Proof::default(), next, "local".into())) };
        if let Some(row) = present.filter(|row| row.deleted && row.host == own.host) {
            let proof = Proof { chain: row.proof.chain.clone(), ..Proof::default() };
            return Ok((proof, next, row.tenant.clone()));
        }
        let entry = self.routes.get(&Grant::key(name)).await?;
        let grant = entry.and_then(|entry| Grant::decode(name, &entry.value, &own.operators).ok());
        let grant = grant.filter(|grant| {
            let Link { generation, to, key, .. } = &grant.link;
            *generation >= next && *to == own.host && *key == own.key.public()
        });
        let Grant { tenant, link, .. } = grant.ok_or_else(|| SpriteError::NotPlaced(name.clone()))?;
        let generation = link.generation;
        Ok((Proof { chain: vec![link], ..Proof::default() }, generation, tenant))
    }

    /// The row of a sprite that this host gives to another one.
    ///
    /// # Errors
    /// What keeps it from being signed.
    pub fn given(
        &self,
        name: &SpriteName,
        row: SpriteRow,
        to: &HostRow,
        generation: Generation,
    ) -> anyhow::Result<SpriteRow> {
        let mut row = SpriteRow { host: to.number, generation, ..row };
        if let Some(own) = &self.own {
            anyhow::ensure!(
                row.proof.chain.len() < LINKS_MAX,
                "it has moved {LINKS_MAX} times since an operator signed it: edge-proxy fleet sign {name}"
            );
            let key = to.signing_key();
            let key = key.ok_or_else(|| anyhow::anyhow!("the registry has no signing key of host {}", to.name))?;
            let (tenant, from) = (row.tenant.as_str(), Some(own.host));
            let placement = Placement { name, tenant, generation, from, to: to.number, key };
            let link = placement.sign(row.proof.chain.last(), &own.key);
            row.proof.chain.push(link);
            row.proof.serial = 0;
        }
        Ok(row)
    }
}

/// Puts rows of this host's sprites back that somebody else wrote over, for as long as it runs; never returns.
/// Edges have set such a row aside, but one that starts without having known the sprite would not find it.
///
/// # Cancel safety
/// Dropping it leaves the rows as they are.
pub async fn repair(stores: Stores, table: Arc<RouteTable>) {
    while let Err(error) = stores.refresh().await {
        tracing::debug!(%error, "what operators signed since is not read yet");
        tokio::time::sleep(PAUSE).await;
    }
    loop {
        for name in table.forged().await {
            match repaired(&stores, &name).await {
                Ok(true) => tracing::warn!(sprite = %name, "somebody else wrote over its row; it is put back"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(sprite = %name, %error, "its row is not put back yet");
                    table.note_forged(name);
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn repaired(stores: &Stores, name: &SpriteName) -> Result<bool, SpriteError> {
    // Most are other hosts'.
    let Some(mut row) = stores.last(name)? else { return Ok(false) };
    if !matches!(stores.believed(name).await, Err(SpriteError::Corrupt(_))) {
        return Ok(false);
    }
    let version = stores.routes.get(&SpriteRow::key(name)).await?.map(|entry| entry.version);
    row.proof.serial += 1;
    stores.publish(name, row, version).await?;
    Ok(true)
}
