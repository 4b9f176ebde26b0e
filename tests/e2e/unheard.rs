//! A host that has never heard of a sprite that is placed on it: nobody learns from that that there is none.

use harness::apart::{Apart, hello, route};
use router::names::SpriteName;
use router::table::Lookup;
use std::time::{Duration, Instant};

/// How long the host is not asked again (`routing.md` §2, rule 6).
const UNHEARD: Duration = Duration::from_secs(1);

#[tokio::test]
async fn it_is_asked_again_after_a_second_and_the_route_stays() {
    let pair = Apart::start(Duration::ZERO, 1, &[]).await;
    let [known, late, lost] = ["known", "late", "lost"].map(|name| SpriteName::parse(name).unwrap());
    for name in [&known, &late, &lost] {
        pair.table.apply_put(name, route());
    }
    // The way to the host is made.
    pair.owner.upsert(hello(&known)).await;
    let mut visitor = pair.visitor().await;
    assert_eq!(visitor.get(&known).await.status, 200);
    // Its definition comes while the request waits.
    let began = Instant::now();
    let comes = async {
        tokio::time::sleep(UNHEARD / 2).await;
        pair.owner.upsert(hello(&late)).await;
    };
    let (answer, ()) = tokio::join!(visitor.get(&late), comes);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(began.elapsed() >= UNHEARD, "asked again at once");
    assert_eq!(pair.owner.receipts(&late).len(), 1, "woken once");

    // It never comes: two detours, and then a word about it. Whoever asks meanwhile does not ask the host.
    let began = Instant::now();
    let mut other = pair.visitor().await;
    let (answer, another) = tokio::join!(visitor.get(&lost), other.get(&lost));
    for answer in [answer, another] {
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.text().contains("hop_budget"), "{answer:?}");
    }
    assert!(began.elapsed() >= UNHEARD * 2);
    assert_eq!(pair.table.lookup(&lost), Lookup::Found(route()));
    pair.owner.upsert(hello(&lost)).await;
    assert_eq!(visitor.get(&lost).await.status, 200);

    // What is destroyed is gone: the host the table names is believed.
    pair.owner.remove(&lost).await;
    assert_eq!(visitor.get(&lost).await.status, 410);
    pair.stop().await;
}
