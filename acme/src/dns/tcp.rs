//! Questions over connections (RFC 7766): for whoever an answer over UDP was cut or too long.

use super::authority::{Authority, Places};
use super::counters::{Counters, Event};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

/// From one question to the end of the next, and for a client to take its answers (design §5: "2 s idle").
pub(super) const IDLE: Duration = Duration::from_secs(2);
/// Longest question, bytes (chosen, as over UDP).
const MESSAGE_MAX: usize = 4_096;
/// Bytes of answers that are collected before they are written (chosen).
const WRITE_AT: usize = 16 * 1024;
/// Pause after an accept error that is not about one connection, such as "too many open files" (chosen).
const PAUSE: Duration = Duration::from_millis(20);

/// Takes connections until `stop`.
pub(super) async fn serve(
    authority: Arc<Authority>,
    counters: Arc<Counters>,
    places: Arc<Places>,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok((stream, from)) => {
                let Some(place) = places.take(from.ip()) else {
                    counters.count(Event::ConnectionRefused);
                    continue;
                };
                counters.count(Event::Connection);
                // An answer is written at once or not at all.
                if stream.set_nodelay(true).is_err() {
                    continue;
                }
                let (authority, counters, stop) = (Arc::clone(&authority), Arc::clone(&counters), stop.clone());
                tokio::spawn(async move {
                    // The client's business, whatever it is.
                    drop(connection(&authority, &counters, stream, stop).await);
                    drop(place);
                });
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "DNS: accept failed; pausing");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Answers the questions of one connection in the order they come, as many as its client sends without waiting. Ends when the
/// client ends, is silent, sends what is no question, or does not take its answers; and at `stop`.
pub(super) async fn connection(
    authority: &Authority,
    counters: &Counters,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let (mut read, mut out, mut answer) = (Vec::with_capacity(512), Vec::new(), Vec::new());
    let mut until = Instant::now() + IDLE;
    loop {
        let mut at = 0;
        while let Some(length) = length(&read[at..]) {
            if length > MESSAGE_MAX {
                return write(&mut stream, &mut out).await;
            }
            let Some(message) = read.get(at + 2..at + 2 + length) else { break };
            at += 2 + length;
            if authority.answer_over_tcp(message, counters, &mut answer).await.is_none() {
                return write(&mut stream, &mut out).await;
            }
            out.extend(u16::try_from(answer.len()).unwrap_or(0).to_be_bytes());
            out.extend(&answer);
            if out.len() >= WRITE_AT {
                write(&mut stream, &mut out).await?;
            }
            until = Instant::now() + IDLE;
        }
        write(&mut stream, &mut out).await?;
        read.drain(..at);
        tokio::select! {
            taken = timeout_at(until, stream.read_buf(&mut read)) => if taken?? == 0 { return Ok(()) },
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        }
    }
}

fn length(bytes: &[u8]) -> Option<usize> {
    bytes.first_chunk::<2>().map(|length| usize::from(u16::from_be_bytes(*length)))
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), out: &mut Vec<u8>) -> io::Result<()> {
    timeout(IDLE, stream.write_all(out)).await??;
    out.clear();
    Ok(())
}
