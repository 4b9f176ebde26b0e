//! From a subscription of the agent to a feed.
//!
//! A subscription is quiet when nothing changes, and when it is dead. So the agent is asked every few seconds which
//! history it has, and a subscription that is quiet for longer is attached to again from where it stood, which
//! brings whatever was lost. Whatever does not fit ends the feed; who follows it subscribes again, and goes on from
//! there if the agent still knows that place.

use super::hints::{self, Hints};
use super::tail::{Broken, Tail, Told};
use super::wire::{HEAD_BYTES, LINE_BYTES_MAX};
use super::{Inner, SUBSCRIPTIONS, refused};
use crate::store::feed::{Feeder, feed};
use crate::store::http::{Piece, Stream};
use crate::store::{Cursor, Feed, FeedEvent, StoreError};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};

/// Between two looks at the agent (chosen).
const BEAT: Duration = Duration::from_secs(3);
/// A subscription that was attached to again has said what it missed after this (its rounds take up to 600 ms).
const CAUGHT_UP: Duration = Duration::from_millis(700);
/// A quiet subscription is attached to again after this (chosen: a lost connection is found out within 20 s).
const RENEW: Duration = Duration::from_secs(15);
/// Longest pause in a snapshot (the agent itself gives its first answer up after 15 s).
const SNAPSHOT_SILENCE: Duration = Duration::from_secs(16);
/// Longest id or hash of a subscription, bytes (a UUID has 36).
const ID_BYTES_MAX: usize = 64;

/// A subscription, between two feeds that go on with it.
pub(super) struct Known {
    id: String,
    hash: String,
    tail: Tail,
    /// The place of the last event that was told: who comes back with another one has not heard all.
    told: Cursor,
    /// Where it said something that did not fit. Twice at one place, and it is given up.
    doubted: Option<Option<u64>>,
}

/// Subscribes: a snapshot, or what changed since `resume`.
pub(super) async fn begin(inner: &Arc<Inner>, prefix: &str, resume: Option<Cursor>) -> Result<Feed, StoreError> {
    let epoch = inner.begun_epoch().await?;
    let known = inner.known().remove(prefix);
    let known = known.filter(|known| resume == Some(known.told) && known.tail.epoch() == epoch);
    let (feeder, feed) = feed(VecDeque::new());
    let pump = Pump { inner: Arc::clone(inner), prefix: prefix.into(), epoch, known, feeder };
    tokio::spawn(pump.run());
    Ok(feed)
}

struct Pump {
    inner: Arc<Inner>,
    prefix: String,
    epoch: u64,
    known: Option<Known>,
    feeder: Feeder,
}

/// Why a subscription is not read any more.
enum End {
    /// Nobody listens.
    Left,
    /// It is attached to again.
    Again,
}

impl Pump {
    async fn run(mut self) {
        let (hints, _hinting) = hints::follow(&self.inner, &self.prefix);
        let end = self.feed(hints).await;
        if let Some(mut known) = self.known.take() {
            known.tail.pause();
            self.inner.known().insert(self.prefix, known);
        }
        if let Err(error) = end {
            self.feeder.end(error);
        }
    }

    async fn feed(&mut self, mut hints: Hints) -> Result<(), StoreError> {
        loop {
            let stream = match self.attach().await? {
                Some(stream) => stream,
                None => match self.snapshot().await? {
                    Some(stream) => stream,
                    None => return Ok(()),
                },
            };
            match self.tail(stream, &mut hints).await? {
                End::Left => return Ok(()),
                End::Again => {}
            }
        }
    }

    /// The known subscription from where it stands; none when there is none, or the agent has forgotten it.
    async fn attach(&mut self) -> Result<Option<Stream>, StoreError> {
        let Some(known) = &self.known else { return Ok(None) };
        let path = format!("{SUBSCRIPTIONS}/{}?from={}", known.id, known.tail.last().unwrap_or(0));
        let attached = self.inner.attach(&path).await?;
        let same =
            |stream: &Stream| identity(&stream.headers).is_some_and(|(id, hash)| id == known.id && hash == known.hash);
        match attached {
            stream if stream.status.is_success() && same(&stream) => Ok(Some(stream)),
            stream if stream.status.is_success() || forgotten(stream.status) => {
                self.known = None;
                Ok(None)
            }
            mut stream => Err(refused(stream.status, &stream.whole().await.unwrap_or_default())),
        }
    }

