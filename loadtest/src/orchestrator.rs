//! A fake owner's machines: an orchestrator that answers after a time of its own, and guests.
//!
//! The edge's driver `http` asks it (`docs/drivers.md`), so the product is measured as it is.
//! What it took for a wake is known here to the microsecond, and is taken off the whole:
//! a timer's own lateness is nobody's share. It checks no signatures.

use crate::clock::now_ns;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Connections the machines' listeners may have waiting: more than any measurement opens at once.
const BACKLOG: i32 = 4_096;

/// When a machine wakes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum After {
    /// So long after it was asked.
    Millis(u64),
    /// When the gate is opened.
    Gate,
}

/// One wake as the orchestrator saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wake {
    pub(crate) asked_ns: u64,
    pub(crate) answered_ns: u64,
}

/// The orchestrator and one guest for all, on a thread of their own, until the program ends.
pub(crate) struct Orchestrator {
    address: SocketAddr,
    guest: SocketAddr,
    state: Arc<State>,
}

struct State {
    wakes: Mutex<HashMap<String, Vec<Wake>>>,
    gate: watch::Sender<bool>,
}

impl Orchestrator {
    /// # Errors
    /// No port, or no thread.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let (asked, guest) = (listen(BACKLOG)?, listen(BACKLOG)?);
        let (address, guest_address) = (asked.local_addr()?, guest.local_addr()?);
        let state = Arc::new(State { wakes: Mutex::default(), gate: watch::Sender::new(false) });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::clone(&state);
        std::thread::Builder::new().name("machines".into()).spawn(move || {
            runtime.block_on(async move {
                tokio::join!(
                    serve(asked, move |request| answer(Arc::clone(&shared), request)),
                    serve(guest, async |_| Response::new(Full::from("awake\n"))),
                )
            })
        })?;
        Ok(Self { address, guest: guest_address, state })
    }

    /// Where the guest that all machines are listens.
    pub(crate) const fn guest(&self) -> SocketAddr {
        self.guest
    }

    /// The driver of a machine that wakes `after` a time and then is at `guest`.
    pub(crate) fn driver(&self, after: After, guest: SocketAddr) -> Value {
        let after = match after {
            After::Millis(millis) => millis.to_string(),
            After::Gate => "gate".into(),
        };
        json!({ "http": { "url": format!("http://{}/{after}/{}", self.address, guest.port()) } })
    }

    /// Lets every machine behind the gate wake, and those that come.
    pub(crate) fn open_gate(&self) {
        self.state.gate.send_replace(true);
    }

    /// The wakes of one sprite so far.
    pub(crate) fn wakes(&self, sprite: &str) -> Vec<Wake> {
        self.state.lock().get(sprite).cloned().unwrap_or_default()
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Wake>>> {
        self.wakes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request of the edge: `/MILLIS/PORT/wake`, `/gate/PORT/wake` or `…/sleep`.
async fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').split('/');
    let (after, port, action) = (parts.next(), parts.next(), parts.next());
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let asked_ns = now_ns();
    if action != Some("wake") {
        return status(StatusCode::NO_CONTENT);
    }
    let said: Value = serde_json::from_slice(&body).unwrap_or_default();
    let Some(sprite) = said["sprite"].as_str() else { return status(StatusCode::BAD_REQUEST) };
    match after.and_then(|after| after.parse().ok()) {
        Some(0) => {}
        Some(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        // The sender lives as long as `state`.
        None => drop(state.gate.subscribe().wait_for(|open| *open).await),
    }
    let port = port.unwrap_or_default();
    let response = Response::new(Full::from(format!("{{\"address\":\"127.0.0.1:{port}\"}}")));
    state.lock().entry(sprite.to_owned()).or_default().push(Wake { asked_ns, answered_ns: now_ns() });
    response
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

async fn serve<F>(listener: TcpListener, answer: impl Fn(Request<Incoming>) -> F + Clone + 'static)
where
    F: Future<Output = Response<Full<Bytes>>> + 'static,
{
    let local = tokio::task::LocalSet::new();
    let accepting = async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            // No file is left for it: what the measurement asks for then has no answer, and it says so.
            let Ok((stream, _)) = listener.accept().await else { continue };
            let answer = answer.clone();
            tokio::task::spawn_local(async move {
                stream.set_nodelay(true)?;
                let service = service_fn(move |request| {
                    let answered = answer(request);
                    async move { Ok::<_, Infallible>(answered.await) }
                });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                drop(connection.await);
                std::io::Result::Ok(())
            });
        }
    };
    let ended: std::io::Result<()> = local.run_until(accepting).await;
    if let Err(error) = ended {
        eprintln!("loadtest: the machines: {error}");
    }
}

/// A guest that serves one connection at a time and then closes it, as simple servers do.
///
/// # Errors
/// No port, or no thread.
pub(crate) fn single_threaded_guest(backlog: i32) -> anyhow::Result<SocketAddr> {
    let listener = listen(backlog)?;
    let address = listener.local_addr()?;
    std::thread::Builder::new().name("guest".into()).spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A client that left is the client's business.
            let _ = serve_one(&mut stream);
        }
    })?;
    Ok(address)
}

/// Reads one request head and answers it.
fn serve_one(stream: &mut (impl Read + Write)) -> std::io::Result<()> {
    let (mut head, mut chunk) = (Vec::new(), [0; 4_096]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let length = stream.read(&mut chunk)?;
        if length == 0 {
            return Ok(());
        }
        head.extend_from_slice(&chunk[..length]);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nawake\n")
}

fn listen(backlog: i32) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    // The second time only sets the backlog, listen(2).
    rustix::net::listen(&listener, backlog)?;
    Ok(listener)
}
