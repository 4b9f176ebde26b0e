//! Who gets in.

use crate::world::{Changes, HOST, Told, World, open, within};
use backhaul::OpenError;

async fn is_refused(mut world: World) -> World {
    let result = match within(world.backhaul.open(HOST, open("echo"))).await {
        // TLS 1.3: the client is done before the server has looked at its certificate.
        Ok(mut stream) => within(stream.opened()).await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert!(matches!(result, Err(OpenError::Unreachable)), "{result:?}");
    assert!(matches!(within(world.told.recv()).await, Some(Told::Down(HOST))));
    assert!(world.heard.try_recv().is_err(), "the owner was not asked");
    world
}

#[tokio::test]
async fn a_host_with_another_certificate_is_refused() {
    is_refused(World::quic_with(Changes { known_host_pin: false, ..Changes::default() })).await;
}

#[tokio::test]
async fn an_edge_with_another_certificate_is_refused() {
    is_refused(World::quic_with(Changes { known_edge_pin: false, ..Changes::default() })).await;
}

#[tokio::test]
async fn an_edge_with_another_key_gets_no_answer_at_all() {
    let world = is_refused(World::quic_with(Changes { known_key: false, ..Changes::default() })).await;
    let counts = world.server.as_ref().unwrap().link().counts();
    assert!(counts.unknown_key > 1, "repeated while it waited: {counts:?}");
    assert_eq!(counts.invalid + counts.wrong_inner, 0);
}

#[tokio::test]
async fn an_edge_that_is_removed_loses_its_session_at_once_and_gets_a_new_one_when_it_is_back() {
    let mut world = World::quic();
    world.echo().await;
    let mut stream = within(world.backhaul.open(HOST, open("echo"))).await.unwrap();
    within(stream.opened()).await.unwrap();
    let server = world.server.as_ref().unwrap();
    server.set_edges(Vec::new());
    assert!(matches!(within(world.told.recv()).await, Some(Told::Down(HOST))));
    // Its tunnel stays for the word that its session is over, and carries nothing else.
    let refused = async {
        while let Ok(mut stream) = world.backhaul.open(HOST, open("echo")).await {
            assert!(stream.opened().await.is_err(), "a stranger is served");
        }
    };
    within(refused).await;
    server.set_edges(vec![world.peer.clone().unwrap()]);
    let again = async {
        // The back-off after the refusal is waited for.
        loop {
            if let Ok(mut stream) = world.backhaul.open(HOST, open("echo")).await {
                return stream.opened().await.is_ok();
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    assert!(within(again).await);
}
