//! Whole exchanges over in-memory pipes: every framing, every way to break one.

mod answers;
mod properties;
mod reuse;
mod uploads;

use super::*;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Body;
use http_body_util::{BodyExt, Full, StreamBody};
use proptest::prelude::*;
use router::names::SpriteName;
use router::route::{Generation, HostId};
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf, split};

type Pipe = Halves<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>;

const GET: Asked = Asked { head: false, upgrade: false };
const HEAD: Asked = Asked { head: true, upgrade: false };
const UPGRADE: Asked = Asked { head: false, upgrade: true };
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

fn place(run: u64) -> Place {
    let name = SpriteName::parse("hello").unwrap();
    Place { host: HostId(1), name, generation: Generation(7), run, port: 0 }
}

fn name() -> SpriteName {
    place(1).name
}

fn pair() -> (Connection<Pipe>, DuplexStream) {
    let (ours, guest) = tokio::io::duplex(256 * 1024);
    let (read, write) = split(ours);
    (Connection::new(Halves::new(read, write), place(1)), guest)
}

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// What an exchange came to, comparable.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    interim: Vec<u16>,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    pooled: bool,
}

fn answered(asked: Asked, pieces: &[&[u8]]) -> Result<Answer, String> {
    let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
    run(async move {
        let source = Pieces { pieces, at: 0 };
        let mut connection = Connection::new(Halves::new(source, tokio::io::sink()), place(1));
        exchange(asked, &mut connection).await?.finish(connection).await
    })
    .map_err(|error| error.to_string())
}

/// Hands out exactly these pieces, one a read, then the end of the stream.
struct Pieces {
    pieces: Vec<Vec<u8>>,
    at: usize,
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while let Some(piece) = self.pieces.get(self.at) {
            if !piece.is_empty() {
                let count = piece.len().min(buf.remaining());
                buf.put_slice(&piece[..count]);
                let at = self.at;
                self.pieces[at].drain(..count);
                return Poll::Ready(Ok(()));
            }
            self.at += 1;
        }
        Poll::Ready(Ok(()))
    }
}

struct Begun {
    head: ResponseHead,
    interim: Vec<u16>,
}

async fn exchange<L: Link>(asked: Asked, connection: &mut Connection<L>) -> Result<Begun, UpstreamError> {
    connection.send_head_and_small_body(asked, REQUEST, b"").await?;
    let mut interim = Vec::new();
    loop {
        match connection.read_head().await? {
            Received::Interim(head) => interim.push(head.status.as_u16()),
            Received::Final(head) => return Ok(Begun { head, interim }),
        }
    }
}

impl Begun {
    async fn finish<L: Link>(self, connection: Connection<L>) -> Result<Answer, UpstreamError>
    where
        ResponseBody<L>: Unpin,
    {
        let pool = Rc::new(Pool::new());
        let body = ResponseBody::new(connection, &self.head, Rc::clone(&pool)).collect().await?;
        let trailers = body.trailers().cloned();
        Ok(Answer {
            status: self.head.status.as_u16(),
            interim: self.interim,
            fields: self.head.headers.iter().map(|(n, v)| (n.to_string(), v.as_bytes().to_vec())).collect(),
            body: body.to_bytes().to_vec(),
            trailers,
            pooled: pool.len() == 1,
        })
    }
}

fn one(asked: Asked, wire: &str) -> Result<Answer, String> {
    answered(asked, &[wire.as_bytes()])
}
