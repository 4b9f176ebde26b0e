//! WebSocket over HTTP/1.1 to the `chat` sample.

use futures_util::{SinkExt, StreamExt};
use harness::{Demo, Options, within};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

type Socket = WebSocketStream<TlsStream<TcpStream>>;

const MESSAGE_LIMIT: Duration = Duration::from_secs(20);

async fn join(demo: &Demo) -> (Socket, http::Response<Option<Vec<u8>>>) {
    let stream = demo.tls("chat", b"http/1.1").await;
    let url = format!("wss://{}/ws", demo.authority("chat"));
    within("the upgrade", Duration::from_secs(60), client_async(url, stream)).await.expect("a WebSocket")
}

async fn hears(socket: &mut Socket, wanted: &str) {
    within(&format!("to hear {wanted:?}"), MESSAGE_LIMIT, async {
        loop {
            let message = socket.next().await.expect("the socket is open").expect("a message");
            if matches!(&message, Message::Text(text) if text.contains(wanted)) {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_wakes_and_people_hear_each_other() {
    let demo = Demo::new().await;
    let (mut ann, upgrade) = join(&demo).await;
    assert_eq!(upgrade.status(), 101);
    assert_eq!(upgrade.headers()["sprite-wake"], "cold");
    let (mut bob, _) = join(&demo).await;

    ann.send(Message::text("hello bob")).await.unwrap();
    hears(&mut bob, "hello bob").await;
    bob.send(Message::text("hello ann")).await.unwrap();
    hears(&mut ann, "hello ann").await;

    // Larger than any buffer on the way.
    let long = "x".repeat(60_000);
    ann.send(Message::text(long.clone())).await.unwrap();
    hears(&mut bob, &long).await;

    ann.close(None).await.unwrap();
    within("the closing handshake", MESSAGE_LIMIT, async { while let Some(Ok(_)) = ann.next().await {} }).await;
    bob.send(Message::text("still here")).await.unwrap();
    hears(&mut bob, "still here").await;
}

#[tokio::test]
async fn an_open_socket_outlives_the_idle_timeout() {
    let demo = Demo::start(Options { idle_timeout: "1s".into(), ..Options::default() }).await;
    let (mut ann, _) = join(&demo).await;
    demo.create_guest("witness").await;
    assert_eq!(demo.get("witness", "/").await.status, 200);
    let run = demo.row("chat").await["run"].clone();
    // The witness was used later and sleeps: so the chat would have slept too.
    demo.wait_state("witness", "asleep").await;

    ann.send(Message::text("anyone")).await.unwrap();
    hears(&mut ann, "anyone").await;

    let row = demo.row("chat").await;
    assert_eq!((&row["state"], &row["run"]), (&"running".into(), &run), "{row}");
}

#[tokio::test]
async fn a_refused_upgrade_is_the_guests_own_answer() {
    let demo = Demo::new().await;
    demo.create_guest("plain").await;
    let stream = demo.tls("plain", b"http/1.1").await;
    let url = format!("wss://{}/head", demo.authority("plain"));
    match client_async(url, stream).await {
        Err(tungstenite::Error::Http(answer)) => assert_eq!(answer.status(), 200),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_end_of_a_guest_ends_its_sockets() {
    let demo = Demo::new().await;
    let (mut ann, _) = join(&demo).await;
    demo.sleep_cold("chat").await;
    within("the socket to end", MESSAGE_LIMIT, async {
        while let Some(Ok(message)) = ann.next().await {
            if message.is_close() {
                break;
            }
        }
    })
    .await;
    // A socket alone would not wake it: that is what its people have just said.
    assert_eq!(demo.get("chat", "/").await.header("sprite-wake"), "cold");
    let (mut ann, _) = join(&demo).await;
    ann.send(Message::text("back")).await.unwrap();
    hears(&mut ann, "back").await;
}

#[tokio::test]
async fn a_silent_socket_is_closed_when_its_sprite_falls_asleep_and_does_not_wake_it_by_itself() {
    let demo = Demo::start(Options { idle_timeout: "300ms".into(), ..Options::default() }).await;
    demo.admin(&["sprite", "limits", "chat", "--silent-sockets", "1s"]).await;
    let (mut ann, _) = join(&demo).await;
    ann.send(Message::text("anybody here?")).await.unwrap();
    hears(&mut ann, "anybody").await;
    // Pings keep the way open and say nothing about people.
    let closed = within("the sprite to fall asleep", MESSAGE_LIMIT, async {
        loop {
            let ping = tokio::time::timeout(Duration::from_millis(200), ann.next()).await;
            match ping {
                Err(_) => drop(ann.send(Message::Ping("x".into())).await),
                Ok(Some(Ok(Message::Close(frame)))) => return frame,
                Ok(Some(Ok(_))) => {}
                Ok(other) => panic!("no closing handshake: {other:?}"),
            }
        }
    })
    .await;
    let frame = closed.expect("a status");
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1001, "idle; retry"));
    demo.wait_state("chat", "asleep").await;

    // What its browser does next, again and again.
    for pause in ["30", "60"] {
        let stream = demo.tls("chat", b"http/1.1").await;
        let url = format!("wss://{}/ws", demo.authority("chat"));
        let refused = client_async(url, stream).await.expect_err("it sleeps");
        let tungstenite::Error::Http(answer) = refused else { panic!("{refused}") };
        assert_eq!(
            (answer.status(), answer.headers()["retry-after"].to_str().unwrap()),
            (503.try_into().unwrap(), pause)
        );
    }
    assert_eq!(demo.row("chat").await["state"], "asleep");
    assert_eq!(demo.receipts("chat").await.len(), 1);
    // Somebody opens the page: everything is as before.
    assert_eq!(demo.get("chat", "/").await.status, 200);
    let (_, upgrade) = join(&demo).await;
    assert_eq!(upgrade.status(), 101);
}
