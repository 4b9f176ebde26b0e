//! The programs the demo runs as sprites: small, real, and nothing to install. They know
//! nothing of the edge; each is an HTTP server on `$PORT` like any other guest.

mod chat;
mod clock;
mod counter;
mod echo;
mod hello;
mod stamp;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::Future;
use std::net::Ipv4Addr;
use std::rc::Rc;
use tokio::net::TcpListener;

/// A sample's body.
type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Runs the sample `name` on `$PORT` until SIGTERM.
///
/// # Errors
/// No such sample, no `$PORT`, or the port is taken.
pub fn run(name: &str) -> anyhow::Result<()> {
    let port = std::env::var("PORT").context("PORT is not set")?.parse().context("PORT is no port")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        match name {
            "hello" => hello::serve(port).await,
            "counter" => counter::serve(port).await,
            "chat" => chat::serve(port).await,
            "clock" => clock::serve(port).await,
            "echo" => echo::serve(port).await,
            "stamp" => stamp::serve(port).await,
            other => bail!("there is no sample {other:?}: hello, counter, chat, clock, echo, stamp"),
        }
    })
}

/// Serves `handler` until SIGTERM. `listening` is called once connections are accepted.
async fn serve<H, F>(port: u16, listening: impl FnOnce(), handler: H) -> anyhow::Result<()>
where
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<Body>> + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.context("cannot listen on PORT")?;
    listening();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let handler = Rc::new(handler);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted?.0,
            _ = terminate.recv() => return Ok(()),
        };
        stream.set_nodelay(true)?;
        let handler = Rc::clone(&handler);
        tokio::task::spawn_local(async move {
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A visitor that leaves is no failure of a sample.
            drop(connection.with_upgrades().await);
        });
    }
}

fn text(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

fn plain(body: impl Into<Bytes>) -> Response<Body> {
    text(200, "text/plain; charset=utf-8", body)
}

fn html(body: &'static str) -> Response<Body> {
    text(200, "text/html; charset=utf-8", body)
}

fn not_found() -> Response<Body> {
    text(404, "text/plain; charset=utf-8", "not found\n")
}
