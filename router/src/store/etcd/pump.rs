//! From a snapshot and a watch to a feed.
//!
//! Everything under our prefix is watched and what was not asked for is left out here, so that the
//! revision moves with every write of ours. A watch may stand still without a word (a member
//! that is cut off); so when it is quiet and etcd's revision has moved on all the same, the watch is
//! begun again, at another member, from where it stood.

use super::wire::{RangeAnswer, WatchAnswer, WatchLine, base64};
use super::{Inner, Now, PAGE};
use crate::store::feed::{Feeder, feed};
use crate::store::http::Stream;
use crate::store::{Cursor, Entry, Feed, FeedEvent, StoreError};
use bytes::Bytes;
use serde_json::json;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long it may be quiet before etcd is asked (chosen).
const QUIET: Duration = Duration::from_secs(3);
/// So often in a row etcd's revision may be ahead before the watch is begun again (chosen: once is a race).
const DOUBTS: u32 = 2;
/// Somebody else may write all the time; then the watch is begun again this often (chosen).
const RENEW: Duration = Duration::from_secs(60);

/// Subscribes: a snapshot, or what changed since `resume`.
pub(super) async fn begin(inner: &Arc<Inner>, prefix: &str, resume: Option<Cursor>) -> Result<Feed, StoreError> {
    let now = inner.now().await?;
    let position = resume.filter(|cursor| cursor.epoch == now.epoch && cursor.version <= now.revision);
    let (feeder, feed) = feed(VecDeque::new());
    let pump = Pump {
        inner: Arc::clone(inner),
        prefix: prefix.into(),
        epoch: now.epoch,
        feeder,
        position: position.map(|cursor| cursor.version),
        until: position.map(|_| now.revision),
        renewed: None,
    };
    tokio::spawn(pump.run());
    Ok(feed)
}

struct Pump {
    inner: Arc<Inner>,
    prefix: String,
    epoch: u64,
    feeder: Feeder,
    /// The last revision that is delivered; none when a snapshot is due.
    position: Option<u64>,
    /// A feed that was resumed has caught up here.
    until: Option<u64>,
    /// Where the watch stood when it was begun again for a doubt, and when.
    renewed: Option<(u64, Instant)>,
}

/// Why a watch ended.
enum End {
    /// Nobody listens any more.
    Left,
    /// It stands still, or its history is gone: it is begun again.
    Again,
}

impl Pump {
    async fn run(mut self) {
        let end = loop {
            match self.once().await {
                Ok(End::Left) => return,
                Ok(End::Again) => {}
                Err(error) => break error,
            }
        };
        self.inner.servers.next();
        self.feeder.end(end);
    }

    async fn once(&mut self) -> Result<End, StoreError> {
        let position = match self.position {
            Some(position) => position,
            None => match self.snapshot().await? {
                Some(revision) => revision,
                None => return Ok(End::Left),
            },
        };
        self.position = Some(position);
        if !self.caught_up() {
            return Ok(End::Left);
        }
        let mut watch = self.watch(position + 1).await?;
        let mut doubts = 0;
        loop {
            let line = tokio::select! {
                line = tokio::time::timeout(QUIET, watch.line()) => line,
                () = self.feeder.left() => return Ok(End::Left),
            };
            let Ok(line) = line else {
                let now = self.inner.now().await?;
                match self.quiet(now, &mut doubts)? {
                    Some(end) => return Ok(end),
                    None => continue,
                }
            };
            let line = line.map_err(StoreError::Unavailable)?;
            let line = line.ok_or_else(|| StoreError::Unavailable("the watch has ended".into()))?;
            let line: WatchLine =
                serde_json::from_slice(&line).map_err(|error| StoreError::Nonsense(error.to_string()))?;
            if let Some(problem) = line.error {
                return Err(StoreError::Unavailable(problem.message));
            }
            let Some(answer) = line.result else { continue };
            if answer.canceled && answer.compact_revision > 0 {
                // What happened in between is gone; what is there now is not.
                self.position = None;
                self.until = None;
                return Ok(End::Again);
            }
            if answer.canceled {
                return Err(StoreError::Unavailable(format!("the watch was ended: {}", answer.cancel_reason)));
            }
            if !answer.events.is_empty() {
                doubts = 0;
            }
            if !self.take(answer)? {
                return Ok(End::Left);
            }
        }
    }

