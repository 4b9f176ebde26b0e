//! Engine `corrosion`: a table of Corrosion, over the HTTP API of this machine's own agent.
//!
//! Corrosion gossips; nobody in it can say which of two writers was first, so it has no compare-and-set. What makes it
//! safe for routes all the same: every row has one writer. A writer has a row of its own for each key it writes (`owner`),
//! the row of a key is the one with the highest generation, then the highest count of writes, and everybody decides so
//! (`ranks.rs`). [`Engine::compare_and_set`] compares with what this agent has, in the statement that writes; against
//! writers at other agents, it is no fence, and rows that need one (`domain/`) are refused.
//!
//! The epoch is a row that the first subscriber writes. A cursor is a subscription of the agent and a change of it; it is
//! good for as long as this process and the agent both remember that subscription, and a snapshot else.
//! A write is acknowledged by this machine's agent, on its disk; the others have it some milliseconds later. A read is
//! what this agent has.

mod hints;
mod pump;
mod ranks;
mod tail;
mod wire;

pub use ranks::OPERATOR;

use super::http::{HttpError, Servers, Stream};
use super::{Answer, Cursor, Engine, Entry, Feed, StoreError, check_key, check_write, fnv};
use bytes::Bytes;
use http::StatusCode;
use pump::Known;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::timeout;
use wire::{Done, Event, HEAD_BYTES, LINE_BYTES_MAX, Row, Sql};

const QUERIES: &str = "/v1/queries";
const SUBSCRIPTIONS: &str = "/v1/subscriptions";
/// The agent gives a write up before we give up waiting for it (3 s), so that none is done after that.
const TRANSACTIONS: &str = "/v1/transactions?timeout=2";
/// Longest pause in the answer to a query (chosen).
const SILENCE: Duration = Duration::from_secs(3);
/// Attempts at one write while other processes of this machine write the same row (chosen).
const WRITES_MAX: u32 = 4;
/// Writers' rows of one key that are looked at (chosen: who has had it since the last write, which clears up).
const ROWS_MAX: usize = 1_024;
/// Longest token file, bytes (chosen).
const TOKEN_BYTES_MAX: usize = 4_096;

/// The table.
#[derive(Clone)]
pub struct CorrosionStore(Arc<Inner>);

struct Inner {
    agent: Servers,
    authorization: Option<String>,
    sql: Sql,
    /// As whom this process writes.
    owner: String,
    /// By prefix, subscriptions that nobody reads at the moment: one for each kind of row at most.
    known: Mutex<HashMap<String, Known>>,
}

impl CorrosionStore {
    /// Connects to nothing yet. `owner` is the name this process writes under: no other one may have it.
    ///
    /// # Errors
    /// [`StoreError::Denied`]: the token cannot be read, or the address is none.
    pub fn open(settings: &config::CorrosionStore, owner: &str) -> Result<Self, StoreError> {
        let agent = Servers::new(std::slice::from_ref(&settings.api), Path::new(""))?;
        let authorization = token(&settings.token_file)?.map(|token| format!("Bearer {token}"));
        let (sql, owner) = (Sql::new(&settings.table), owner.to_owned());
        Ok(Self(Arc::new(Inner { agent, authorization, sql, owner, known: Mutex::default() })))
    }
}

fn token(path: &Path) -> Result<Option<String>, StoreError> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let unusable = |why: &str| StoreError::Denied(format!("token_file {}: {why}", path.display()));
    let token = std::fs::read_to_string(path).map_err(|error| unusable(&error.to_string()))?;
    let token = token.trim();
    match token.is_empty() || token.len() > TOKEN_BYTES_MAX || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Err(unusable("no token")),
        false => Ok(Some(token.into())),
    }
}

