//! HTTP/1.1 (and 1.0) on a connection: hyper's server, driven by hand, because its own
//! upgrade path wants a `Send` stream and ours stays on one core.

use crate::body::EdgeBody;
use crate::client::{Client, ClientIo};
use crate::client_body::ClientBody;
use crate::interim::InterimWay;
use crate::request;
use crate::worker::Worker;
use config::Limits;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// Serves until the connection ends, becomes a tunnel and that ends, or the edge has drained.
pub(super) async fn serve<S>(worker: &Rc<Worker>, client: &Rc<Client>, stream: S) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let io = TokioIo::new(ClientIo::new(stream, Rc::clone(&client.interim)));
    let service = service_fn(|request: Request<Incoming>| {
        // Boxed, because hyper hands a connection's stream back only if nothing in it is pinned.
        Box::pin(answer(Rc::clone(worker), Rc::clone(client), request))
    });
    let mut connection = builder(worker.edge.limits()).serve_connection(io, service);
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
            // Boxed: few connections become one.
            if let Err(error) = Box::pin(tunnel.relay(stream, parts.read_buf)).await {
                tracing::debug!(peer = %client.peer, %error, "tunnel ended");
            }
        }
        // Errors here are the visitor's network again.
        None => drop(stream.shutdown().await),
    }
    Ok(())
}

async fn answer(
    worker: Rc<Worker>,
    client: Rc<Client>,
    request: Request<Incoming>,
) -> Result<Response<EdgeBody>, Infallible> {
    let interim = match request.version() {
        Version::HTTP_11 => InterimWay::Http1(&client.interim),
        _ => InterimWay::Nowhere,
    };
    Ok(request::handle(&worker, &client, request.map(ClientBody::Http1), interim).await)
}

fn builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .max_buf_size(limits.http1_buffer_bytes)
        .writev(true);
    builder
}
