//! A path that loses packets, moves, and goes dark.

use crate::world::{HOST, Heard, Told, World, open, within};
use backhaul::wire::{EdgeMessage, ToOwner, Wake};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

/// So often in a row no machine is too busy.
const TRIALS: u64 = 20;

/// Stands between the edge and the host. Swallows the edge's first `lose` datagrams.
async fn relay(world: &World, lose: usize) -> Arc<AtomicUsize> {
    relay_until(world, lose, Arc::new(AtomicBool::new(false))).await
}

/// The same; nothing at all passes while `dark`.
async fn relay_until(world: &World, lose: usize, dark: Arc<AtomicBool>) -> Arc<AtomicUsize> {
    let host = world.row.lock().unwrap().endpoint;
    let inside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let outside = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    world.row.lock().unwrap().endpoint = inside.local_addr().unwrap();
    let lost = Arc::new(AtomicUsize::new(0));
    let losses = Arc::clone(&lost);
    tokio::spawn(async move {
        let mut edge: Option<SocketAddr> = None;
        let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
        loop {
            tokio::select! {
                Ok((count, from)) = inside.recv_from(&mut up) => {
                    edge = Some(from);
                    if dark.load(Ordering::Relaxed) {
                        losses.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    if losses.load(Ordering::Relaxed) < lose {
                        losses.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    let _ = outside.send_to(&up[..count], host).await;
                }
                Ok(count) = outside.recv(&mut down) => {
                    if let Some(edge) = edge.filter(|_| !dark.load(Ordering::Relaxed)) {
                        let _ = inside.send_to(&down[..count], edge).await;
                    }
                }
            }
        }
    });
    lost
}

/// A wake is lost three times, so that the next try is far away; the one behind it is not lost.
/// Tried until the later one is heard first, which on one stream it never is: a busy machine may
/// send it so late that the other one's next try is due.
#[tokio::test]
async fn a_wake_that_is_lost_delays_no_other() {
    let mut world = World::quic();
    let dark = Arc::new(AtomicBool::new(false));
    let lost = relay_until(&world, 0, Arc::clone(&dark)).await;
    let wake = |low| {
        let wake = Wake { wake_id_low: low, sprite: "echo".into(), generation: 1, ..Wake::default() };
        ToOwner { message: Some(EdgeMessage::Wake(wake)) }
    };
    world.backhaul.send(HOST, wake(0)).unwrap();
    world.hears(|heard| matches!(heard, Heard::Control(_, message) if *message == wake(0))).await;
    for trial in 1..=TRIALS {
        let (first, second) = (wake(2 * trial), wake(2 * trial + 1));
        let before = lost.load(Ordering::Relaxed);
        dark.store(true, Ordering::Relaxed);
        world.backhaul.send(HOST, first.clone()).unwrap();
        within(async {
            while lost.load(Ordering::Relaxed) < before + 3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        dark.store(false, Ordering::Relaxed);
        world.backhaul.send(HOST, second.clone()).unwrap();
        // Both are heard, so that nothing of this trial is under way in the next one.
        let mut order = Vec::new();
        for _ in 0..2 {
            let is_wake =
                |heard: &Heard| matches!(heard, Heard::Control(_, ToOwner { message: Some(EdgeMessage::Wake(_)) }));
            let Heard::Control(_, message) = world.hears(is_wake).await else { panic!("it is one") };
            order.push(message);
        }
        if order == [second.clone(), first.clone()] {
            return;
        }
        assert_eq!(order, [first, second]);
    }
    panic!("the later wake waited for the lost one in {TRIALS} trials");
}

#[tokio::test]
async fn a_lost_handshake_packet_costs_a_quarter_of_a_second_and_not_five() {
    let world = World::quic();
    world.echo().await;
    let lost = relay(&world, 1).await;
    let begin = Instant::now();
    let mut stream = within(world.backhaul.open(HOST, open("echo"))).await.unwrap();
    stream.write.write_all(b"hello").await.unwrap();
    within(stream.read.read_exact(&mut [0; 5])).await.unwrap();
    assert_eq!(lost.load(Ordering::Relaxed), 1);
    // The session itself gives up after 3 s: being here at all means that it was repeated.
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn the_host_follows_an_edge_whose_address_changed() {
    let world = World::quic();
    world.echo().await;
    let mut stream = within(world.backhaul.open(HOST, open("echo"))).await.unwrap();
    stream.write.write_all(b"hello").await.unwrap();
    within(stream.read.read_exact(&mut [0; 5])).await.unwrap();
    // From here on the edge's datagrams come from somewhere else, and answers go there.
    relay(&world, 0).await;
    let row = world.row.lock().unwrap().clone();
    let link = world.edge.as_ref().unwrap().link();
    link.upsert_peer(row.wireguard_key.parse().unwrap(), row.address, Some(row.endpoint)).unwrap();
    stream.write.write_all(b"again").await.unwrap();
    within(stream.read.read_exact(&mut [0; 5])).await.unwrap();
}

#[tokio::test]
async fn a_silent_host_is_down_long_before_the_idle_timeout_and_comes_back() {
    let mut world = World::quic();
    world.echo().await;
    let dark = Arc::new(AtomicBool::new(false));
    relay_until(&world, 0, Arc::clone(&dark)).await;
    let mut stream = within(world.backhaul.open(HOST, open("echo"))).await.unwrap();
    stream.write.write_all(b"hello").await.unwrap();
    within(stream.read.read_exact(&mut [0; 5])).await.unwrap();
    // Something in progress: its leases ask for answers.
    within(stream.opened()).await.unwrap();
    let guard = stream.activity().begin();
    dark.store(true, Ordering::Relaxed);
    assert!(matches!(within(world.told.recv()).await, Some(Told::Down(HOST))));
    assert!(within(stream.read.read_u8()).await.is_err());
    drop(guard);
    dark.store(false, Ordering::Relaxed);
    let mut stream = within(async {
        loop {
            match world.backhaul.open(HOST, open("echo")).await {
                Ok(stream) => return stream,
                // Within the back-off of one that failed it fails at once.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    stream.write.write_all(b"again").await.unwrap();
    within(stream.read.read_exact(&mut [0; 5])).await.unwrap();
}
