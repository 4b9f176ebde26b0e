//! Much, and nobody reading.

use crate::world::{Changes, HOST, World, open, within};
use backhaul::GuestStream;
use backhaul::session::Limits;
use std::io::ErrorKind;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// Sends `count` bytes of a known pattern.
fn pattern(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(|at| (at.wrapping_mul(2_654_435_761) >> 16) as u8).collect()
}

#[tokio::test]
async fn fifty_megabytes_come_back_as_they_went() {
    const TOTAL: usize = 50_000_000;
    const PIECE: usize = 100_000;
    let world = World::quic();
    world.echo().await;
    let mut stream = world.backhaul.open(HOST, open("echo")).await.unwrap();
    stream.write.write_all(&pattern(0, PIECE)).await.unwrap();
    within(stream.opened()).await.unwrap();
    let GuestStream { mut read, mut write, .. } = stream;
    let up = tokio::spawn(async move {
        for at in (PIECE..TOTAL).step_by(PIECE) {
            write.write_all(&pattern(at, PIECE)).await.unwrap();
        }
        write.shutdown().await.unwrap();
    });
    let mut at = 0;
    let mut buffer = vec![0; PIECE];
    while at < TOTAL {
        within(read.read_exact(&mut buffer)).await.unwrap();
        assert!(buffer == pattern(at, PIECE), "differs behind byte {at}");
        at += PIECE;
    }
    assert_eq!(within(read.read(&mut buffer)).await.unwrap(), 0);
    up.await.unwrap();
    assert_eq!(world.edge.as_ref().unwrap().link().counts().wrong_inner, 0);
}

/// A guest that sends without end.
async fn flood(world: &World) {
    world
        .guest("flood", |mut tcp| async move {
            let piece = vec![7; 64 * 1024];
            while tcp.write_all(&piece).await.is_ok() {}
        })
        .await;
}

async fn stalled_download(world: &World) -> GuestStream {
    let mut stream = world.backhaul.open(HOST, open("flood")).await.unwrap();
    within(stream.opened()).await.unwrap();
    within(stream.read.read_u8()).await.unwrap();
    stream
}

#[tokio::test]
async fn sixty_four_readers_that_stopped_leave_their_neighbour_alone() {
    let world = World::quic();
    flood(&world).await;
    world.echo().await;
    let mut stalled = Vec::new();
    for _ in 0..64 {
        stalled.push(stalled_download(&world).await);
    }
    let mut stream = world.backhaul.open(HOST, open("echo")).await.unwrap();
    let piece = vec![1; 3_000_000];
    let GuestStream { read, write, .. } = &mut stream;
    let mut back = vec![0; piece.len()];
    let (up, down) = within(async { tokio::join!(write.write_all(&piece), read.read_exact(&mut back)) }).await;
    up.unwrap();
    down.unwrap();
    assert!(back == piece);
}

#[tokio::test]
async fn sixty_four_uploads_to_a_guest_that_stopped_leave_their_neighbour_alone() {
    let world = World::quic();
    world.guest("sink", |tcp| async move { drop((tcp, std::future::pending::<()>().await)) }).await;
    world.echo().await;
    let mut stalled = Vec::new();
    for _ in 0..64 {
        let mut stream = world.backhaul.open(HOST, open("sink")).await.unwrap();
        stalled.push(tokio::spawn(async move {
            // Whole: a dropped read half would be a reset.
            let stream = &mut stream;
            let piece = vec![7; 64 * 1024];
            while stream.write.write_all(&piece).await.is_ok() {}
        }));
    }
    for _ in 0..20 {
        let mut stream = world.backhaul.open(HOST, open("echo")).await.unwrap();
        stream.write.write_all(b"hello").await.unwrap();
        within(stream.read.read_exact(&mut [0; 5])).await.unwrap();
    }
    stalled.iter().for_each(|task| assert!(!task.is_finished()));
}

#[tokio::test]
async fn one_stalled_stream_is_reset_when_too_much_is_unread() {
    let limits = Limits { unread_bytes_max: 3 * 1024 * 1024, stalled_after: Duration::from_millis(50) };
    let world = World::quic_with(Changes { limits, ..Changes::default() });
    let (resets, mut reset) = mpsc::unbounded_channel();
    world
        .guest("flood", move |mut tcp| {
            let resets = resets.clone();
            async move {
                let piece = vec![7; 64 * 1024];
                let error = loop {
                    if let Err(error) = tcp.write_all(&piece).await {
                        break error;
                    }
                };
                resets.send(error.kind()).unwrap();
            }
        })
        .await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        stalled.push(stalled_download(&world).await);
    }
    assert_eq!(within(reset.recv()).await, Some(ErrorKind::ConnectionReset));
    assert!(reset.try_recv().is_err(), "three fit");
    // The reset came to one edge stream, with the count of what its guest got.
    let mut told = 0;
    for mut stream in stalled {
        told += usize::from(stream.delivered().await == Some(0));
    }
    assert_eq!(told, 1);
}
