//! Session tickets of a fleet: what one PoP made shortens a handshake with any other one, through changes of the key, until
//! it is purged.

use harness::blind::blind;
use harness::fleet::Machine;
use harness::nats::Nats;
use harness::{Demo, Options, until};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(60);

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

/// A client with no ticket yet.
fn client(version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    // Each PoP here has a CA of its own, and tickets are what is asked about.
    Arc::new(blind(version))
}

/// A connection and a request on it, to its end, so that a ticket has come.
async fn visit(pop: &Demo, client: &Arc<ClientConfig>) -> HandshakeKind {
    let host = pop.host("any");
    let stream = TcpStream::connect(pop.https).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(client));
    let mut tls = connector.connect(ServerName::try_from(host.clone()).unwrap(), stream).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    tls.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tls.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 "));
    tls.get_ref().1.handshake_kind().unwrap()
}

/// The epoch a PoP makes tickets of the normal policy with.
async fn active(pop: &Demo) -> u64 {
    let keys = pop.admin(&["ticket", "list"]).await;
    let active = |key: &&serde_json::Value| key["policy"] == "normal" && key["state"] == "active";
    keys.as_array().unwrap().iter().find(active).and_then(|key| key["epoch"].as_u64()).unwrap_or(0)
}

/// Waits until all of them make tickets with one key that is none of `before`.
async fn all_on_another(pops: &[Demo], before: u64) -> u64 {
    until("one key everywhere", SOON, async || {
        let mut epochs = Vec::new();
        for pop in pops {
            epochs.push(active(pop).await);
        }
        (epochs[0] > before && epochs.iter().all(|epoch| *epoch == epochs[0])).then_some(epochs[0])
    })
    .await
}

async fn fleet(nats: &Nats, period: &str) -> (tempfile::TempDir, Vec<Machine>, Vec<Demo>) {
    let folder = tempfile::tempdir().unwrap();
    let kek = folder.path().join("kek");
    acme::seal::Kek::from_file_or_new(&kek).unwrap();
    let sections = format!("{}[tls]\nkek = {kek:?}\nticket_period = {period:?}\n", nats.sections());
    let (mut machines, mut pops) = (Vec::new(), Vec::new());
    for name in ["pop-a", "pop-b", "pop-c"] {
        let machine = Machine::enrolled_pop(name, &sections).await;
        pops.push(machine.start().await);
        machines.push(machine);
    }
    (folder, machines, pops)
}

#[tokio::test]
async fn a_ticket_is_good_at_every_pop_through_five_changes_of_the_key_until_it_is_purged() {
    let Some(nats) = Nats::start().await else { return };
    let (_kek, _machines, pops) = fleet(&nats, "2m").await;
    let mut epoch = all_on_another(&pops, 0).await;
    let mut early = Vec::new();
    let mut shortened = 0;
    for change in 0..5 {
        // Tickets of this key, for the end.
        for version in VERSIONS {
            let client = client(version);
            assert_eq!(visit(&pops[change % 3], &client).await, HandshakeKind::Full);
            early.push(client);
        }
        pops[change % 3].admin(&["ticket", "rotate"]).await;
        // While it changes and when it has: from each to each.
        for settled in [false, true] {
            if settled {
                epoch = all_on_another(&pops, epoch).await;
            }
            for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 2), (2, 1), (1, 0)] {
                for version in VERSIONS {
                    let client = client(version);
                    assert_eq!(visit(&pops[from], &client).await, HandshakeKind::Full);
                    for at in [to, from, to] {
                        let kind = visit(&pops[at], &client).await;
                        assert_eq!(kind, HandshakeKind::Resumed, "{change} {from} to {to}, {version:?}");
                        shortened += 1;
                    }
                }
            }
        }
    }
    for (number, client) in early.iter().enumerate() {
        assert_eq!(visit(&pops[(number + 1) % 3], client).await, HandshakeKind::Resumed, "ticket {number}");
        shortened += 1;
    }
    assert_eq!(shortened, 5 * 2 * 6 * 2 * 3 + 10);

    // Every key is deleted, at one PoP: no ticket is good anywhere, and new ones are.
    let purged = pops[1].admin(&["ticket", "purge"]).await;
    assert!(purged["purged"].as_u64() >= Some(12), "of both policies: {purged}");
    let after = all_on_another(&pops, epoch).await;
    assert!(after > epoch);
    for (number, client) in early.iter().enumerate() {
        assert_eq!(visit(&pops[number % 3], client).await, HandshakeKind::Full, "ticket {number}");
        assert_eq!(visit(&pops[(number + 1) % 3], client).await, HandshakeKind::Resumed, "new ticket {number}");
    }
}

#[tokio::test]
async fn a_machine_that_stands_alone_keeps_its_tickets_through_a_restart() {
    let demo = Demo::start(Options::default()).await;
    let clients = VERSIONS.map(client);
    for client in &clients {
        assert_eq!(visit(&demo, client).await, HandshakeKind::Full);
        assert_eq!(visit(&demo, client).await, HandshakeKind::Resumed);
    }
    let epoch = active(&demo).await;
    let data = demo.leave().await;
    let demo = Demo::start(Options { data: Some(data), ..Options::default() }).await;
    assert_eq!(active(&demo).await, epoch);
    for client in &clients {
        assert_eq!(visit(&demo, client).await, HandshakeKind::Resumed);
    }
    demo.admin(&["ticket", "purge"]).await;
    until("another key", SOON, async || (active(&demo).await > epoch).then_some(())).await;
    for client in &clients {
        assert_eq!(visit(&demo, client).await, HandshakeKind::Full);
    }
}
