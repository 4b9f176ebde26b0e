//! HTTP clients that trust the demo's CA and connect to its port by the sprite's name.

use crate::{Demo, within};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, header, request};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// One whole exchange, a cold wake in a debug build included.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(60);

/// A request's body.
pub type RequestBody = BoxBody<Bytes, Infallible>;

/// HTTP version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.1.
    H1,
    /// HTTP/2.
    H2,
}

/// Both, for tests that hold for each.
pub const VERSIONS: [Version; 2] = [Version::H1, Version::H2];

/// One connection.
pub enum Client {
    /// HTTP/1.1.
    H1(http1::SendRequest<RequestBody>),
    /// HTTP/2.
    H2(http2::SendRequest<RequestBody>),
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines.
    pub headers: HeaderMap,
    /// Content.
    pub body: Bytes,
    /// Trailer lines, if there were any.
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// A header line's value, or "" when there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or("(not text)"))
    }

    /// The content as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The content as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }
}

impl Demo {
    /// Opens TCP and TLS to the edge for `host`, offering `alpn`.
    ///
    /// # Errors
    /// The handshake's.
    ///
    /// # Panics
    /// When there is no CA file or no TCP connection.
    pub async fn try_tls(&self, host: &str, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        self.try_tls_from(Ipv4Addr::LOCALHOST, host, alpn).await
    }

    /// The same from `source`, any of 127.0.0.0/8: another network to the edge's bounds.
    ///
    /// # Errors
    /// The handshake's.
    ///
    /// # Panics
    /// When there is no CA file or no TCP connection.
    pub async fn try_tls_from(
        &self,
        source: Ipv4Addr,
        host: &str,
        alpn: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(self.ca()).expect("DIR/ca.pem is a certificate");
        roots.add(ca).expect("a certificate to trust");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((source, 0).into()).expect("all of 127.0.0.0/8 is ours");
        let stream = socket.connect(self.https).await.expect("the edge listens");
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(host.to_owned()).expect("a host name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// The same for a sprite, which must work.
    ///
    /// # Panics
    /// When it does not.
    pub async fn tls(&self, name: &str, alpn: &[u8]) -> TlsStream<TcpStream> {
        self.tls_from(Ipv4Addr::LOCALHOST, name, alpn).await
    }

    /// The same from `source`.
    ///
    /// # Panics
    /// When it does not work.
    pub async fn tls_from(&self, source: Ipv4Addr, name: &str, alpn: &[u8]) -> TlsStream<TcpStream> {
        let host = self.host(name);
        self.try_tls_from(source, &host, alpn).await.unwrap_or_else(|error| panic!("handshake for {host}: {error}"))
    }

    /// A connection to a sprite's URL.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub async fn connect(&self, version: Version, name: &str) -> Client {
        self.connect_from(Ipv4Addr::LOCALHOST, version, name).await
    }

    /// The same from `source`.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub async fn connect_from(&self, source: Ipv4Addr, version: Version, name: &str) -> Client {
        Client::over(version, self.tls_from(source, name, version.alpn()).await).await
    }

    /// A connection to a whole host name.
    ///
    /// # Errors
    /// The handshake's.
    ///
    /// # Panics
    /// When TCP or HTTP cannot be opened.
    pub async fn try_connect_host(&self, version: Version, host: &str) -> std::io::Result<Client> {
        Ok(Client::over(version, self.try_tls(host, version.alpn()).await?).await)
    }

    /// A request builder for a sprite's URL.
    #[must_use]
    pub fn request(&self, method: Method, name: &str, path: &str) -> request::Builder {
        Request::builder().method(method).uri(self.url(name, path))
    }

    /// POST over a new HTTP/1.1 connection.
    pub async fn post(&self, name: &str, path: &str, body: impl Into<Bytes>) -> Answer {
        let mut client = self.connect(Version::H1, name).await;
        client.send(self.request(Method::POST, name, path).body(full(body)).expect("a request")).await
    }

    /// GET over a new HTTP/1.1 connection.
    pub async fn get(&self, name: &str, path: &str) -> Answer {
        let mut client = self.connect(Version::H1, name).await;
        client.get(self, name, path).await
    }
}

impl Version {
    const fn alpn(self) -> &'static [u8] {
        match self {
            Self::H1 => b"http/1.1",
            Self::H2 => b"h2",
        }
    }
}

impl Client {
    /// On a connection whose handshake is done.
    ///
    /// # Panics
    /// When the protocol cannot begin on it.
    pub async fn over(version: Version, stream: TlsStream<TcpStream>) -> Self {
        let io = TokioIo::new(stream);
        match version {
            Version::H1 => {
                let (sender, connection) = http1::handshake(io).await.unwrap();
                // An upgraded or broken connection ends its task; the requests tell the test.
                tokio::spawn(async move { connection.with_upgrades().await.is_ok() });
                Self::H1(sender)
            }
            Version::H2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(async move { connection.await.is_ok() });
                Self::H2(sender)
            }
        }
    }

    /// Sends a request made by [`Demo::request`]; the answer's head.
    ///
    /// # Errors
    /// The connection's or the stream's.
    ///
    /// # Panics
    /// When `request` has no host.
    pub async fn try_send(&mut self, mut request: Request<RequestBody>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::H1(sender) => {
                // HTTP/1.1 wants origin-form and a Host line (RFC 9112 §3.2).
                let uri = request.uri().clone();
                if !request.headers().contains_key(header::HOST) {
                    let host = uri.authority().expect("requests are made with a whole URL").as_str();
                    request.headers_mut().insert(header::HOST, host.parse().expect("an authority is a header value"));
                }
                *request.uri_mut() =
                    uri.path_and_query().expect("a whole URL has a path").as_str().parse().expect("a path");
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::H2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// The same, and its whole content.
    ///
    /// # Panics
    /// When the exchange fails or takes too long.
    pub async fn send(&mut self, request: Request<RequestBody>) -> Answer {
        let what = format!("{} {}", request.method(), request.uri());
        within(&what.clone(), EXCHANGE_LIMIT, async {
            let response = self.try_send(request).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            whole(response).await.unwrap_or_else(|error| panic!("{what}: {error:?}"))
        })
        .await
    }

    /// GET `path` of a sprite.
    pub async fn get(&mut self, demo: &Demo, name: &str, path: &str) -> Answer {
        let request = demo.request(Method::GET, name, path).body(empty()).expect("a proper request");
        self.send(request).await
    }

    /// Another handle of the same HTTP/2 connection.
    ///
    /// # Panics
    /// On HTTP/1.1.
    #[must_use]
    pub fn share(&self) -> Self {
        match self {
            Self::H1(_) => panic!("an HTTP/1.1 connection carries one exchange at a time"),
            Self::H2(sender) => Self::H2(sender.clone()),
        }
    }
}

/// Reads an answer to its end.
///
/// # Errors
/// The body's.
pub async fn whole(response: Response<Incoming>) -> hyper::Result<Answer> {
    let (parts, body) = response.into_parts();
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned();
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body: collected.to_bytes(), trailers })
}

/// No body.
#[must_use]
pub fn empty() -> RequestBody {
    Empty::new().boxed()
}

/// A body of known length.
#[must_use]
pub fn full(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into()).boxed()
}

/// A body of unknown length that ends when the sender is dropped. At most `pieces` wait in it.
#[must_use]
pub fn streamed(pieces: usize) -> (mpsc::Sender<Bytes>, RequestBody) {
    let (sender, receiver) = mpsc::channel(pieces);
    (sender, Streamed(receiver).boxed())
}

struct Streamed(mpsc::Receiver<Bytes>);

impl Body for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
