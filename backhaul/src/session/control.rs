//! Frames on QUIC streams: the control stream both ways, and single frames of others.

use super::alone::{self, MayGoAlone};
use crate::wire::{self, FRAME_BYTES_MAX};
use prost::Message;
use quinn::{Connection, RecvStream, SendStream};
use std::io;
use tokio::sync::mpsc;

/// Largest batch of frames written at once, bytes.
const BATCH_BYTES: usize = 16 * 1024;

/// Reads one frame; `None` at the clean end of the stream.
///
/// # Errors
/// The stream broke, or what came is no such frame; it cannot be used any further.
///
/// # Cancel safety
/// None: what was read of a frame is lost.
pub(crate) async fn read_frame<M: Message + Default>(stream: &mut RecvStream) -> io::Result<Option<M>> {
    let mut frame = Vec::with_capacity(128);
    frame.resize(2, 0);
    match stream.read_exact(&mut frame).await {
        Ok(()) => {}
        Err(quinn::ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(error) => return Err(io::Error::other(error)),
    }
    let length = usize::from(u16::from_be_bytes([frame[0], frame[1]]));
    if length > FRAME_BYTES_MAX {
        return Err(invalid(wire::FrameError::TooLong { length }));
    }
    frame.resize(2 + length, 0);
    stream.read_exact(&mut frame[2..]).await.map_err(io::Error::other)?;
    let decoded = wire::decode(&frame).map_err(invalid)?;
    Ok(decoded.map(|(message, _)| message))
}

/// Writes one frame.
///
/// # Errors
/// The stream broke, or the message is too long.
pub(crate) async fn write_frame<M: Message>(stream: &mut SendStream, message: &M) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(64);
    wire::encode(message, &mut bytes).map_err(invalid)?;
    stream.write_all(&bytes).await.map_err(io::Error::from)
}

/// Sends what arrives in `queue`: alone what may go alone, the rest on the control stream,
/// several in one write when they are there. Ends with the queue or with the session. A message
/// that is too long is logged and left out.
pub(super) async fn send_all<M: MayGoAlone>(
    connection: &Connection,
    stream: &mut SendStream,
    queue: &mut mpsc::Receiver<M>,
) -> io::Result<()> {
    let (mut bytes, mut frame) = (Vec::new(), Vec::new());
    while let Some(message) = queue.recv().await {
        // What this turn of the runtime brings leaves together: the words of a warm wake are
        // one datagram and wake the other side once.
        tokio::task::yield_now().await;
        bytes.clear();
        let mut next = Some(message);
        while let Some(message) = next.take() {
            frame.clear();
            if let Err(error) = wire::encode(&message, &mut frame) {
                tracing::warn!(%error, "control message left out");
            } else if !(message.may_go_alone() && alone::send(connection, &frame).await?) {
                bytes.extend_from_slice(&frame);
            }
            if bytes.len() < BATCH_BYTES {
                next = queue.try_recv().ok();
            }
        }
        if !bytes.is_empty() {
            stream.write_all(&bytes).await.map_err(io::Error::from)?;
        }
    }
    Ok(())
}

fn invalid(error: wire::FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
