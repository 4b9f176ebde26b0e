//! An edge is the part that faces the Internet: what it should have refused, the owner refuses again.

use crate::{app, owner};
use backhaul::owner::{EdgeId, Owner};
use backhaul::wire::{Cause, Open, Reply, Unknown, VERSION};
use wakeup::spec::SpriteSpec;

#[tokio::test]
async fn a_port_that_is_not_declared_is_nobodys_and_a_sprite_of_another_host_is_not_here() {
    let (owner, _directory) = owner().await;
    owner.upsert(SpriteSpec { ports: vec![8080], ..app(1) }).await;
    let open = |sprite: &str, port| Open {
        version: VERSION,
        sprite: sprite.into(),
        generation: 1,
        port,
        deadline_ms: 10_000,
        ..Open::default()
    };
    for wake in [false, true] {
        for (port, guest) in [(0, 9), (9, 9), (8080, 8080)] {
            let admitted = owner.open(EdgeId(1), Open { wake, ..open("app", port) }).await.unwrap();
            assert_eq!(admitted.guest.port(), guest);
        }
        // A shell, a database, and a port whose lower half is declared.
        for port in [22, 5432, 8080 + (1 << 16)] {
            let refused = owner.open(EdgeId(1), Open { wake, ..open("app", port) }).await;
            let Err(Reply::Refused(refused)) = refused else { panic!("{port}: {refused:?}") };
            assert_eq!(refused.cause(), Cause::PortNotDeclared, "{port}");
        }
        let unknown = owner.open(EdgeId(1), Open { wake, ..open("other", 0) }).await.unwrap_err();
        assert_eq!(unknown, Reply::Unknown(Unknown { my_generation: 0 }));
    }
    owner.shutdown().await;
}
