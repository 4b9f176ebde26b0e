//! The little HTTP an engine speaks: JSON to one of several servers, an answer or a stream of
//! lines back. One request per connection, bounded in time and size.

use super::StoreError;
use crate::trust::trusting;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// From the connect to the end of an answer, or to the head of a stream, at one server (chosen:
/// far above a round trip over an ocean).
const CALL: Duration = Duration::from_secs(3);
/// Longest answer or line, bytes (chosen: a thousand rows of the longest value, in base64).
const BYTES_MAX: usize = 128 << 20;

/// What a pinned server is called in the handshake; nobody looks at it.
const PINNED_NAME: &str = "store.sprite.invalid";

/// Servers of one engine, any of which will do.
pub(super) struct Servers {
    servers: Vec<Server>,
    /// The one that is asked first: the last that answered.
    first: AtomicUsize,
}

struct Server {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// A line of a stream.
pub(super) struct Piece {
    pub(super) bytes: Bytes,
    /// Not so when it was too long: `bytes` are its beginning.
    pub(super) whole: bool,
}

/// No answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    /// The request was not sent.
    #[error("{at}: {why}")]
    NotSent {
        /// Which server.
        at: String,
        /// What went wrong.
        why: String,
    },
    /// It was sent, and nobody knows what became of it.
    #[error("{at}: {why}")]
    Sent {
        /// Which server.
        at: String,
        /// What went wrong.
        why: String,
    },
}

/// An answer whose body is still coming. Dropping it closes the connection.
pub(super) struct Stream {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Incoming,
    line: BytesMut,
    /// The beginning of a line that is too long, whose rest is passed over.
    cut: Option<Bytes>,
    connection: AbortHandle,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Servers {
    /// `urls` as the configuration has checked them.
    ///
    /// # Errors
    /// [`StoreError::Denied`]: one that cannot be used, or roots that cannot be read.
    pub(super) fn new(urls: &[String], ca_file: &Path) -> Result<Self, StoreError> {
        let wrong = |url: &String| StoreError::Denied(format!("{url}: no address"));
        let mut connector = None;
        let mut servers = Vec::new();
        for url in urls {
            let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong(url))?;
            let (host, port) = rest.rsplit_once(':').ok_or_else(|| wrong(url))?;
            let (host, port) = (host.trim_matches(['[', ']']).to_owned(), port.parse().map_err(|_| wrong(url))?);
            let tls = match scheme {
                "https" => {
                    let name = ServerName::try_from(host.clone()).map_err(|_| wrong(url))?;
                    let made = match &connector {
                        Some(made) => made,
                        None => {
                            let made = trusting(ca_file).map_err(|error| StoreError::Denied(error.to_string()))?;
                            &*connector.insert(made)
                        }
                    };
                    Some((made.clone(), name))
                }
                _ => None,
            };
            servers.push(Server { host, port, tls });
        }
        Ok(Self { servers, first: AtomicUsize::new(0) })
    }

    /// One server, at `HOST:PORT`, whose certificate is known by its key: `connector` looks at nothing else.
    ///
    /// # Errors
    /// [`StoreError::Denied`]: no address.
    pub(super) fn pinned(address: &str, connector: TlsConnector) -> Result<Self, StoreError> {
        let wrong = || StoreError::Denied(format!("{address}: no HOST:PORT"));
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let (host, port) = (host.trim_matches(['[', ']']).to_owned(), port.parse().map_err(|_| wrong())?);
        let name = ServerName::try_from(PINNED_NAME).map_err(|_| wrong())?;
        Ok(Self { servers: vec![Server { host, port, tls: Some((connector, name)) }], first: AtomicUsize::new(0) })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.servers.len()
    }

