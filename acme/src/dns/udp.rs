//! Questions in datagrams: one socket of a thread, answered where they are read. A task is made for none but those that
//! wait for others' word on a challenge, and there is a bound on these.

use super::answer::{Answer, Transport};
use super::authority::{Asking, Authority};
use super::counters::{Counters, Event};
use super::limit::Verdict;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Longest question that is read whole, bytes (chosen: the longest name with a full OPT; what is longer is no question).
const MESSAGE_MAX: usize = 4_096;
/// Questions answered before connections of the same thread have their turn (chosen).
const BATCH: usize = 64;
/// Most questions that are still answered once we stop (chosen: what a socket's buffer holds).
const LAST: usize = 4_096;
/// Pause after an error of the socket that is not about one datagram (chosen).
const PAUSE: Duration = Duration::from_millis(20);

/// Answers until `stop`, and then what has come before it.
///
/// # Errors
/// There are no more descriptors.
pub(super) async fn serve(
    authority: Arc<Authority>,
    counters: Arc<Counters>,
    socket: UdpSocket,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    // One wakes this task; the other reads and writes at once, whatever the runtime has heard of it so far.
    let ready = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
    let socket = Arc::new(socket);
    let mut message = vec![0; MESSAGE_MAX];
    let mut asked = Asked { authority, counters, socket: Arc::clone(&socket), out: Vec::new() };
    loop {
        tokio::select! {
            // An error here is one of the next read.
            _ = ready.readable() => {}
            _ = stop.wait_for(|stop| *stop) => {
                // Whatever ends it, this is the end.
                let _ = asked.batch(LAST, &mut message, |message| socket.recv_from(message));
                return Ok(());
            }
        }
        match asked.batch(BATCH, &mut message, |message| ready.try_recv_from(message)) {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "DNS: reading failed; pausing");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A socket, and what its answers are written into.
struct Asked {
    authority: Arc<Authority>,
    counters: Arc<Counters>,
    socket: Arc<UdpSocket>,
    out: Vec<u8>,
}

impl Asked {
    /// Answers so many questions, read one by one into `message`.
    ///
    /// # Errors
    /// `WouldBlock` when there are no more; whatever the socket says otherwise.
    fn batch(
        &mut self,
        most: usize,
        message: &mut [u8],
        mut read: impl FnMut(&mut [u8]) -> io::Result<(usize, SocketAddr)>,
    ) -> io::Result<()> {
        let now = self.authority.now();
        for _ in 0..most {
            let (length, from) = read(message)?;
            self.one(&message[..length], from, now);
        }
        Ok(())
    }

    fn one(&mut self, message: &[u8], from: SocketAddr, now: Duration) {
        // Nothing can be sent there.
        if from.port() == 0 {
            return;
        }
        let Some(mut answer) = self.authority.answer(message, Transport::Udp, &mut self.out) else { return };
        self.counters.answered(&answer);
        if !limited(&self.authority, &self.counters, from.ip(), now, &mut answer, &mut self.out) {
            return;
        }
        match self.authority.pull(&answer, &self.counters) {
            Asking::Nobody => send(&self.socket, &self.counters, &self.out, from),
            Asking::Full => {}
            Asking::Others(pull, place) => {
                let (authority, counters) = (Arc::clone(&self.authority), Arc::clone(&self.counters));
                let (socket, message) = (Arc::clone(&self.socket), message.to_vec());
                tokio::spawn(async move {
                    let mut out = Vec::new();
                    if authority.ask(&*pull, &message, Transport::Udp, &mut out).await.is_some() {
                        send(&socket, &counters, &out, from);
                    }
                    drop(place);
                });
            }
        }
    }
}

/// Takes the answer from its network's share; whether it is sent, perhaps cut. What a certification authority asks for is cut
/// rather than dropped, so that it need not wait for its own patience to end.
pub(super) fn limited(
    authority: &Authority,
    counters: &Counters,
    to: IpAddr,
    now: Duration,
    answer: &mut Answer,
    out: &mut Vec<u8>,
) -> bool {
    match authority.limiter.take(to, now) {
        Verdict::Send => return true,
        Verdict::Drop if !answer.vital => {
            counters.count(Event::Dropped);
            return false;
        }
        Verdict::Cut | Verdict::Drop => {}
    }
    counters.count(Event::Cut);
    answer.cut(out);
    // It has been told to come by TCP; nobody is asked on its behalf.
    answer.missing = false;
    true
}

fn send(socket: &UdpSocket, counters: &Counters, out: &[u8], to: SocketAddr) {
    // A datagram may be lost on any part of its way.
    if socket.send_to(out, to).is_err() {
        counters.count(Event::Unsent);
    }
}
