//! The owner's end of one stream: ask, connect the guest, copy both ways.
//!
//! Half-close is passed on as half-close and reset as reset. Every byte written to the guest
//! is counted, and the count travels with the end of the stream, so that the edge knows
//! whether a request it wrote can be sent again. Nothing here parses HTTP.

use crate::activity::{RunActivity, RunStream};
use crate::owner::{Admitted, EdgeId, Owner};
use crate::session::{DONE, Ledger, STREAM_WINDOW_BYTES, read_frame, receipt, write_frame};
use crate::wire::{Asleep, Cause, Open, OpenReply, Refused, Reply, StreamClass, VERSION};
use bytes::{Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, VarInt};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// The opening frame is behind the packet that opened the stream.
const OPEN_WAIT: Duration = Duration::from_secs(5);
/// A guest on this host accepts at once or its queue is full.
const GUEST_WAIT: Duration = Duration::from_secs(1);
/// What a guest that ended left behind is delivered within this time.
const DRAIN_WAIT: Duration = Duration::from_secs(5);
/// One read from the guest, bytes; the large size once a read filled the small one.
const READ_BYTES: usize = 16 * 1024;
const READ_BYTES_LARGE: usize = 64 * 1024;
/// One piece of an edge's bytes at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// What a stream needs of its session.
pub(crate) struct Splice {
    pub(crate) owner: Arc<dyn Owner>,
    pub(crate) edge: EdgeId,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) stalled_after: Duration,
}

/// Serves one stream from its opening frame to its end.
pub(crate) async fn serve(splice: Splice, mut send: SendStream, mut receive: RecvStream) {
    let Ok(Ok(Some(open))) = tokio::time::timeout(OPEN_WAIT, read_frame::<Open>(&mut receive)).await else {
        return end(&mut send, &mut receive, receipt(0));
    };
    let class = open.class();
    let decided = tokio::select! {
        decided = splice.admit(open) => decided,
        // The edge gave up.
        _ = send.stopped() => return end(&mut send, &mut receive, receipt(0)),
    };
    let (reply, spliced) = match decided {
        Ok((admitted, guest, open)) => (Reply::Opened(admitted.opened), Some((guest, admitted.activity, open))),
        Err(reply) => (reply, None),
    };
    if write_frame(&mut send, &OpenReply { reply: Some(reply) }).await.is_err() {
        return end(&mut send, &mut receive, receipt(0));
    }
    match spliced {
        // Open until its last byte, like every guard on the way.
        Some((guest, activity, _open)) => splice.copy(guest, &activity, class, &mut send, &mut receive).await,
        None => {
            // Gone with the session, or ended: there is nobody to tell.
            let _ = send.finish();
            let _ = receive.stop(receipt(0));
        }
    }
}

impl Splice {
    /// Asks the owner and connects the guest.
    async fn admit(&self, open: Open) -> Result<(Admitted, TcpStream, RunStream), Reply> {
        if open.version != VERSION {
            let detail = format!("this host speaks version {VERSION}");
            return Err(Reply::Refused(Refused { cause: Cause::Version.into(), retry_after_ms: 0, detail }));
        }
        let sprite = open.sprite.clone();
        let admitted = self.owner.open(self.edge, open).await?;
        // The run stays open until the guest is connected; the edge's lease takes over.
        let asleep = || Reply::Asleep(Asleep { held: admitted.activity.is_held(), not_connected: false });
        let stream = admitted.activity.stream();
        let _guard = admitted.activity.begin().ok_or_else(asleep)?;
        match connect(admitted.guest).await {
            Ok(guest) => Ok((admitted, guest, stream)),
            Err(error) => {
                tracing::debug!(sprite, run = admitted.opened.run, %error, "guest not connected");
                self.owner.guest_unreachable(&sprite, admitted.opened.run);
                // Nothing was delivered: the edge holds the request while the owner looks.
                Err(Reply::Asleep(Asleep { held: false, not_connected: true }))
            }
        }
    }

