//! A visitor: one TLS connection that is kept, one request at a time.

use crate::clock::now_ns;
use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Speaks HTTP/1.1 to one sprite's URL.
pub(crate) struct Visitor {
    address: SocketAddr,
    authority: String,
    connector: TlsConnector,
    sender: Option<SendRequest<Empty<Bytes>>>,
}

/// One answered request.
pub(crate) struct Visit {
    /// When its first byte was handed to the kernel, at the earliest.
    pub(crate) sent_ns: u64,
    /// When the last byte of the answer was there.
    pub(crate) answered_ns: u64,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Visitor {
    /// # Errors
    /// `ca` is no certificate.
    pub(crate) fn new(address: SocketAddr, authority: String, ca: &Path) -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).with_context(|| format!("certificate {}", ca.display()))?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { address, authority, connector: TlsConnector::from(Arc::new(config)), sender: None })
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
        let host = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host);
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let stream = self.connector.connect(ServerName::try_from(host.to_owned())?, stream).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// GET `/`, timed. A new connection, if one is needed, is made before the clock starts.
    ///
    /// # Errors
    /// No answer, or none with status 200.
    pub(crate) async fn visit(&mut self) -> anyhow::Result<Visit> {
        let mut sender = match self.sender.take() {
            Some(sender) if !sender.is_closed() => sender,
            _ => self.connect().await?,
        };
        sender.ready().await?;
        let request = Request::builder().uri("/").header(header::HOST, &self.authority).body(Empty::new())?;
        let sent_ns = now_ns();
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let answered_ns = now_ns();
        ensure!(head.status == 200, "{}: {}", head.status, String::from_utf8_lossy(&body));
        self.sender = Some(sender);
        Ok(Visit { sent_ns, answered_ns, headers: head.headers, body })
    }
}
