//! A small HTTP server whose answers may go on for as long as they like, and which can be struck in every way a
//! process can: ended, frozen, cut off.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

/// One request.
pub(super) struct Asked {
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

/// One answer: its head, and its body piece by piece. `Err` cuts the connection.
pub(super) type Answer = Response<mpsc::Receiver<Result<Bytes, Cut>>>;

/// Why a body ends before its end.
#[derive(Debug)]
pub(super) struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut")
    }
}

impl std::error::Error for Cut {}

pub(super) type Handler = Arc<dyn Fn(Asked) -> Answer + Send + Sync>;

/// The server. Dropping it ends it.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    handler: Handler,
    tasks: Arc<Mutex<Vec<AbortHandle>>>,
    frozen: watch::Sender<bool>,
}

impl Server {
    pub(super) async fn start(handler: Handler) -> Self {
        // Nobody else takes it while it is ended.
        let address = crate::cluster::addresses(1)[0];
        let server = Self { address, handler, tasks: Arc::default(), frozen: watch::Sender::new(false) };
        server.listen().await;
        server
    }

    /// Listens where it did before.
    pub(super) async fn listen(&self) {
        // The one that was ended lets go of the port in a moment.
        let free = async || TcpListener::bind(self.address).await.ok();
        let listener = crate::until("the port to be free", Duration::from_secs(10), free).await;
        let (handler, tasks, frozen) = (Arc::clone(&self.handler), Arc::clone(&self.tasks), self.frozen.subscribe());
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("connections");
                let (handler, frozen) = (Arc::clone(&handler), frozen.clone());
                let service = service_fn(move |request| answer(Arc::clone(&handler), frozen.clone(), request));
                let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                let task = tokio::spawn(async move { drop(connection.await) });
                tasks.lock().unwrap().push(task.abort_handle());
            }
        });
        self.tasks.lock().unwrap().push(accepting.abort_handle());
    }

    /// Ends every connection; nobody listens any more.
    pub(super) fn end(&self) {
        for task in self.tasks.lock().unwrap().drain(..) {
            task.abort();
        }
    }

    /// Takes connections and says nothing.
    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

async fn thawed(frozen: &mut watch::Receiver<bool>) {
    // The server lives longer than its connections.
    let _ = frozen.wait_for(|frozen| !frozen).await;
}

async fn answer(
    handler: Handler,
    mut frozen: watch::Receiver<bool>,
    request: Request<Incoming>,
) -> Result<Response<impl BodyExt<Data = Bytes, Error = Cut>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = String::from_utf8_lossy(&body.collect().await?.to_bytes()).into_owned();
    thawed(&mut frozen).await;
    let (method, path, headers) = (head.method, head.uri.to_string(), head.headers);
    let response = handler(Asked { method, path, headers, body });
    Ok(response.map(|pieces| {
        let frames = futures_util::stream::unfold((pieces, frozen), |(mut pieces, mut frozen)| async move {
            let piece = pieces.recv().await?;
            thawed(&mut frozen).await;
            Some((piece.map(Frame::data), (pieces, frozen)))
        });
        StreamBody::new(Box::pin(frames))
    }))
}

/// An answer that is over at once.
pub(super) fn whole(status: u16, body: impl Into<Bytes>) -> Answer {
    let (sender, pieces) = mpsc::channel(1);
    sender.try_send(Ok(body.into())).expect("there is room for one");
    Response::builder().status(status).body(pieces).unwrap()
}
