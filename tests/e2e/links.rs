//! The other link: what the rest of the suites show over WireGuard holds without it.

use aws_lc_rs::digest::{SHA256, digest};
use harness::client::{VERSIONS, full};
use harness::{Demo, Options};
use http::Method;

#[tokio::test]
async fn the_direct_link_wakes_serves_and_lets_sleep() {
    let demo =
        Demo::start(Options { arguments: vec!["--link".into(), "direct-insecure".into()], ..Options::default() }).await;
    demo.create_guest("plain").await;
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    let sum: String = digest(&SHA256, &content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();

    for (version, wake) in VERSIONS.into_iter().zip(["cold", "warm"]) {
        let mut client = demo.connect(version, "plain").await;
        assert_eq!(client.get(&demo, "plain", "/").await.header("sprite-wake"), wake, "{version:?}");
        let request = demo.request(Method::POST, "plain", "/sha").body(full(content.clone())).unwrap();
        let answer = client.send(request).await;
        assert_eq!((answer.status, answer.header("sprite-wake")), (200, ""), "{version:?} {answer:?}");
        assert_eq!(answer.json()["sha256"], sum.as_str(), "{version:?}");
        demo.sleep_warm("plain").await;
    }
    assert_eq!(demo.receipts("plain").await.len(), 2);
}
