//! What only HTTP/2 frames can show: interim answers on a stream, no content for HEAD, resets.

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use harness::{Demo, until, within};
use http::{Request, Response};
use std::future::poll_fn;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

/// A connection that shows frames, not answers.
async fn connect(demo: &Demo, sprite: &str) -> SendRequest<Bytes> {
    let stream = demo.tls(sprite, b"h2").await;
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    requests.ready().await.unwrap()
}

fn head(demo: &Demo, sprite: &str, method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("https://{}{path}", demo.authority(sprite)))
}

async fn interim(answer: &mut ResponseFuture) -> Option<Response<()>> {
    within("an interim answer", LIMIT, poll_fn(|cx| answer.poll_informational(cx))).await.transpose().unwrap()
}

#[tokio::test]
async fn early_hints_pass_on_h2() {
    let demo = Demo::new().await;
    demo.create_guest("hints").await;
    let mut requests = connect(&demo, "hints").await;
    // Asleep, then running: an interim answer passes either way.
    for _ in 0..2 {
        let request = head(&demo, "hints", "GET", "/hints").body(()).unwrap();
        let (mut answer, _) = requests.send_request(request, true).unwrap();
        let hint = interim(&mut answer).await.expect("a hint comes first");
        assert_eq!(
            (hint.status().as_u16(), &hint.headers()["link"]),
            (103, &"</style.css>; rel=preload".parse().unwrap())
        );
        assert_eq!(within("the answer", LIMIT, answer).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn a_100_continue_on_h2_is_the_guests() {
    let demo = Demo::new().await;
    demo.create_guest("expects").await;
    let mut requests = connect(&demo, "expects").await;
    for _ in 0..2 {
        let request = head(&demo, "expects", "POST", "/expect-accepted")
            .header("expect", "100-continue")
            .header("content-length", "5")
            .body(())
            .unwrap();
        let (mut answer, mut body) = requests.send_request(request, false).unwrap();
        assert_eq!(interim(&mut answer).await.expect("the guest's word").status(), 100);
        body.send_data(Bytes::from_static(b"hello"), true).unwrap();
        assert_eq!(within("the answer", LIMIT, answer).await.unwrap().status(), 200);
    }
    let request = head(&demo, "expects", "POST", "/expect-refused")
        .header("expect", "100-continue")
        .header("content-length", "5")
        .body(())
        .unwrap();
    let (answer, _body) = requests.send_request(request, false).unwrap();
    assert_eq!(within("the refusal", LIMIT, answer).await.unwrap().status(), 417);
}

#[tokio::test]
async fn an_answer_of_ours_to_head_has_no_content() {
    let demo = Demo::new().await;
    let mut requests = connect(&demo, "nobody").await;
    let request = head(&demo, "nobody", "HEAD", "/").body(()).unwrap();
    let (answer, _) = requests.send_request(request, true).unwrap();
    let answer = within("the answer", LIMIT, answer).await.unwrap();
    assert_eq!(answer.status(), 404);
    assert_ne!(answer.headers()["content-length"], "0", "as long as for GET");
    assert!(answer.headers().contains_key("date"));
    assert!(answer.into_body().is_end_stream());
}

#[tokio::test]
async fn a_stream_reset_while_it_is_held_leaves_its_place() {
    let demo = Demo::new().await;
    let gate = demo.create_gated("left").await;
    let mut requests = connect(&demo, "left").await;
    let (_stays, _) = requests.send_request(head(&demo, "left", "GET", "/").body(()).unwrap(), true).unwrap();
    let (_leaves, mut stream) =
        requests.send_request(head(&demo, "left", "POST", "/sha").body(()).unwrap(), false).unwrap();
    demo.wait_held(2).await;
    stream.send_reset(h2::Reason::CANCEL);
    until("the place to be free", Duration::from_secs(1), async || (demo.held().await == 1).then_some(())).await;
    gate.open();
}
