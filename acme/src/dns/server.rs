//! Sockets and threads: each thread has a socket of its own of each kind for each address, and the kernel spreads questions over
//! them (`SO_REUSEPORT`). Threads of their own, so that a flood of questions takes no more of a core than its half from the
//! requests that are served on it.

use super::authority::{Authority, Places};
use super::{tcp, udp};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::watch;

/// Bytes of questions the kernel keeps for a socket whose thread is busy (chosen: some 4,000 of them; `net.core.rmem_max`
/// may allow less).
const RECEIVE_BYTES: usize = 4 * 1024 * 1024;
/// Connections the kernel queues for a listener (chosen).
const BACKLOG: i32 = 256;
/// How often a port is looked for that is free for both kinds, where the address says port 0 (chosen).
const PORTS_TRIED: usize = 16;

/// The sockets of one thread.
#[derive(Debug, Default)]
pub struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

/// Binds every address once for each of `threads`, over UDP and TCP; where each is bound. Port 0 picks one port for all of
/// an address.
///
/// # Errors
/// The first address that cannot be bound, and why. `AddrInUse` when anybody is there already, this program included.
pub fn bind(
    addresses: &[SocketAddr],
    threads: usize,
) -> Result<(Vec<Sockets>, Vec<SocketAddr>), (SocketAddr, io::Error)> {
    let mut all: Vec<_> = (0..threads).map(|_| Sockets::default()).collect();
    let mut bound = Vec::new();
    for &address in addresses {
        let named = |error| (address, error);
        let address = free(address).map_err(named)?;
        for sockets in &mut all {
            sockets.udp.push(open(address, Type::DGRAM, true).map_err(named)?.into());
            sockets.tcp.push(open(address, Type::STREAM, true).map_err(named)?.into());
        }
        bound.push(address);
    }
    Ok((all, bound))
}

/// The address itself, if nobody has it; with a port that is free for both kinds, if it has none.
fn free(address: SocketAddr) -> io::Result<SocketAddr> {
    let mut outcome = Err(io::ErrorKind::AddrInUse.into());
    for _ in 0..if address.port() == 0 { PORTS_TRIED } else { 1 } {
        // Without sharing: that would silently join a stranger's socket.
        outcome = open(address, Type::STREAM, false).and_then(|tcp| {
            let address = tcp.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;
            open(address, Type::DGRAM, false).map(|_| address)
        });
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn open(address: SocketAddr, kind: Type, share: bool) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if kind == Type::STREAM {
        // Connections of an earlier process that are not quite over are in nobody's way.
        socket.set_reuse_address(true)?;
    } else {
        socket.set_recv_buffer_size(RECEIVE_BYTES)?;
    }
    socket.set_reuse_port(share)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The threads that answer.
#[derive(Debug)]
pub struct Server {
    threads: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl Server {
    /// Starts a thread for each of `sockets`, with at most so many connections over TCP in all.
    ///
    /// # Errors
    /// The system has no more threads or descriptors.
    pub fn start(authority: &Arc<Authority>, sockets: Vec<Sockets>, connections: usize) -> io::Result<Self> {
        let places = Places::new(connections);
        let mut server = Self { threads: Vec::new(), stop: watch::Sender::new(false) };
        for (number, sockets) in sockets.into_iter().enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (authority, places) = (Arc::clone(authority), Arc::clone(&places));
            let stop = server.stop.subscribe();
            let serve = move || {
                if let Err(error) = runtime.block_on(serve(&authority, &places, sockets, stop)) {
                    tracing::error!(%error, "a thread of the DNS ended at its start");
                }
            };
            server.threads.push(std::thread::Builder::new().name(format!("dns-{number}")).spawn(serve)?);
        }
        Ok(server)
    }

    /// Answers what has come, closes what is open and waits for the threads: some milliseconds, 2 s at most for a client
    /// that does not take its answers.
    pub fn stop(self) {
        self.stop.send_replace(true);
        for thread in self.threads {
            // A thread that panicked has said so already.
            drop(thread.join());
        }
    }
}

async fn serve(
    authority: &Arc<Authority>,
    places: &Arc<Places>,
    sockets: Sockets,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let counters = authority.counters();
    let mut tasks = tokio::task::JoinSet::new();
    for socket in sockets.udp {
        tasks.spawn(udp::serve(Arc::clone(authority), Arc::clone(&counters), socket, stop.clone()));
    }
    for listener in sockets.tcp {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (authority, counters, places) = (Arc::clone(authority), Arc::clone(&counters), Arc::clone(places));
        let stop = stop.clone();
        tasks.spawn(async move {
            tcp::serve(authority, counters, places, listener, stop).await;
            Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        // One that panicked has said so already.
        ended.unwrap_or(Ok(()))?;
    }
    Ok(())
}
