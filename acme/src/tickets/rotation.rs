//! When keys are made, become active and go: no clock, no store, no task. Events of the store come in with `now`, writes
//! come out.
//!
//! Nobody leads. Every edge process sees the same rows and wants the same next write; each is one compare-and-set of a
//! row whose key all of them know, so one of them does it and the others see that it is done.

use super::key::TicketKey;
use super::rows::{About, AckRow, KeyRow, Policy};
use super::{OLD_MAX, Sealer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Most keys that are held in memory, whatever the store says (chosen: twice what a ring has).
const KEYS_MAX: usize = 16;
/// Most members that are remembered (chosen: more edges than a fleet has).
const MEMBERS_MAX: usize = 4_096;
/// A period has so many moments at which a key may become active: of an hour each full minute.
const MOMENTS: u64 = 60;
/// Part of a period that members are waited for, who were heard the last time (chosen: of an hour five minutes).
const PATIENCE: u64 = 12;
/// But so long at least, ms (chosen: a store and a busy edge).
const PATIENCE_MIN: u64 = 5_000;
/// Part of a period over which members spread what all of them want to do (chosen: of an hour half a minute).
const SPREAD: u64 = 120;
/// Periods a key lives in memory when the store is away: as long as it would live with it, and one more.
const LIFE: u64 = OLD_MAX as u64 + 2;

/// What is to be written; a conflict means that somebody else has done it or something newer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The row.
    pub key: String,
    /// Its version as it was seen; `None`: it does not exist.
    pub expected: Option<u64>,
    /// Its value; `None`: it is to be deleted.
    pub value: Option<Vec<u8>>,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Opens tickets, makes none yet.
    Staged,
    /// Makes tickets.
    Active,
    /// Opens tickets still.
    Old,
}

impl State {
    /// In a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Active => "active",
            Self::Old => "old",
        }
    }
}

/// One key, to be looked at.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its number.
    pub epoch: u64,
    /// What it is for.
    pub state: State,
    /// When it was made, ms of Unix time.
    pub made_at: u64,
    /// Whether this process could open its row.
    pub opened: bool,
    /// Tickets this process has made with it.
    pub issued: u64,
    /// Members that have it.
    pub members: usize,
}

struct Known {
    version: u64,
    row: KeyRow,
    /// Counted from here by this process's own clock.
    since: u64,
    /// From when on it is active, by this process's own clock.
    active_from: Option<u64>,
    key: Option<Arc<TicketKey>>,
    /// In the snapshot that is being read.
    seen: bool,
}

struct Member {
    version: u64,
    epoch: u64,
    seen: bool,
}

/// The keys of one policy as one process sees them.
pub struct Rotation {
    policy: Policy,
    member: String,
    period: u64,
    keys: BTreeMap<u64, Known>,
    members: BTreeMap<String, Member>,
    synced: bool,
    /// The highest epoch ever seen, purged ones included.
    highest: u64,
    /// A new key is wanted: one behind this epoch.
    wanted_after: Option<u64>,
}

impl Rotation {
    /// For the process `member` (a word that no other process has), which knows nothing yet.
    #[must_use]
    pub fn new(policy: Policy, member: &str, period: Duration) -> Self {
        let period = u64::try_from(period.as_millis()).unwrap_or(u64::MAX / 1_000).max(1);
        Self {
            policy,
            member: member.into(),
            period,
            keys: BTreeMap::new(),
            members: BTreeMap::new(),
            synced: false,
            highest: 0,
            wanted_after: None,
        }
    }

    /// What follows until [`Self::snapshot_end`] is all there is.
    pub fn snapshot_begin(&mut self) {
        self.keys.values_mut().for_each(|known| known.seen = false);
        self.members.values_mut().for_each(|member| member.seen = false);
    }

    /// The snapshot is complete.
    pub fn snapshot_end(&mut self) {
        self.keys.retain(|_, known| known.seen);
        self.members.retain(|_, member| member.seen);
        self.synced = true;
    }

    /// The store says this is where it is now; without a snapshot before it, nothing was missed.
    pub fn caught_up(&mut self) {
        self.synced = true;
    }

    /// The store went away: nothing is written until it is back.
    pub fn lost(&mut self) {
        self.synced = false;
    }

