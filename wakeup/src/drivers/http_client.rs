//! The little HTTP a driver speaks: one request per connection over a unix socket, TCP or
//! TLS; bounded in time and in the size of the answer.
//!
//! No pool, no redirects, no proxies, no compression: who is asked is an engine, a VMM or an
//! orchestrator, a few times per wake.

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// Longest answer, bytes (chosen: an engine's description of a container has some 10 KiB).
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Longest part of an answer that is shown, characters (chosen).
const SHOWN_CHARS_MAX: usize = 200;

/// Whom to ask.
#[derive(Clone)]
pub(super) struct HttpClient {
    way: Way,
    /// Header `Host`.
    host: String,
    /// Put before each path.
    base: String,
}

#[derive(Clone)]
enum Way {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
    Tls { host: String, port: u16, connector: TlsConnector, name: ServerName<'static> },
}

/// One request.
pub(super) struct Call<'a> {
    pub(super) method: Method,
    /// Begins with '/'.
    pub(super) path: &'a str,
    pub(super) headers: &'a [(&'static str, String)],
    /// JSON; none for no body.
    pub(super) body: Option<Bytes>,
    /// From the connect to the last byte of the answer.
    pub(super) within: Duration,
}

/// What was answered, whatever its status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// No answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("it cannot be reached at {at}: {source}")]
    Connect { at: String, source: std::io::Error },
    #[error("it did not answer within {0:?}")]
    Timeout(Duration),
    #[error("it ended the connection: {0}")]
    Broken(#[from] hyper::Error),
    #[error("its answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    #[error("the request cannot be written: {0}")]
    Request(#[from] http::Error),
}

impl HttpClient {
    /// Over the unix socket at `path`.
    pub(super) fn unix(path: PathBuf) -> Self {
        Self { way: Way::Unix(path), host: "localhost".into(), base: String::new() }
    }

    /// At an `http:` or `https:` URL, whose path is put before each call's. `None` for
    /// anything else, and for `https:` without TLS.
    pub(super) fn url(uri: &Uri, connector: Option<&TlsConnector>) -> Option<Self> {
        let authority = uri.authority()?;
        // Without the brackets of an IPv6 address.
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let way = match uri.scheme_str()? {
            "http" => Way::Tcp { host, port: authority.port_u16().unwrap_or(80) },
            "https" => {
                let name = ServerName::try_from(host.clone()).ok()?;
                Way::Tls { host, port: authority.port_u16().unwrap_or(443), connector: connector?.clone(), name }
            }
            _ => return None,
        };
        Some(Self { way, host: authority.as_str().into(), base: uri.path().trim_end_matches('/').into() })
    }

    /// Asks once.
    ///
    /// # Errors
    /// [`HttpError`]: there was no answer. Whether the request was acted on is not known then.
    ///
    /// # Cancel safety
    /// Dropped, the connection is closed.
    pub(super) async fn call(&self, call: Call<'_>) -> Result<Answer, HttpError> {
        let mut request = Request::builder()
            .method(call.method)
            .uri(format!("{}{}", self.base, call.path))
            .header(header::HOST, &self.host)
            .header(header::ACCEPT, "application/json");
        for (name, value) in call.headers {
            request = request.header(*name, value);
        }
        if call.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(call.body.unwrap_or_default()))?;
        match tokio::time::timeout(call.within, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(HttpError::Timeout(call.within)),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, HttpError> {
        match &self.way {
            Way::Unix(path) => {
                let connect = |source| HttpError::Connect { at: path.display().to_string(), source };
                exchange(UnixStream::connect(path).await.map_err(connect)?, request).await
            }
            Way::Tcp { host, port } => exchange(tcp(host, *port).await?, request).await,
            Way::Tls { host, port, connector, name } => {
                let connect = |source| HttpError::Connect { at: format!("{host}:{port}"), source };
                let stream = connector.connect(name.clone(), tcp(host, *port).await?).await.map_err(connect)?;
                exchange(stream, request).await
            }
        }
    }
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, HttpError> {
    let connect = |source| HttpError::Connect { at: format!("{host}:{port}"), source };
    TcpStream::connect((host, port)).await.map_err(connect)
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut connection = pin!(connection);
    let mut answer = pin!(async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => HttpError::Broken(*error),
            Err(error) => {
                debug_assert!(error.is::<LengthLimitError>());
                HttpError::TooLong
            }
        })?;
        Ok(Answer { status, body: body.to_bytes() })
    });
    tokio::select! {
        biased;
        answer = &mut answer => return answer,
        // Its error, if there was one, comes out of the answer too.
        _ = &mut connection => {}
    }
    answer.await
}

impl Answer {
    /// Its body as JSON; `Null` when it is none.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The status, and what it says of itself: the text of the first of `fields` its JSON
    /// has, or the beginning of its body.
    pub(super) fn told(&self, fields: &[&str]) -> String {
        let json = self.json();
        let said = fields.iter().find_map(|field| json[field].as_str());
        let said = said.map_or_else(|| String::from_utf8_lossy(&self.body).trim().to_owned(), str::to_owned);
        let clean = said.chars().map(|char| if char.is_control() { ' ' } else { char });
        let said: String = clean.take(SHOWN_CHARS_MAX).collect();
        format!("{} {said}", self.status.as_u16()).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests;