    /// Everything there is, at one revision; `None` when nobody listens any more.
    async fn snapshot(&mut self) -> Result<Option<u64>, StoreError> {
        let (mut from, end) = self.inner.bounds(&self.prefix);
        let mut revision = 0;
        if !self.feeder.push(FeedEvent::SnapshotBegin { epoch: self.epoch }) {
            return Ok(None);
        }
        loop {
            // Pages after the first are read as things were at the first.
            let body = json!({
                "key": base64(&from), "range_end": end, "limit": PAGE.to_string(), "revision": revision.to_string(),
            });
            let page: RangeAnswer = self.inner.read("/v3/kv/range", &body).await?;
            if revision == 0 {
                revision = page.header.revision;
            }
            let more = page.more;
            if let Some(last) = page.kvs.last() {
                from = [last.key.as_slice(), &[0]].concat();
            }
            for found in page.kvs {
                let entry = self.inner.entry(found)?;
                if !self.feeder.push_when_taken(FeedEvent::Entry(entry)).await {
                    return Ok(None);
                }
            }
            if !more {
                break;
            }
        }
        let end = FeedEvent::SnapshotEnd(Cursor { epoch: self.epoch, version: revision });
        Ok(self.feeder.push(end).then_some(revision))
    }

    async fn watch(&self, from: u64) -> Result<Stream, StoreError> {
        let (key, range_end) = self.inner.bounds("");
        let body = json!({ "create_request": {
            "key": base64(&key), "range_end": range_end, "start_revision": from.to_string(),
        } });
        let token = self.inner.token().await.map_err(super::Failure::of_a_read)?;
        let body = Bytes::from(body.to_string());
        let opened = self.inner.servers.open("/v3/watch", token.as_deref(), &body).await;
        let stream = opened.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        match stream.status.is_success() {
            true => Ok(stream),
            false => Err(StoreError::Unavailable(format!("a watch is answered {}", stream.status))),
        }
    }

    /// `false` when nobody listens any more.
    fn take(&mut self, answer: WatchAnswer) -> Result<bool, StoreError> {
        let mut events = answer.events.into_iter().peekable();
        while let Some(event) = events.next() {
            let revision = event.kv.mod_revision;
            if self.position.is_some_and(|position| revision <= position) {
                return Err(StoreError::Nonsense(format!("revision {revision} came twice")));
            }
            // Several rows of one revision: only behind the last of them it is delivered.
            let whole = events.peek().is_none_or(|next| next.kv.mod_revision != revision);
            let version = if whole { revision } else { revision - 1 };
            let cursor = Cursor { epoch: self.epoch, version };
            let deleted = event.kind == "DELETE";
            let entry = self.inner.entry(event.kv)?;
            if entry.key.starts_with(&self.prefix) {
                let Entry { key, .. } = &entry;
                let event = match deleted {
                    true => FeedEvent::Delete(key.clone(), cursor),
                    false => FeedEvent::Put(entry, cursor),
                };
                if !self.feeder.push(event) {
                    return Ok(false);
                }
            }
            if whole {
                self.position = Some(revision);
            }
        }
        Ok(self.caught_up())
    }

    /// Says so when a resumed feed has delivered what was there at its beginning.
    fn caught_up(&mut self) -> bool {
        match (self.until, self.position) {
            (Some(until), Some(version)) if version >= until => {
                self.until = None;
                self.feeder.push(FeedEvent::Current(Cursor { epoch: self.epoch, version }))
            }
            _ => true,
        }
    }

    /// Whether it is quiet rightly, and what is to be done if not.
    fn quiet(&mut self, now: Now, doubts: &mut u32) -> Result<Option<End>, StoreError> {
        let version = self.position.unwrap_or(0);
        if now.epoch != self.epoch {
            return Err(StoreError::Unavailable("etcd was made anew".into()));
        }
        if now.revision < version {
            return Err(StoreError::Unavailable("etcd has lost changes".into()));
        }
        if now.revision == version {
            *doubts = 0;
        } else {
            *doubts += 1;
            if *doubts < DOUBTS {
                return Ok(None);
            }
            // Once for each place; if it is quiet there too, somebody else writes to this etcd.
            if self.renewed.is_none_or(|(at, when)| at != version || when.elapsed() >= RENEW) {
                self.renewed = Some((version, Instant::now()));
                self.inner.servers.next();
                return Ok(Some(End::Again));
            }
        }
        self.until = None;
        let listens = self.feeder.push(FeedEvent::Current(Cursor { epoch: self.epoch, version }));
        Ok((!listens).then_some(End::Left))
    }
}
