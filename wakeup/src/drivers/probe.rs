//! Is anybody listening? A TCP connect from the host to the guest's port, again and again.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// One try; loopback answers or refuses at once, so this only bounds a guest that drops packets.
const TRY: Duration = Duration::from_millis(250);
/// How long a proxy may need to find that nobody listens behind it (chosen: it is told at
/// once, but 50 ms were too few on a machine with four times as much to do as it can).
const HANG_UP: Duration = Duration::from_millis(250);
/// Pause after a proxy hung up (chosen: as the slowest round of [`probe`]).
const HUNG_UP: Duration = Duration::from_millis(25);

/// Connects until it succeeds; where it did. Every 1 ms for the first 100 ms, every 5 ms
/// to 500 ms, then every 25 ms (`wake.md` §4). Never ends by itself: the caller bounds it.
///
/// On loopback `::1` is tried too, since many servers told "localhost" listen there only.
///
/// # Cancel safety
/// Holds no state.
pub async fn probe(address: SocketAddr) -> SocketAddr {
    let began = Instant::now();
    loop {
        for candidate in candidates(address) {
            if let Ok(Ok(_)) = tokio::time::timeout(TRY, TcpStream::connect(candidate)).await {
                return candidate;
            }
        }
        let pause = match began.elapsed().as_millis() {
            0..100 => 1,
            100..500 => 5,
            _ => 25,
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// Whether whoever accepts at `address` keeps a connection that says nothing, for
/// [`HANG_UP`]. A proxy in front of a closed port accepts and hangs up. Pauses before it says no.
///
/// # Cancel safety
/// Holds no state.
pub(super) async fn stays_open(address: SocketAddr) -> bool {
    let talk = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.read_u8().await
    };
    match tokio::time::timeout(HANG_UP, talk).await {
        // It greets us, or waits for us to speak.
        Ok(Ok(_)) | Err(_) => true,
        Ok(Err(_)) => {
            tokio::time::sleep(HUNG_UP).await;
            false
        }
    }
}

fn candidates(address: SocketAddr) -> impl Iterator<Item = SocketAddr> {
    let second = match address.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Some(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port())),
        _ => None,
    };
    std::iter::once(address).chain(second)
}
