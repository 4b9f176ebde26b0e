//! One room over WebSocket at `/ws`, and a page to talk in.

use super::Body;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::sync::broadcast;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

const PAGE: &str = "<!doctype html><meta charset=utf-8><title>chat</title><ul id=l></ul><input id=i autofocus>\
<script>const s=new WebSocket(`wss://${location.host}/ws`);s.onmessage=e=>{const m=document.createElement('li');\
m.textContent=e.data;l.append(m)};i.onchange=()=>{s.send(i.value);i.value=''}</script>\n";

/// Longest message, bytes (chosen).
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Messages a slow reader may be behind before it misses some (chosen).
const BEHIND_MAX: usize = 64;

pub(super) async fn serve(port: u16) -> anyhow::Result<()> {
    let (room, _) = broadcast::channel(BEHIND_MAX);
    super::serve(
        port,
        || {},
        move |request| {
            let room = room.clone();
            async move {
                match request.uri().path() {
                    "/" => super::html(PAGE),
                    "/ws" => upgrade(request, room),
                    _ => super::not_found(),
                }
            }
        },
    )
    .await
}

/// The server's half of the opening handshake (RFC 6455 §4.2.2).
fn upgrade(request: Request<Incoming>, room: broadcast::Sender<String>) -> Response<Body> {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let accept = key.and_then(|key| HeaderValue::from_str(&key).ok());
    let Some(accept) = accept else { return super::text(426, "text/plain; charset=utf-8", "WebSocket only\n") };
    tokio::task::spawn_local(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX));
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
            talk(socket, room).await;
        }
    });
    let mut response = Response::new(Empty::new().boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

async fn talk(socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>, room: broadcast::Sender<String>) {
    let (mut to, mut from) = socket.split();
    let mut heard = room.subscribe();
    loop {
        tokio::select! {
            message = from.next() => match message {
                // Pings are answered by the library; nobody in the room is no failure.
                Some(Ok(Message::Text(text))) => drop(room.send(text.to_string())),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
            said = heard.recv() => {
                let text = match said {
                    Ok(text) => text,
                    Err(broadcast::error::RecvError::Lagged(missed)) => format!("({missed} messages missed)"),
                    Err(broadcast::error::RecvError::Closed) => return,
                };
                if to.send(Message::text(text)).await.is_err() {
                    return;
                }
            }
        }
    }
}
