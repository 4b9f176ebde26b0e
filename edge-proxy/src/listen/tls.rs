//! The HTTPS listener: accept → ClientHello (`tls.rs`) → handshake → ALPN → `connection.rs`.

use super::{ACCEPT_PAUSE, is_about_one_connection, prepare};
use crate::client::{Client, SharedSocket};
use crate::client_certificate;
use crate::connection::{self, Protocol};
use crate::early_wake::EarlyWake;
use crate::tls::{Refusal, Tls};
use crate::worker::Worker;
use acme::alpn;
use router::client_certificate::ClientCertificate;
use rustls::ServerConfig;
use rustls::server::Acceptor;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// Accepts until the edge drains. Each connection is a task of this core.
pub async fn accept_loop(worker: Rc<Worker>, listener: TcpListener, tls: Arc<Tls>) {
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
                let (worker, tls) = (Rc::clone(&worker), Arc::clone(&tls));
                tokio::task::spawn_local(async move {
                    handshake(worker, tls, stream, peer, port).await;
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

async fn handshake(worker: Rc<Worker>, tls: Arc<Tls>, stream: TcpStream, peer: SocketAddr, port: u16) {
    if prepare(&stream).is_err() {
        return; // The peer is gone already.
    }
    let socket = SharedSocket::new(stream);
    let timeout = worker.edge.handshake_timeout();
    let mut early_wake = None;
    // Boxed: the task would otherwise keep room for it as long as the connection lives.
    let accepted = Box::pin(accept(&worker, &tls, socket.clone(), peer, &mut early_wake));
    let (tls, asked) = match tokio::time::timeout(timeout, accepted).await {
        Ok(Ok(Some(accepted))) => accepted,
        Ok(Ok(None)) => return tracing::debug!(%peer, "a challenge was answered"),
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "handshake failed"),
        Err(_) => return tracing::debug!(%peer, "handshake took too long"),
    };
    let (_, session) = tls.get_ref();
    let protocol = if session.alpn_protocol() == Some(b"h2") { Protocol::Http2 } else { Protocol::Http1 };
    let name = session.server_name().map(|name| Box::from(without_dot(name)));
    let mut client = Client::new(socket, peer, port, name);
    if let Some(rules) = asked {
        client = client.asked_for(rules, session.peer_certificates());
    }
    let client = Rc::new(client);
    client.early_wake.set(early_wake);
    // Boxed: whoever it is handed on to would keep room for a TLS session of his own (1.2 KiB each).
    connection::serve(worker, client, Box::new(tls), protocol).await;
}

/// A handshake that goes on with what its ClientHello asks for, and may begin a wake there. `None` when it was there to see
/// the answer to a challenge: it has ended.
async fn accept(
    worker: &Rc<Worker>,
    tls: &Tls,
    socket: SharedSocket,
    peer: SocketAddr,
    early_wake: &mut Option<Box<EarlyWake>>,
) -> io::Result<Option<(TlsStream<SharedSocket>, Option<Arc<ClientCertificate>>)>> {
    let mut start = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
    let hello = start.client_hello();
    let name = hello.server_name().map(|name| without_dot(name).to_owned());
    if hello.alpn().is_some_and(alpn::is_asked) {
        let found = match (worker.edge.challenged(), name.as_deref()) {
            (Some(from_cas), Some(name)) => from_cas.challenge_of(name).await,
            _ => None,
        };
        let config = admitted(tls, found.ok_or(Refusal::NoChallenge), &mut start.io).await?;
        // Whatever else it sends stays unread.
        start.into_stream(config).await?.shutdown().await?;
        return Ok(None);
    }
    let asked = client_certificate::asked_by(&worker.edge, name.as_deref());
    let config = admitted(tls, tls.admit(name.as_deref(), asked.as_deref()).await, &mut start.io).await?;
    // Whoever may be refused yet wakes nobody.
    if worker.edge.wake_at_client_hello && asked.is_none() {
        *early_wake = name.and_then(|name| EarlyWake::begin(worker, peer.ip().to_canonical(), &name));
    }
    Ok(Some((start.into_stream(config).await?, asked)))
}

/// With what it goes on; one that is refused is told so.
async fn admitted(
    tls: &Tls,
    admitted: Result<Arc<ServerConfig>, Refusal>,
    socket: &mut SharedSocket,
) -> io::Result<Arc<ServerConfig>> {
    match admitted {
        Ok(config) => Ok(config),
        Err(refusal) => {
            tls.refuse(refusal, socket).await;
            Err(io::Error::new(io::ErrorKind::PermissionDenied, refusal.name()))
        }
    }
}

/// A name as everybody else writes it: some clients send the final dot of what they were given (RFC 6066 §3 says that
/// they should not).
fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}
