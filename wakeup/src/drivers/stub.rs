//! For tests: reads one HTTP request, answers what it is told to, keeps what it was asked.

use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// One request as it came.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// `POST /path HTTP/1.1`.
    pub(super) line: String,
    /// `name: value`, names in lower case.
    pub(super) headers: Vec<String>,
    pub(super) body: String,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> &str {
        let value = self.headers.iter().find_map(|header| header.strip_prefix(name)?.strip_prefix(": "));
        value.unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }
}

/// Everything a server was asked, in order.
pub(super) type Log = Arc<Mutex<Vec<Asked>>>;

/// Reads one request and answers with `answer` as it stands; empty hangs up.
pub(super) async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, log: &Log, answer: &str) {
    let mut bytes = Vec::new();
    let (head, length) = loop {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, _)) = text.split_once("\r\n\r\n") else { continue };
        let mut lengths =
            head.lines().filter_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        break (head.to_owned(), lengths.next().unwrap_or(0));
    };
    while bytes.len() < head.len() + 4 + length {
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "{head}");
    }
    let mut lines = head.lines().map(str::to_owned);
    let line = lines.next().unwrap();
    let body = String::from_utf8(bytes[head.len() + 4..].to_vec()).unwrap();
    log.lock().unwrap().push(Asked { line, headers: lines.collect(), body });
    stream.write_all(answer.as_bytes()).await.unwrap();
    let _ = stream.shutdown().await;
}

/// A whole answer with a JSON body.
pub(super) fn answer(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}
