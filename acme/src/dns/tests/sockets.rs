//! The server on real sockets: both kinds, its bounds, its end.

use super::server::{Server, bind};
use super::*;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Longest wait for what happens at once (a busy machine).
const PATIENCE: Duration = Duration::from_secs(30);

fn start(authority: &Arc<Authority>, threads: usize, connections: usize) -> (Server, SocketAddr) {
    let (sockets, bound) = bind(&[SocketAddr::from((Ipv4Addr::LOCALHOST, 0))], threads).unwrap();
    (Server::start(authority, sockets, connections).unwrap(), bound[0])
}

fn over_udp(to: SocketAddr, message: &[u8]) -> Message {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(message, to).unwrap();
    let mut answer = [0; 2_000];
    let (length, from) = socket.recv_from(&mut answer).unwrap();
    assert_eq!(from, to);
    Message::from_vec(&answer[..length]).unwrap()
}

/// A connection from a network of its own.
fn connect(to: SocketAddr, network: u8) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, network, 1), 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn ask(stream: &mut TcpStream) -> std::io::Result<Message> {
    let message = question("a.sprites.dev", RecordType::A, None);
    stream.write_all(&[&u16::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer)?;
    Ok(Message::from_vec(&answer).unwrap())
}

#[test]
fn the_same_is_answered_over_both_and_by_every_thread() {
    let authority = authority(1_000_000);
    let (server, at) = start(&authority, 3, 10);
    let asked = question("a.sprites.dev", RecordType::A, Some(1232));
    for _ in 0..50 {
        assert_eq!(over_udp(at, &asked).answers.len(), 2);
        assert_eq!(ask(&mut connect(at, 0)).unwrap().answers.len(), 2);
    }
    let counts = authority.counts();
    assert_eq!((counts.questions[0], counts.codes[0], counts.connections), (("A", 100), ("NOERROR", 100), 50));
    server.stop();
}

#[test]
fn a_port_that_somebody_has_is_not_shared_with_strangers() {
    let (_sockets, bound) = bind(&[SocketAddr::from((Ipv4Addr::LOCALHOST, 0))], 2).unwrap();
    let (address, error) = bind(&bound, 2).unwrap_err();
    assert_eq!((address, error.kind()), (bound[0], std::io::ErrorKind::AddrInUse));
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    assert!(bind(&[udp.local_addr().unwrap()], 1).is_err());
}

#[test]
fn one_connection_more_than_there_are_places_is_closed_at_once() {
    let authority = authority(1);
    let (server, at) = start(&authority, 2, 1_000);
    let mut open: Vec<_> = (0..1_000).map(|number: u32| connect(at, u8::try_from(number / 250).unwrap())).collect();
    // The last one is taken when its question is answered, and so are those before it.
    for stream in &mut open {
        assert!(ask(stream).is_ok());
    }
    assert!(ask(&mut connect(at, 9)).is_err());
    assert_eq!(authority.counts().connections_refused, 1);
    drop(open.pop());
    let again = std::iter::repeat_with(|| ask(&mut connect(at, 9)));
    assert!(again.take(1_000).any(|answer| answer.is_ok()));
    drop(open);
    server.stop();
}

#[test]
fn a_network_has_a_quarter_of_the_places() {
    let authority = authority(1);
    let (server, at) = start(&authority, 1, 8);
    let mut open = [connect(at, 1), connect(at, 1)];
    assert!(open.iter_mut().all(|stream| ask(stream).is_ok()));
    assert!(ask(&mut connect(at, 1)).is_err());
    assert!(ask(&mut connect(at, 2)).is_ok());
    server.stop();
}

#[test]
fn the_end_answers_what_has_come_and_frees_the_port() {
    let authority = authority(1_000_000);
    let (server, at) = start(&authority, 2, 10);
    let mut idle = connect(at, 0);
    assert!(ask(&mut idle).is_ok());
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..200 {
        socket.send_to(&question("a.sprites.dev", RecordType::A, None), at).unwrap();
    }
    server.stop();
    for _ in 0..200 {
        socket.recv_from(&mut [0; 2_000]).unwrap();
    }
    assert!(matches!(idle.read(&mut [0; 1]), Ok(0) | Err(_)));
    assert!(bind(&[at], 2).is_ok());
}

struct Never;

impl Pull for Never {
    fn pull(&self, _: String) -> Pulling {
        Box::pin(std::future::pending())
    }
}

#[test]
fn those_who_wait_for_others_are_bounded_and_nobody_waits_for_them() {
    let authority = Authority::new(view(), 1_000_000, Arc::new(Published::default()), Some(Arc::new(Never)));
    let (server, at) = start(&authority, 1, 10);
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let asked = question(&format!("{ID}.acme.sprites.dev"), RecordType::TXT, None);
    for _ in 0..100 {
        socket.send_to(&asked, at).unwrap();
    }
    // Asked last, answered first.
    assert_eq!(over_udp(at, &question("a.sprites.dev", RecordType::A, None)).answers.len(), 2);
    let counts = authority.counts();
    assert!(counts.pulled >= 64 && counts.pulled + counts.pulls_refused == 100, "{counts:?}");
    for _ in 0..64 {
        let mut answer = [0; 2_000];
        let (length, _) = socket.recv_from(&mut answer).unwrap();
        assert!(Message::from_vec(&answer[..length]).unwrap().answers.is_empty());
    }
    server.stop();
}

#[test]
fn ipv6_is_served_too() {
    let Ok((sockets, bound)) = bind(&[SocketAddr::from((IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), 0))], 1) else {
        // A machine without it.
        return;
    };
    let server = Server::start(&authority(1), sockets, 10).unwrap();
    let mut stream = TcpStream::connect(bound[0]).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(ask(&mut stream).is_ok());
    server.stop();
}
