//! From the lines of a subscription to the events of a feed: no socket, no clock, no task.
//!
//! A subscription numbers its changes, one after the other; a number that is missing means that it is to be attached to
//! anew. What a key's row is, is decided by [`Ranks`]; where one row is not enough to decide, the key is named, and
//! its rows are asked for.

use super::ranks::{Means, Rank, Ranks};
use super::wire::{self, COLUMNS, Event, HEAD_BYTES, Kind, Row};
use crate::store::http::Piece;
use crate::store::{Cursor, Entry, FeedEvent, StoreError};
use std::collections::{BTreeMap, HashMap};

/// Bits of a cursor's version that count changes: of one subscription, 35 years at 1,000 a second. Above them stands
/// which subscription it is.
const CHANGE_BITS: u32 = 40;
/// Keys of a snapshot that have more than one writer's row, and came in the wrong order (chosen: moves that nobody
/// has cleared up after).
const LATE_MAX: usize = 65_536;
/// Hints that the subscription has not confirmed yet (chosen: what comes in one of its rounds, 600 ms).
const HINTED_MAX: usize = 1_024;
/// A hint that was not confirmed for so many beats is looked at again.
const BEATS: u8 = 2;

/// What a line comes to.
#[derive(Debug)]
pub(super) enum Told {
    /// To be told.
    Event(FeedEvent),
    /// This key's rows are to be asked for ([`Tail::asked`]).
    Ask(String),
}

/// Why nothing more can be understood.
#[derive(Debug)]
pub(super) enum Broken {
    /// What it said does not fit; from the last change on it may say something better.
    Doubt(StoreError),
    /// This subscription is of no use any more.
    Over(StoreError),
}

/// A key that was told by a hint.
struct Hinted {
    /// For so many beats.
    beats: u8,
    /// What was told, as a number.
    value: u64,
}

/// Where a subscription stands.
pub(super) struct Tail {
    prefix: String,
    epoch: u64,
    subscription: u64,
    /// The last change; none before the snapshot is complete.
    last: Option<u64>,
    ranks: Ranks,
    /// Of keys that were told already, or were not to be: what counts after all.
    late: BTreeMap<String, Row>,
    /// Keys told by a hint alone.
    hinted: HashMap<String, Hinted>,
}