    async fn copy(
        &self,
        mut guest: TcpStream,
        activity: &Arc<RunActivity>,
        class: StreamClass,
        send: &mut SendStream,
        receive: &mut RecvStream,
    ) {
        let delivered = AtomicU64::new(0);
        // What passes through a WebSocket the edge understands better: pings are no activity.
        let silent = class == StreamClass::WebSocket;
        let direction = Direction { splice: self, activity, delivered: &delivered, silent };
        let ending = {
            let stopped = pin!(send.stopped());
            let (from_guest, to_guest) = guest.split();
            let up = pin!(direction.up(receive, to_guest));
            let down = pin!(direction.down(from_guest, send));
            join(class, up, down, stopped).await
        };
        let code = receipt(delivered.load(Ordering::Relaxed));
        match ending {
            Ending::Clean => {}
            Ending::Answered => drop(receive.stop(code)),
            Ending::GuestBroke => end(send, receive, code),
            Ending::EdgeBroke | Ending::Evicted => {
                // Unread bytes or not: the guest must see a reset, not an end.
                let _ = socket2::SockRef::from(&guest).set_linger(Some(Duration::ZERO));
                end(send, receive, code);
            }
        }
    }
}

/// How a splice ended.
#[derive(Debug)]
enum Ending {
    /// Both directions ended by themselves, or the edge gave up an idle stream.
    Clean,
    /// The guest ended its answer to a plain request; what the edge still has to say is void.
    Answered,
    /// The guest reset, or its run ended before it had.
    GuestBroke,
    /// The edge reset, or its session is gone.
    EdgeBroke,
    /// The ledger wants its memory back.
    Evicted,
}

/// Drives both directions to their common end.
async fn join<U, D, S>(class: StreamClass, mut up: U, mut down: D, mut stopped: S) -> Ending
where
    U: Future<Output = Result<(), Ending>> + Unpin,
    D: Future<Output = Result<(), Ending>> + Unpin,
    S: Future<Output = Result<Option<VarInt>, quinn::StoppedError>> + Unpin,
{
    let (mut up_open, mut down_open, mut told) = (true, true, false);
    while up_open || down_open {
        tokio::select! {
            biased;
            ended = &mut down, if down_open => match ended {
                Ok(()) => down_open = false,
                Err(ending) => return ending,
            },
            ended = &mut up, if up_open => match ended {
                Ok(()) => up_open = false,
                Err(ending) => return ending,
            },
            stop = &mut stopped, if !told => match stop {
                // Finished and acknowledged: no stop will come.
                Ok(None) => told = true,
                Ok(Some(code)) if code == DONE.into() => return Ending::Clean,
                Ok(Some(_)) | Err(_) => return Ending::EdgeBroke,
            },
        }
        // A server of plain requests that ended its side reads no further one. Saying so
        // now, with the count, lets the edge repeat what it wrote in this moment.
        let plain = matches!(class, StreamClass::Http | StreamClass::Sse);
        if plain && up_open && !down_open {
            return Ending::Answered;
        }
    }
    Ending::Clean
}

/// What both directions of one splice share.
struct Direction<'a> {
    splice: &'a Splice,
    activity: &'a Arc<RunActivity>,
    /// Bytes written to the guest.
    delivered: &'a AtomicU64,
    /// Its bytes are no activity.
    silent: bool,
}

