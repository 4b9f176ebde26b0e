//! Engine `nats`: a key-value bucket of NATS JetStream.
//!
//! A row is the last message of its subject: `sprite/a` is `$KV.BUCKET.sprite.a`, so the tools of
//! NATS show it as key `sprite.a`. Versions are the stream's sequence numbers, the epoch is
//! the moment the stream was made. A write is acknowledged by a majority of the bucket's copies;
//! the servers' `sync_interval: always` makes that survive a power cut of all of them.
//!
//! Reads go to the stream's leader. Whatever a replica or a lost connection might hide ends
//! the feed instead (`pump.rs`); who follows it subscribes again.

mod pump;

use super::{Answer, Cursor, Engine, Entry, Feed, StoreError, check_key, check_write};
use async_nats::header::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy, pull};
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::stream::{DiscardPolicy, LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context, ContextBuilder, ErrorCode, stream};
use async_nats::{Client, ConnectOptions, Event};
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Longest wait for an answer to one request (chosen: far above a round trip over an ocean).
const CALL: Duration = Duration::from_secs(3);
/// A subscription that nobody reads is forgotten by the servers after this (chosen: longer than
/// a reconnect, and a storm of them leaves nothing behind).
const FORGOTTEN: Duration = Duration::from_secs(30);
/// Attempts at one write while another's is on its way (chosen: with the pauses, 2 s).
const WRITES_MAX: u32 = 20;
/// Pause before the second; one more of it before each further one.
const IN_FLIGHT: Duration = Duration::from_millis(10);
/// Longest pause between attempts to connect (chosen).
const RECONNECT_MAX: Duration = Duration::from_secs(10);
/// How a message says that it is no value but the mark of a deletion.
const OPERATION: &str = "KV-Operation";

/// The bucket. One connection, whatever is asked.
#[derive(Clone)]
pub struct NatsStore(Arc<Inner>);

struct Inner {
    client: Client,
    context: Context,
    settings: config::NatsStore,
    stream: String,
    /// Counts connections that were lost: a feed belongs to one.
    lost: watch::Receiver<u64>,
    /// What a server or the client complained of last: requests only time out.
    complaint: Arc<Mutex<Option<String>>>,
}

impl NatsStore {
    /// Connects in the background: a cluster that is away is no reason not to start.
    ///
    /// # Errors
    /// [`StoreError::Denied`] when the credentials file or the roots cannot be read.
    pub async fn connect(settings: &config::NatsStore) -> Result<Self, StoreError> {
        let (loses, lost) = watch::channel(0_u64);
        let complaint = Arc::new(Mutex::new(None));
        let complains = Arc::clone(&complaint);
        let mut options = ConnectOptions::new()
            .name("edge-proxy")
            .retry_on_initial_connect()
            .connection_timeout(CALL)
            .request_timeout(Some(CALL))
            .ping_interval(Duration::from_secs(5))
            .reconnect_delay_callback(|attempts| {
                let bound = Duration::from_millis(100).saturating_mul(1 << attempts.min(7)).min(RECONNECT_MAX);
                bound.mul_f64(crate::subscriber::random())
            })
            .event_callback(move |event| {
                match event {
                    Event::Disconnected => loses.send_modify(|count| *count += 1),
                    Event::Connected => *complains.lock().unwrap_or_else(PoisonError::into_inner) = None,
                    Event::ServerError(_) | Event::ClientError(_) => {
                        *complains.lock().unwrap_or_else(PoisonError::into_inner) = Some(event.to_string());
                    }
                    _ => {}
                }
                async {}
            });
        if !settings.credentials_file.as_os_str().is_empty() {
            let path = &settings.credentials_file;
            options = (options.credentials_file(path).await)
                .map_err(|error| StoreError::Denied(format!("credentials {}: {error}", path.display())))?;
        }
        if !settings.ca_file.as_os_str().is_empty() {
            let path = &settings.ca_file;
            std::fs::File::open(path)
                .map_err(|error| StoreError::Denied(format!("roots {}: {error}", path.display())))?;
            options = options.add_root_certificates(path.clone());
        }
        let client = options.connect(settings.servers.clone()).await.map_err(|error| unavailable(&error))?;
        let context = ContextBuilder::new().timeout(CALL).ack_timeout(CALL).build(client.clone());
        let stream = format!("KV_{}", settings.bucket);
        Ok(Self(Arc::new(Inner { client, context, settings: settings.clone(), stream, lost, complaint })))
    }
}

