//! One client connection after its handshake, until it ends or becomes a tunnel.

mod http1;
mod http2;
mod keep_alive;
mod stream;

use crate::client::Client;
use crate::worker::Worker;
use std::fmt::Display;
use std::rc::Rc;
use tokio::io::{AsyncRead, AsyncWrite};

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
    // Boxed: neither kind of connection has room for the other's state.
    match protocol {
        Protocol::Http1 => told(&client, Box::pin(http1::serve(&worker, &client, stream)).await),
        Protocol::Http2 => told(&client, Box::pin(http2::serve(&worker, &client, stream)).await),
    }
}

fn told(client: &Client, ended: Result<(), impl Display>) {
    if let Err(error) = ended {
        // A visitor's network: nothing an operator can act on.
        tracing::debug!(peer = %client.peer, %error, "connection ended");
    }
}