impl Tail {
    /// Before the first line of a subscription whose id is `id`.
    pub(super) fn new(prefix: &str, epoch: u64, id: &str) -> Self {
        let subscription = crate::store::fnv(id.bytes()) >> CHANGE_BITS;
        let (late, hinted) = (BTreeMap::new(), HashMap::new());
        Self { prefix: prefix.into(), epoch, subscription, last: None, ranks: Ranks::new(), late, hinted }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last change that was delivered.
    pub(super) fn last(&self) -> Option<u64> {
        self.last
    }

    pub(super) fn cursor(&self) -> Cursor {
        let version = (self.subscription << CHANGE_BITS) | self.last.unwrap_or(0);
        Cursor { epoch: self.epoch, version }
    }

    /// Takes a line.
    ///
    /// # Errors
    /// [`Broken`].
    pub(super) fn take(&mut self, piece: &Piece) -> Result<Vec<Told>, Broken> {
        if !piece.whole {
            return self.beheaded(&piece.bytes);
        }
        match wire::event(&piece.bytes).map_err(Broken::Doubt)? {
            Event::Columns(columns) if columns == COLUMNS => Ok(Vec::new()),
            Event::Columns(columns) => Err(over(format!("rows have the columns {columns:?}"))),
            Event::Error(why) => Err(Broken::Over(StoreError::Unavailable(format!("the subscription ended: {why}")))),
            Event::Row(_, cells) if self.last.is_none() => Ok(self.row(Row::new(&cells)).into_iter().collect()),
            Event::Eoq(end) if self.last.is_none() => {
                let id = end.change_id.ok_or_else(|| over("a snapshot that does not say where it ends".into()))?;
                self.reached(id)?;
                let end = Told::Event(FeedEvent::SnapshotEnd(self.cursor()));
                let late = std::mem::take(&mut self.late);
                Ok(std::iter::once(end).chain(late.into_values().map(|row| Told::Event(self.event(row)))).collect())
            }
            Event::Change(kind, _, cells, id) => {
                self.next(id)?;
                Ok(self.change(kind, Row::new(&cells)).into_iter().collect())
            }
            // Of a subscription that was attached to again.
            Event::Eoq(_) => Ok(Vec::new()),
            Event::Row(..) | Event::Notify(..) => {
                Err(Broken::Doubt(StoreError::Nonsense("a line out of place".into())))
            }
        }
    }

    /// Rows of a key as they are, from the updates feed: told when they are news.
    pub(super) fn hint(&mut self, rows: Vec<Row>) -> Option<FeedEvent> {
        let row = rows.into_iter().max_by_key(|row| row.rank)?;
        let news = self.ranks.get(&row.name).is_none_or(|known| known < row.rank);
        if self.last.is_none() || !row.name.starts_with(&self.prefix) || !news || self.hinted.len() >= HINTED_MAX {
            return None;
        }
        self.ranks.set(&row.name, Some(row.rank));
        self.hinted.insert(row.name.clone(), Hinted { beats: 0, value: number(&row) });
        Some(self.event(row))
    }

    /// Some time has passed: the keys to be asked for, whose hints nothing has confirmed.
    pub(super) fn beat(&mut self) -> Vec<String> {
        self.hinted.values_mut().for_each(|hinted| hinted.beats = hinted.beats.saturating_add(1));
        let due = self.hinted.extract_if(|_, hinted| hinted.beats >= BEATS);
        due.map(|(key, _)| key).collect()
    }

    /// The feed has ended, and who goes on may not have heard the last hints: they are looked at again soon.
    pub(super) fn pause(&mut self) {
        self.hinted.values_mut().for_each(|hinted| hinted.beats = BEATS);
    }

    /// All rows of a key: what it is now.
    pub(super) fn asked(&mut self, key: String, rows: Vec<Row>) -> FeedEvent {
        let best = rows.into_iter().filter(|row| row.name == key).max_by_key(|row| row.rank);
        self.ranks.set(&key, best.as_ref().map(|row| row.rank));
        match best {
            Some(row) => self.event(row),
            None => FeedEvent::Delete(key, self.cursor()),
        }
    }

    /// Changes come one by one.
    fn next(&mut self, id: u64) -> Result<(), Broken> {
        match self.last {
            Some(last) if id == last + 1 => self.reached(id),
            last => Err(Broken::Doubt(StoreError::Nonsense(format!("change {id} came after {last:?}")))),
        }
    }

    fn reached(&mut self, id: u64) -> Result<(), Broken> {
        if id >> CHANGE_BITS != 0 {
            return Err(over(format!("change {id} is beyond all counting")));
        }
        self.last = Some(id);
        Ok(())
    }

    fn row(&mut self, row: Option<Row>) -> Option<Told> {
        let row = self.ours(row)?;
        let first = self.ranks.get(&row.name).is_none();
        match self.ranks.put(&row.name, row.rank) {
            Means::Counts if first => {
                let Row { name: key, rank: Rank { count: version, .. }, value } = row;
                Some(Told::Event(FeedEvent::Entry(Entry { key, value: value?, version })))
            }
            Means::Counts if self.late.len() < LATE_MAX => {
                self.late.insert(row.name.clone(), row);
                None
            }
            Means::Counts => {
                tracing::warn!(
                    key = row.name,
                    "too many keys have rows of several writers; this one is older than it could be"
                );
                None
            }
            Means::Nothing | Means::Ask => None,
        }
    }

    fn change(&mut self, kind: Kind, row: Option<Row>) -> Option<Told> {
        let row = self.ours(row)?;
        let before = self.ranks.get(&row.name);
        let means = match kind {
            Kind::Insert | Kind::Update => self.ranks.put(&row.name, row.rank),
            Kind::Delete => self.ranks.gone(&row.name, row.rank),
        };
        // What says nothing of the row a hint told of, confirms no hint.
        let hinted = if means == Means::Nothing { None } else { self.hinted.remove(&row.name) };
        match means {
            Means::Counts if before == Some(row.rank) && hinted.is_some_and(|hinted| hinted.value == number(&row)) => {
                None
            }
            Means::Counts => Some(Told::Event(self.event(row))),
            Means::Ask => Some(Told::Ask(row.name)),
            Means::Nothing => None,
        }
    }

    fn beheaded(&mut self, head: &[u8]) -> Result<Vec<Told>, Broken> {
        let row = Row::beheaded(head);
        tracing::warn!(key = row.as_ref().map(|row| row.name.as_str()), "a row is too long; the previous one stays");
        let told = match self.last {
            None => self.row(row),
            Some(last) if head.starts_with(b"{\"change\":") => {
                self.reached(last + 1)?;
                self.change(Kind::Update, row)
            }
            Some(_) => return Err(Broken::Doubt(StoreError::Nonsense(format!("a line of over {HEAD_BYTES} bytes")))),
        };
        Ok(told.into_iter().collect())
    }

    fn ours(&self, row: Option<Row>) -> Option<Row> {
        if row.is_none() {
            tracing::warn!(prefix = self.prefix, "a row of the store has no name; it is left out");
        }
        row.filter(|row| row.name.starts_with(&self.prefix))
    }

    fn event(&self, row: Row) -> FeedEvent {
        let Row { name: key, rank: Rank { count: version, .. }, value } = row;
        match value {
            Some(value) => FeedEvent::Put(Entry { key, value, version }, self.cursor()),
            None => FeedEvent::Delete(key, self.cursor()),
        }
    }
}

fn number(row: &Row) -> u64 {
    crate::store::fnv(row.value.iter().flatten().copied())
}

fn over(why: String) -> Broken {
    Broken::Over(StoreError::Nonsense(why))
}

#[cfg(test)]
mod tests;