impl Engine for NatsStore {
    fn name(&self) -> &'static str {
        "nats"
    }

    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Entry>> {
        Box::pin(async move {
            check_key(key)?;
            let last = self.0.last(&self.0.subject(key)).await?;
            Ok(last.filter(|message| !is_deletion(&message.headers)).map(|message| Entry {
                key: key.into(),
                value: message.payload.into(),
                version: message.sequence,
            }))
        })
    }

    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64> {
        Box::pin(async move {
            check_write(key, value)?;
            self.0.write(&self.0.subject(key), expected, value).await
        })
    }

    fn subscribe<'a>(&'a self, prefix: &'a str, resume: Option<Cursor>) -> Answer<'a, Feed> {
        Box::pin(async move {
            let begun = pump::begin(&self.0, prefix, resume).await;
            if let Err(StoreError::Unavailable(_)) = begun {
                self.0.leave_server().await;
            }
            begun
        })
    }
}

/// The subjects of the rows under `prefix`, and of as few others as whole tokens can tell: of what is not meant the whole
/// value would come.
fn filter(bucket: &str, prefix: &str) -> String {
    let subject = prefix.replacen('/', ".", 1);
    let is_token = |token: &str| !token.is_empty() && !token.contains(['*', '>', ' ']);
    match subject.rsplit_once('.') {
        Some((whole, _)) if whole.split('.').all(is_token) => format!("$KV.{bucket}.{whole}.>"),
        _ => format!("$KV.{bucket}.>"),
    }
}

impl Inner {
    /// Of a key that [`check_key`] has passed. The kind becomes a token of its own, so that the
    /// servers can filter by it.
    fn subject(&self, key: &str) -> String {
        format!("$KV.{}.{}", self.settings.bucket, key.replacen('/', ".", 1))
    }

    /// What the servers are asked for, for the rows under `prefix`.
    fn filter(&self, prefix: &str) -> String {
        filter(&self.settings.bucket, prefix)
    }

