//! Engine `etcd`: keys under a prefix, over etcd's JSON gateway (`/v3/…` on its client port).
//!
//! A row `sprite/a` is the key `PREFIXsprite/a`; its version is etcd's `mod_revision`. The epoch is the
//! cluster's id together with a number that the first subscriber writes under the prefix, because a
//! cluster that is made anew with the same members has the same id. A write is acknowledged by a
//! majority of the members, each with it on disk.
//!
//! Reads are linearizable: a member that is cut off cannot answer them, and another one is asked.

mod pump;
mod wire;

use super::http::{HttpError, Servers};
use super::{Answer, Cursor, Engine, Entry, Feed, StoreError, check_key, check_write, fnv};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use wire::{KeyValue, Problem, RangeAnswer, TxnAnswer, base64};

/// Under the prefix: what tells one history from another.
const EPOCH_KEY: &str = "epoch";
/// Rows per answer (chosen: at 1 KiB a row, a megabyte).
const PAGE: usize = 1_000;
/// Longest password file, bytes (chosen).
const PASSWORD_BYTES_MAX: usize = 4_096;

/// The keys.
#[derive(Clone)]
pub struct EtcdStore(Arc<Inner>);

struct Inner {
    servers: Servers,
    prefix: String,
    credentials: Option<(String, String)>,
    token: Mutex<Option<String>>,
}

/// What etcd is at a moment.
#[derive(Clone, Copy, Debug)]
struct Now {
    epoch: u64,
    revision: u64,
}

impl EtcdStore {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// [`StoreError::Denied`]: the password file or the roots cannot be read.
    pub fn open(settings: &config::EtcdStore) -> Result<Self, StoreError> {
        let credentials = match settings.user.is_empty() {
            true => None,
            false => {
                let path = &settings.password_file;
                let unusable = |why: &str| StoreError::Denied(format!("password_file {}: {why}", path.display()));
                let password = std::fs::read_to_string(path).map_err(|error| unusable(&error.to_string()))?;
                if password.len() > PASSWORD_BYTES_MAX {
                    return Err(unusable("too long"));
                }
                Some((settings.user.clone(), password.trim_end_matches(['\r', '\n']).to_owned()))
            }
        };
        let servers = Servers::new(&settings.servers, &settings.ca_file)?;
        Ok(Self(Arc::new(Inner { servers, prefix: settings.prefix.clone(), credentials, token: Mutex::new(None) })))
    }
}

impl Engine for EtcdStore {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>> {
        Box::pin(async move {
            check_key(key)?;
            let answer: RangeAnswer = self.0.read("/v3/kv/range", &json!({ "key": self.0.encoded(key) })).await?;
            answer.kvs.into_iter().next().map(|found| self.0.entry(found)).transpose()
        })
    }

    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64> {
        Box::pin(async move {
            check_write(key, value)?;
            self.0.write(key, expected, value).await
        })
    }

    fn subscribe<'a>(&'a self, prefix: &'a str, resume: Option<Cursor>) -> Answer<'a, Feed> {
        Box::pin(pump::begin(&self.0, prefix, resume))
    }
}

impl Inner {
    /// A key as etcd has it and JSON carries it.
    fn encoded(&self, key: &str) -> String {
        base64(format!("{}{key}", self.prefix).as_bytes())
    }

    /// Everything whose key begins with `prefix`, as the bounds of a range.
    fn bounds(&self, prefix: &str) -> (Vec<u8>, String) {
        let begin = format!("{}{prefix}", self.prefix).into_bytes();
        let mut end = begin.clone();
        // The prefix ends in ASCII, so there is always a next one.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        (begin, base64(&end))
    }

    fn entry(&self, found: KeyValue) -> Result<Entry, StoreError> {
        let nonsense = || StoreError::Nonsense("a key that was not asked for".into());
        let key = found.key.strip_prefix(self.prefix.as_bytes()).ok_or_else(nonsense)?;
        let key = String::from_utf8(key.to_vec()).map_err(|_| nonsense())?;
        Ok(Entry { key, value: found.value, version: found.mod_revision })
    }

    async fn write(&self, key: &str, expected: Option<u64>, value: Option<&[u8]>) -> Result<u64, StoreError> {
        let name = self.encoded(key);
        let success = match value {
            Some(value) => json!({ "request_put": { "key": name, "value": base64(value) } }),
            None => json!({ "request_delete_range": { "key": name } }),
        };
        let body = json!({
            // A key that does not exist is at revision 0.
            "compare": [{ "key": name, "target": "MOD", "result": "EQUAL", "mod_revision": expected.unwrap_or(0).to_string() }],
            "success": [success],
            "failure": [{ "request_range": { "key": name } }],
        });
        let answer: TxnAnswer = self.ask("/v3/kv/txn", &body, 1).await.map_err(Failure::of_a_write)?;
        if answer.succeeded {
            return Ok(answer.header.revision);
        }
        let present = answer.responses.into_iter().next().and_then(|response| response.range);
        let actual = present.and_then(|range| range.kvs.first().map(|found| found.mod_revision));
        Err(StoreError::Conflict { expected, actual })
    }