    /// Everything there is; `None` when nobody listens any more.
    async fn snapshot(&mut self) -> Result<Option<Stream>, StoreError> {
        let body = Bytes::from(self.inner.sql.under(&self.prefix).to_string());
        let mut stream = self.inner.open(SUBSCRIPTIONS, &body).await?;
        if !stream.status.is_success() {
            return Err(refused(stream.status, &stream.whole().await.unwrap_or_default()));
        }
        let nameless = || StoreError::Nonsense("a subscription without an id".into());
        let (id, hash) = identity(&stream.headers).ok_or_else(nameless)?;
        let mut tail = Tail::new(&self.prefix, self.epoch, &id);
        if !self.feeder.push(FeedEvent::SnapshotBegin { epoch: self.epoch }) {
            return Ok(None);
        }
        while tail.last().is_none() {
            let piece = tokio::select! {
                piece = timeout(SNAPSHOT_SILENCE, stream.piece(LINE_BYTES_MAX, HEAD_BYTES)) => piece,
                () = self.feeder.left() => return Ok(None),
            };
            let silent = |_| StoreError::Unavailable(format!("the agent said nothing for {SNAPSHOT_SILENCE:?}"));
            let piece = whole(piece.map_err(silent)?)?;
            for told in tail.take(&piece).map_err(Broken::into_inner)? {
                let Told::Event(event) = told else { continue };
                let taken = match event {
                    event @ FeedEvent::Entry(_) => self.feeder.push_when_taken(event).await,
                    event => self.feeder.push(event),
                };
                if !taken {
                    return Ok(None);
                }
            }
        }
        let told = tail.cursor();
        self.known = Some(Known { id, hash, tail, told, doubted: None });
        Ok(Some(stream))
    }

    async fn tail(&mut self, mut stream: Stream, hints: &mut Hints) -> Result<End, StoreError> {
        let (mut heard, mut beat) = (Instant::now(), Instant::now() + CAUGHT_UP);
        loop {
            tokio::select! {
                piece = stream.piece(LINE_BYTES_MAX, HEAD_BYTES) => {
                    heard = Instant::now();
                    if !self.take(&whole(piece)?).await? {
                        return Ok(End::Left);
                    }
                }
                Some(rows) = hints.recv() => {
                    let event = self.tail_of()?.hint(rows);
                    if !event.is_none_or(|event| self.push(event)) {
                        return Ok(End::Left);
                    }
                }
                () = sleep_until(beat) => {
                    beat = Instant::now() + BEAT;
                    if !self.beat().await? {
                        return Ok(End::Left);
                    }
                    if heard.elapsed() >= RENEW {
                        return Ok(End::Again);
                    }
                }
                () = self.feeder.left() => return Ok(End::Left),
            }
        }
    }

    /// `false` when nobody listens any more.
    async fn take(&mut self, piece: &Piece) -> Result<bool, StoreError> {
        let taken = self.tail_of()?.take(piece);
        let told = match taken {
            Ok(told) => told,
            Err(Broken::Over(error)) => {
                self.known = None;
                return Err(error);
            }
            Err(Broken::Doubt(error)) => {
                // Attached to again it may say something else, once.
                self.known = self.known.take().filter(|known| known.doubted != Some(known.tail.last()));
                if let Some(known) = &mut self.known {
                    known.doubted = Some(known.tail.last());
                }
                return Err(error);
            }
        };
        for told in told {
            let taken = match told {
                Told::Event(event) => self.push(event),
                Told::Ask(key) => self.ask(key).await?,
            };
            if !taken {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Looks at the agent, and at hints that nothing has confirmed; says that all is well.
    async fn beat(&mut self) -> Result<bool, StoreError> {
        if self.inner.epoch().await? != self.epoch {
            self.known = None;
            return Err(StoreError::Unavailable("the agent has another history".into()));
        }
        for key in self.tail_of()?.beat() {
            if !self.ask(key).await? {
                return Ok(false);
            }
        }
        let cursor = self.tail_of()?.cursor();
        Ok(self.push(FeedEvent::Current(cursor)))
    }

    async fn ask(&mut self, key: String) -> Result<bool, StoreError> {
        let rows = match self.inner.rows(&key).await {
            Ok(rows) => rows,
            Err(error) => {
                // The change that asked for it is past.
                self.known = None;
                return Err(error);
            }
        };
        let event = self.tail_of()?.asked(key, rows);
        Ok(self.push(event))
    }

    fn push(&mut self, event: FeedEvent) -> bool {
        let told = match &event {
            FeedEvent::Put(_, cursor) | FeedEvent::Delete(_, cursor) | FeedEvent::Current(cursor) => Some(*cursor),
            _ => None,
        };
        if let (Some(known), Some(told)) = (&mut self.known, told) {
            known.told = told;
        }
        self.feeder.push(event)
    }

    fn tail_of(&mut self) -> Result<&mut Tail, StoreError> {
        let gone = || StoreError::Unavailable("the subscription is over".into());
        self.known.as_mut().map(|known| &mut known.tail).ok_or_else(gone)
    }
}

impl Broken {
    fn into_inner(self) -> StoreError {
        match self {
            Self::Doubt(error) | Self::Over(error) => error,
        }
    }
}

/// An agent ends a subscription without a word when its reader is too slow, or it stops.
fn whole(piece: Result<Option<Piece>, String>) -> Result<Piece, StoreError> {
    let piece = piece.map_err(StoreError::Unavailable)?;
    piece.ok_or_else(|| StoreError::Unavailable("the agent has ended the subscription".into()))
}

/// It knows no such subscription, or not that place of it.
fn forgotten(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST | StatusCode::GONE)
}

/// What the agent calls a subscription.
fn identity(headers: &HeaderMap) -> Option<(String, String)> {
    let text = |name: &str| {
        let text = headers.get(name)?.to_str().ok()?;
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (!text.is_empty() && text.len() <= ID_BYTES_MAX && text.bytes().all(legal)).then(|| text.to_owned())
    };
    Some((text("corro-query-id")?, text("corro-query-hash")?))
}
