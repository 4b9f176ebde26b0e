//! An agent of our own: SQLite under the published API of Corrosion, with its habits: changes numbered for each
//! subscription and kept for a while, several updates of a row in one change, a slow reader dropped without a word,
//! subscriptions lost in a crash and kept over a clean restart. It gossips with nobody.

use super::server::{Answer, Asked, Server, whole};
use bytes::Bytes;
use http::{Response, StatusCode};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, params_from_iter};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};
use tokio::task::AbortHandle;

/// Between two rounds in which subscriptions look for changes (theirs are 600 ms).
const ROUND: Duration = Duration::from_millis(30);
/// Lines a reader may be behind (theirs: 10,240).
const BEHIND_MAX: usize = 10_240;

/// The agent. Dropping it ends it; its table goes with it.
pub struct Agent {
    server: Server,
    state: Arc<Mutex<State>>,
    rounds: AbortHandle,
}

struct State {
    database: Connection,
    token: Option<String>,
    subscriptions: BTreeMap<String, Subscription>,
    made: u64,
    updates: broadcast::Sender<String>,
    /// What was asked for: method and path.
    asked: Vec<String>,
}

struct Subscription {
    sql: String,
    rows: BTreeMap<(String, String), (u64, Vec<Value>)>,
    rowids: u64,
    changes: BTreeMap<u64, String>,
    last: u64,
    listeners: broadcast::Sender<String>,
}

impl Agent {
    /// Starts one with an empty table `routes`.
    ///
    /// # Panics
    /// When it cannot be.
    pub async fn start() -> Self {
        Self::begin(&super::schema("routes"), None).await
    }

    /// Starts one that asks for a token.
    ///
    /// # Panics
    /// When it cannot be.
    pub async fn start_secured(token: &str) -> Self {
        Self::begin(&super::schema("routes"), Some(token.into())).await
    }

    /// Starts one that has not been told the schema.
    ///
    /// # Panics
    /// When it cannot be.
    pub async fn start_without_schema() -> Self {
        Self::begin("", None).await
    }

    async fn begin(schema: &str, token: Option<String>) -> Self {
        let database = Connection::open_in_memory().unwrap();
        database.execute_batch(schema).unwrap();
        let updates = broadcast::Sender::new(BEHIND_MAX);
        let state = State { database, token, subscriptions: BTreeMap::new(), made: 0, updates, asked: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let handler = Arc::clone(&state);
        let server = Server::start(Arc::new(move |asked| handler.lock().unwrap().answer(asked))).await;
        let rounds = tokio::spawn({
            let state = Arc::clone(&state);
            async move {
                loop {
                    tokio::time::sleep(ROUND).await;
                    state.lock().unwrap().round();
                }
            }
        });
        Self { server, state, rounds: rounds.abort_handle() }
    }

    /// The section of a client of it.
    #[must_use]
    pub fn settings(&self) -> config::CorrosionStore {
        super::settings(self.server.address)
    }

    /// The sections of a config file that leads to it.
    #[must_use]
    pub fn sections(&self) -> String {
        let config::CorrosionStore { api, .. } = self.settings();
        format!("[store]\nengine = \"corrosion\"\n[store.corrosion]\napi = {api:?}\n")
    }

    /// Ends as by kill -9: it knows no subscription when it comes back.
    pub fn crash(&mut self) {
        self.server.end();
        self.state().subscriptions.clear();
    }

    /// Ends as by SIGTERM: it knows its subscriptions when it comes back, and what was written meanwhile.
    pub fn end(&mut self) {
        self.server.end();
    }

    /// Comes back where it was.
    ///
    /// # Panics
    /// When its port is taken.
    pub async fn restart(&mut self) {
        self.server.listen().await;
    }

    /// Says nothing any more, or speaks again.
    pub fn freeze(&self, frozen: bool) {
        self.server.freeze(frozen);
    }

    /// Forgets the changes of every subscription up to now.
    pub fn forget_changes(&self) {
        let mut state = self.state();
        state.round();
        state.subscriptions.values_mut().for_each(|subscription| subscription.changes.clear());
    }

    /// Runs a statement, as another agent's change comes in by gossip.
    ///
    /// # Panics
    /// When it is none.
    pub fn gossip(&self, sql: &str) {
        self.state().transact(&[json!(sql)]).unwrap();
    }

    /// Rows a statement gives.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn query(&self, sql: &str) -> Vec<Vec<Value>> {
        select(&self.state().database, &json!(sql)).unwrap().1
    }

    /// Every row and every subscription is gone, as after a restore from nothing.
    pub fn make_anew(&self) {
        let mut state = self.state();
        state.subscriptions.clear();
        state.transact(&[json!("DELETE FROM routes")]).unwrap();
    }

    /// What was asked of it: `POST /v1/subscriptions`, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.rounds.abort();
    }
}

