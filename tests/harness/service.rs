//! A service that is always there: what a sprite with a fixed address leads to, so that no guest's start is
//! waited for.

use std::net::SocketAddr;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Answers every request without a body with 200. Ends when it is dropped.
pub struct Service {
    address: SocketAddr,
    accepts: JoinHandle<()>,
}

impl Service {
    /// Starts one.
    ///
    /// # Panics
    /// Without a socket.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepts = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
        Self { address, accepts }
    }

    /// Its driver, for the file of `sprite create --driver`.
    #[must_use]
    pub fn driver(&self) -> String {
        format!("[fixed]\naddress = \"{}\"\n", self.address)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

async fn serve(stream: TcpStream) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while matches!(stream.read_line(&mut line).await, Ok(1..)) {
        if line == "\r\n" && stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nthere").await.is_err() {
            return;
        }
        line.clear();
    }
}
