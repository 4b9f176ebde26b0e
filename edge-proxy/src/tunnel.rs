//! After an upgrade: bytes both ways until one side ends, nothing parsed.

use backhaul::activity::ActivityGuard;
use backhaul::{GuestRead, GuestWrite};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Copy buffer per direction (chosen): a WebSocket message is small, a shell's output
/// fits, and an idle tunnel costs two of them.
const BUFFER_BYTES: usize = 16 * 1024;

/// The guest's half of an upgraded connection, waiting for the client's half.
pub struct Tunnel {
    /// From the guest.
    pub read: GuestRead,
    /// To the guest.
    pub write: GuestWrite,
    /// Guest bytes that were read together with the head of its 101.
    pub early: Bytes,
    /// Keeps the run awake while the tunnel is open.
    pub guard: Option<ActivityGuard>,
}

impl Tunnel {
    /// Relays until both directions ended or one failed. `sent` are client bytes that
    /// arrived behind the request and may only now be delivered.
    ///
    /// A clean end of one direction is passed on and the other goes on (half-close).
    ///
    /// # Errors
    /// The first failing side; both are then dropped, which resets them.
    pub async fn relay<S: AsyncRead + AsyncWrite + Unpin>(mut self, client: S, sent: Bytes) -> std::io::Result<()> {
        let (mut client_read, mut client_write) = tokio::io::split(client);
        let up = async {
            self.write.write_all(&sent).await?;
            copy(&mut client_read, &mut self.write).await
        };
        let down = async {
            client_write.write_all(&self.early).await?;
            client_write.flush().await?;
            copy(&mut self.read, &mut client_write).await
        };
        tokio::try_join!(up, down)?;
        drop(self.guard);
        Ok(())
    }
}

async fn copy<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(from: &mut R, to: &mut W) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
    }
}
