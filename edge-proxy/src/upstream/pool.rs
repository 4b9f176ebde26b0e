//! Idle guest streams of one core, reached without a lock and, on a hit, without an allocation.

use super::connection::{Connection, Place};
use super::link::Link;
use router::names::SpriteName;
use router::route::Generation;
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;

/// Sweeps an idle stream survives; with one a second it lives 3 to 4 s (the bound that keeps
/// idle streams from looking like use, and below the keep-alive of common servers, 5 s).
const IDLE_SWEEPS: u64 = 4;
/// Idle streams per sprite and core (chosen: eight HTTP/2 connections with 32 streams each;
/// at 64, 128 concurrent requests kept closing and opening streams).
pub(super) const IDLE_PER_SPRITE: usize = 256;
/// Idle streams per core (chosen: a quarter of a usual descriptor limit on the direct link).
const IDLE_TOTAL: usize = 4096;

/// The pool of one core.
pub struct Pool<L: Link> {
    inner: RefCell<Inner<L>>,
}

struct Inner<L: Link> {
    /// Most recently used last; streams are taken from the back, so the rest can age.
    idle: HashMap<SpriteName, Vec<Idle<L>>>,
    total: usize,
    /// Counts sweeps: the clock of this pool, so that no request reads the real one.
    sweeps: u64,
}

struct Idle<L: Link> {
    since: u64,
    connection: Connection<L>,
}

impl<L: Link> Default for Pool<L> {
    fn default() -> Self {
        Self { inner: RefCell::new(Inner { idle: HashMap::new(), total: 0, sweeps: 0 }) }
    }
}

impl<L: Link> Pool<L> {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The most recently used stream of `name` to a place that `fits`, if it is still quiet.
    /// Streams that are not are dropped on the way.
    #[must_use]
    pub fn take(&self, name: &SpriteName, fits: impl Fn(&Place) -> bool) -> Option<Connection<L>> {
        let mut inner = self.inner.borrow_mut();
        let Inner { idle, total, .. } = &mut *inner;
        // An emptied list stays until the sweep, so that the stream coming back finds it.
        let streams = idle.get_mut(name)?;
        let mut at = streams.len();
        while at > 0 {
            at -= 1;
            if !fits(streams[at].connection.place()) {
                continue;
            }
            let mut connection = streams.remove(at).connection;
            *total -= 1;
            if connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a stream for the next request; over a bound it is closed instead. The first
    /// stream of a newer run closes those of older ones.
    pub(super) fn put(&self, connection: Connection<L>) {
        let mut inner = self.inner.borrow_mut();
        let Inner { idle, total, sweeps } = &mut *inner;
        let place = connection.place();
        let age = |place: &Place| (place.generation, place.run);
        // The name is cloned only when the sweep has dropped the list.
        let streams = match idle.get_mut(&place.name) {
            Some(streams) => streams,
            None => idle.entry(place.name.clone()).or_default(),
        };
        match streams.last().map(|last| age(last.connection.place()).cmp(&age(place))) {
            Some(Ordering::Greater) => return,
            Some(Ordering::Less) => {
                *total -= streams.len();
                streams.clear();
            }
            Some(Ordering::Equal) | None => {}
        }
        if *total < IDLE_TOTAL && streams.len() < IDLE_PER_SPRITE {
            *total += 1;
            streams.push(Idle { since: *sweeps, connection });
        }
    }

    /// Closes what has been idle for too long. The core calls it once a second.
    pub fn sweep(&self) {
        let mut inner = self.inner.borrow_mut();
        let Inner { idle, total, sweeps } = &mut *inner;
        *sweeps += 1;
        idle.retain(|_, streams| {
            // Oldest first: nothing behind the first young one is old.
            let old = streams.partition_point(|idle| idle.since + IDLE_SWEEPS <= *sweeps);
            *total -= old;
            streams.drain(..old);
            !streams.is_empty()
        });
    }

    /// Closes the idle streams of a run that ended.
    pub fn drop_run(&self, name: &SpriteName, generation: Generation, run: u64) {
        let mut inner = self.inner.borrow_mut();
        let Inner { idle, total, .. } = &mut *inner;
        if let Some(streams) = idle.get_mut(name) {
            let before = streams.len();
            streams
                .retain(|idle| (idle.connection.place().generation, idle.connection.place().run) != (generation, run));
            *total -= before - streams.len();
        }
    }

    /// Closes every idle stream to this sprite.
    pub fn forget(&self, name: &SpriteName) {
        let mut inner = self.inner.borrow_mut();
        if let Some(streams) = inner.idle.remove(name) {
            inner.total -= streams.len();
        }
    }

    /// Idle streams at this moment.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.borrow().total
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