    /// A row was written.
    pub fn put(&mut self, key: &str, version: u64, value: &[u8], sealer: &dyn Sealer, now: u64) {
        match self.policy.about(key) {
            Some(About::Key(epoch)) => self.put_key(key, epoch, version, value, sealer, now),
            Some(About::Ack(member)) => {
                let Some(row) = AckRow::decode(value) else { return };
                if self.members.len() < MEMBERS_MAX || self.members.contains_key(member) {
                    self.members.insert(member.into(), Member { version, epoch: row.epoch, seen: true });
                }
            }
            None => {}
        }
    }

    fn put_key(&mut self, key: &str, epoch: u64, version: u64, value: &[u8], sealer: &dyn Sealer, now: u64) {
        let Some(row) = KeyRow::decode(value) else {
            tracing::warn!(key, "a row of a ticket key cannot be read");
            return;
        };
        // Written by whose clock may be anything: it is at most this much ahead of ours.
        let active_from = row.active_at.map(|at| at.min(now.saturating_add(2 * self.moment())));
        self.highest = self.highest.max(epoch);
        if let Some(known) = self.keys.get_mut(&epoch).filter(|known| known.row.sealed == row.sealed) {
            known.seen = true;
            if known.version < version {
                // Once it is active it stays so, whatever a clock does.
                (known.version, known.active_from) = (version, known.active_from.or(active_from));
                known.row = row;
            }
            return;
        }
        let opened = STANDARD.decode(&row.sealed).map_err(|error| error.to_string());
        let opened = opened.and_then(|sealed| sealer.open(key, epoch, &sealed));
        let ticket_key = match opened {
            Ok(bytes) => TicketKey::new(epoch, &bytes).map(Arc::new),
            Err(error) => {
                tracing::warn!(key, error, "a ticket key cannot be opened; its tickets lead to full handshakes here");
                None
            }
        };
        // What comes while we follow was made just now; what was there before has its own word for it.
        let since = if self.synced { now } else { row.made_at.min(now) };
        self.keys.insert(epoch, Known { version, row, since, active_from, key: ticket_key, seen: true });
        if self.keys.len() > KEYS_MAX {
            self.keys.pop_first();
        }
    }

    /// A row was deleted.
    pub fn delete(&mut self, key: &str) {
        match self.policy.about(key) {
            Some(About::Key(epoch)) => drop(self.keys.remove(&epoch)),
            Some(About::Ack(member)) => drop(self.members.remove(member)),
            None => {}
        }
    }

    /// A new key is wanted now.
    pub fn want(&mut self) {
        self.wanted_after = self.newest().or(Some(0));
    }

    /// What is to be written now. Asked after each event, and some sixty times a period.
    pub fn turn(&mut self, sealer: &dyn Sealer, now: u64) -> Vec<Write> {
        self.keys.retain(|_, known| now < known.since.saturating_add(LIFE * self.period));
        if !self.synced {
            return Vec::new();
        }
        let mut writes = Vec::new();
        let Some(newest) = self.newest() else {
            // Nothing to wait for: nobody has a ticket that could be lost.
            let epoch = if self.highest == 0 { now / 1_000 } else { self.highest + 1 };
            writes.extend(self.made(epoch, Some(now), sealer, now));
            return writes;
        };
        if self.wanted_after.is_some_and(|after| newest > after) {
            self.wanted_after = None;
        }
        let known = &self.keys[&newest];
        if known.row.active_at.is_none() {
            if self.everybody_has(newest) || now >= known.since + (self.period / PATIENCE).max(PATIENCE_MIN) {
                let moment = self.moment();
                let active_at = Some((now / moment + 1) * moment);
                let value = KeyRow::new(known.row.sealed.clone(), known.row.made_at, active_at).encode();
                let key = self.policy.key_of(newest);
                writes.push(Write { key, expected: Some(known.version), value: Some(value) });
            }
        } else if known.active_from.is_some_and(|from| from <= now)
            && (self.wanted_after.is_some() || now >= known.since + self.period + self.own_share())
        {
            writes.extend(self.made(self.highest + 1, None, sealer, now));
        }
        writes.extend(self.own_ack());
        writes.extend(self.gone(now));
        writes
    }

