//! Who listens on a port: the sockets, by their inode.
//!
//! The kernel is asked by `sock_diag` (sock_diag(7)), which walks the listening sockets
//! alone. `/proc/net/tcp` walks the table of all connections however few there are: 10 ms
//! and more of every cold wake (measured on 24 GiB of memory).

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use std::io;

/// Size of one read of answers, bytes; the kernel sends at most 32 KiB at once.
const READ_BYTES: usize = 32 * 1024;

/// `socket:[INODE]` of every TCP socket that listens on `port`: what `/proc/PID/fd` shows
/// for it. Does not block.
pub(super) fn listening_sockets(port: u16) -> Vec<String> {
    let inodes = ask(port).unwrap_or_else(|error| {
        tracing::debug!(%error, "no sock_diag, reading /proc/net/tcp instead");
        read_tables(port)
    });
    inodes.into_iter().map(|inode| format!("socket:[{inode}]")).collect()
}

fn ask(port: u16) -> io::Result<Vec<u32>> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // The kernel has queued its answer when the request was sent; nothing is waited for.
    socket.set_non_blocking(true)?;
    let mut inodes = Vec::new();
    for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let socket_id = SocketId { source_port: port, ..socket_id };
        let states = StateFlags::LISTEN;
        let request =
            InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::empty(), states, socket_id };
        dump(&socket, request, port, &mut inodes)?;
    }
    Ok(inodes)
}

fn dump(socket: &Socket, request: InetRequest, port: u16, inodes: &mut Vec<u32>) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = socket.recv(&mut &mut buffer[..], 0)?;
        let mut left = &buffer[..count];
        while !left.is_empty() {
            let answer = NetlinkMessage::<SockDiagMessage>::deserialize(left).map_err(io::Error::other)?;
            match answer.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
                    // Old kernels ignore the port of a dump.
                    inodes.extend((found.header.socket_id.source_port == port).then_some(found.header.inode));
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX).next_multiple_of(4);
            left = left.get(length.max(4)..).unwrap_or_default();
        }
    }
}

/// The same from `/proc/net/tcp` (proc(5)), for a kernel without `sock_diag`.
fn read_tables(port: u16) -> Vec<u32> {
    const LISTEN: &str = "0A";
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|path| std::fs::read_to_string(path).ok());
    let ending = format!(":{port:04X}");
    let mut inodes = Vec::new();
    for table in tables {
        for line in table.lines().skip(1) {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let (local, state) = (fields.next(), fields.nth(1));
            if local.is_some_and(|local| local.ends_with(&ending)) && state == Some(LISTEN) {
                inodes.extend(fields.nth(5).and_then(|inode| inode.parse::<u32>().ok()));
            }
        }
    }
    inodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    #[test]
    fn both_ways_find_a_listener_of_either_family_while_it_listens() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            let link = std::fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
            let link = link.to_str().unwrap().to_owned();
            assert!(listening_sockets(port).contains(&link), "{address}");
            let inode = link.trim_start_matches("socket:[").trim_end_matches(']').parse().unwrap();
            assert!(ask(port).unwrap().contains(&inode) && read_tables(port).contains(&inode), "{address}");
            drop(listener);
            assert!(!ask(port).unwrap().contains(&inode), "{address}");
        }
    }
}