    /// The key of a subject of this bucket.
    fn key<'s>(&self, subject: &'s str) -> Option<std::borrow::Cow<'s, str>> {
        let key = subject.strip_prefix("$KV.")?.strip_prefix(self.settings.bucket.as_str())?.strip_prefix('.')?;
        Some(key.replacen('.', "/", 1).into())
    }

    async fn stream(&self) -> Result<Stream<()>, StoreError> {
        self.context.get_stream_no_info(&self.stream).await.map_err(|error| unavailable(&error))
    }

    /// What the leader knows of the stream.
    async fn info(&self) -> Result<stream::Info, StoreError> {
        let asked = self.stream().await?.get_info().await;
        match asked {
            Ok(info) => Ok(info),
            Err(error) if self.settings.create && is_not_found(&error) => self.create().await,
            Err(error) => Err(self.away(&error)),
        }
    }

    /// Makes the bucket as the tools of NATS would, with one value a key.
    async fn create(&self) -> Result<stream::Info, StoreError> {
        let bucket = &self.settings.bucket;
        let config = stream::Config {
            name: self.stream.clone(),
            subjects: vec![format!("$KV.{bucket}.>")],
            max_messages_per_subject: 1,
            num_replicas: self.settings.replicas,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            ..stream::Config::default()
        };
        let made = self.context.create_stream(config).await.map_err(|error| self.away(&error))?;
        tracing::info!(bucket, "bucket made");
        Ok(made.cached_info().clone())
    }

    /// The last message of a subject, or of all that a pattern covers, as the leader has it.
    async fn last(&self, subject: &str) -> Result<Option<StreamMessage>, StoreError> {
        match self.stream().await?.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(self.away(&error)),
        }
    }

    async fn write(&self, subject: &str, expected: Option<u64>, value: Option<&[u8]>) -> Result<u64, StoreError> {
        let mut last = expected.unwrap_or(0);
        for attempt in 0..WRITES_MAX {
            let message = PublishMessage::build().expected_last_subject_sequence(last).expected_stream(&self.stream);
            let message = match value {
                Some(value) => message.payload(value.to_vec().into()),
                None => message.header(OPERATION, "DEL"),
            };
            let sent = match self.context.send_publish(subject.to_owned(), message).await {
                Ok(acknowledged) => acknowledged.await,
                Err(error) => Err(error),
            };
            let error = match sent {
                Ok(acknowledged) => return Ok(acknowledged.sequence),
                Err(error) => error,
            };
            if !is_conflict(&error) {
                return Err(self.not_written(&error));
            }
            let present = self.last(subject).await?;
            let (sequence, deleted) =
                present.map_or((0, true), |message| (message.sequence, is_deletion(&message.headers)));
            let actual = (!deleted).then_some(sequence);
            if actual != expected {
                return Err(StoreError::Conflict { expected, actual });
            }
            // Either the row was deleted, whose mark has to be expected, or somebody's write is
            // on its way to the copies: refused already, and not to be read yet.
            if sequence == last {
                tokio::time::sleep(IN_FLIGHT * (attempt + 1)).await;
            }
            last = sequence;
        }
        Err(StoreError::Unavailable("others write this row all the time".into()))
    }

    /// What a failed write means. Only an answer proves that nothing was written.
    fn not_written(&self, error: &PublishError) -> StoreError {
        let answered = jetstream_error(error).is_some();
        match error.kind() {
            PublishErrorKind::StreamNotFound | PublishErrorKind::MaxPayloadExceeded => self.away(error),
            _ if answered => self.away(error),
            _ => StoreError::Uncertain(self.with_complaint(error)),
        }
    }

    fn away(&self, error: &(dyn Error + 'static)) -> StoreError {
        let text = self.with_complaint(error);
        match text.contains("uthorization") || text.contains("ermissions") {
            true => StoreError::Denied(text),
            false => StoreError::Unavailable(text),
        }
    }

    fn with_complaint(&self, error: &dyn Error) -> String {
        match &*self.complaint.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(complaint) => format!("{error}; {complaint}"),
            None => error.to_string(),
        }
    }

    /// The server we are connected to may be cut off from the others: another one is tried.
    async fn leave_server(&self) {
        if let Err(error) = self.client.force_reconnect().await {
            tracing::debug!(%error, "no reconnect");
        }
    }

    /// A subscription of the servers: numbered, not acknowledged, forgotten when nobody reads it.
    async fn consumer(&self, filter: &str, from: Option<u64>) -> Result<Consumer<pull::Config>, StoreError> {
        let name = getrandom::u64().map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let config = pull::Config {
            name: Some(format!("edge-{name:016x}")),
            deliver_policy: match from {
                Some(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
                None => DeliverPolicy::LastPerSubject,
            },
            ack_policy: AckPolicy::None,
            filter_subject: filter.to_owned(),
            inactive_threshold: FORGOTTEN,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        };
        self.stream().await?.create_consumer(config).await.map_err(|error| self.away(&error))
    }
}

fn unavailable(error: &dyn Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

/// What the servers answered, when it was an answer.
fn jetstream_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e jetstream::Error> {
    error.source().and_then(|source| source.downcast_ref())
}

fn is_not_found(error: &(dyn Error + 'static)) -> bool {
    jetstream_error(error).is_some_and(|error| error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Somebody wrote the row in between. Newer servers have a second code for it.
fn is_conflict(error: &PublishError) -> bool {
    let second = ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT;
    error.kind() == PublishErrorKind::WrongLastSequence
        || jetstream_error(error).is_some_and(|error| error.error_code() == second)
}

fn is_deletion(headers: &HeaderMap) -> bool {
    headers.get(OPERATION).is_some_and(|operation| matches!(operation.as_str(), "DEL" | "PURGE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked_for_as_little_as_tokens_can_say() {
        for (prefix, subjects) in [
            ("", "$KV.b.>"),
            ("sprite", "$KV.b.>"),
            ("sprite/", "$KV.b.sprite.>"),
            ("sprite/a", "$KV.b.sprite.>"),
            ("cert/domain.shop.example/", "$KV.b.cert.domain.shop.>"),
            ("cert/domain.", "$KV.b.cert.domain.>"),
            ("cert/domain..x.", "$KV.b.>"),
            ("cert/*.x.", "$KV.b.>"),
        ] {
            assert_eq!(filter("b", prefix), subjects, "{prefix}");
        }
    }
}
