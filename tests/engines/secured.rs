//! Engines that ask who we are, and that we ask who they are.

use crate::write;
use harness::etcd::Etcd;
use harness::nats::Nats;
use router::store::etcd::EtcdStore;
use router::store::nats::NatsStore;
use router::store::{Engine, FeedEvent, Store, StoreError};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A call that is of no use ends within this.
const BOUND: Duration = Duration::from_secs(30);

async fn works(store: Store) {
    write(&store, "sprite/a", Some(b"1")).await;
    let mut feed = store.subscribe("sprite/", None).await.unwrap();
    while !matches!(feed.next().await.unwrap(), FeedEvent::SnapshotEnd(_)) {}
    let version = write(&store, "sprite/a", Some(b"2")).await;
    while !matches!(feed.next().await.unwrap(), FeedEvent::Put(entry, _) if entry.version == version) {}
}

async fn is_of_no_use(store: &dyn Engine) {
    let begun = Instant::now();
    let asked = store.get("sprite/a").await;
    assert!(matches!(asked, Err(StoreError::Unavailable(_) | StoreError::Denied(_))), "{asked:?}");
    assert!(store.subscribe("sprite/", None).await.is_err());
    assert!(begun.elapsed() < BOUND);
}

fn strange_certificate(folder: &Path) -> std::path::PathBuf {
    harness::cluster::certificate(folder, [127, 0, 0, 1].into()).0
}

#[tokio::test]
async fn nats_speaks_tls_to_who_trusts_it() {
    let Some(nats) = Nats::start_secured().await else { return };
    works(Arc::new(NatsStore::connect(&nats.settings()).await.unwrap())).await;
    let folder = tempfile::tempdir().unwrap();
    let stranger = config::NatsStore { ca_file: strange_certificate(folder.path()), ..nats.settings() };
    is_of_no_use(&NatsStore::connect(&stranger).await.unwrap()).await;
    let missing = config::NatsStore { ca_file: "/nowhere".into(), ..nats.settings() };
    assert!(matches!(NatsStore::connect(&missing).await, Err(StoreError::Denied(_))));
}

#[tokio::test]
async fn etcd_speaks_tls_to_who_trusts_it() {
    let Some(etcd) = Etcd::start_secured().await else { return };
    works(Arc::new(EtcdStore::open(&etcd.settings()).unwrap())).await;
    let folder = tempfile::tempdir().unwrap();
    let stranger = config::EtcdStore { ca_file: strange_certificate(folder.path()), ..etcd.settings() };
    is_of_no_use(&EtcdStore::open(&stranger).unwrap()).await;
    let missing = config::EtcdStore { ca_file: "/nowhere".into(), ..etcd.settings() };
    assert!(matches!(EtcdStore::open(&missing), Err(StoreError::Denied(_))));
}

#[tokio::test]
async fn etcd_knows_its_users_and_what_they_may() {
    let Some(etcd) = Etcd::start().await else { return };
    let ask = async |path: &str, body| etcd.order(path, body).await;
    // "/edge-proxy/" to "/edge-proxy0".
    let range = json!({ "key": "L2VkZ2UtcHJveHkv", "range_end": "L2VkZ2UtcHJveHkw" });
    for (user, kind) in [("maker", "READWRITE"), ("reader", "READ")] {
        let mut right = range.clone();
        right["permType"] = kind.into();
        ask("/v3/auth/role/add", json!({ "name": user })).await;
        ask("/v3/auth/role/grant", json!({ "name": user, "perm": right })).await;
        ask("/v3/auth/user/add", json!({ "name": user, "password": "secret" })).await;
        ask("/v3/auth/user/grant", json!({ "user": user, "role": user })).await;
    }
    ask("/v3/auth/role/add", json!({ "name": "root" })).await;
    ask("/v3/auth/user/add", json!({ "name": "root", "password": "secret" })).await;
    ask("/v3/auth/user/grant", json!({ "user": "root", "role": "root" })).await;
    ask("/v3/auth/enable", json!({})).await;

    let folder = tempfile::tempdir().unwrap();
    let user = |name: &str, password: &str| {
        let password_file = folder.path().join(name);
        std::fs::write(&password_file, password).unwrap();
        EtcdStore::open(&config::EtcdStore { user: name.into(), password_file, ..etcd.settings() }).unwrap()
    };
    works(Arc::new(user("maker", "secret\n"))).await;
    let reader = user("reader", "secret");
    let version = reader.get("sprite/a").await.unwrap().unwrap().version;
    let mut feed = reader.subscribe("sprite/", None).await.unwrap();
    while !matches!(feed.next().await.unwrap(), FeedEvent::SnapshotEnd(_)) {}
    let written = reader.compare_and_set("sprite/a", Some(version), Some(b"3")).await;
    assert!(matches!(written, Err(StoreError::Denied(_))), "{written:?}");
    let wrong = user("maker", "guessed").get("sprite/a").await;
    assert!(matches!(wrong, Err(StoreError::Denied(_))), "{wrong:?}");
    let nobody = EtcdStore::open(&etcd.settings()).unwrap().get("sprite/a").await;
    assert!(matches!(nobody, Err(StoreError::Denied(_))), "{nobody:?}");
}

/// As `docs/stores.md` has it.
pub(crate) const FOLLOWS: [&str; 5] = [
    "$JS.API.STREAM.INFO.KV_routes",
    "$JS.API.STREAM.MSG.GET.KV_routes",
    "$JS.API.CONSUMER.*.KV_routes.>",
    "$JS.API.CONSUMER.MSG.NEXT.KV_routes.>",
    "$KV.routes.>",
];

#[tokio::test]
async fn nats_knows_its_users_and_what_they_may() {
    let Some(nats) = Nats::start_with_users().await else { return };
    let user = async |name: &str, publish: &[&str]| {
        let credentials_file = nats.credentials(name, publish, &["_INBOX.>"]);
        NatsStore::connect(&config::NatsStore { credentials_file, ..nats.settings() }).await.unwrap()
    };
    works(Arc::new(user("maker", &FOLLOWS).await)).await;
    let reader = user("reader", &FOLLOWS[..4]).await;
    let version = reader.get("sprite/a").await.unwrap().unwrap().version;
    let mut feed = reader.subscribe("sprite/", None).await.unwrap();
    while !matches!(feed.next().await.unwrap(), FeedEvent::SnapshotEnd(_)) {}
    // It is never answered, so nothing better than this can be said.
    let written = reader.compare_and_set("sprite/a", Some(version), Some(b"3")).await;
    assert!(matches!(written, Err(StoreError::Uncertain(_) | StoreError::Denied(_))), "{written:?}");
    assert_eq!(reader.get("sprite/a").await.unwrap().unwrap().version, version);
    // Who may not ask for messages gets none and is told nothing; the feed ends all the same.
    let mut feed = user("deaf", &FOLLOWS[..3]).await.subscribe("sprite/", None).await.unwrap();
    assert!(matches!(feed.next().await.unwrap(), FeedEvent::SnapshotBegin { .. }));
    let end = harness::within("the silence to be noticed", BOUND, feed.next()).await;
    assert!(matches!(end, Err(StoreError::Unavailable(_))), "{end:?}");
    is_of_no_use(&user("stranger", &["nothing"]).await).await;
    is_of_no_use(&NatsStore::connect(&nats.settings()).await.unwrap()).await;
    let missing = config::NatsStore { credentials_file: "/nowhere".into(), ..nats.settings() };
    assert!(matches!(NatsStore::connect(&missing).await, Err(StoreError::Denied(_))));
}
