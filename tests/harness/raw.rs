//! HTTP/1.1 by hand, for what no well-behaved client sends or shows.

use crate::{Demo, within};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// One awaited piece of an answer.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// A TLS connection that speaks bytes.
pub struct Raw {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

/// An answer's head as it came.
#[derive(Clone, Debug)]
pub struct RawHead {
    /// Status code.
    pub status: u16,
    /// Header lines, names in lower case, in order.
    pub headers: Vec<(String, String)>,
}

impl RawHead {
    /// The first line's value of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

impl Raw {
    /// Opens one to a sprite.
    pub async fn connect(demo: &Demo, name: &str) -> Self {
        Self::over(demo.tls(name, b"http/1.1").await)
    }

    /// One over a connection that is open already.
    #[must_use]
    pub fn over(stream: TlsStream<TcpStream>) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Sends bytes.
    ///
    /// # Panics
    /// When the connection is broken.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("the connection takes bytes");
        self.stream.flush().await.expect("the connection takes bytes");
    }

    /// Sends a request head: `METHOD PATH`, Host and `lines` (each without line end).
    pub async fn send_head(&mut self, demo: &Demo, name: &str, request: &str, lines: &[&str]) {
        let mut head = format!("{request} HTTP/1.1\r\nHost: {}\r\n", demo.authority(name));
        for line in lines {
            head.push_str(line);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        self.send(head).await;
    }

    /// Reads more; false at the end of the stream.
    async fn fill(&mut self) -> bool {
        let mut piece = [0; 16 * 1024];
        let count = within("more bytes of the answer", READ_LIMIT, self.stream.read(&mut piece)).await;
        let count = count.unwrap_or(0);
        self.buffer.extend_from_slice(&piece[..count]);
        count > 0
    }

    async fn take(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            assert!(self.fill().await, "the answer ended after {} of {count} bytes", self.buffer.len());
        }
        self.buffer.drain(..count).collect()
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.take(end + 2).await;
                return String::from_utf8_lossy(&line[..end]).into_owned();
            }
            assert!(self.fill().await, "the answer ended within a line: {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    async fn lines(&mut self) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(':') else { return lines };
            lines.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// Reads one head, interim ones included.
    ///
    /// # Panics
    /// When what comes is none.
    pub async fn head(&mut self) -> RawHead {
        let line = self.line().await;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {line:?}"));
        RawHead { status, headers: self.lines().await }
    }

    /// Reads the content that belongs to `head`, and its trailer lines.
    ///
    /// # Panics
    /// When it is malformed.
    pub async fn body(&mut self, head: &RawHead) -> (Vec<u8>, Vec<(String, String)>) {
        if head.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            let mut content = Vec::new();
            loop {
                let piece = self.chunk().await;
                if piece.is_empty() {
                    return (content, self.lines().await);
                }
                content.extend(piece);
            }
        }
        if let Some(length) = head.header("content-length") {
            let length = length.parse().expect("a length is a number");
            return (self.take(length).await, Vec::new());
        }
        while self.fill().await {}
        (std::mem::take(&mut self.buffer), Vec::new())
    }

    /// Reads one chunk of a chunked answer; empty is the last one, before the trailers.
    ///
    /// # Panics
    /// When it is malformed.
    pub async fn chunk(&mut self) -> Vec<u8> {
        let line = self.line().await;
        let size = line.split(';').next().and_then(|size| usize::from_str_radix(size.trim(), 16).ok());
        let size = size.unwrap_or_else(|| panic!("no chunk size: {line:?}"));
        if size == 0 {
            return Vec::new();
        }
        let mut piece = self.take(size + 2).await;
        piece.truncate(size);
        piece
    }

    /// Whether anything arrives within `wait`; what does stays to be read.
    pub async fn speaks_within(&mut self, wait: Duration) -> bool {
        !self.buffer.is_empty() || tokio::time::timeout(wait, self.fill()).await.is_ok()
    }

    /// Ends our direction only, as a client that has said all does.
    pub async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Leaves with a TCP reset.
    pub fn reset(self) {
        self.stream.get_ref().0.set_zero_linger().expect("an open socket");
    }

    /// The TLS stream under it.
    #[must_use]
    pub fn into_stream(self) -> TlsStream<TcpStream> {
        self.stream
    }
}