    fn made(&self, epoch: u64, active_at: Option<u64>, sealer: &dyn Sealer, now: u64) -> Option<Write> {
        let key = self.policy.key_of(epoch);
        let bytes = TicketKey::random()?;
        match sealer.seal(&key, epoch, &*bytes) {
            Ok(sealed) => {
                let value = KeyRow::new(STANDARD.encode(sealed), now, active_at).encode();
                Some(Write { key, expected: None, value: Some(value) })
            }
            Err(error) => {
                tracing::warn!(key, error, "a ticket key cannot be sealed");
                None
            }
        }
    }

    /// This process's word that it has the newest key it can open.
    fn own_ack(&self) -> Option<Write> {
        let has = self.keys.iter().rev().find(|(_, known)| known.key.is_some()).map(|(epoch, _)| *epoch)?;
        let said = self.members.get(&self.member);
        let write = || Write {
            key: self.policy.ack_of(&self.member),
            expected: said.map(|said| said.version),
            value: Some(AckRow::new(has).encode()),
        };
        said.is_none_or(|said| said.epoch < has).then(write)
    }

    /// Rows that are over: keys with more newer ones than are kept, and members that were not heard for as long.
    fn gone(&self, now: u64) -> Vec<Write> {
        let Some(active) = self.active(now) else { return Vec::new() };
        let old: Vec<_> = self.keys.range(..active).rev().collect();
        let keys = old.iter().skip(OLD_MAX).map(|(epoch, known)| (self.policy.key_of(**epoch), known.version));
        let oldest = old.get(OLD_MAX - 1).map(|(epoch, _)| **epoch);
        let silent = self.members.iter().filter(|(_, member)| oldest.is_some_and(|oldest| member.epoch < oldest));
        let silent = silent.map(|(name, member)| (self.policy.ack_of(name), member.version));
        keys.chain(silent).map(|(key, version)| Write { key, expected: Some(version), value: None }).collect()
    }

    /// Whether every member that had the key before this one has it. Who did not have that one was not heard for a
    /// period, and is not waited for.
    fn everybody_has(&self, epoch: u64) -> bool {
        let before = self.keys.range(..epoch).next_back().map_or(0, |(before, _)| *before);
        let mut waited_for = self.members.values().filter(|member| member.epoch >= before);
        self.members.get(&self.member).is_some_and(|own| own.epoch >= epoch) && waited_for.all(|one| one.epoch >= epoch)
    }

    /// The key to make tickets with, and all that open them.
    #[must_use]
    pub fn ring(&self, now: u64) -> (Option<Arc<TicketKey>>, Vec<Arc<TicketKey>>) {
        let active = self.active(now).and_then(|epoch| self.keys[&epoch].key.clone());
        (active, self.keys.values().rev().filter_map(|known| known.key.clone()).collect())
    }

    /// The newest epoch that is active and could be opened.
    fn active(&self, now: u64) -> Option<u64> {
        let active = |known: &Known| known.key.is_some() && known.active_from.is_some_and(|from| from <= now);
        self.keys.iter().rev().find(|(_, known)| active(known)).map(|(epoch, _)| *epoch)
    }

    fn newest(&self) -> Option<u64> {
        self.keys.last_key_value().map(|(epoch, _)| *epoch)
    }

    /// What there is, the newest first.
    #[must_use]
    pub fn show(&self, now: u64) -> Vec<Shown> {
        let active = self.active(now);
        let shown = |(epoch, known): (&u64, &Known)| Shown {
            epoch: *epoch,
            state: match active {
                Some(active) if *epoch == active => State::Active,
                Some(active) if *epoch < active => State::Old,
                _ => State::Staged,
            },
            made_at: known.row.made_at,
            opened: known.key.is_some(),
            issued: known.key.as_ref().map_or(0, |key| key.issued()),
            members: self.members.values().filter(|member| member.epoch >= *epoch).count(),
        };
        self.keys.iter().rev().map(shown).collect()
    }

    fn moment(&self) -> u64 {
        (self.period / MOMENTS).max(1)
    }

    /// Where in the spread this process is: a hash of its name.
    fn own_share(&self) -> u64 {
        let spread = (self.period / SPREAD).max(1);
        // FNV-1a: the same at every start.
        let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        self.member.bytes().fold(0xcbf2_9ce4_8422_2325, hash) % spread
    }
}

#[cfg(test)]
mod tests;
