//! What one stream does.

use crate::world::{Heard, RUN, World, open, within};
use backhaul::OpenError;
use backhaul::wire::{Asleep, Cause, Refused, Reply, StreamClass};
use std::io::ErrorKind;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

fn reset_on_drop(tcp: &TcpStream) {
    socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn bytes_come_back_and_an_end_is_passed_on_as_an_end() {
    for world in World::both() {
        world.echo().await;
        let mut stream = world.backhaul.open(crate::world::HOST, open("echo")).await.unwrap();
        stream.write.write_all(b"hello").await.unwrap();
        assert_eq!(stream.opened().await.unwrap().run, RUN);
        let mut answer = [0; 5];
        within(stream.read.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"hello");
        // Half-close: the guest still answers what it got.
        stream.write.write_all(b" again").await.unwrap();
        stream.write.shutdown().await.unwrap();
        let mut rest = Vec::new();
        within(stream.read.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b" again");
        assert_eq!(stream.to_guest_offset(), 11);
        assert_eq!(world.owner.activity.bytes(), (11, 11));
    }
}

#[tokio::test]
async fn a_request_reaches_the_guest_before_the_decision_is_asked_for() {
    let mut world = World::quic();
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    world
        .guest("guest", move |mut tcp| {
            let arrived = arrived.clone();
            async move {
                let mut request = [0; 7];
                tcp.read_exact(&mut request).await.unwrap();
                arrived.send(request).unwrap();
                tcp.write_all(b"answer").await.unwrap();
            }
        })
        .await;
    let mut stream = world.backhaul.open(crate::world::HOST, open("guest")).await.unwrap();
    assert!(!stream.is_decided());
    stream.write.write_all(b"request").await.unwrap();
    assert_eq!(&within(arrivals.recv()).await.unwrap(), b"request");
    world.hears(|heard| matches!(heard, Heard::Open(open) if open.expect_run == Some(RUN))).await;
    // Reading without asking for the decision works too.
    let mut answer = Vec::new();
    within(stream.read.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"answer");
    assert!(stream.opened().await.is_ok());
}

#[tokio::test]
async fn every_other_decision_comes_as_it_was_made() {
    let replies = [
        Reply::Asleep(Asleep { held: true, not_connected: false }),
        Reply::Refused(Refused { cause: Cause::WakeFailed.into(), retry_after_ms: 7, detail: "exit 1".into() }),
    ];
    for world in World::both() {
        for reply in &replies {
            *world.owner.refusal.lock().unwrap() = Some(reply.clone());
            let error = match world.backhaul.open(crate::world::HOST, open("echo")).await {
                Ok(mut stream) => {
                    // May fail already: the owner takes nothing.
                    let _ = stream.write.write_all(b"request").await;
                    let error = within(stream.opened()).await.map(|_| ()).unwrap_err();
                    assert_eq!(stream.delivered().await, Some(0));
                    error
                }
                Err(error) => error,
            };
            assert!(matches!(&error, OpenError::NotOpened(said) if said == reply), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_guest_that_refuses_is_looked_at_and_the_request_goes_back() {
    for mut world in World::both() {
        // Bound, so that it is nobody else's; it does not listen.
        let closed = TcpSocket::new_v4().unwrap();
        closed.bind(([127, 0, 0, 1], 0).into()).unwrap();
        world.owner.guests.lock().unwrap().insert("closed".into(), closed.local_addr().unwrap());
        let error = match world.backhaul.open(crate::world::HOST, open("closed")).await {
            Ok(mut stream) => within(stream.opened()).await.map(|_| ()).unwrap_err(),
            Err(error) => error,
        };
        assert!(matches!(error, OpenError::GuestConnect(_) | OpenError::NotOpened(Reply::Asleep(_))), "{error:?}");
        world.hears(|heard| matches!(heard, Heard::Unreachable(sprite, RUN) if sprite == "closed")).await;
    }
}

#[tokio::test]
async fn a_reset_of_the_guest_carries_the_exact_count_of_what_it_got() {
    let world = World::quic();
    world
        .guest("guest", |mut tcp| async move {
            let mut request = vec![0; 100_000];
            tcp.read_exact(&mut request).await.unwrap();
            reset_on_drop(&tcp);
        })
        .await;
    let mut stream = world.backhaul.open(crate::world::HOST, open("guest")).await.unwrap();
    stream.write.write_all(&vec![1; 100_000]).await.unwrap();
    within(stream.opened()).await.unwrap();
    let error = within(stream.read.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(stream.delivered().await, Some(100_000));
}

#[tokio::test]
async fn what_is_written_to_a_stream_whose_guest_has_ended_is_known_to_be_undelivered() {
    let world = World::quic();
    world
        .guest("guest", |mut tcp| async move {
            let mut request = [0; 5];
            tcp.read_exact(&mut request).await.unwrap();
            tcp.write_all(b"answer").await.unwrap();
        })
        .await;
    let mut stream = world.backhaul.open(crate::world::HOST, open("guest")).await.unwrap();
    stream.write.write_all(b"first").await.unwrap();
    within(stream.opened()).await.unwrap();
    let mut answer = Vec::new();
    within(stream.read.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"answer");
    let offset = stream.to_guest_offset();
    let _ = stream.write.write_all(b"second").await;
    assert_eq!(stream.delivered().await, Some(offset));
}

#[tokio::test]
async fn the_end_of_a_run_delivers_what_the_guest_said_and_nothing_more_to_it() {
    let world = World::quic();
    world
        .guest("guest", |mut tcp| async move {
            let mut request = [0; 5];
            tcp.read_exact(&mut request).await.unwrap();
            tcp.write_all(b"answer").await.unwrap();
            // Frozen: it neither reads nor ends.
            std::future::pending::<()>().await;
        })
        .await;
    let mut stream = world.backhaul.open(crate::world::HOST, open("guest")).await.unwrap();
    stream.write.write_all(b"first").await.unwrap();
    within(stream.opened()).await.unwrap();
    let mut answer = [0; 6];
    within(stream.read.read_exact(&mut answer)).await.unwrap();
    world.owner.activity.end();
    within(stream.read.read_u8()).await.unwrap_err();
    let _ = stream.write.write_all(b"second").await;
    assert_eq!(stream.delivered().await, Some(5));
}

#[tokio::test]
async fn a_dropped_stream_is_a_reset_for_the_guest() {
    let world = World::quic();
    let (ends, mut ended) = mpsc::unbounded_channel();
    world
        .guest("guest", move |mut tcp| {
            let ends = ends.clone();
            async move {
                let mut byte = [0];
                tcp.read_exact(&mut byte).await.unwrap();
                ends.send(tcp.read(&mut byte).await.map_err(|error| error.kind())).unwrap();
            }
        })
        .await;
    let mut stream = world.backhaul.open(crate::world::HOST, open("guest")).await.unwrap();
    stream.write.write_all(b"x").await.unwrap();
    within(stream.opened()).await.unwrap();
    drop(stream);
    assert_eq!(within(ended.recv()).await.unwrap(), Err(ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_stream_dropped_between_two_requests_is_an_end_for_the_guest() {
    let world = World::quic();
    let (ends, mut ended) = mpsc::unbounded_channel();
    world
        .guest("guest", move |mut tcp| {
            let ends = ends.clone();
            async move {
                let mut byte = [0];
                tcp.read_exact(&mut byte).await.unwrap();
                ends.send(tcp.read(&mut byte).await.map_err(|error| error.kind())).unwrap();
            }
        })
        .await;
    let mut stream = world.backhaul.open(crate::world::HOST, open("guest")).await.unwrap();
    stream.write.write_all(b"x").await.unwrap();
    within(stream.opened()).await.unwrap();
    // In transit to the guest until the count says otherwise.
    within(async {
        while world.owner.activity.bytes().0 == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    stream.set_idle(true);
    drop(stream);
    assert_eq!(within(ended.recv()).await.unwrap(), Ok(0));
}

#[tokio::test]
async fn streams_are_used_from_other_threads_than_the_sessions() {
    let world = World::quic();
    world.echo().await;
    let threads = (0..4).map(|_| {
        let backhaul = world.backhaul.clone();
        tokio::task::spawn_blocking(move || {
            let core = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            core.block_on(async {
                for _ in 0..20 {
                    let mut stream = backhaul.open(crate::world::HOST, open("echo")).await.unwrap();
                    stream.write.write_all(b"hello").await.unwrap();
                    within(stream.read.read_exact(&mut [0; 5])).await.unwrap();
                }
            });
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        within(thread).await.unwrap();
    }
}

#[tokio::test]
async fn a_tunnel_stays_open_towards_a_guest_that_ended_its_side() {
    let world = World::quic();
    let (got, mut gets) = mpsc::unbounded_channel();
    world
        .guest("guest", move |mut tcp| {
            let got = got.clone();
            async move {
                tcp.shutdown().await.unwrap();
                let mut all = Vec::new();
                tcp.read_to_end(&mut all).await.unwrap();
                got.send(all).unwrap();
            }
        })
        .await;
    let mut ask = open("guest");
    ask.class = StreamClass::Tunnel.into();
    let mut stream = world.backhaul.open(crate::world::HOST, ask).await.unwrap();
    within(stream.opened()).await.unwrap();
    assert_eq!(within(stream.read.read(&mut [0; 8])).await.unwrap(), 0);
    stream.write.write_all(b"late").await.unwrap();
    stream.write.shutdown().await.unwrap();
    assert_eq!(within(gets.recv()).await.unwrap(), b"late");
}