    /// From now on another one is asked first.
    pub(super) fn next(&self) {
        self.first.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends `body` to the server whose turn it is; the head of its answer. When there is none it
    /// is the next one's turn.
    ///
    /// # Errors
    /// [`HttpError`].
    pub(super) async fn open(&self, path: &str, token: Option<&str>, body: &Bytes) -> Result<Stream, HttpError> {
        self.ask(Method::POST, path, token, body.clone()).await
    }

    /// As [`Servers::open`], by GET.
    ///
    /// # Errors
    /// [`HttpError`].
    pub(super) async fn attach(&self, path: &str, token: Option<&str>) -> Result<Stream, HttpError> {
        self.ask(Method::GET, path, token, Bytes::new()).await
    }

    async fn ask(&self, method: Method, path: &str, token: Option<&str>, body: Bytes) -> Result<Stream, HttpError> {
        let server = &self.servers[self.first.load(Ordering::Relaxed) % self.servers.len()];
        let opened = server.open(method, path, token, body).await;
        if opened.is_err() {
            self.next();
        }
        opened
    }

    /// As [`Servers::open`], and the whole answer.
    ///
    /// # Errors
    /// [`HttpError`].
    pub(super) async fn call(
        &self,
        path: &str,
        token: Option<&str>,
        body: &Bytes,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        let whole = async {
            let mut stream = self.open(path, token, body).await?;
            let lost = |why| HttpError::Sent { at: path.into(), why };
            Ok((stream.status, stream.rest().await.map_err(lost)?))
        };
        match timeout(CALL, whole).await {
            Ok(answer) => answer,
            Err(_) => {
                self.next();
                Err(HttpError::Sent { at: path.into(), why: format!("no answer in {CALL:?}") })
            }
        }
    }
}

impl Server {
    async fn open(&self, method: Method, path: &str, token: Option<&str>, body: Bytes) -> Result<Stream, HttpError> {
        let at = || format!("{}:{}", self.host, self.port);
        let not_sent = |why: String| HttpError::NotSent { at: at(), why };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, at())
            .header(header::CONTENT_TYPE, "application/json")
            // etcd's gateway hands it on: a member that is cut off says so instead of waiting.
            .header("grpc-metadata-hasleader", "true");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request.body(Full::new(body)).map_err(|error| not_sent(error.to_string()))?;
        let connect = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(match &self.tls {
                None => Box::new(stream) as Box<dyn Socket>,
                Some((connector, name)) => Box::new(connector.connect(name.clone(), stream).await?),
            })
        };
        let late = || format!("no connection in {CALL:?}");
        let socket = timeout(CALL, connect).await.map_err(|_| not_sent(late()))?;
        let socket = socket.map_err(|error| not_sent(error.to_string()))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(socket)).await.map_err(|error| not_sent(error.to_string()))?;
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the store ended");
            }
        });
        let guard = AbortOnDrop(Some(connection.abort_handle()));
        let sent = |why: String| HttpError::Sent { at: at(), why };
        let response = match timeout(CALL, sender.send_request(request)).await {
            Ok(response) => response.map_err(|error| sent(error.to_string()))?,
            Err(_) => return Err(sent(format!("no answer in {CALL:?}"))),
        };
        let (head, body) = response.into_parts();
        let (line, connection) = (BytesMut::new(), guard.keep());
        Ok(Stream { status: head.status, headers: head.headers, body, line, cut: None, connection })
    }
}

impl Stream {
    /// The next line, without its end; `None` at the end of the stream.
    ///
    /// # Errors
    /// What broke it.
    ///
    /// # Cancel safety
    /// No byte is lost.
    pub(super) async fn line(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line = self.line.split_to(end + 1).freeze();
                return Ok(Some(line.slice(..end)));
            }
            if !self.more().await? {
                let rest = self.line.split().freeze();
                return Ok((!rest.is_empty()).then_some(rest));
            }
        }
    }

    /// As [`Stream::line`], of a server whose lines anybody may have written: of one that has more than `limit`
    /// bytes the first `head`, and a line is one only with its end.
    ///
    /// # Errors
    /// What broke it; the stream ended in the middle of a line.
    ///
    /// # Cancel safety
    /// No byte is lost.
    pub(super) async fn piece(&mut self, limit: usize, head: usize) -> Result<Option<Piece>, String> {
        loop {
            let end = self.line.iter().position(|byte| *byte == b'\n');
            if self.cut.is_none() && end.unwrap_or(self.line.len()) > limit {
                self.cut = Some(Bytes::copy_from_slice(&self.line[..head]));
            }
            if let Some(end) = end {
                let line = self.line.split_to(end + 1).freeze();
                let cut = self.cut.take();
                let whole = cut.is_none();
                return Ok(Some(Piece { bytes: cut.unwrap_or_else(|| line.slice(..end)), whole }));
            }
            if self.cut.is_some() {
                self.line.clear();
            }
            if !self.more().await? {
                return match self.line.is_empty() && self.cut.is_none() {
                    true => Ok(None),
                    false => Err("it ended in the middle of a line".into()),
                };
            }
        }
    }

    /// What is left of an answer, all of it within [`CALL`].
    ///
    /// # Errors
    /// What broke it.
    pub(super) async fn whole(&mut self) -> Result<Bytes, String> {
        timeout(CALL, self.rest()).await.unwrap_or_else(|_| Err(format!("no answer in {CALL:?}")))
    }

    async fn rest(&mut self) -> Result<Bytes, String> {
        while self.more().await? {}
        Ok(self.line.split().freeze())
    }

    async fn more(&mut self) -> Result<bool, String> {
        match self.body.frame().await {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    if self.line.len() + data.len() > BYTES_MAX {
                        return Err(format!("more than {BYTES_MAX} bytes"));
                    }
                    self.line.extend_from_slice(data);
                }
                Ok(true)
            }
            Some(Err(error)) => Err(error.to_string()),
            None => Ok(false),
        }
    }
}

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// Ends a connection whose answer never came.
struct AbortOnDrop(Option<AbortHandle>);

impl AbortOnDrop {
    fn keep(mut self) -> AbortHandle {
        self.0.take().expect("taken once, here")
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            handle.abort();
        }
    }
}
