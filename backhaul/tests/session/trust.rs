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