impl Direction<'_> {
    /// Edge to guest. `Ok` when this direction is over and the other may go on.
    async fn up(&self, receive: &mut RecvStream, mut guest: WriteHalf<'_>) -> Result<(), Ending> {
        let mut ended = pin!(self.activity.ended());
        loop {
            let piece = tokio::select! {
                biased;
                () = &mut ended => None,
                piece = receive.read_chunk(PIECE_BYTES, true) => Some(piece),
            };
            let bytes = match piece {
                Some(Ok(Some(chunk))) => chunk.bytes,
                Some(Ok(None)) => {
                    // Gone already is as good: the other direction sees it.
                    let _ = guest.shutdown().await;
                    return Ok(());
                }
                Some(Err(ReadError::Reset(code))) if code == DONE.into() => return Err(Ending::Clean),
                // Reset, or gone with the session; the rest cannot happen to these streams.
                Some(Err(_)) => return Err(Ending::EdgeBroke),
                None => return self.refuse(receive),
            };
            // The owner may be ending this run in this moment: either it sees that something
            // is open, or nothing of this reaches the guest and the edge asks again, unless the
            // stop is called off. A hold is the edges' to keep: here nobody can tell a new request
            // from more of an old one.
            let guard = match self.activity.go_on() {
                Some(guard) => guard,
                None => tokio::select! {
                    biased;
                    guard = self.activity.go_on_patiently() => guard,
                    () = &mut ended => return self.refuse(receive),
                },
            };
            let guard = if self.silent { guard.silent() } else { guard };
            let written = tokio::select! {
                biased;
                written = self.write(&mut guest, bytes) => written?,
                () = &mut ended => false,
            };
            drop(guard);
            if !written {
                return self.refuse(receive);
            }
        }
    }

    /// Tells the edge that no more of its bytes are taken, and how many were. What the guest
    /// has said until now is still delivered.
    fn refuse(&self, receive: &mut RecvStream) -> Result<(), Ending> {
        let _ = receive.stop(receipt(self.delivered.load(Ordering::Relaxed)));
        Ok(())
    }

    /// Writes to the guest; `false` when it takes no more.
    async fn write(&self, guest: &mut WriteHalf<'_>, mut bytes: Bytes) -> Result<bool, Ending> {
        while !bytes.is_empty() {
            // Each piece is counted when it is written: a count taken after a whole block
            // would be too low if the block is given up half-way.
            let Ok(count) = self.patiently(guest.write(&bytes)).await? else { return Ok(false) };
            if count == 0 {
                return Ok(false);
            }
            bytes = bytes.split_off(count);
            self.delivered.fetch_add(count as u64, Ordering::Relaxed);
            self.activity.count(count as u64, 0);
        }
        Ok(true)
    }

    /// Guest to edge. `Ok` when the guest ended its side cleanly and all of it was passed on.
    async fn down(&self, guest: ReadHalf<'_>, send: &mut SendStream) -> Result<(), Ending> {
        let mut ended = pin!(self.activity.ended());
        let mut size = READ_BYTES;
        loop {
            tokio::select! {
                biased;
                readable = guest.readable() => readable.map_err(|_| Ending::GuestBroke)?,
                () = &mut ended => {
                    let drained = tokio::time::timeout(DRAIN_WAIT, self.drain(&guest, send)).await;
                    return drained.unwrap_or(Err(Ending::GuestBroke));
                }
            }
            // No buffer while there is nothing to read: an idle stream costs none.
            let mut buffer = BytesMut::with_capacity(size);
            match guest.try_read_buf(&mut buffer) {
                Ok(0) => return self.finish(send),
                Ok(count) => {
                    size = if count >= READ_BYTES { READ_BYTES_LARGE } else { READ_BYTES };
                    self.pass_on(send, buffer.freeze()).await?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(Ending::GuestBroke),
            }
        }
    }

    /// The run ended: a guest that is gone has left its last bytes and its end here, one that
    /// was stopped in its tracks has not.
    async fn drain(&self, guest: &ReadHalf<'_>, send: &mut SendStream) -> Result<(), Ending> {
        loop {
            let mut buffer = BytesMut::with_capacity(READ_BYTES_LARGE);
            match guest.try_read_buf(&mut buffer) {
                Ok(0) => return self.finish(send),
                Ok(_) => self.pass_on(send, buffer.freeze()).await?,
                Err(_) => return Err(Ending::GuestBroke),
            }
        }
    }

    async fn pass_on(&self, send: &mut SendStream, bytes: Bytes) -> Result<(), Ending> {
        self.activity.count(0, bytes.len() as u64);
        if !self.silent {
            self.activity.touch(Instant::now());
        }
        self.patiently(send.write_chunk(bytes)).await?.map_err(|_| Ending::EdgeBroke)
    }

    #[expect(clippy::unused_self, reason = "reads like its neighbours")]
    fn finish(&self, send: &mut SendStream) -> Result<(), Ending> {
        // Stopped or gone shows in the other direction.
        let _ = send.finish();
        Ok(())
    }

    /// Waits for a write; once it has stalled, the ledger may call it off.
    async fn patiently<T>(&self, write: impl Future<Output = T>) -> Result<T, Ending> {
        let mut write = pin!(write);
        if let Ok(done) = tokio::time::timeout(self.splice.stalled_after, &mut write).await {
            return Ok(done);
        }
        let mut stall = self.splice.ledger.stalled(STREAM_WINDOW_BYTES.into());
        tokio::select! {
            done = write => Ok(done),
            () = stall.evicted() => {
                tracing::info!("a stalled stream was reset: too much is unread");
                Err(Ending::Evicted)
            }
        }
    }
}

async fn connect(guest: SocketAddr) -> io::Result<TcpStream> {
    let tcp = tokio::time::timeout(GUEST_WAIT, TcpStream::connect(guest)).await??;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Resets both directions with one code. Those that ended already stay as they are.
fn end(send: &mut SendStream, receive: &mut RecvStream, code: VarInt) {
    let _ = send.reset(code);
    let _ = receive.stop(code);
}
