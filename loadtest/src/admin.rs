//! The admin API over its unix socket.

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::path::PathBuf;
use tokio::net::UnixStream;

/// Asks one edge.
pub(crate) struct Admin {
    socket: PathBuf,
}

impl Admin {
    pub(crate) const fn new(socket: PathBuf) -> Self {
        Self { socket }
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
