//! Ports of this host that are given to guests.

use super::DriverError;
use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener};
use std::sync::{Mutex, PoisonError};

/// A range of ports, given out in turn.
pub(super) struct Ports {
    first: u16,
    last: u16,
    next: Mutex<u16>,
}

impl Ports {
    pub(super) const fn new(first: u16, last: u16) -> Self {
        Self { first, last, next: Mutex::new(first) }
    }

    /// A port no other sprite of any owner on this machine has and nobody listens on, none of
    /// `taken`. It is kept for as long as what comes with it.
    pub(super) fn pick(&self, taken: &[u16]) -> Result<(u16, UnixListener), DriverError> {
        let (first, last) = (self.first, self.last);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in first..=last {
            let port = (*next).clamp(first, last);
            *next = if port == last { first } else { port + 1 };
            if taken.contains(&port) {
                continue;
            }
            let Ok(reserved) = reserve(port) else { continue };
            // Bound for a moment to see that no stranger holds it.
            if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
                return Ok((port, reserved));
            }
        }
        Err(DriverError::NoPort { first, last })
    }
}

/// Keeps `port` from the other owners on this machine.
///
/// The port itself cannot be kept for the guest, so an abstract socket named after it is: the
/// kernel lets one process have it, and frees it however that process ends.
pub(super) fn reserve(port: u16) -> std::io::Result<UnixListener> {
    UnixAddress::from_abstract_name(format!("edge-proxy/guest-port/{port}"))
        .and_then(|address| UnixListener::bind_addr(&address))
}
