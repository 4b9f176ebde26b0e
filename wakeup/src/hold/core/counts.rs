//! How many requests are held, and whether one more may be (`wake.md` §5).
//!
//! Counts are kept by sprite, not by flight: waiters for two ports, or for two
//! placements during a move, share one sprite's bound. Nobody is evicted: the newest is
//! refused, so that a request that waits can rely on its place.

use super::super::prefix::Prefix;
use super::super::{HoldError, HoldLimits};
use router::names::SpriteName;
use router::route::Tenant;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
struct OfSprite {
    held: usize,
    clients: BTreeMap<Prefix, usize>,
}

/// The counts of one process. An entry lives as long as it counts something.
#[derive(Debug, Default)]
pub(super) struct Counts {
    sprites: BTreeMap<SpriteName, OfSprite>,
    clients: BTreeMap<Prefix, usize>,
    tenants: BTreeMap<Tenant, usize>,
    held: usize,
    bytes: usize,
}

/// What one request is counted under.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted {
    pub(super) prefix: Prefix,
    pub(super) tenant: Tenant,
    /// Memory it keeps while it waits.
    pub(super) bytes: usize,
}

impl Counts {
    /// Requests held in all.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Whether one more request fits.
    ///
    /// # Errors
    /// The bound it would exceed.
    pub(super) fn admit(
        &self,
        limits: &HoldLimits,
        name: &SpriteName,
        per_sprite: usize,
        of: Counted,
        known: bool,
    ) -> Result<(), HoldError> {
        let Counted { prefix, tenant, bytes } = of;
        // The last fifth is for those who are known: strangers go first when memory is short.
        let memory = if known { limits.memory } else { limits.memory / 5 * 4 };
        if self.held >= limits.per_process || self.bytes + bytes > memory {
            return Err(HoldError::EdgeBusy);
        }
        if self.tenants.get(&tenant).is_some_and(|&held| held >= limits.per_tenant) {
            return Err(HoldError::TenantHoldFull);
        }
        if self.clients.get(&prefix).is_some_and(|&held| held >= limits.per_client) {
            return Err(HoldError::ClientHoldFull);
        }
        let Some(sprite) = self.sprites.get(name) else { return Ok(()) };
        if sprite.held >= per_sprite {
            return Err(HoldError::HoldFull);
        }
        // Up to half of the bound anybody may wait. Above, each prefix has its share of the
        // whole, so that the largest is refused first; one that is alone has all of it,
        // since many people may sit behind one address.
        let mine = sprite.clients.get(&prefix).copied().unwrap_or(0);
        let prefixes = sprite.clients.len() + usize::from(mine == 0);
        let share = (per_sprite / prefixes).max(1);
        if sprite.held >= per_sprite / 2 && prefixes > 1 && mine >= share {
            return Err(HoldError::ClientHoldFull);
        }
        Ok(())
    }

    pub(super) fn add(&mut self, name: &SpriteName, Counted { prefix, tenant, bytes }: Counted) {
        self.held += 1;
        self.bytes += bytes;
        *self.tenants.entry(tenant).or_default() += 1;
        *self.clients.entry(prefix).or_default() += 1;
        let sprite = self.sprites.entry(name.clone()).or_default();
        sprite.held += 1;
        *sprite.clients.entry(prefix).or_default() += 1;
    }

    /// Undoes one [`Counts::add`].
    pub(super) fn remove(&mut self, name: &SpriteName, Counted { prefix, tenant, bytes }: Counted) {
        self.held = self.held.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        subtract(&mut self.clients, prefix);
        subtract(&mut self.tenants, tenant);
        if let Some(sprite) = self.sprites.get_mut(name) {
            sprite.held = sprite.held.saturating_sub(1);
            subtract(&mut sprite.clients, prefix);
            if sprite.held == 0 {
                self.sprites.remove(name);
            }
        }
    }

    /// What is held for each sprite, for tests.
    #[cfg(test)]
    pub(super) fn of_sprites(&self) -> BTreeMap<SpriteName, usize> {
        let held = self.sprites.iter().map(|(name, sprite)| {
            assert_eq!(sprite.clients.values().sum::<usize>(), sprite.held);
            (name.clone(), sprite.held)
        });
        held.collect()
    }

    /// Memory that is counted, for tests.
    #[cfg(test)]
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is held for each client, for tests.
    #[cfg(test)]
    pub(super) const fn of_clients(&self) -> &BTreeMap<Prefix, usize> {
        &self.clients
    }
}

fn subtract<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) {
    if let Some(held) = counts.get_mut(&key) {
        *held = held.saturating_sub(1);
        if *held == 0 {
            counts.remove(&key);
        }
    }
}
