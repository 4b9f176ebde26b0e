//! wake.md, test 7: many requests at once for one sleeping sprite: one start, and an answer for
//! each.

use harness::Demo;
use harness::client::{Client, Version};
use std::collections::HashSet;

const HERD: usize = 100;

#[tokio::test]
async fn a_hundred_requests_are_one_start_and_a_hundred_answers() {
    let demo = Demo::new().await;
    let gate = demo.create_gated("crowd").await;
    let mut clients = Vec::new();
    let shared = demo.connect(Version::H2, "crowd").await;
    for number in 0..HERD {
        clients.push(match number % 2 {
            0 => demo.connect(Version::H1, "crowd").await,
            _ => Client::share(&shared),
        });
    }

    let requests = async {
        let each = clients.iter_mut().map(|client| client.get(&demo, "crowd", "/"));
        futures_util::future::join_all(each).await
    };
    let release = async {
        demo.wait_held(HERD as u64).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(requests, release);

    assert!(
        answers.iter().all(|answer| answer.status == 200),
        "{:?}",
        answers.iter().map(|a| a.status).collect::<Vec<_>>()
    );
    let pids: HashSet<u64> = answers.iter().map(|answer| answer.json()["pid"].as_u64().unwrap()).collect();
    assert_eq!(pids.len(), 1, "all were answered by one life");
    assert_eq!(answers[0].json()["starts"], 1, "the guest itself counts one start");
    assert_eq!(demo.receipts("crowd").await.len(), 1);
    assert_eq!(demo.held().await, 0);
    let told = answers.iter().filter(|answer| answer.header("sprite-wake") == "cold").count();
    assert_eq!(told, HERD, "each was held, each is told");
}

#[tokio::test]
async fn a_herd_beyond_the_bound_is_refused_cleanly_and_the_rest_is_served() {
    let demo = Demo::new().await;
    let gate = demo.create_gated("flood").await;
    // The default bound is 128 per sprite.
    let (bound, over) = (128, 40);
    let shared = [demo.connect(Version::H2, "flood").await, demo.connect(Version::H2, "flood").await];
    let mut clients: Vec<Client> = (0..bound + over).map(|number| Client::share(&shared[number % 2])).collect();

    let requests = async {
        let each = clients.iter_mut().map(|client| client.get(&demo, "flood", "/"));
        futures_util::future::join_all(each).await
    };
    let release = async {
        demo.wait_held(bound as u64).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(requests, release);

    let served = answers.iter().filter(|answer| answer.status == 200).count();
    assert!(served >= bound, "{served} of {bound}");
    let mut told = HashSet::new();
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        assert_eq!((answer.status, &answer.json()["code"]), (503, &"hold_full".into()), "{answer:?}");
        told.insert(answer.header("retry-after").parse::<u64>().unwrap());
    }
    assert!(told.iter().all(|seconds| (1..=3).contains(seconds)), "{told:?}");
    assert!(served + 8 > bound + over || told.len() > 1, "the refused must not come back all at once: {told:?}");
    assert_eq!(demo.receipts("flood").await.len(), 1);
    assert_eq!(demo.held().await, 0);
}