impl Engine for CorrosionStore {
    fn name(&self) -> &'static str {
        "corrosion"
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>> {
        Box::pin(async move {
            check_key(key)?;
            Ok(best(self.0.rows(key).await?).and_then(entry))
        })
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Entry>> {
        Box::pin(async move {
            let mut rows: BTreeMap<String, Row> = BTreeMap::new();
            let take = |row: Row| {
                if rows.get(&row.name).is_none_or(|known| known.rank < row.rank) {
                    rows.insert(row.name.clone(), row);
                }
                Ok(())
            };
            self.0.select(&self.0.sql.under(prefix), take).await?;
            Ok(rows.into_values().filter_map(entry).collect())
        })
    }

    /// Against writers at this agent alone; see the module.
    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64> {
        Box::pin(async move {
            check_write(key, value)?;
            if key.starts_with("domain/") {
                return Err(StoreError::Denied(format!(
                    "{key}: who proves a domain first has it, and engine corrosion has no compare-and-set to say who that \
                     was; custom domains need engine nats, etcd or primary"
                )));
            }
            for _ in 0..WRITES_MAX {
                if let Some(version) = self.0.write(key, expected, value).await? {
                    return Ok(version);
                }
            }
            Err(StoreError::Unavailable("others write this row all the time".into()))
        })
    }

    fn subscribe<'a>(&'a self, prefix: &'a str, resume: Option<Cursor>) -> Answer<'a, Feed> {
        Box::pin(pump::begin(&self.0, prefix, resume))
    }
}

fn best(rows: Vec<Row>) -> Option<Row> {
    rows.into_iter().max_by_key(|row| row.rank)
}

fn entry(row: Row) -> Option<Entry> {
    let (key, version) = (row.name, row.rank.count);
    row.value.map(|value| Entry { key, value, version })
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        // Nothing below can panic half way.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows of one key, of all its writers.
    async fn rows(&self, key: &str) -> Result<Vec<Row>, StoreError> {
        let mut rows = Vec::new();
        let take = |row: Row| match rows.len() < ROWS_MAX {
            true => {
                rows.push(row);
                Ok(())
            }
            false => Err(StoreError::Nonsense(format!("{key} has rows of over {ROWS_MAX} writers"))),
        };
        self.select(&self.sql.of(key), take).await?;
        rows.retain(|row| row.name == key);
        Ok(rows)
    }

    /// Asks for rows, to the end of the answer.
    async fn select(
        &self,
        statement: &Value,
        mut take: impl FnMut(Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut stream = self.open(QUERIES, &Bytes::from(statement.to_string())).await?;
        if !stream.status.is_success() {
            return Err(refused(stream.status, &stream.whole().await.unwrap_or_default()));
        }
        loop {
            let piece = timeout(SILENCE, stream.piece(LINE_BYTES_MAX, HEAD_BYTES)).await;
            let piece = piece.map_err(|_| StoreError::Unavailable(format!("no answer in {SILENCE:?}")))?;
            let piece = piece.map_err(StoreError::Unavailable)?;
            let piece = piece.ok_or_else(|| StoreError::Unavailable("the answer has no end".into()))?;
            let row = match piece.whole {
                false => Row::beheaded(&piece.bytes),
                true => match wire::event(&piece.bytes)? {
                    Event::Row(_, cells) => Row::new(&cells),
                    Event::Eoq(_) => return Ok(()),
                    Event::Error(why) => return Err(StoreError::Unavailable(why)),
                    Event::Columns(_) => None,
                    Event::Change(..) | Event::Notify(..) => {
                        return Err(StoreError::Nonsense("a line out of place".into()));
                    }
                },
            };
            row.map_or(Ok(()), &mut take)?;
        }
    }

    /// `None` when somebody at this agent wrote in between: to be tried again.
    async fn write(&self, key: &str, expected: Option<u64>, value: Option<&[u8]>) -> Result<Option<u64>, StoreError> {
        let rows = self.rows(key).await?;
        let seen = rows.iter().map(|row| row.rank.count).max().unwrap_or(0);
        let present = best(rows);
        let generation = present.as_ref().map_or(0, |row| row.rank.generation);
        let actual = present.and_then(entry).map(|entry| entry.version);
        if actual != expected {
            return Err(StoreError::Conflict { expected, actual });
        }
        // The count is an integer of SQLite.
        if i64::try_from(seen).is_ok_and(|seen| seen == i64::MAX) {
            return Err(StoreError::Denied(format!("{key} cannot be counted further; delete its rows")));
        }
        let written = self.transact(&self.sql.write(key, &self.owner, seen, value, generation)).await?;
        Ok((written > 0).then_some(seen + 1))
    }

    /// How many rows the first statement wrote.
    async fn transact(&self, statements: &Value) -> Result<u64, StoreError> {
        let body = Bytes::from(statements.to_string());
        let sent = self.agent.call(TRANSACTIONS, self.authorization.as_deref(), &body).await;
        let (status, answer) = sent.map_err(|error| match error {
            HttpError::NotSent { .. } => StoreError::Unavailable(error.to_string()),
            HttpError::Sent { .. } => StoreError::Uncertain(error.to_string()),
        })?;
        if !status.is_success() {
            return Err(refused(status, &answer));
        }
        let done: Done = serde_json::from_slice(&answer).map_err(|error| StoreError::Uncertain(error.to_string()))?;
        match (done.failure(), done.written()) {
            (None, Some(written)) => Ok(written),
            (Some(_), _) => Err(StoreError::Unavailable(wire::problem(&answer))),
            (None, None) => Err(StoreError::Uncertain("an answer without a result".into())),
        }
    }

    /// Which history the agent has; 0 when the table has none yet.
    async fn epoch(&self) -> Result<u64, StoreError> {
        let mut epoch = 0;
        let take = |row: Row| {
            epoch = fnv(row.value.unwrap_or_default());
            Ok(())
        };
        self.select(&self.sql.epoch(), take).await?;
        Ok(epoch)
    }

    /// The same; when it has none, one is begun. Who may not write does without.
    async fn begun_epoch(&self) -> Result<u64, StoreError> {
        match self.epoch().await? {
            0 => {}
            epoch => return Ok(epoch),
        }
        let random = getrandom::u64().map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if let Err(error) = self.transact(&self.sql.begin(now, random)).await {
            tracing::warn!(%error, "the table has no epoch yet, and the agent takes none");
        }
        self.epoch().await
    }

    async fn open(&self, path: &str, body: &Bytes) -> Result<Stream, StoreError> {
        let opened = self.agent.open(path, self.authorization.as_deref(), body).await;
        opened.map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    async fn attach(&self, path: &str) -> Result<Stream, StoreError> {
        let opened = self.agent.attach(path, self.authorization.as_deref()).await;
        opened.map_err(|error| StoreError::Unavailable(error.to_string()))
    }
}

/// An answer that is none.
fn refused(status: StatusCode, answer: &[u8]) -> StoreError {
    let why = wire::problem(answer);
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => StoreError::Denied(format!(
            "the agent does not know this token (store.corrosion.token_file): {status} {why}"
        )),
        _ => StoreError::Unavailable(format!("the agent answers {status}: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::subscriber::{Heard, Subscriber};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_away_is_asked_again_and_again_with_pauses_that_have_a_bound() {
        // Bound, so that it is nobody else's; it does not listen.
        let nobody = tokio::net::TcpSocket::new_v4().unwrap();
        nobody.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let api = format!("http://{}", nobody.local_addr().unwrap());
        let settings = config::CorrosionStore { api, ..config::CorrosionStore::default() };
        let store: Store = Arc::new(CorrosionStore::open(&settings, "edge/a").unwrap());
        let mut subscriber = Subscriber::new(store, "sprite/");
        let began = Instant::now();
        for _ in 0..12 {
            assert!(matches!(subscriber.next().await, Heard::Lost));
        }
        // 0.5 + 1 + 2 + 4 + 8 + 16 s, then five times 30 s, and 3 s for each attempt.
        assert!(began.elapsed() <= Duration::from_secs(32 + 150 + 36), "{:?}", began.elapsed());
    }

    #[test]
    fn a_token_is_one_word_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, " secret\n").unwrap();
        assert_eq!(token(&path).unwrap().as_deref(), Some("secret"));
        assert_eq!(token(Path::new("")).unwrap(), None);
        for wrong in ["", "two words", "\u{e9}", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
            std::fs::write(&path, wrong).unwrap();
            assert!(matches!(token(&path), Err(StoreError::Denied(_))), "{wrong}");
        }
    }
}
