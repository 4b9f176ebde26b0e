//! For tests of bodies: `POST /sink` answers length and SHA-256 of what it got,
//! `GET /bytes?n=N` streams N bytes that anybody can compute, `POST /echo` sends back.

use super::Body;
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::fmt::Write;

/// Bytes per piece of `/bytes`.
const PIECE: usize = 64 * 1024;

pub(super) async fn serve(port: u16) -> anyhow::Result<()> {
    super::serve(
        port,
        || {},
        |request| async move {
            match request.uri().path() {
                "/sink" => sink(request).await,
                "/echo" => echo(request).await,
                "/bytes" => pieces(&request),
                _ => super::not_found(),
            }
        },
    )
    .await
}

async fn sink(request: Request<Incoming>) -> Response<Body> {
    let (mut digest, mut length) = (Context::new(&SHA256), 0);
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => {
                length += data.len();
                digest.update(&data);
            }
            Ok(Err(_)) => {}
            Err(error) => return super::text(400, "text/plain; charset=utf-8", format!("{error}\n")),
        }
    }
    super::plain(format!("{length} {}\n", hexadecimal(digest.finish().as_ref())))
}

async fn echo(request: Request<Incoming>) -> Response<Body> {
    match request.into_body().collect().await {
        Ok(body) => super::plain(body.to_bytes()),
        Err(error) => super::text(400, "text/plain; charset=utf-8", format!("{error}\n")),
    }
}

/// Byte `i` of the answer is `i % 251`.
fn pieces(request: &Request<Incoming>) -> Response<Body> {
    let query = request.uri().query().unwrap_or("");
    let asked = query.strip_prefix("n=").and_then(|n| n.parse::<u64>().ok());
    let Some(total) = asked else { return super::text(400, "text/plain; charset=utf-8", "/bytes?n=NUMBER\n") };
    // One period more than a piece, so that a piece may begin anywhere in it.
    let pattern: Bytes = (0..PIECE + 251).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
    let stream = futures_util::stream::unfold(0_u64, move |at| {
        let pattern = pattern.clone();
        async move {
            let count = (total - at).min(PIECE as u64) as usize;
            let start = (at % 251) as usize;
            let piece = pattern.slice(start..start + count);
            (count > 0).then(|| (Ok::<_, Infallible>(Frame::data(piece)), at + count as u64))
        }
    });
    let mut response = Response::new(StreamBody::new(stream).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(total));
    debug_assert!(!response.body().is_end_stream() || total == 0);
    response
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
