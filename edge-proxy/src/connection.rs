//! One client connection after its handshake: hyper's server on it, until it ends or
//! becomes a tunnel.

use crate::body::EdgeBody;
use crate::client::{Client, ClientIo};
use crate::request;
use crate::worker::Worker;
use config::Limits;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// Which protocol the handshake agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 (and 1.0).
    Http1,
    /// HTTP/2.
    Http2,
}

/// Serves requests on `stream` until it ends, or until the worker drains and the
/// requests in progress are answered.
pub async fn serve<S>(worker: Rc<Worker>, client: Rc<Client>, stream: S, protocol: Protocol)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let io = TokioIo::new(ClientIo::new(stream, Rc::clone(&client.interim)));
    let limits = worker.edge.limits();
    let service = {
        let (worker, client) = (Rc::clone(&worker), Rc::clone(&client));
        service_fn(move |request: Request<Incoming>| answer(Rc::clone(&worker), Rc::clone(&client), request))
    };
    let ended = match protocol {
        Protocol::Http1 => {
            // Boxed, because hyper hands a connection's stream back only if nothing in it is pinned.
            let service = service_fn(move |request| Box::pin(hyper::service::Service::call(&service, request)));
            serve_http1(&worker, &client, http1_builder(limits).serve_connection(io, service)).await
        }
        Protocol::Http2 => {
            let mut connection = pin!(http2_builder(limits).serve_connection(io, service));
            let mut drained = pin!(worker.edge.draining());
            let mut told = false;
            poll_fn(|cx| {
                if !told && drained.as_mut().poll(cx).is_ready() {
                    told = true;
                    connection.as_mut().graceful_shutdown();
                }
                connection.as_mut().poll(cx)
            })
            .await
        }
    };
    if let Err(error) = ended {
        // A visitor's network: nothing an operator can act on.
        tracing::debug!(peer = %client.peer, %error, "connection ended");
    }
}

async fn answer(
    worker: Rc<Worker>,
    client: Rc<Client>,
    request: Request<Incoming>,
) -> Result<Response<EdgeBody>, Infallible> {
    Ok(request::handle(&worker, &client, request).await)
}

/// hyper's connection is driven by hand, because its own upgrade path wants a `Send`
/// stream and ours stays on one core.
async fn serve_http1<S, Svc>(
    worker: &Worker,
    client: &Client,
    connection: http1::Connection<TokioIo<ClientIo<S>>, Svc>,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    Svc: hyper::service::HttpService<Incoming, ResBody = EdgeBody, Future: Unpin> + Unpin,
    Svc::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connection = connection;
    let mut drained = pin!(worker.edge.draining());
    let mut told = false;
    poll_fn(|cx| {
        if !told && drained.as_mut().poll(cx).is_ready() {
            told = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        connection.poll_without_shutdown(cx)
    })
    .await?;
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner().into_inner();
    match client.tunnel.take() {
        Some(tunnel) => {
            if let Err(error) = tunnel.relay(stream, parts.read_buf).await {
                tracing::debug!(peer = %client.peer, %error, "tunnel ended");
            }
        }
        // Errors here are the visitor's network again.
        None => drop(stream.shutdown().await),
    }
    Ok(())
}

fn http1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .max_buf_size(limits.http1_buffer_bytes)
        .writev(true);
    builder
}

fn http2_builder(limits: &Limits) -> http2::Builder<LocalExecutor> {
    let mut builder = http2::Builder::new(LocalExecutor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams)
        .initial_stream_window_size(limits.http2_stream_window_bytes)
        .initial_connection_window_size(limits.http2_connection_window_bytes)
        .max_send_buf_size(limits.http2_send_buffer_bytes)
        .max_header_list_size(limits.http2_header_list_bytes)
        .keep_alive_interval(limits.http2_ping_interval)
        .keep_alive_timeout(limits.http2_ping_timeout);
    builder
}

/// Runs hyper's per-stream tasks on the connection's own core.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}
