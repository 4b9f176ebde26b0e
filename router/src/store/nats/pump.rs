//! From a subscription of the servers to a feed.
//!
//! A subscription lives on one server, which may lag behind the leader, forget it, or be gone;
//! messages that were on their way to a lost connection are lost. So nothing is believed that
//! is not checked against the leader: a snapshot ends at the leader's last change, a number that
//! is missing ends the feed, and whenever it is quiet the leader is asked whether it should be.

use super::{Inner, is_deletion};
use crate::store::feed::{Feeder, feed};
use crate::store::{Cursor, Entry, Feed, FeedEvent, StoreError};
use async_nats::jetstream::consumer::{Consumer, pull};
use async_nats::jetstream::{Message, stream};
use futures_util::StreamExt;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Messages asked for at a time (chosen; each batch costs a round trip).
const BATCH: usize = 512;
/// How long it may be quiet before the leader is asked (chosen).
const QUIET: Duration = Duration::from_secs(3);
/// The servers' own end of a quiet batch may be lost; then ours comes this much later (chosen).
const GRACE: Duration = Duration::from_secs(2);
/// A new subscription is known to all servers after this (measured: 10 ms; chosen far above).
const KNOWN: Duration = Duration::from_secs(2);
/// So often in a row the leader may know more than the subscription said (chosen: once is a race).
const BEHIND_MAX: u32 = 2;

/// Subscribes: a snapshot, or what changed since `resume`.
pub(super) async fn begin(inner: &Arc<Inner>, prefix: &str, resume: Option<Cursor>) -> Result<Feed, StoreError> {
    let mut lost = inner.lost.clone();
    lost.mark_unchanged();
    let info = inner.info().await?;
    if !info.config.max_age.is_zero() {
        tracing::warn!(bucket = inner.settings.bucket, "the bucket's entries expire; set its max age to 0");
    }
    let epoch = epoch(&info)?;
    // Something between that is gone may have been the mark of a deletion.
    let covered = |cursor: &Cursor| {
        cursor.epoch == epoch
            && cursor.version <= info.state.last_sequence
            && info.state.first_sequence <= cursor.version + 1
    };
    let resume = resume.filter(covered).map(|cursor| cursor.version);
    let filter = inner.filter(prefix);
    let newest = inner.last(&filter).await?.map_or(0, |message| message.sequence);
    let consumer = inner.consumer(&filter, resume.map(|version| version + 1)).await?;
    let first = match resume {
        Some(_) => VecDeque::new(),
        None => VecDeque::from([FeedEvent::SnapshotBegin { epoch }]),
    };
    let (feeder, feed) = feed(first);
    let pump = Pump {
        inner: Arc::clone(inner),
        consumer,
        filter,
        prefix: prefix.into(),
        epoch,
        feeder,
        position: resume.unwrap_or(0),
        heard: 0,
        until: Some(newest),
        snapshot: resume.is_none(),
        behind: 0,
    };
    tokio::spawn(pump.run(lost));
    Ok(feed)
}

/// The moment the stream was made: another one is another history, whatever its name.
fn epoch(info: &stream::Info) -> Result<u64, StoreError> {
    u64::try_from(info.created.unix_timestamp_nanos())
        .map_err(|_| StoreError::Nonsense("the bucket was made before 1970".into()))
}

struct Pump {
    inner: Arc<Inner>,
    consumer: Consumer<pull::Config>,
    filter: String,
    prefix: String,
    epoch: u64,
    feeder: Feeder,
    /// Sequence of the last message.
    position: u64,
    /// Messages this subscription has sent.
    heard: u64,
    /// The leader's last change when we subscribed; from there on it is tail.
    until: Option<u64>,
    snapshot: bool,
    behind: u32,
}

impl Pump {
    async fn run(mut self, mut lost: tokio::sync::watch::Receiver<u64>) {
        let end = tokio::select! {
            end = self.deliver() => end,
            _ = lost.changed() => Err(StoreError::Unavailable("the connection was lost".into())),
        };
        let (inner, name) = (self.inner, self.consumer.cached_info().name.clone());
        if let Err(error) = end {
            let silent = matches!(&error, StoreError::Unavailable(_));
            self.feeder.end(error);
            if silent && lost.has_changed().is_ok_and(|changed| !changed) {
                inner.leave_server().await;
            }
        }
        // Kindness; what cannot be told is forgotten by itself.
        if let Ok(stream) = inner.stream().await
            && let Err(error) = stream.delete_consumer(&name).await
        {
            tracing::debug!(%error, "subscription not ended");
        }
    }

