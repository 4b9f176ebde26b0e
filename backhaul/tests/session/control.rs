//! The control stream and the session's life.

use crate::world::{Changes, HOST, Heard, RUN, Told, World, open, within};
use backhaul::wire::{Accepted, EdgeMessage, Outcome, OwnerMessage, ToEdge, ToOwner, Wake, WakeAnswer, Withdraw};
use backhaul::{GuestStream, OpenError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn wake(low: u64) -> ToOwner {
    let wake = Wake { wake_id_low: low, sprite: "echo".into(), generation: 1, ..Wake::default() };
    ToOwner { message: Some(EdgeMessage::Wake(wake)) }
}

#[tokio::test]
async fn a_message_makes_the_session_and_its_answer_comes_back() {
    for mut world in World::both() {
        let outcome = Some(Outcome::Accepted(Accepted { joined: true, ..Accepted::default() }));
        let answer = ToEdge {
            message: Some(OwnerMessage::Answer(WakeAnswer { wake_id_low: 9, outcome, ..WakeAnswer::default() })),
        };
        *world.owner.answer.lock().unwrap() = Some(answer.clone());
        let (direct, guess) = (world.edge.is_none(), Duration::from_millis(333));
        assert_eq!(world.backhaul.round_trip(HOST), if direct { Duration::ZERO } else { guess });
        world.backhaul.send(HOST, wake(9)).unwrap();
        world.hears(|heard| matches!(heard, Heard::Control(_, message) if *message == wake(9))).await;
        let told = within(world.told.recv()).await;
        assert!(matches!(told, Some(Told::Answer(HOST, message)) if message == answer));
        let measured = world.backhaul.round_trip(HOST);
        assert!(measured != guess && (measured == Duration::ZERO) == direct, "{measured:?}");
    }
}

#[tokio::test]
async fn who_listens_only_after_the_session_was_made_hears_all_the_same() {
    let mut world = World::quic_with(Changes { hears: false, ..Changes::default() });
    world.edge.as_ref().unwrap().prewarm(HOST);
    // Its first word says that the session is up.
    world.hears(|heard| matches!(heard, Heard::Control(..))).await;
    world.hear();
    let outcome = Some(Outcome::Accepted(Accepted { joined: false, ..Accepted::default() }));
    let answer = WakeAnswer { wake_id_low: 1, outcome, ..WakeAnswer::default() };
    *world.owner.answer.lock().unwrap() = Some(ToEdge { message: Some(OwnerMessage::Answer(answer)) });
    world.backhaul.send(HOST, wake(1)).unwrap();
    assert!(matches!(within(world.told.recv()).await, Some(Told::Answer(HOST, _))));
}

#[tokio::test]
async fn messages_keep_their_order() {
    let mut world = World::quic();
    for low in 0..500 {
        world.backhaul.send(HOST, wake(low)).unwrap();
    }
    let last = ToOwner { message: Some(EdgeMessage::Withdraw(Withdraw::default())) };
    world.backhaul.send(HOST, last.clone()).unwrap();
    let mut next = 0;
    loop {
        match world.hears(|heard| matches!(heard, Heard::Control(..))).await {
            Heard::Control(_, message) if message == last => break,
            Heard::Control(_, ToOwner { message: Some(EdgeMessage::Wake(wake)) }) => {
                assert_eq!(wake.wake_id_low, next);
                next += 1;
            }
            _ => {}
        }
    }
    assert_eq!(next, 500);
}

#[tokio::test]
async fn a_lease_is_renewed_while_something_is_open_and_given_back() {
    let mut world = World::quic();
    world.echo().await;
    let mut stream = world.backhaul.open(HOST, open("echo")).await.unwrap();
    stream.write.write_all(b"x").await.unwrap();
    within(stream.opened()).await.unwrap();
    let guard = stream.activity().begin().unwrap();
    let lease_of = |open: u32| {
        move |heard: &Heard| match heard {
            Heard::Control(_, ToOwner { message: Some(EdgeMessage::Leases(leases)) }) => {
                leases.leases.iter().any(|lease| lease.sprite == "echo" && lease.run == RUN && lease.open == open)
            }
            _ => false,
        }
    };
    world.hears(lease_of(1)).await;
    world.hears(lease_of(1)).await;
    drop(guard);
    world.hears(lease_of(0)).await;
}

#[tokio::test]
async fn a_stream_is_counted_at_both_ends_until_nobody_reads_it_and_its_claim_is_never_taken_for_lost() {
    for world in World::both() {
        world.echo().await;
        let mut stream = world.backhaul.open(HOST, open("echo")).await.unwrap();
        stream.write.write_all(b"x").await.unwrap();
        within(stream.opened()).await.unwrap();
        let (edge, owner) = (stream.activity().clone(), &world.owner.activity);
        let guard = edge.begin().unwrap();
        // As a tunnel takes it apart.
        let GuestStream { mut read, write, .. } = stream;
        within(read.read_u8()).await.unwrap();
        for _ in 0..3 {
            assert_eq!((edge.reconcile(), owner.reconcile()), (0, 0));
            assert_eq!((edge.open(), edge.streams(), owner.streams()), (1, 1, 1));
        }
        drop(guard);
        drop((read, write));
        assert_eq!((edge.open(), edge.streams()), (0, 0));
        let ended = async {
            while owner.streams() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        within(ended).await;
        assert!(owner.close_if_idle());
    }
}

#[tokio::test]
async fn what_meets_a_closed_gate_goes_on_when_it_opens_again_and_comes_back_when_the_run_ends() {
    let world = World::quic();
    world.echo().await;
    let owner = &world.owner.activity;
    // What was written before is open until its splice has looked at it.
    let close = || {
        within(async {
            while !owner.close_if_idle() {
                tokio::task::yield_now().await
            }
        })
    };
    let mut stream = world.backhaul.open(HOST, open("echo")).await.unwrap();
    stream.write.write_u8(1).await.unwrap();
    assert_eq!(within(stream.read.read_u8()).await.unwrap(), 1);
    for ends in [false, true] {
        close().await;
        stream.write.write_u8(2).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), stream.read.read_u8()).await;
        assert!(early.is_err(), "it reached the guest of a run that is about to end");
        if ends {
            owner.end();
            assert!(within(stream.read.read_u8()).await.is_err());
        } else {
            owner.reopen();
            assert_eq!(within(stream.read.read_u8()).await.unwrap(), 2);
        }
    }
    assert_eq!(stream.delivered().await, Some(2));
    assert_eq!(owner.bytes().0, 2);
}

