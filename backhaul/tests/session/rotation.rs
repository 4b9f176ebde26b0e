//! A host changes its keys: what is open goes on, and what begins takes the next ones.

use crate::world::{HOST, Heard, World, open, within};
use backhaul::GuestStream;
use backhaul::keys::PrivateKey;
use backhaul::session::{HostServer, HostServerOptions, Identity, Limits};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn echoes(stream: &mut GuestStream) {
    stream.write.write_all(b"a").await.unwrap();
    stream.write.flush().await.unwrap();
    let mut byte = [0];
    within(stream.read.read_exact(&mut byte)).await.unwrap();
    assert_eq!(&byte, b"a");
}

#[tokio::test]
async fn a_session_takes_no_more_streams_when_its_host_has_another_key_and_ends_with_its_last() {
    let mut world = World::quic();
    world.echo().await;
    let mut old = world.backhaul.open(HOST, open("echo")).await.unwrap();
    within(old.opened()).await.unwrap();
    echoes(&mut old).await;
    assert!(!old.is_closed());

    let (key, identity) = (PrivateKey::generate().unwrap(), Identity::generate().unwrap());
    let (public, pin) = (key.public(), identity.pin().to_owned());
    let next = HostServer::start(HostServerOptions {
        listen: ([127, 0, 0, 1], 0).into(),
        key,
        identity,
        address: public.derived_address(),
        inner_mtu: 1420,
        edges: vec![world.peer.clone().unwrap()],
        owner: world.owner.clone(),
        applied: None,
        limits: Limits::default(),
    })
    .unwrap();
    {
        let mut row = world.row.lock().unwrap();
        row.wireguard_key = public.to_string();
        row.address = public.derived_address();
        row.spki_pins = vec![pin];
        row.endpoint = next.local_addr();
    }
    within(async {
        while !old.is_closed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let mut new = world.backhaul.open(HOST, open("echo")).await.unwrap();
    within(new.opened()).await.unwrap();
    assert!(!new.is_closed());
    echoes(&mut old).await;
    echoes(&mut new).await;
    drop(old);
    world.hears(|heard| matches!(heard, Heard::Gone(_))).await;
    world.server = None;
    echoes(&mut new).await;
}
