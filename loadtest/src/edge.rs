//! A visitor's side: TLS connections to the edge, and requests on them, timed.

use crate::clock::now_ns;
use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Where the edge is, and whom to trust there.
#[derive(Clone)]
pub(crate) struct Door {
    address: SocketAddr,
    protocol: Protocol,
    connector: TlsConnector,
}

/// One connection.
pub(crate) enum Line {
    /// One request at a time.
    Http1(http1::SendRequest<Empty<Bytes>>),
    /// Many; clones are of the same connection.
    Http2(http2::SendRequest<Empty<Bytes>>),
}

/// One answered request.
pub(crate) struct Answer {
    /// When its first byte was handed to the kernel, at the earliest.
    pub(crate) sent_ns: u64,
    /// When the last byte of the answer was there.
    pub(crate) answered_ns: u64,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Door {
    /// # Errors
    /// `ca` is no certificate.
    pub(crate) fn new(address: SocketAddr, ca: &Path, protocol: Protocol) -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).with_context(|| format!("certificate {}", ca.display()))?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = match protocol {
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::Http2 => vec![b"h2".to_vec()],
        };
        Ok(Self { address, protocol, connector: TlsConnector::from(Arc::new(config)) })
    }

    /// A new connection for requests to one sprite.
    ///
    /// # Errors
    /// It is not accepted.
    pub(crate) async fn connect(&self, authority: &str) -> anyhow::Result<Line> {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let stream = TokioIo::new(self.connector.connect(ServerName::try_from(host.to_owned())?, stream).await?);
        match self.protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(stream).await?;
                tokio::spawn(connection);
                Ok(Line::Http1(sender))
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
                tokio::spawn(connection);
                Ok(Line::Http2(sender))
            }
        }
    }
}

impl Line {
    /// HTTP/1.1 without TLS: to a guest itself.
    ///
    /// # Errors
    /// It is not accepted.
    pub(crate) async fn plain(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self::Http1(sender))
    }

    /// Another handle of the same connection; none of one that takes a request at a time.
    pub(crate) fn share(&self) -> Option<Self> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(sender) => Some(Self::Http2(sender.clone())),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }

    /// GET `/`, timed, whatever the status.
    ///
    /// # Errors
    /// No whole answer.
    pub(crate) async fn ask(&mut self, authority: &str) -> anyhow::Result<Answer> {
        let (response, sent_ns) = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                let request = Request::builder().uri("/").header(header::HOST, authority).body(Empty::new())?;
                let sent_ns = now_ns();
                (sender.send_request(request).await?, sent_ns)
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                let request = Request::builder().uri(format!("https://{authority}/")).body(Empty::new())?;
                let sent_ns = now_ns();
                (sender.send_request(request).await?, sent_ns)
            }
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Answer { sent_ns, answered_ns: now_ns(), status: head.status, headers: head.headers, body })
    }
}

impl Answer {
    pub(crate) const fn took_ns(&self) -> u64 {
        self.answered_ns - self.sent_ns
    }
}

/// Asks for one sprite's `/`, one request after the other, on one connection that is kept.
pub(crate) struct Visitor {
    door: Door,
    authority: String,
    line: Option<Line>,
}

impl Visitor {
    pub(crate) const fn new(door: Door, authority: String) -> Self {
        Self { door, authority, line: None }
    }

    /// GET `/`, timed. A new connection, if one is needed, is made before the clock starts.
    ///
    /// # Errors
    /// No answer, or none with status 200.
    pub(crate) async fn visit(&mut self) -> anyhow::Result<Answer> {
        let mut line = match self.line.take() {
            Some(line) if !line.is_closed() => line,
            _ => self.door.connect(&self.authority).await?,
        };
        let answer = line.ask(&self.authority).await?;
        ensure!(answer.status == 200, "{}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        self.line = Some(line);
        Ok(answer)
    }
}
