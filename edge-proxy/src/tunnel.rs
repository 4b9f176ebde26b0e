//! After an upgrade: bytes both ways until one side ends, or its sprite falls asleep.
//!
//! Nothing is changed on the way. Of a WebSocket the frame headers are read, to tell whether
//! anybody is there and where a close frame of ours may stand.

use crate::sleep_mark::SleepMark;
use crate::websocket::{CLOSE_IDLE, FrameWatch};
use backhaul::activity::{ActivityGuard, RunActivity};
use backhaul::wire::StreamClass;
use backhaul::{GuestRead, GuestWrite};
use bytes::Bytes;
use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Copy buffer per direction (chosen): a WebSocket message is small, a shell's output
/// fits, and an idle tunnel costs two of them.
const BUFFER_BYTES: usize = 16 * 1024;
/// From the cordon until a silent socket is closed: so long a stop may be called off
/// (`wake.md` §8).
const CORDON: Duration = Duration::from_millis(200);

/// The guest's half of an upgraded connection, waiting for the client's half.
pub struct Tunnel {
    /// Keeps the run awake while there is data on the tunnel. In front of the stream, so that
    /// it ends before that does.
    pub guard: Option<ActivityGuard>,
    /// From the guest.
    pub read: GuestRead,
    /// To the guest.
    pub write: GuestWrite,
    /// Guest bytes that were read together with the head of its 101.
    pub early: Bytes,
    /// A WebSocket, or something else.
    pub class: StreamClass,
    /// Made when it ends because its sprite fell asleep.
    pub mark: SleepMark,
}

impl Tunnel {
    /// Relays until both directions ended, one failed, or the sprite falls asleep: then a
    /// WebSocket is closed with 1001, as its protocol wants it. `sent` are client bytes that
    /// arrived behind the request and may only now be delivered.
    ///
    /// A clean end of one direction is passed on and the other goes on (half-close).
    ///
    /// # Errors
    /// The first failing side; both are then dropped, which resets them.
    pub async fn relay<S: AsyncRead + AsyncWrite + Unpin>(self, client: S, sent: Bytes) -> io::Result<()> {
        let Self { mut read, mut write, early, mut guard, class, mark } = self;
        if let Some(guard) = &mut guard {
            guard.becomes_socket();
        }
        let run = guard.as_ref().map(|guard| Arc::clone(guard.run()));
        let (mut client_read, mut client_write) = tokio::io::split(client);
        let (up_watch, down_watch) = (Watch::new(class, &run), Watch::new(class, &run));
        let relayed = {
            let up = async {
                pass(&sent, &mut write, &up_watch).await?;
                copy(&mut client_read, &mut write, &up_watch).await
            };
            let down = async {
                pass(&early, &mut client_write, &down_watch).await?;
                client_write.flush().await?;
                copy(&mut read, &mut client_write, &down_watch).await
            };
            let both = async { tokio::try_join!(up, down).map(|_| ()) };
            tokio::select! {
                ended = both => ended,
                () = asleep(&run) => Ok(()),
            }
        };
        let Some(run) = &run else { return relayed };
        if run.is_cordoned() {
            if class == StreamClass::WebSocket && down_watch.at_boundary() {
                // The client may be gone as well.
                let _ = client_write.write_all(CLOSE_IDLE).await;
            }
            let _ = client_write.shutdown().await;
            mark.ended(run);
            return Ok(());
        }
        if relayed.is_err() {
            mark.broke(Arc::clone(run));
        }
        relayed
    }
}

/// Resolves when the run is about to end and that was not called off in time.
async fn asleep(run: &Option<Arc<RunActivity>>) {
    let Some(run) = run else { return std::future::pending().await };
    loop {
        run.cordoned().await;
        tokio::time::sleep(CORDON).await;
        if run.is_cordoned() {
            return;
        }
    }
}

/// What is noticed of one direction.
struct Watch<'a> {
    frames: Option<RefCell<FrameWatch>>,
    run: Option<&'a RunActivity>,
    /// Bytes are on their way out: nothing may be put behind them.
    writing: std::cell::Cell<bool>,
}

impl<'a> Watch<'a> {
    fn new(class: StreamClass, run: &'a Option<Arc<RunActivity>>) -> Self {
        let frames = (class == StreamClass::WebSocket).then(RefCell::default);
        Self { frames, run: run.as_deref(), writing: std::cell::Cell::new(false) }
    }

    fn saw(&self, bytes: &[u8]) {
        let Some(run) = self.run else { return };
        let now = Instant::now();
        let active = self.frames.as_ref().is_none_or(|frames| frames.borrow_mut().feed(bytes, now));
        if active && !bytes.is_empty() {
            run.touch(now);
        }
    }

    fn at_boundary(&self) -> bool {
        !self.writing.get() && self.frames.as_ref().is_some_and(|frames| frames.borrow().at_boundary())
    }
}

async fn pass<W: AsyncWrite + Unpin>(bytes: &[u8], to: &mut W, watch: &Watch<'_>) -> io::Result<()> {
    watch.saw(bytes);
    watch.writing.set(true);
    to.write_all(bytes).await?;
    watch.writing.set(false);
    Ok(())
}

async fn copy<R, W>(from: &mut R, to: &mut W, watch: &Watch<'_>) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        pass(&buffer[..count], to, watch).await?;
        to.flush().await?;
    }
}
