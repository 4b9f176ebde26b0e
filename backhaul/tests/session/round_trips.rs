//! A warm request costs the round trip it has anyway and no other, counted in datagrams.
//!
//! A valve stands in the path. Whatever needs an answer of the other side in between cannot
//! happen while the valve of that direction is shut, however long one waits; so no clock
//! decides here.

use crate::world::{HOST, World, open, within};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};

/// Which directions are open, and how many datagrams have passed.
struct Valve {
    up: watch::Sender<bool>,
    down: watch::Sender<bool>,
    passed_up: Arc<AtomicUsize>,
    passed_down: Arc<AtomicUsize>,
}

impl Valve {
    /// Puts one between the edge and the host, open both ways.
    async fn new(world: &World) -> Self {
        let host = world.row.lock().unwrap().endpoint;
        let inside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let outside = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        world.row.lock().unwrap().endpoint = inside.local_addr().unwrap();
        // Where the edge's datagrams come from, and so where the host's go.
        let (edge, known_edge) = watch::channel(None);
        let (_, known_host) = watch::channel(Some(host));
        let (up, down) = (watch::Sender::new(true), watch::Sender::new(true));
        let (passed_up, passed_down) = (Arc::default(), Arc::default());
        let (ears, mouth) = (Arc::clone(&inside), Arc::clone(&outside));
        tokio::spawn(pass(ears, mouth, Some(edge), known_host, up.subscribe(), Arc::clone(&passed_up)));
        tokio::spawn(pass(outside, inside, None, known_edge, down.subscribe(), Arc::clone(&passed_down)));
        Self { up, down, passed_up, passed_down }
    }

    fn down(&self) -> usize {
        self.passed_down.load(Ordering::SeqCst)
    }

    fn up(&self) -> usize {
        self.passed_up.load(Ordering::SeqCst)
    }
}

/// Passes datagrams on in order while `open`; what comes meanwhile waits.
async fn pass(
    from: Arc<UdpSocket>,
    by: Arc<UdpSocket>,
    sender: Option<watch::Sender<Option<SocketAddr>>>,
    to: watch::Receiver<Option<SocketAddr>>,
    mut open: watch::Receiver<bool>,
    passed: Arc<AtomicUsize>,
) {
    let mut buffer = vec![0; 65_536];
    while let Ok((count, source)) = from.recv_from(&mut buffer).await {
        if let Some(sender) = &sender {
            sender.send_replace(Some(source));
        }
        if open.wait_for(|open| *open).await.is_err() {
            return;
        }
        let to = *to.borrow();
        if let Some(to) = to {
            passed.fetch_add(1, Ordering::SeqCst);
            let _ = by.send_to(&buffer[..count], to).await;
        }
    }
}

#[tokio::test]
async fn a_warm_request_is_one_flight_up_and_its_answer_one_flight_down() {
    let world = World::quic();
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let (release, released) = watch::channel(0_u32);
    world
        .guest("echo", move |mut tcp| {
            let (arrived, mut released) = (arrived.clone(), released.clone());
            async move {
                let mut request = vec![0; 7];
                let mut number = 0;
                while tcp.read_exact(&mut request).await.is_ok() {
                    number += 1;
                    arrived.send(request.clone()).unwrap();
                    let _ = released.wait_for(|count| *count >= number).await;
                    tcp.write_all(b"the answer").await.unwrap();
                }
            }
        })
        .await;
    let valve = Valve::new(&world).await;
    // Warm: the session is there; the guest's run is known.
    let mut first = within(world.backhaul.open(HOST, open("echo"))).await.unwrap();
    first.write.write_all(b"warm it").await.unwrap();
    within(arrivals.recv()).await.unwrap();
    release.send_replace(1);
    within(first.read.read_exact(&mut [0; 10])).await.unwrap();
    release.send_replace(0);
    drop(first);

    // A stream that has to be opened, then the same one from the pool.
    let mut stream = None;
    for number in 1..=2 {
        valve.down.send_replace(false);
        // One thread, and no await between the valve's check and its count: exact.
        let before = valve.down();
        let opened = match stream.take() {
            Some(kept) => kept,
            None => within(world.backhaul.open(HOST, open("echo"))).await.unwrap(),
        };
        let kept: &mut backhaul::GuestStream = stream.insert(opened);
        kept.write.write_all(b"request").await.unwrap();
        kept.write.flush().await.unwrap();
        assert_eq!(within(arrivals.recv()).await.unwrap(), b"request", "request {number}");
        assert_eq!(valve.down(), before, "the guest has the request, and the edge has heard nothing");

        valve.up.send_replace(false);
        let before = valve.up();
        release.send_replace(number);
        valve.down.send_replace(true);
        let mut answer = [0; 10];
        within(kept.read.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"the answer", "request {number}");
        assert_eq!(valve.up(), before, "the edge has the answer, and the host has heard nothing");
        valve.up.send_replace(true);
    }
}