#[tokio::test]
async fn the_owner_hears_that_an_edge_is_gone() {
    let mut world = World::quic();
    world.backhaul.send(HOST, wake(1)).unwrap();
    let Heard::Control(edge, _) = world.hears(|heard| matches!(heard, Heard::Control(..))).await else { return };
    world.edge.as_ref().unwrap().close();
    world.hears(|heard| matches!(heard, Heard::Gone(gone) if *gone == edge)).await;
}

#[tokio::test]
async fn one_session_carries_all_streams_and_all_first_users_share_its_making() {
    let mut world = World::quic();
    world.echo().await;
    let streams = (0..50).map(|_| {
        let backhaul = world.backhaul.clone();
        tokio::spawn(async move {
            let mut stream = backhaul.open(HOST, open("echo")).await.unwrap();
            stream.write.write_all(b"x").await.unwrap();
            stream.read.read_u8().await.unwrap()
        })
    });
    for stream in streams.collect::<Vec<_>>() {
        assert_eq!(within(stream).await.unwrap(), b'x');
    }
    world.edge.as_ref().unwrap().close();
    world.hears(|heard| matches!(heard, Heard::Gone(_))).await;
    while let Ok(heard) = world.heard.try_recv() {
        assert!(!matches!(heard, Heard::Gone(_)), "a second session");
    }
}

#[tokio::test]
async fn a_host_that_closed_is_down_and_nobody_waits_for_it() {
    let mut world = World::quic();
    world.echo().await;
    let mut stream = world.backhaul.open(HOST, open("echo")).await.unwrap();
    within(stream.opened()).await.unwrap();
    world.server.as_ref().unwrap().shutdown().await;
    assert!(within(stream.read.read_u8()).await.is_err());
    assert_eq!(stream.delivered().await, None);
    assert!(matches!(within(world.told.recv()).await, Some(Told::Down(HOST))));
}

#[tokio::test]
async fn a_host_that_is_not_in_the_table_is_unreachable_and_so_is_the_next_message() {
    let mut world = World::quic();
    let nowhere = router::route::HostId(99);
    let begin = Instant::now();
    let error = world.backhaul.open(nowhere, open("echo")).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::Unreachable));
    assert!(matches!(within(world.told.recv()).await, Some(Told::Down(host)) if host == nowhere));
    if world.backhaul.send(nowhere, wake(1)).is_ok() {
        // It came too late to be refused: it is void like the first one, and that is told.
        assert!(begin.elapsed() >= Duration::from_millis(250), "within the back-off");
        assert!(matches!(within(world.told.recv()).await, Some(Told::Down(host)) if host == nowhere));
    }
}
