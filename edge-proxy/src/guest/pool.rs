//! Idle guest streams of one core, reached without a lock and without an allocation.

use super::connection::{Connection, Place};
use router::names::SpriteName;
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Longest an idle stream is kept (`wake.md` §6: idle streams must not look like use).
const IDLE: Duration = Duration::from_secs(4);
/// Idle streams per sprite and core (chosen: eight HTTP/2 connections with 32 streams each).
const IDLE_PER_SPRITE: usize = 256;
/// Idle streams per core (chosen: a quarter of a usual descriptor limit on the direct link).
const IDLE_TOTAL: usize = 4096;

/// The pool of one core.
#[derive(Default)]
pub struct Pool {
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Most recently used last; a stream is taken from the back, so the rest can age.
    idle: HashMap<SpriteName, Vec<(Instant, Connection)>>,
    total: usize,
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A stream to exactly this placement and port that is still quiet.
    ///
    /// Streams of an older placement or a closed run are dropped on the way.
    #[must_use]
    pub fn take(&self, name: &SpriteName, place: impl Fn(&Place) -> bool) -> Option<Connection> {
        let mut inner = self.inner.borrow_mut();
        let streams = inner.idle.get_mut(name)?;
        let mut dropped = 0;
        let mut found = None;
        for at in (0..streams.len()).rev() {
            if !place(&streams[at].1.place) {
                continue;
            }
            let (_, mut connection) = streams.remove(at);
            dropped += 1;
            if connection.is_quiet() {
                found = Some(connection);
                break;
            }
        }
        inner.total -= dropped;
        found
    }

    /// Keeps a stream for the next request; over a bound it is closed instead.
    pub(super) fn put(&self, connection: Connection) {
        let mut inner = self.inner.borrow_mut();
        if inner.total >= IDLE_TOTAL {
            return;
        }
        // The sweep may have dropped a quiet sprite's empty list; the name is cloned then only.
        let streams = match inner.idle.get_mut(&connection.place.name) {
            Some(streams) => streams,
            None => inner.idle.entry(connection.place.name.clone()).or_default(),
        };
        if streams.len() < IDLE_PER_SPRITE {
            streams.push((Instant::now(), connection));
            inner.total += 1;
        }
    }

    /// Closes what has been idle for too long; called once a second by the core.
    pub fn sweep(&self, now: Instant) {
        let mut inner = self.inner.borrow_mut();
        let mut left = 0;
        inner.idle.retain(|_, streams| {
            streams.retain(|(since, _)| now.saturating_duration_since(*since) < IDLE);
            left += streams.len();
            !streams.is_empty()
        });
        inner.total = left;
    }

    /// Closes every idle stream to this sprite: its run ended.
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