    /// `Ok` when nobody listens any more.
    async fn deliver(&mut self) -> Result<(), StoreError> {
        self.caught_up();
        let begun = Instant::now();
        loop {
            let batch = self.consumer.batch().max_messages(BATCH).expires(QUIET).messages();
            let mut batch = batch.await.map_err(|error| self.inner.away(&error))?;
            let mut count = 0;
            loop {
                let message = tokio::select! {
                    message = tokio::time::timeout(QUIET + GRACE, batch.next()) => message,
                    () = self.feeder.left() => return Ok(()),
                };
                let Ok(Some(message)) = message else { break };
                count += 1;
                let message = match message {
                    Ok(message) => message,
                    // The server we talk to may not have heard yet that the subscription exists.
                    Err(_) if self.heard == 0 && begun.elapsed() < KNOWN => {
                        tokio::time::sleep(KNOWN / 20).await;
                        break;
                    }
                    Err(error) => return Err(StoreError::Unavailable(error.to_string())),
                };
                if !self.take(&message).await? {
                    return Ok(());
                }
            }
            if count == 0 && !self.is_quiet_rightly().await? {
                return Ok(());
            }
        }
    }

    /// `false` when nobody listens any more.
    async fn take(&mut self, message: &Message) -> Result<bool, StoreError> {
        let nonsense = |error: async_nats::Error| StoreError::Nonsense(error.to_string());
        let info = message.info().map_err(nonsense)?;
        self.heard += 1;
        if info.consumer_sequence != self.heard || info.stream_sequence <= self.position {
            let (got, wanted) = (info.consumer_sequence, self.heard);
            return Err(StoreError::Unavailable(format!("message {wanted} was lost, {got} came")));
        }
        self.position = info.stream_sequence;
        self.behind = 0;
        let cursor = Cursor { epoch: self.epoch, version: self.position };
        let key = self.inner.key(&message.subject).filter(|key| key.starts_with(&self.prefix));
        let deleted = message.headers.as_ref().is_some_and(is_deletion);
        let listens = match key {
            None => true,
            Some(key) if deleted && self.snapshot => {
                drop(key);
                true
            }
            Some(key) if deleted => self.feeder.push(FeedEvent::Delete(key.into(), cursor)),
            Some(key) => {
                let entry = Entry { key: key.into(), value: message.payload.to_vec(), version: cursor.version };
                match self.snapshot {
                    true => self.feeder.push_when_taken(FeedEvent::Entry(entry)).await,
                    false => self.feeder.push(FeedEvent::Put(entry, cursor)),
                }
            }
        };
        Ok(listens && self.caught_up())
    }

    /// Says so when everything is delivered that was there at the beginning.
    fn caught_up(&mut self) -> bool {
        if self.until.is_none_or(|until| self.position < until) {
            return true;
        }
        self.until = None;
        let cursor = Cursor { epoch: self.epoch, version: self.position };
        let event = match std::mem::take(&mut self.snapshot) {
            true => FeedEvent::SnapshotEnd(cursor),
            false => FeedEvent::Current(cursor),
        };
        self.feeder.push(event)
    }

    /// Asks the leader whether there is nothing to say; `false` when nobody listens any more.
    async fn is_quiet_rightly(&mut self) -> Result<bool, StoreError> {
        let info = self.inner.info().await?;
        if epoch(&info)? != self.epoch {
            return Err(StoreError::Unavailable("the bucket was made anew".into()));
        }
        if info.state.last_sequence < self.position {
            return Err(StoreError::Unavailable("the bucket has lost changes".into()));
        }
        let newest = self.inner.last(&self.filter).await?.map_or(0, |message| message.sequence);
        if newest <= self.position && self.until.is_none() {
            let cursor = Cursor { epoch: self.epoch, version: self.position };
            return Ok(self.feeder.push(FeedEvent::Current(cursor)));
        }
        self.behind += 1;
        match self.behind >= BEHIND_MAX {
            true => Err(StoreError::Unavailable("the subscription stands still".into())),
            false => Ok(true),
        }
    }
}