impl State {
    fn answer(&mut self, asked: Asked) -> Answer {
        let Asked { method, path, headers, body } = asked;
        self.asked.push(format!("{method} {path}"));
        let bearer = headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        if self.token.as_deref().is_some_and(|token| bearer != Some(token)) {
            return whole(401, "");
        }
        let statement: Value = serde_json::from_str(&body).unwrap_or_default();
        let (path, query) = path.split_once('?').unwrap_or((&path, ""));
        match (method.as_str(), path) {
            ("POST", "/v1/queries") => match select(&self.database, &statement) {
                Ok((columns, rows)) => {
                    let rows = rows.into_iter().enumerate().map(|(at, cells)| json!({ "row": [at + 1, cells] }));
                    let lines = std::iter::once(json!({ "columns": columns })).chain(rows);
                    let lines = lines.chain([json!({ "eoq": { "time": 1e-6 } })]);
                    whole(200, lines.map(|line| format!("{line}\n")).collect::<String>())
                }
                Err(error) => refusal(500, &error),
            },
            ("POST", "/v1/transactions") => match statement.as_array().map(|statements| self.transact(statements)) {
                Some(Ok(results)) => {
                    whole(200, json!({ "results": results, "time": 1e-3, "version": 1, "actor_id": "a" }).to_string())
                }
                Some(Err(error)) => {
                    let results = [json!({ "error": error })];
                    whole(500, json!({ "results": results, "time": 0.0, "version": null, "actor_id": "a" }).to_string())
                }
                None => refusal(400, "no statements"),
            },
            ("POST", "/v1/subscriptions") => self.subscribe(&statement),
            ("GET", path) => {
                let id = path.strip_prefix("/v1/subscriptions/").unwrap_or_default().to_owned();
                let from = query.strip_prefix("from=").and_then(|from| from.parse().ok()).unwrap_or(0);
                self.attach(&id, from)
            }
            ("POST", path) if path.starts_with("/v1/updates/") => stream(&[], Vec::new(), self.updates.subscribe()),
            _ => refusal(404, "no such path"),
        }
    }

    fn transact(&mut self, statements: &[Value]) -> Result<Vec<Value>, String> {
        let said = |error: rusqlite::Error| error.to_string();
        let before = keys(&self.database);
        let transaction = self.database.transaction().map_err(said)?;
        let mut results = Vec::new();
        for statement in statements {
            let (sql, parameters) = parts(statement)?;
            let affected = transaction.execute(sql, params_from_iter(parameters)).map_err(said)?;
            results.push(json!({ "rows_affected": affected, "time": 1e-4 }));
        }
        transaction.commit().map_err(said)?;
        let after = keys(&self.database);
        let gone = before.iter().filter(|key| !after.iter().any(|other| other.0 == key.0)).map(|key| ("delete", key));
        let written = after.difference(&before).map(|key| ("update", key));
        for (kind, (key, _)) in written.chain(gone) {
            drop(self.updates.send(json!({ "notify": [kind, key] }).to_string()));
        }
        Ok(results)
    }

    /// Looks what has changed for each subscription.
    fn round(&mut self) {
        let Self { database, subscriptions, .. } = self;
        for subscription in subscriptions.values_mut() {
            let (_, rows) = select(database, &json!(subscription.sql)).unwrap();
            let mut now: BTreeMap<_, _> = rows.into_iter().map(|cells| (key_of(&cells), cells)).collect();
            for key in subscription.rows.keys().cloned().collect::<Vec<_>>() {
                let (rowid, known) = subscription.rows[&key].clone();
                match now.remove(&key) {
                    Some(cells) if cells == known => {}
                    Some(cells) => {
                        subscription.rows.insert(key, (rowid, cells.clone()));
                        subscription.change("update", rowid, cells);
                    }
                    None => {
                        subscription.rows.remove(&key);
                        subscription.change("delete", rowid, known);
                    }
                }
            }
            for (key, cells) in now {
                subscription.rowids += 1;
                subscription.rows.insert(key, (subscription.rowids, cells.clone()));
                subscription.change("insert", subscription.rowids, cells);
            }
        }
    }

    fn subscribe(&mut self, statement: &Value) -> Answer {
        let Some(sql) = statement.as_str().map(str::to_owned) else { return refusal(400, "no statement") };
        if let Err(error) = select(&self.database, statement) {
            return refusal(400, &error);
        }
        let present = self.subscriptions.iter().find(|(_, subscription)| subscription.sql == sql);
        let id = present.map(|(id, _)| id.clone()).unwrap_or_else(|| {
            self.made += 1;
            let id = format!("00000000-0000-4000-8000-{:012}", self.made);
            // What is there at its beginning is no change.
            let cells = select(&self.database, statement).map_or(Vec::new(), |(_, rows)| rows).into_iter();
            let rows: BTreeMap<_, _> = cells.zip(1..).map(|(cells, rowid)| (key_of(&cells), (rowid, cells))).collect();
            let (rowids, last, changes) = (rows.len() as u64, 0, BTreeMap::new());
            let listeners = broadcast::Sender::new(BEHIND_MAX);
            self.subscriptions.insert(id.clone(), Subscription { sql, rows, rowids, changes, last, listeners });
            id
        });
        self.round();
        let subscription = &self.subscriptions[&id];
        let rows = subscription.rows.values().map(|(rowid, cells)| json!({ "row": [rowid, cells] }).to_string());
        let mut lines = vec![json!({ "columns": ["name", "owner", "gen", "body"] }).to_string()];
        lines.extend(rows);
        lines.push(json!({ "eoq": { "time": 1e-6, "change_id": subscription.last } }).to_string());
        stream(&identity(&id), lines, subscription.listeners.subscribe())
    }

