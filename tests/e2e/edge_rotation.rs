//! An edge changes its keys with its process: the second one of a PoP serves before the first one goes.

use crate::fleet::{SOON, enrol_host, enrolled_pop, get, host, serves};
use harness::client::{VERSIONS, empty, full, whole};
use harness::fleet::{Machine, Operator};
use harness::nats::Nats;
use harness::until;
use rustix::process::{Pid, Signal, kill_process};
use std::cell::Cell;

#[tokio::test]
async fn a_pop_changes_its_keys_with_its_process_and_no_request_is_lost() {
    let Some(nats) = Nats::start().await else { return };
    let (store, operator) = (nats.sections(), Operator::new().await);
    let machine = host("host-a", &store).signed_by(&operator);
    enrol_host(&machine).await;
    let old = enrolled_pop(Machine::pop("pop-a", &store).signed_by(&operator)).await;
    let (owner, first) = (machine.start().await, old.start().await);
    machine.fleet(&["place", "steady", "--host", "host-a"]).await;
    owner.create_guest("steady").await;
    serves(&first, "steady").await;

    // The second has a directory of its own, and keys of its own beside the first one's.
    let new = enrolled_pop(Machine::pop("pop-a", &store).signed_by(&operator)).await;
    let keys = async || machine.fleet(&["pop", "list"]).await[0]["processes"].as_array().expect("its keys").clone();
    let both = keys().await;
    assert_eq!(both.len(), 2, "{both:?}");
    let second = new.start().await;
    serves(&second, "steady").await;

    // Visitors of the first go to the second when they are told to; whatever was sent is answered.
    let (told, begun) = (Cell::new(false), Cell::new(0));
    let visit = async |version| {
        let mut served = [0_u32; 2];
        let mut client = first.connect(version, "steady").await;
        while !told.get() {
            let request = first.request(http::Method::POST, "steady", "/sha").body(full("body")).unwrap();
            let answer = client.send(request).await;
            assert_eq!(answer.status, 200, "{version:?}, request {served:?}: {answer:?}");
            served[0] += 1;
            if served[0] == 1 {
                begun.set(begun.get() + 1);
            }
        }
        drop(client);
        let mut client = second.connect(version, "steady").await;
        while served[1] < 20 {
            let request = second.request(http::Method::POST, "steady", "/sha").body(full("body")).unwrap();
            let answer = client.send(request).await;
            assert_eq!(answer.status, 200, "{version:?}, request {served:?}: {answer:?}");
            served[1] += 1;
        }
        served[0]
    };
    let begins = async {
        assert_eq!(get(&second, "steady").await.status, 200);
        until("both to be served", SOON, async || (begun.get() == 2).then_some(())).await;
        told.set(true);
    };
    let (a, b, ()) = tokio::join!(visit(VERSIONS[0]), visit(VERSIONS[1]), begins);
    assert!(a > 0 && b > 0, "{a} {b}");

    // An answer that has begun at the first ends there, although it was told to stop.
    let mut client = first.connect(VERSIONS[1], "steady").await;
    let request = first.request(http::Method::GET, "steady", "/events").body(empty()).unwrap();
    let open = client.try_send(request).await.expect("an answer that has begun");
    let stopped = Pid::from_raw(first.pid().cast_signed()).expect("a process");
    kill_process(stopped, Signal::INT).expect("our own child");
    assert_eq!(get(&second, "steady").await.status, 200);
    second.get("steady", "/release").await;
    let events = whole(open).await.expect("all of it");
    assert_eq!((events.status, events.text().matches("data:").count()), (200, 2), "{events:?}");
    first.stop().await;

    // The first one's keys go: it is a stranger from then on, and the second is not.
    let now = second_keys(&new).await;
    let arguments = ["--key", &now[0], "--pin", &now[1], "--signing", &now[2], "--replace"];
    machine.fleet(&[&["pop", "add", "pop-a"], &arguments[..]].concat()).await;
    assert_eq!(keys().await.len(), 1);
    assert_eq!(get(&second, "steady").await.status, 200);
    let again = old.start().await;
    until("the first to be a stranger", SOON, async || {
        let answer = get(&again, "steady").await;
        (answer.status == 503).then_some(())
    })
    .await;
    assert_eq!(get(&second, "steady").await.status, 200);
    for machine in [again, second, owner] {
        machine.stop().await;
    }
}

/// Its key, its pin and its signing key, as `fleet keys` prints them.
async fn second_keys(machine: &Machine) -> [String; 3] {
    let keys = machine.fleet(&["keys"]).await;
    let printed = keys["as_pop"].as_str().expect("a command").to_owned();
    let word = |after: &str| printed.split(' ').skip_while(|word| *word != after).nth(1).expect(after).to_owned();
    [word("--key"), word("--pin"), word("--signing")]
}
