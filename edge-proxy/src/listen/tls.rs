//! The HTTPS listener: accept → handshake → ALPN → `connection.rs`.

use super::{ACCEPT_PAUSE, is_about_one_connection, prepare};
use crate::client::{Client, SharedSocket};
use crate::connection::{self, Protocol};
use crate::early_wake::EarlyWake;
use crate::worker::Worker;
use rustls::server::Acceptor;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};

/// Accepts until the edge drains. Each connection is a task of this core.
pub async fn accept_loop(worker: Rc<Worker>, listener: TcpListener, acceptor: TlsAcceptor) {
    let port = listener.local_addr().map_or(443, |address| address.port());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = worker.edge.draining() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(permit) = worker.edge.admit_connection() else {
                    // Over the bound: closing at once costs least and tells a balancer most.
                    drop(stream);
                    continue;
                };
                let (worker, acceptor) = (Rc::clone(&worker), acceptor.clone());
                tokio::task::spawn_local(async move {
                    handshake(worker, acceptor, stream, peer, port).await;
                    drop(permit);
                });
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "accept failed; pausing");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn handshake(worker: Rc<Worker>, acceptor: TlsAcceptor, stream: TcpStream, peer: SocketAddr, port: u16) {
    if prepare(&stream).is_err() {
        return; // The peer is gone already.
    }
    let socket = SharedSocket::new(stream);
    let timeout = worker.edge.handshake_timeout();
    let mut early_wake = None;
    // Boxed: the task would otherwise keep room for it as long as the connection lives.
    let accepted = Box::pin(async {
        match worker.edge.wake_at_client_hello {
            true => accept_and_wake(&worker, &acceptor, socket.clone(), peer, &mut early_wake).await,
            false => acceptor.accept(socket.clone()).await,
        }
    });
    let tls = match tokio::time::timeout(timeout, accepted).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "handshake failed"),
        Err(_) => return tracing::debug!(%peer, "handshake took too long"),
    };
    let (_, session) = tls.get_ref();
    let protocol = if session.alpn_protocol() == Some(b"h2") { Protocol::Http2 } else { Protocol::Http1 };
    let name = session.server_name().map(Box::from);
    let client = Rc::new(Client::new(socket, peer, port, name));
    client.early_wake.set(early_wake);
    // Boxed: whoever it is handed on to would keep room for a TLS session of his own (1.2 KiB each).
    connection::serve(worker, client, Box::new(tls), protocol).await;
}

/// A handshake that begins the wake of the sprite it names before it goes on.
async fn accept_and_wake(
    worker: &Rc<Worker>,
    acceptor: &TlsAcceptor,
    socket: SharedSocket,
    peer: SocketAddr,
    early_wake: &mut Option<Box<EarlyWake>>,
) -> std::io::Result<TlsStream<SharedSocket>> {
    let hello = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
    let name = hello.client_hello().server_name().map(str::to_owned);
    *early_wake = name.and_then(|name| EarlyWake::begin(worker, peer.ip().to_canonical(), &name));
    hello.into_stream(Arc::clone(acceptor.config())).await
}