    fn attach(&mut self, id: &str, from: u64) -> Answer {
        self.round();
        let Some(subscription) = self.subscriptions.get(id) else {
            return refusal(404, &format!("could not find subscription with id {id}"));
        };
        let first = subscription.changes.keys().next().copied().unwrap_or(subscription.last + 1);
        // One of the future is taken for good, and is silent.
        let lines = match from + 1 < first {
            true => vec![
                json!({ "error": format!("subscription already deleted older changes, min change id: {first}") })
                    .to_string(),
            ],
            false => subscription.changes.range(from + 1..).map(|(_, line)| line.clone()).collect(),
        };
        stream(&identity(id), lines, subscription.listeners.subscribe())
    }
}

impl Subscription {
    fn change(&mut self, kind: &str, rowid: u64, cells: Vec<Value>) {
        self.last += 1;
        let line = json!({ "change": [kind, rowid, cells, self.last] }).to_string();
        self.changes.insert(self.last, line.clone());
        drop(self.listeners.send(line));
    }
}

fn identity(id: &str) -> [(&'static str, String); 2] {
    [("corro-query-id", id.into()), ("corro-query-hash", "b90686dad1d35dd2".into())]
}

/// These lines, then what listeners are told, until one of them falls behind.
fn stream(headers: &[(&'static str, String)], lines: Vec<String>, mut listener: broadcast::Receiver<String>) -> Answer {
    let (sender, pieces) = mpsc::channel(64);
    tokio::spawn(async move {
        for line in lines {
            if sender.send(Ok(Bytes::from(format!("{line}\n")))).await.is_err() {
                return;
            }
        }
        loop {
            let line = tokio::select! {
                line = listener.recv() => line,
                () = sender.closed() => return,
            };
            let Ok(line) = line else { return };
            if sender.send(Ok(Bytes::from(format!("{line}\n")))).await.is_err() {
                return;
            }
        }
    });
    let mut response = Response::builder().status(StatusCode::OK);
    for (name, value) in headers {
        response = response.header(*name, value);
    }
    response.body(pieces).unwrap()
}

fn refusal(status: u16, why: &str) -> Answer {
    whole(status, json!({ "error": why }).to_string())
}

/// Text, parameters.
fn parts(statement: &Value) -> Result<(&str, Vec<rusqlite::types::Value>), String> {
    let sql = statement.as_str().or_else(|| statement[0].as_str()).ok_or("no statement")?;
    let parameters = statement.get(1).and_then(Value::as_array).into_iter().flatten().map(|value| match value {
        Value::String(text) => Ok(text.clone().into()),
        Value::Number(number) => number.as_i64().map(Into::into).ok_or_else(|| "a number out of range".to_owned()),
        Value::Null => Ok(rusqlite::types::Value::Null),
        other => Err(format!("{other} is no parameter")),
    });
    Ok((sql, parameters.collect::<Result<_, _>>()?))
}

fn select(database: &Connection, statement: &Value) -> Result<(Vec<String>, Vec<Vec<Value>>), String> {
    let said = |error: rusqlite::Error| error.to_string();
    let (sql, parameters) = parts(statement)?;
    let mut prepared = database.prepare(sql).map_err(said)?;
    let columns: Vec<_> = prepared.column_names().map(str::to_owned).collect();
    let mut rows = prepared.query(params_from_iter(parameters)).map_err(said)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next().map_err(said)? {
        let cell = |at| match row.get_ref(at).unwrap() {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(number) => number.into(),
            ValueRef::Real(number) => number.into(),
            ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
            ValueRef::Blob(bytes) => bytes.to_vec().into(),
        };
        all.push((0..columns.len()).map(cell).collect());
    }
    Ok((columns, all))
}

fn key_of(cells: &[Value]) -> (String, String) {
    (cells[0].as_str().unwrap().into(), cells[1].as_str().unwrap().into())
}

/// Primary keys, and what stands there.
fn keys(database: &Connection) -> BTreeSet<((String, String), String)> {
    let rows =
        select(database, &json!("SELECT name, owner, gen, body FROM routes")).map_or(Vec::new(), |(_, rows)| rows);
    rows.into_iter().map(|cells| (key_of(&cells), format!("{:?}", &cells[2..]))).collect()
}
