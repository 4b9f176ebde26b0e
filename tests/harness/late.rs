//! A long way for TCP: what one server says arrives late.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Pieces on their way in one direction (chosen: 4 MiB at most); then its sender waits.
const PIECES_MAX: usize = 64;

/// Passes connections on to a server. Ends when it is dropped.
pub struct Late {
    address: SocketAddr,
    by_ms: Arc<AtomicU64>,
    accepts: JoinHandle<()>,
}

impl Late {
    /// Starts one to `to` that delays nothing yet.
    ///
    /// # Panics
    /// Without a socket.
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, by_ms) = (listener.local_addr().unwrap(), Arc::<AtomicU64>::default());
        let late = Arc::clone(&by_ms);
        let accepts = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(to).await else { continue };
                let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                tokio::spawn(pass(near_read, far_write, Arc::default()));
                tokio::spawn(pass(far_read, near_write, Arc::clone(&late)));
            }
        });
        Self { address, by_ms, accepts }
    }

    /// Where to connect to.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on what the server says is late by so much.
    ///
    /// # Panics
    /// Beyond any patience.
    pub fn delay(&self, by: Duration) {
        self.by_ms.store(by.as_millis().try_into().unwrap(), Ordering::Relaxed);
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

/// In order: each piece waits for the one before it.
async fn pass(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, by_ms: Arc<AtomicU64>) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let reads = async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + Duration::from_millis(by_ms.load(Ordering::Relaxed));
            if sender.send((due, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writes = async move {
        while let Some((due, piece)) = pieces.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reads, writes);
}
