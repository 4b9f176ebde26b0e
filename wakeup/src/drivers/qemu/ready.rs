//! Does the guest answer?
//!
//! QEMU's user networking accepts connections whether there is a guest or not, so an open port
//! says nothing. What says something is a byte that only the guest can have sent: the check asks
//! `OPTIONS *`, which servers answer by themselves (RFC 9110 §9.3.7 calls it a ping), and any
//! byte back will do, a refusal too. It is HTTP/1 because that is what guests are spoken to in.
//!
//! A connection begun before the guest is up would wait for a retransmission of QEMU's, seconds
//! apart; so new ones are begun while the earlier wait for their answers.

use router::names::SpriteName;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Least and most patience with one connection (measured: a guest under TCG on a quiet machine
/// answers within 30 ms, beside three busy processes within some hundred).
const PATIENCE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// Of the time that has passed, patience is this part: what boots long answers slowly.
const PATIENCE_PART: u32 = 4;
/// Connections that wait at once (chosen: a boot is noticed an eighth of the patience late at
/// most, 31 to 250 ms, and a guest that comes up meets few of them).
const TRIES_MAX: u32 = 8;

/// Asks until the guest answers at `address`. Never ends by itself: the caller bounds it.
///
/// # Cancel safety
/// Dropped, it closes its connections.
pub(super) async fn answers(name: &SpriteName, address: SocketAddr) {
    let request = format!("OPTIONS * HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    let began = Instant::now();
    let mut tries = JoinSet::new();
    loop {
        let patience = (began.elapsed() / PATIENCE_PART).clamp(PATIENCE.0, PATIENCE.1);
        if tries.len() < TRIES_MAX as usize {
            let ask = ask(address, request.clone());
            tries.spawn(async move { tokio::time::timeout(patience, ask).await });
        }
        let next = tokio::time::sleep(patience / TRIES_MAX);
        tokio::pin!(next);
        loop {
            tokio::select! {
                Some(tried) = tries.join_next() => {
                    if matches!(tried, Ok(Ok(Ok(true)))) {
                        return;
                    }
                }
                () = &mut next => break,
            }
        }
    }
}

/// Whether one byte comes back.
async fn ask(address: SocketAddr, request: String) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    Ok(stream.read(&mut [0]).await? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// As QEMU does before there is a guest: connections are accepted and nothing comes.
    #[tokio::test]
    async fn an_open_port_is_not_ready_and_an_answer_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let name = SpriteName::parse("a").unwrap();
        let asked = tokio::spawn(async move { answers(&name, address).await });
        let (mut silent, _) = listener.accept().await.unwrap();
        let mut text = vec![0; 128];
        let length = silent.read(&mut text).await.unwrap();
        assert_eq!(&text[..length], b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        // As a guest whose port is closed: the connection ends without a byte.
        drop(listener.accept().await.unwrap());
        assert!(!asked.is_finished());
        // Each from here on: one that was answered late has been given up by then.
        let guest = async {
            let mut open = Vec::new();
            while let Ok((mut answering, _)) = listener.accept().await {
                let _ = answering.write_all(b"H").await;
                open.push(answering);
            }
        };
        tokio::select! {
            asked = asked => asked.unwrap(),
            () = guest => panic!("the listener failed"),
        }
    }
}
