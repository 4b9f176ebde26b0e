//! Accepting connections: one listener per core and address, all on the same port.
//!
//! How to add a listener: one file here with an accept loop, its section in
//! `config/src/listen.rs`, one arm in `run.rs`.

pub mod plain;
pub mod tls;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// Connections the kernel queues per listener before it refuses (chosen: `net.core.somaxconn`'s default).
const BACKLOG: i32 = 4096;

/// Binds `address` once per worker. All listeners share the port, and the kernel spreads
/// connections over them (`SO_REUSEPORT`). Port 0 picks one port for all.
///
/// # Errors
/// `AddrInUse` when anybody listens there already, this program included: the port is
/// tried without sharing first, since sharing would silently join a stranger's listener
/// that runs as the same user.
pub fn bind_per_worker(address: SocketAddr, workers: usize) -> io::Result<Vec<TcpListener>> {
    let probe = bind(address, false)?;
    let address = probe.local_addr()?;
    drop(probe);
    (0..workers).map(|_| bind(address, true)).collect()
}

fn bind(address: SocketAddr, share: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What every accepted socket gets: no delay, keep-alive probes from 15 s of silence
/// (`wake.md` §5, so that NATs keep a held connection).
fn prepare(stream: &tokio::net::TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(std::time::Duration::from_secs(15))
        .with_interval(std::time::Duration::from_secs(15));
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Whether an accept error is about one connection (go on) or about us (pause first).
fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Pause after an accept error such as "too many open files" (chosen): long enough not
/// to spin, short enough not to be noticed once descriptors are free.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_one_port_and_a_second_program_is_told_it_is_taken() {
        let listeners = bind_per_worker("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let address = listeners[0].local_addr().unwrap();
        assert!(listeners.iter().all(|l| l.local_addr().unwrap() == address));
        let second = bind_per_worker(address, 1).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    }
}
