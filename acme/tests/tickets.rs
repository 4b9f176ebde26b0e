//! Tickets in real handshakes: which lead to a short one, and that every other one leads to a full one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics where it stands")]

mod shake;

use acme::local_ca::LocalCa;
use acme::resolver::{CertResolver, Certificates};
use acme::tickets::{TicketKey, TicketRing, scope};
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::server::{NoServerSessionStorage, ProducesTickets, ServerSessionMemoryCache};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, NamedGroup, ServerConfig};
use shake::{client, handshake, server};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Changes tickets on their way to the server.
#[derive(Debug)]
struct Changed(Arc<dyn ProducesTickets>, fn(&[u8]) -> Vec<u8>);

impl ProducesTickets for Changed {
    fn enabled(&self) -> bool {
        true
    }
    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }
    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(&self.1(cipher))
    }
}

fn key(epoch: u64, byte: u8) -> Arc<TicketKey> {
    Arc::new(TicketKey::new(epoch, &[byte; 32]).unwrap())
}

fn ring(keys: &[Arc<TicketKey>]) -> Arc<TicketRing> {
    let ring = TicketRing::new(Duration::from_secs(3600));
    ring.install(keys.first().cloned(), keys.to_vec());
    ring
}

struct World {
    resolver: Arc<CertResolver>,
    ca: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let ca = tempfile::tempdir().unwrap();
        let key = LocalCa::load_or_create(ca.path()).unwrap().issue(&["*.sprites.test".to_owned()]).unwrap();
        let suffixes = vec![("sprites.test".to_owned(), Arc::new(key))];
        Self { resolver: CertResolver::new(Certificates { suffixes, ..Certificates::default() }), ca }
    }

    fn server(&self, tickets: Arc<dyn ProducesTickets>) -> Arc<ServerConfig> {
        let mut server = server(Arc::clone(&self.resolver) as _);
        server.ticketer = tickets;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 1;
        Arc::new(server)
    }

    fn client(&self, version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
        Arc::new(client(&self.ca.path().join("ca.pem"), &[version]))
    }
}

#[test]
fn a_ticket_of_one_process_shortens_a_handshake_with_another_one_and_any_other_ticket_does_no_harm() {
    let world = World::new();
    let here = world.server(ring(&[key(1, 1)]).ticketer(scope(&[])));
    let flipped: fn(&[u8]) -> Vec<u8> = |ticket| {
        let mut ticket = ticket.to_vec();
        if let Some(byte) = ticket.get_mut(25) {
            *byte ^= 1;
        }
        ticket
    };
    let there: [(&str, Arc<dyn ProducesTickets>, HandshakeKind); 9] = [
        ("the same key", ring(&[key(1, 1)]).ticketer(scope(&[])), HandshakeKind::Resumed),
        ("an old key", ring(&[key(2, 2), key(1, 1)]).ticketer(scope(&[])), HandshakeKind::Resumed),
        ("another epoch", ring(&[key(2, 1)]).ticketer(scope(&[])), HandshakeKind::Full),
        ("another key of the epoch", ring(&[key(1, 2)]).ticketer(scope(&[])), HandshakeKind::Full),
        ("no key: purged", ring(&[]).ticketer(scope(&[])), HandshakeKind::Full),
        ("another scope", ring(&[key(1, 1)]).ticketer(scope(&[b"mtls"])), HandshakeKind::Full),
        ("forged", Arc::new(Changed(ring(&[key(1, 1)]).ticketer(scope(&[])), flipped)), HandshakeKind::Full),
        (
            "truncated",
            Arc::new(Changed(ring(&[key(1, 1)]).ticketer(scope(&[])), |ticket| ticket[..ticket.len() - 1].to_vec())),
            HandshakeKind::Full,
        ),
        (
            "nothing but its epoch",
            Arc::new(Changed(ring(&[key(1, 1)]).ticketer(scope(&[])), |ticket| ticket[..8].to_vec())),
            HandshakeKind::Full,
        ),
    ];
    for (what, tickets, wanted) in there {
        for version in [&TLS13, &TLS12] {
            let client = world.client(version);
            let there = world.server(Arc::clone(&tickets));
            let (_, first) = handshake(&client, &here, "a.sprites.test").unwrap();
            assert_eq!(first, HandshakeKind::Full);
            let (_, second) = handshake(&client, &there, "a.sprites.test").unwrap();
            assert_eq!(second, wanted, "{what}, {version:?}");
        }
    }
}

