//! One POST at a time to one receiver: HTTP/1.1, over TLS unless it is on this machine. The
//! connection is kept while it holds. No redirect is followed: where one leads to, nobody has
//! configured.

use anyhow::{Context, bail};
use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use router::trust::trusting;
use rustls_pki_types::ServerName;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use wakeup::signature::Signed;

/// Most of an answer that is read, bytes; nobody looks at it (chosen: the connection of one
/// that says more is not worth keeping).
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Why a POST had no answer. Names neither path nor query: they may hold a secret.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// It is not there, or its certificate is not good.
    #[error("no connection: {0}")]
    Connect(io::Error),
    /// The connection broke.
    #[error("no answer: {0}")]
    Http(#[from] hyper::Error),
    /// It took longer than it may.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// What was to be sent is no request.
    #[error("no request: {0}")]
    Request(#[from] http::Error),
}

/// Who is told.
pub(super) struct Receiver {
    host: String,
    port: u16,
    authority: String,
    path: PathAndQuery,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    timeout: Duration,
    kept: Option<SendRequest<Full<Bytes>>>,
}

impl Receiver {
    /// The receiver at `url`, whose certificate is checked against those in `ca_file`, or
    /// those of the system when it is empty.
    ///
    /// # Errors
    /// What is wrong with which.
    pub(super) fn new(url: &str, ca_file: &Path, timeout: Duration) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().context("webhook.url")?;
        let parts = uri.into_parts();
        let Some(authority) = parts.authority else { bail!("webhook.url: names no host") };
        if authority.as_str().contains('@') {
            bail!("webhook.url: a user name is not sent; put a secret into the path, or rely on the signature");
        }
        let secure = parts.scheme == Some(Scheme::HTTPS);
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match secure {
            true => {
                let name = ServerName::try_from(host.clone()).context("webhook.url")?;
                Some((trusting(ca_file).context("webhook")?, name))
            }
            false => None,
        };
        Ok(Self {
            port: authority.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            host,
            authority: authority.as_str().to_owned(),
            path: parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")),
            tls,
            timeout,
            kept: None,
        })
    }

    /// Its host.
    #[must_use]
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Sends one; the status of the answer.
    ///
    /// # Errors
    /// [`PostError`]; it may have arrived all the same.
    ///
    /// # Cancel safety
    /// As after an error.
    pub(super) async fn post(&mut self, signed: &Signed, body: Bytes) -> Result<StatusCode, PostError> {
        let request = || {
            let request = Request::post(self.path.as_str())
                .header(header::HOST, &self.authority)
                .header(header::CONTENT_TYPE, "application/json")
                .header(header::USER_AGENT, concat!("edge-proxy/", env!("CARGO_PKG_VERSION")));
            let signed = signed.headers().into_iter();
            signed.fold(request, |request, (name, value)| request.header(name, value)).body(Full::new(body.clone()))
        };
        let (first, again, kept) = (request()?, request()?, self.kept.take());
        let exchange = async {
            if let Some(kept) = kept
                // It may have been closed since, which says nothing about the receiver.
                && let Ok(answered) = exchange(kept, first).await
            {
                return Ok(answered);
            }
            exchange(self.connect().await?, again).await
        };
        let (status, kept) =
            tokio::time::timeout(self.timeout, exchange).await.map_err(|_| PostError::Timeout(self.timeout))??;
        self.kept = kept;
        Ok(status)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, PostError> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(PostError::Connect)?;
        tcp.set_nodelay(true).map_err(PostError::Connect)?;
        match &self.tls {
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), tcp).await.map_err(PostError::Connect)?;
                speak(tls).await
            }
            None => speak(tcp).await,
        }
    }
}

async fn speak<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, PostError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // It ends with the sender; how shows in the exchange.
    tokio::spawn(connection);
    Ok(sender)
}

/// One exchange; the connection again if it is good for another.
async fn exchange(
    mut sender: SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Option<SendRequest<Full<Bytes>>>), PostError> {
    sender.ready().await?;
    let answer: Response<Incoming> = sender.send_request(request).await?;
    let status = answer.status();
    let read = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    Ok((status, read.is_ok().then_some(sender)))
}
