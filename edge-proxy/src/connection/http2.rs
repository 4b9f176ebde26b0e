//! HTTP/2 on a connection: frames and flow control are `h2`'s, the protocol part of hyper.
//!
//! hyper's own server on top of it has no word for interim answers, and costs a tenth of
//! a small request; what it adds (a task per stream, keep-alive, drain) is here and in
//! `stream.rs`.

use super::keep_alive::KeepAlive;
use super::stream;
use crate::client::Client;
use crate::worker::Worker;
use bytes::Bytes;
use config::Limits;
use h2::Reason;
use h2::server::{Builder, Connection};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};

/// Streams reset by us for the client's faults before the connection counts as an attack
/// (chosen: hyper's figure).
const LOCAL_RESETS_MAX: usize = 1024;

/// Serves until the connection ends or the edge has drained.
///
/// # Errors
/// The client's protocol error, or its network.
pub(super) async fn serve<S>(worker: &Rc<Worker>, client: &Rc<Client>, stream: S) -> Result<(), h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let limits = worker.edge.limits();
    // Named by ALPN, but nothing was said yet: as long as for the first head of HTTP/1.1.
    let handshake = builder(limits).handshake::<_, Bytes>(stream);
    let Ok(connection) = tokio::time::timeout(limits.header_read_timeout, handshake).await else {
        tracing::debug!(peer = %client.peer, "no HTTP/2 preface in time");
        return Ok(());
    };
    let mut connection: Connection<S, Bytes> = connection?;
    let mut keep_alive = KeepAlive::new(connection.ping_pong(), limits);
    let mut drained = pin!(worker.edge.draining());
    let mut told = false;
    poll_fn(|cx| {
        if !told && drained.as_mut().poll(cx).is_ready() {
            told = true;
            connection.graceful_shutdown();
        }
        if keep_alive.poll(cx, client.reads()).is_ready() {
            connection.abrupt_shutdown(Reason::NO_ERROR);
        }
        loop {
            match ready!(connection.poll_accept(cx)) {
                Some(Ok((request, respond))) => {
                    let stream = stream::serve(Rc::clone(worker), Rc::clone(client), request, respond);
                    // Boxed: a task moves its future several times.
                    tokio::task::spawn_local(Box::pin(stream));
                }
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(())),
            }
        }
    })
    .await
}

fn builder(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits.http2_streams)
        .initial_window_size(limits.http2_stream_window_bytes)
        .initial_connection_window_size(limits.http2_connection_window_bytes)
        .max_send_buffer_size(limits.http2_send_buffer_bytes)
        .max_header_list_size(limits.http2_header_list_bytes)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX));
    builder
}
