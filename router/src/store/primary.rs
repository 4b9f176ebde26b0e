//! The embedded store of another machine, which serves it to a fleet: one primary and many readers. Nothing
//! is elected and nothing replicated: while the primary is away nothing is written, and everybody serves
//! what was known.
//!
//! The way there is TLS with a certificate at both ends, pinned by its key; who is let in, and what they
//! may write, the primary decides by its own rows of hosts and PoPs.

pub mod server;
mod wire;

use super::feed::{Feeder, feed};
use super::http::{HttpError, Servers, Stream};
use super::{Answer, Cursor, Engine, Entry, Feed, FeedEvent, StoreError, check_key, check_write};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsConnector;
use wire::{GET, Get, Line, Refusal, Row, SET, SUBSCRIBE, Set, Subscribe, encode};

/// A primary that says nothing for so long is looked for anew (chosen: three times what it lets pass).
const SILENCE: Duration = Duration::from_secs(10);

/// The primary's store, as another machine uses it.
pub struct PrimaryStore {
    primary: Arc<Servers>,
}

impl PrimaryStore {
    /// Connects to nothing yet. `tls` is to accept the primary's certificate and bring our own.
    ///
    /// # Errors
    /// [`StoreError::Denied`]: `address` is no `HOST:PORT`.
    pub fn open(address: &str, tls: TlsConnector) -> Result<Self, StoreError> {
        Ok(Self { primary: Arc::new(Servers::pinned(address, tls)?) })
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, HttpOrRefused> {
        let body = Bytes::from(serde_json::to_vec(body).map_err(|error| nonsense(&error))?);
        let (status, answer) = self.primary.call(path, None, &body).await?;
        match status.is_success() {
            true => Ok(serde_json::from_slice(&answer).map_err(|error| nonsense(&error))?),
            false => Err(refusal(&answer).into()),
        }
    }
}

/// Why there is no answer.
enum HttpOrRefused {
    Http(HttpError),
    Refused(StoreError),
}

impl From<HttpError> for HttpOrRefused {
    fn from(error: HttpError) -> Self {
        Self::Http(error)
    }
}

impl From<StoreError> for HttpOrRefused {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl HttpOrRefused {
    fn of_a_read(self) -> StoreError {
        match self {
            Self::Http(error) => StoreError::Unavailable(error.to_string()),
            Self::Refused(error) => error,
        }
    }

    fn of_a_write(self) -> StoreError {
        match self {
            Self::Http(error @ HttpError::Sent { .. }) => StoreError::Uncertain(error.to_string()),
            // It has said something nobody understands: it may have written.
            Self::Refused(StoreError::Nonsense(why)) => StoreError::Uncertain(why),
            other => other.of_a_read(),
        }
    }
}

impl Engine for PrimaryStore {
    fn name(&self) -> &'static str {
        "primary"
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>> {
        Box::pin(async move {
            check_key(key)?;
            let row: Option<Row> = self.ask(GET, &Get { key: key.into() }).await.map_err(HttpOrRefused::of_a_read)?;
            row.map(Entry::try_from).transpose()
        })
    }

    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64> {
        Box::pin(async move {
            check_write(key, value)?;
            let set = Set { key: key.into(), expected, value: value.map(encode) };
            self.ask(SET, &set).await.map_err(HttpOrRefused::of_a_write)
        })
    }

    fn subscribe<'a>(&'a self, prefix: &'a str, resume: Option<Cursor>) -> Answer<'a, Feed> {
        Box::pin(async move {
            let ask = Subscribe { prefix: prefix.into(), resume: resume.map(Into::into) };
            let body = Bytes::from(serde_json::to_vec(&ask).map_err(|error| nonsense(&error))?);
            let opened = self.primary.open(SUBSCRIBE, None, &body).await;
            let mut stream = opened.map_err(|error| StoreError::Unavailable(error.to_string()))?;
            if !stream.status.is_success() {
                let answer = stream.line().await.map_err(StoreError::Unavailable)?;
                return Err(refusal(&answer.unwrap_or_default()));
            }
            let (feeder, feed) = feed(VecDeque::new());
            tokio::spawn(pump(stream, feeder));
            Ok(feed)
        })
    }
}

/// From lines to events, until either end has enough.
async fn pump(mut stream: Stream, feeder: Feeder) {
    let error = loop {
        let line = tokio::select! {
            line = tokio::time::timeout(SILENCE, stream.line()) => line,
            () = feeder.left() => return,
        };
        let event = match line {
            Ok(Ok(Some(line))) if line.is_empty() => continue,
            Ok(Ok(Some(line))) => serde_json::from_slice::<Line>(&line).map_err(|error| nonsense(&error)),
            Ok(Ok(None)) => Err(StoreError::Unavailable("the primary has ended the feed".into())),
            Ok(Err(why)) => Err(StoreError::Unavailable(why)),
            Err(_) => Err(StoreError::Unavailable(format!("the primary said nothing for {SILENCE:?}"))),
        };
        let event = match event.and_then(FeedEvent::try_from) {
            Ok(event) => event,
            Err(error) => break error,
        };
        let taken = match event {
            event @ FeedEvent::Entry(_) => feeder.push_when_taken(event).await,
            event => feeder.push(event),
        };
        if !taken {
            return;
        }
    };
    feeder.end(error);
}

fn refusal(answer: &[u8]) -> StoreError {
    serde_json::from_slice::<Refusal>(answer).map_or_else(|error| nonsense(&error), Into::into)
}

fn nonsense(error: &serde_json::Error) -> StoreError {
    StoreError::Nonsense(error.to_string())
}
