//! The admin API over its unix socket.

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

/// How long an edge may take to start.
const START: Duration = Duration::from_secs(20);
/// Pause between two looks at it.
const LOOK: Duration = Duration::from_millis(10);

/// Asks one edge.
pub(crate) struct Admin {
    socket: PathBuf,
}

impl Admin {
    pub(crate) const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Waits until the edge has started; its status.
    ///
    /// # Errors
    /// It does not within 20 s (chosen: it takes a tenth of one).
    pub(crate) async fn started(&self) -> anyhow::Result<Value> {
        let end = Instant::now() + START;
        loop {
            match self.call(Method::GET, "/v1/status", None).await {
                Ok(status) => return Ok(status),
                Err(error) => ensure!(Instant::now() < end, "the edge does not start: {error:#}"),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// One call; its JSON.
    ///
    /// # Errors
    /// No edge there, or it refused; with what it said.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Value> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.with_context(|| format!("no edge-proxy answers at {}", self.socket.display()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let request =
            Request::builder().method(method).uri(path).header(header::HOST, "admin").body(Full::new(body))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let answer: Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
        connection.abort();
        if !status.is_success() {
            bail!("{path}: {status}: {}", answer["detail"].as_str().unwrap_or_default());
        }
        Ok(answer)
    }
}