#[test]
fn a_server_without_a_key_makes_no_ticket_and_serves_all_the_same() {
    let world = World::new();
    let ring = ring(&[]);
    let server = world.server(ring.ticketer(scope(&[])));
    for version in [&TLS13, &TLS12] {
        let client = world.client(version);
        for _ in 0..2 {
            assert_eq!(handshake(&client, &server, "a.sprites.test").unwrap().1, HandshakeKind::Full);
        }
    }
}

/// A client that shows the first tickets it got to whoever it speaks to, whatever they are called; those of TLS 1.2 for ever.
#[derive(Debug, Default)]
struct Purse {
    old: Mutex<Option<Tls12ClientSessionValue>>,
    new: Mutex<Vec<Tls13ClientSessionValue>>,
}

impl ClientSessionStore for Purse {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }
    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.old.lock().unwrap().get_or_insert(value);
    }
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.old.lock().unwrap().clone()
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.new.lock().unwrap().push(value);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.new.lock().unwrap().pop()
    }
}

fn with_purse(world: &World, version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut client = client(&world.ca.path().join("ca.pem"), &[version]);
    client.resumption = rustls::client::Resumption::store(Arc::new(Purse::default()))
        .tls12_resumption(rustls::client::Tls12Resumption::SessionIdOrTickets);
    Arc::new(client)
}

#[test]
fn a_ticket_for_one_name_is_none_for_another_one() {
    let world = World::new();
    let server = world.server(ring(&[key(1, 1)]).ticketer(scope(&[])));
    for version in [&TLS13, &TLS12] {
        let client = with_purse(&world, version);
        assert_eq!(handshake(&client, &server, "a.sprites.test").unwrap().1, HandshakeKind::Full);
        let other = handshake(&client, &server, "b.sprites.test").unwrap().1;
        assert_eq!(other, HandshakeKind::Full, "{version:?}");
    }
}

#[test]
fn one_ticket_shown_again_and_again_is_good_each_time_and_kept_nowhere() {
    let world = World::new();
    let ring = ring(&[key(1, 1)]);
    let server = world.server(ring.ticketer(scope(&[])));
    let client = with_purse(&world, &TLS12);
    assert_eq!(handshake(&client, &server, "a.sprites.test").unwrap().1, HandshakeKind::Full);
    for _ in 0..1_000 {
        assert_eq!(handshake(&client, &server, "a.sprites.test").unwrap().1, HandshakeKind::Resumed);
    }
}

#[test]
fn early_data_is_refused_and_the_connection_goes_on() {
    let world = World::new();
    // Another server has promised to take it; ours never does.
    let mut elsewhere = server(Arc::clone(&world.resolver) as _);
    elsewhere.session_storage = ServerSessionMemoryCache::new(8);
    elsewhere.max_early_data_size = 1_024;
    let elsewhere = Arc::new(elsewhere);
    let ours = world.server(ring(&[key(1, 1)]).ticketer(scope(&[])));
    let mut client = client(&world.ca.path().join("ca.pem"), &[&TLS13]);
    client.enable_early_data = true;
    let client = Arc::new(client);
    assert_eq!(handshake(&client, &elsewhere, "a.sprites.test").unwrap().1, HandshakeKind::Full);
    let name = ServerName::try_from("a.sprites.test").unwrap();
    let mut visitor = rustls::ClientConnection::new(client, name).unwrap();
    std::io::Write::write_all(&mut visitor.early_data().expect("it may be tried"), b"POST /twice").unwrap();
    let mut server = rustls::ServerConnection::new(ours).unwrap();
    shake::shake(&mut visitor, &mut server).unwrap();
    assert!(!visitor.is_early_data_accepted() && server.early_data().is_none());
    assert_eq!(visitor.handshake_kind(), Some(HandshakeKind::Full));
    std::io::Write::write_all(&mut visitor.writer(), b"once").unwrap();
    shake::shake(&mut visitor, &mut server).unwrap();
    let mut heard = [0; 16];
    let length = std::io::Read::read(&mut server.reader(), &mut heard).unwrap();
    assert_eq!(&heard[..length], b"once");
}
