//! `edge-proxy run` on a store engine with real servers: with them, without them, and begun without them.

use harness::cluster::Node;
use harness::etcd::Etcd;
use harness::nats::Nats;
use harness::{Demo, Options, until};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// Elections of a cluster that starts, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

async fn edge(sections: &str, data: Option<Arc<TempDir>>) -> Demo {
    Demo::start(Options { data, config: Some(sections.into()), ..Options::default() }).await
}

async fn stale(demo: &Demo) -> bool {
    !demo.admin(&["status"]).await["store"]["stale_s"].is_null()
}

#[tokio::test]
async fn an_edge_serves_from_a_bucket_and_without_it_what_it_knew() {
    let Some(mut nats) = Nats::start().await else { return };
    let sections = nats.sections();
    with_and_without("nats", &sections, &mut nats.nodes).await;
}

#[tokio::test]
async fn an_edge_serves_from_etcd_and_without_it_what_it_knew() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let sections = etcd.sections();
    with_and_without("etcd", &sections, &mut etcd.nodes).await;
}

async fn with_and_without(engine: &str, sections: &str, nodes: &mut [Node]) {
    let demo = edge(sections, None).await;
    demo.create_guest("kept").await;
    assert_eq!(demo.get("kept", "/").await.status, 200);
    let status = demo.admin(&["status"]).await;
    assert_eq!((&status["store"]["engine"], &status["routes"]), (&engine.into(), &1.into()));
    assert!(!stale(&demo).await);

    nodes.iter_mut().for_each(Node::kill);
    until("the loss to be shown", PATIENCE, async || stale(&demo).await.then_some(())).await;
    // Placement is all that the store knows: sprites sleep and wake without it.
    demo.sleep_cold("kept").await;
    assert_eq!(demo.get("kept", "/").await.status, 200);
    let refused = demo.try_admin(&["sprite", "create", "new", "--public", "--command", "sleep 9"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("the store does not answer"), "{said}");

    // Begun anew while it is away: the routes of the last run, and absence means nothing yet.
    let data = demo.leave().await;
    let demo = edge(sections, Some(data)).await;
    let kept = demo.get("kept", "/").await;
    assert_eq!(kept.status, 200, "{kept:?}");
    let unknown = demo.get("unheard-of", "/").await;
    assert_eq!(unknown.status, 503, "{unknown:?}");
    assert_eq!(demo.admin(&["status"]).await["synced"], false);

    nodes.iter_mut().for_each(Node::restart);
    // Heard is not yet read to its end: only then does absence mean something.
    let synced = async || (demo.admin(&["status"]).await["synced"] == true && !stale(&demo).await).then_some(());
    until("the store to be back", PATIENCE, synced).await;
    assert_eq!(demo.get("unheard-of", "/").await.status, 404);
    demo.create_guest("new").await;
    assert_eq!(demo.get("new", "/").await.status, 200);
    // Another edge knows both.
    let other = edge(sections, None).await;
    assert_eq!(other.admin(&["status"]).await["routes"], 2);
    other.stop().await;
    demo.stop().await;
}
