//! Server-sent events: one tick a second at `/events`, and a page that shows them.

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const PAGE: &str = "<!doctype html><meta charset=utf-8><title>clock</title><h1 id=t>waiting</h1>\
<script>new EventSource('/events').onmessage=e=>document.getElementById('t').textContent=e.data</script>\n";

pub(super) async fn serve(port: u16) -> anyhow::Result<()> {
    super::serve(
        port,
        || {},
        |request| async move {
            match request.uri().path() {
                "/" => super::html(PAGE),
                "/events" => events(),
                _ => super::not_found(),
            }
        },
    )
    .await
}

fn events() -> Response<super::Body> {
    let ticks = futures_util::stream::unfold(0_u64, |tick| async move {
        if tick > 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let event = format!("id: {tick}\ndata: tick {tick} at {now}\n\n");
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(event))), tick + 1))
    });
    let mut response = Response::new(StreamBody::new(ticks).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
