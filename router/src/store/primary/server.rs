//! The primary's side: one connection of one machine that follows it.

use super::wire::{GET, Get, Line, REQUEST_BYTES_MAX, Refusal, Row, SET, SUBSCRIBE, Set, Subscribe, decode};
use crate::roles::TABLE;
use crate::store::{Feed, Store, StoreError};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{FutureExt, Stream};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

/// What is said when nothing was for so long (chosen: a follower that hears nothing three times as long
/// looks for the primary anew).
const QUIET: Duration = Duration::from_secs(3);
/// A request head that is not there after so long ends its connection (chosen).
const HEAD: Duration = Duration::from_secs(10);
/// Lines of a feed that are sent together, bytes (chosen).
const TOGETHER_BYTES: usize = 64 * 1024;

type Body = BoxBody<Bytes, Infallible>;

/// Serves one connection until it ends. `store` is what this peer may see of the store: its role's.
/// Of that it gets the rows that machines share, whatever the store has besides.
///
/// # Cancel safety
/// Dropping it closes the connection; a write that was begun is done or not.
pub async fn serve<S>(socket: S, store: Store)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let store = store.clone();
        async move { Ok::<_, Infallible>(answer(&store, request).await) }
    });
    let mut builder = http1::Builder::new();
    let connection =
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD).serve_connection(TokioIo::new(socket), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a follower's connection ended");
    }
}

async fn answer(store: &Store, request: Request<Incoming>) -> Response<Body> {
    match act(store, request).await {
        Ok(response) => response,
        Err(error) => refused(error),
    }
}

async fn act(store: &Store, request: Request<Incoming>) -> Result<Response<Body>, StoreError> {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        GET => {
            let Get { key } = read(request).await?;
            shared(&key)?;
            Ok(json(StatusCode::OK, &store.get(&key).await?.map(Row::from)))
        }
        SET => {
            let Set { key, expected, value } = read(request).await?;
            shared(&key)?;
            let value = value.as_deref().map(decode).transpose()?;
            Ok(json(StatusCode::OK, &store.compare_and_set(&key, expected, value.as_deref()).await?))
        }
        SUBSCRIBE => {
            let Subscribe { prefix, resume } = read(request).await?;
            shared(&prefix)?;
            let feed = store.subscribe(&prefix, resume.map(Into::into)).await?;
            Ok(Response::new(StreamBody::new(lines(feed)).boxed()))
        }
        _ => Err(StoreError::Nonsense(format!("{path}: there is no such call"))),
    }
}

/// Rows that are in no role's table are the primary's own: definitions, and what signs its share links.
fn shared(key: &str) -> Result<(), StoreError> {
    match TABLE.iter().any(|rights| key.starts_with(rights.prefix)) {
        true => Ok(()),
        false => Err(StoreError::Denied(format!("{key:?} is not shared"))),
    }
}

async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, StoreError> {
    let body = Limited::new(request.into_body(), REQUEST_BYTES_MAX).collect().await;
    let body = body.map_err(|error| StoreError::Nonsense(error.to_string()))?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| StoreError::Nonsense(error.to_string()))
}

/// The events as lines; the last says why there are no more.
fn lines(feed: Feed) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> {
    let first = State { feed: Some(feed), last: None };
    futures_util::stream::unfold(first, |mut state| async move {
        let feed = state.feed.as_mut()?;
        let mut text = BytesMut::new();
        let mut next = tokio::time::timeout(QUIET, feed.next()).await.ok();
        if next.is_none() {
            // Nothing came: that is said too.
            let still = state.last.map_or_else(String::new, |place| line(&Line::Current(place)));
            text.put_slice(still.as_bytes());
            text.put_u8(b'\n');
        }
        while let Some(event) = next.take() {
            match event {
                Ok(event) => {
                    let event = Line::from(event);
                    if let Line::End(place) | Line::Put(_, place) | Line::Delete(_, place) | Line::Current(place) =
                        &event
                    {
                        state.last = Some(*place);
                    }
                    text.put_slice(line(&event).as_bytes());
                    text.put_u8(b'\n');
                }
                Err(error) => {
                    text.put_slice(line(&Line::Over(error.into())).as_bytes());
                    text.put_u8(b'\n');
                    state.feed = None;
                    break;
                }
            }
            if text.len() < TOGETHER_BYTES {
                next = state.feed.as_mut().and_then(|feed| feed.next().now_or_never());
            }
        }
        Some((Ok(Frame::data(text.freeze())), state))
    })
}

struct State {
    feed: Option<Feed>,
    /// The last place that was told: none in the middle of a snapshot.
    last: Option<super::wire::Place>,
}

fn line<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain structs always encode")
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(line(value))).boxed());
    *response.status_mut() = status;
    response
}

fn refused(error: StoreError) -> Response<Body> {
    let status = match &error {
        StoreError::Conflict { .. } => StatusCode::CONFLICT,
        StoreError::Denied(_) => StatusCode::FORBIDDEN,
        StoreError::Key(_) | StoreError::TooLarge | StoreError::Nonsense(_) => StatusCode::BAD_REQUEST,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    json(status, &Refusal::from(error))
}