    /// What etcd is now. Whoever comes first writes what tells this history from another; who may
    /// not write does without.
    async fn now(&self) -> Result<Now, StoreError> {
        let key = self.encoded(EPOCH_KEY);
        let ask = json!({ "key": key });
        let mut answer: RangeAnswer = self.read("/v3/kv/range", &ask).await?;
        if answer.kvs.is_empty() {
            let drawn = getrandom::u64().map_err(|error| StoreError::Unavailable(error.to_string()))?;
            let body = json!({
                "compare": [{ "key": key, "target": "MOD", "result": "EQUAL", "mod_revision": "0" }],
                "success": [{ "request_put": { "key": key, "value": base64(drawn.to_string().as_bytes()) } }],
            });
            match self.ask::<TxnAnswer>("/v3/kv/txn", &body, 1).await.map_err(Failure::of_a_write) {
                Ok(_) => answer = self.read("/v3/kv/range", &ask).await?,
                Err(StoreError::Denied(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let drawn = answer.kvs.first().map(|found| found.value.as_slice()).unwrap_or_default();
        let both = answer.header.cluster_id.to_le_bytes().into_iter().chain(drawn.iter().copied());
        Ok(Now { epoch: fnv(both), revision: answer.header.revision })
    }

    /// Asks each server once, until one answers.
    async fn read<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, StoreError> {
        self.ask(path, body, self.servers.len()).await.map_err(Failure::of_a_read)
    }

    /// Asks until somebody has answered; a request that may have been acted on at most `tries` times.
    async fn ask<T: DeserializeOwned>(&self, path: &str, body: &Value, tries: usize) -> Result<T, Failure> {
        let body = Bytes::from(body.to_string());
        let (mut unsent, mut sent, mut admitted) = (0, 0, false);
        loop {
            let token = self.token().await?;
            let failure = match self.servers.call(path, token.as_deref(), &body).await {
                Ok((status, answer)) if status.is_success() => {
                    return serde_json::from_slice(&answer).map_err(|error| Failure::Nonsense(error.to_string()));
                }
                Ok((_, answer)) => {
                    let problem = Problem::parse(&answer);
                    // Tokens end; a new one is asked for, once.
                    if problem.is_about_the_token() && self.credentials.is_some() && !admitted {
                        admitted = true;
                        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
                        continue;
                    }
                    self.servers.next();
                    sent += 1;
                    Failure::Answered(problem)
                }
                Err(HttpError::NotSent { at, why }) => {
                    unsent += 1;
                    Failure::NotSent(format!("{at}: {why}"))
                }
                Err(error @ HttpError::Sent { .. }) => {
                    sent += 1;
                    Failure::Silent(error.to_string())
                }
            };
            let final_word = matches!(&failure, Failure::Answered(problem) if !problem.may_pass());
            if final_word || sent >= tries || unsent >= self.servers.len() {
                return Err(failure);
            }
        }
    }

    async fn token(&self) -> Result<Option<String>, Failure> {
        let Some((name, password)) = &self.credentials else { return Ok(None) };
        if let Some(token) = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(Some(token));
        }
        let body = Bytes::from(json!({ "name": name, "password": password }).to_string());
        let mut failure = None;
        for _ in 0..self.servers.len() {
            match self.servers.call("/v3/auth/authenticate", None, &body).await {
                Ok((status, answer)) if status.is_success() => {
                    let answer: wire::AuthAnswer =
                        serde_json::from_slice(&answer).map_err(|error| Failure::Nonsense(error.to_string()))?;
                    *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer.token.clone());
                    return Ok(Some(answer.token));
                }
                Ok((_, answer)) => return Err(Failure::Refused(Problem::parse(&answer).message)),
                Err(error) => failure = Some(Failure::NotSent(error.to_string())),
            }
        }
        Err(failure.unwrap_or_else(|| Failure::NotSent("no server".into())))
    }
}

/// Why there is no answer to use.
enum Failure {
    NotSent(String),
    Silent(String),
    Answered(Problem),
    Refused(String),
    Nonsense(String),
}

impl Failure {
    fn of_a_read(self) -> StoreError {
        match self {
            Self::Answered(problem) if problem.is_refusal() => StoreError::Denied(problem.message),
            Self::Answered(problem) => StoreError::Unavailable(problem.message),
            Self::NotSent(why) | Self::Silent(why) => StoreError::Unavailable(why),
            Self::Refused(why) => StoreError::Denied(why),
            Self::Nonsense(why) => StoreError::Nonsense(why),
        }
    }

    /// A member that gave up waiting for the others does not know what became of the write.
    fn of_a_write(self) -> StoreError {
        match self {
            Self::Silent(why) => StoreError::Uncertain(why),
            Self::Answered(problem) if problem.may_pass() => StoreError::Uncertain(problem.message),
            Self::Nonsense(why) => StoreError::Uncertain(why),
            other => other.of_a_read(),
        }
    }
}
