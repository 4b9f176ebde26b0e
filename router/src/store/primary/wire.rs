//! What a primary and those who follow it say to each other: JSON over HTTP/1.1, a feed as lines.

use crate::store::{Cursor, Entry, FeedEvent, StoreError, VALUE_BYTES_MAX};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

/// Path of [`Get`]; the answer is an `Option` of [`Row`].
pub(super) const GET: &str = "/v1/get";
/// Path of [`Set`]; the answer is the change's version.
pub(super) const SET: &str = "/v1/set";
/// Path of [`Subscribe`]; the answer is a [`Line`] a line.
pub(super) const SUBSCRIBE: &str = "/v1/subscribe";
/// Longest request, bytes: the longest value in base64, and room for its key.
pub(super) const REQUEST_BYTES_MAX: usize = VALUE_BYTES_MAX * 2;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Get {
    pub(super) key: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Set {
    pub(super) key: String,
    pub(super) expected: Option<u64>,
    /// Base64; none deletes.
    pub(super) value: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Subscribe {
    pub(super) prefix: String,
    pub(super) resume: Option<Place>,
}

/// A [`Cursor`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    epoch: u64,
    version: u64,
}

/// An [`Entry`].
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row {
    key: String,
    value: String,
    version: u64,
}

/// One event of a feed, or why there are no more.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    Begin(u64),
    Entry(Row),
    End(Place),
    Put(Row, Place),
    Delete(String, Place),
    Current(Place),
    Over(Refusal),
}

/// Why the primary did not do it. Nothing was written, but for `Uncertain`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Refusal {
    Conflict { expected: Option<u64>, actual: Option<u64> },
    TooLarge,
    Key(String),
    Denied(String),
    Unavailable(String),
    Uncertain(String),
    Nonsense(String),
    Lagged,
}

impl From<Cursor> for Place {
    fn from(Cursor { epoch, version }: Cursor) -> Self {
        Self { epoch, version }
    }
}

impl From<Place> for Cursor {
    fn from(Place { epoch, version }: Place) -> Self {
        Self { epoch, version }
    }
}

impl From<Entry> for Row {
    fn from(Entry { key, value, version }: Entry) -> Self {
        Self { key, value: encode(&value), version }
    }
}

impl TryFrom<Row> for Entry {
    type Error = StoreError;

    fn try_from(Row { key, value, version }: Row) -> Result<Self, StoreError> {
        Ok(Self { key, value: decode(&value)?, version })
    }
}

impl From<FeedEvent> for Line {
    fn from(event: FeedEvent) -> Self {
        match event {
            FeedEvent::SnapshotBegin { epoch } => Self::Begin(epoch),
            FeedEvent::Entry(entry) => Self::Entry(entry.into()),
            FeedEvent::SnapshotEnd(cursor) => Self::End(cursor.into()),
            FeedEvent::Put(entry, cursor) => Self::Put(entry.into(), cursor.into()),
            FeedEvent::Delete(key, cursor) => Self::Delete(key, cursor.into()),
            FeedEvent::Current(cursor) => Self::Current(cursor.into()),
        }
    }
}

impl TryFrom<Line> for FeedEvent {
    type Error = StoreError;

    fn try_from(line: Line) -> Result<Self, StoreError> {
        Ok(match line {
            Line::Begin(epoch) => Self::SnapshotBegin { epoch },
            Line::Entry(row) => Self::Entry(row.try_into()?),
            Line::End(place) => Self::SnapshotEnd(place.into()),
            Line::Put(row, place) => Self::Put(row.try_into()?, place.into()),
            Line::Delete(key, place) => Self::Delete(key, place.into()),
            Line::Current(place) => Self::Current(place.into()),
            Line::Over(refusal) => return Err(refusal.into()),
        })
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict { expected, actual } => Self::Conflict { expected, actual },
            StoreError::TooLarge => Self::TooLarge,
            StoreError::Key(key) => Self::Key(key),
            StoreError::Denied(why) => Self::Denied(why),
            StoreError::Uncertain(why) => Self::Uncertain(why),
            StoreError::Nonsense(why) => Self::Nonsense(why),
            StoreError::Lagged => Self::Lagged,
            // Of a write that failed half way the file knows nothing after its next start, or all.
            error @ StoreError::Storage(_) => Self::Uncertain(error.to_string()),
            error @ (StoreError::InUse | StoreError::Unavailable(_)) => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<Refusal> for StoreError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Conflict { expected, actual } => Self::Conflict { expected, actual },
            Refusal::TooLarge => Self::TooLarge,
            Refusal::Key(key) => Self::Key(key),
            Refusal::Denied(why) => Self::Denied(why),
            Refusal::Unavailable(why) => Self::Unavailable(why),
            Refusal::Uncertain(why) => Self::Uncertain(why),
            Refusal::Nonsense(why) => Self::Nonsense(why),
            Refusal::Lagged => Self::Lagged,
        }
    }
}

pub(super) fn encode(value: &[u8]) -> String {
    BASE64_STANDARD.encode(value)
}

pub(super) fn decode(value: &str) -> Result<Vec<u8>, StoreError> {
    BASE64_STANDARD.decode(value).map_err(|error| StoreError::Nonsense(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_survives_its_line() {
        let cursor = Cursor { epoch: u64::MAX, version: 7 };
        let entry = || Entry { key: "sprite/a".into(), value: vec![0, 255, 10], version: 3 };
        let events = || {
            [
                FeedEvent::SnapshotBegin { epoch: u64::MAX },
                FeedEvent::Entry(entry()),
                FeedEvent::SnapshotEnd(cursor),
                FeedEvent::Put(entry(), cursor),
                FeedEvent::Delete("sprite/a".into(), cursor),
                FeedEvent::Current(cursor),
            ]
        };
        for (event, same) in events().into_iter().zip(events()) {
            let text = serde_json::to_string(&Line::from(event)).unwrap();
            assert!(!text.contains('\n'));
            let line: Line = serde_json::from_str(&text).unwrap();
            assert_eq!(Line::from(FeedEvent::try_from(line).unwrap()), Line::from(same), "{text}");
        }
        let over: Line = serde_json::from_str("{\"over\":\"lagged\"}").unwrap();
        assert!(matches!(FeedEvent::try_from(over), Err(StoreError::Lagged)));
    }
}
