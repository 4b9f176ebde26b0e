//! Is the client still there? A PING after a silence, and an end when nothing answers.

use config::Limits;
use h2::{Ping, PingPong};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// Watches one connection.
pub(super) struct KeepAlive {
    pings: Option<PingPong>,
    interval: Duration,
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    /// A PING is unanswered.
    waiting: bool,
    /// Reads of the socket when the timer was set.
    reads: u64,
}

impl KeepAlive {
    /// With the connection's own pings; without them it never ends anything.
    pub(super) fn new(pings: Option<PingPong>, limits: &Limits) -> Self {
        let (interval, timeout) = (limits.http2_ping_interval, limits.http2_ping_timeout);
        Self { pings, interval, timeout, timer: Box::pin(sleep(interval)), waiting: false, reads: 0 }
    }

    /// Ready when the client counts as gone. `reads` says how often the socket was read;
    /// while that changes no PING is needed.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, reads: u64) -> Poll<()> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        if self.waiting && pings.poll_pong(cx).is_ready() {
            self.waiting = false;
            self.timer.as_mut().reset(Instant::now() + self.interval);
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if self.waiting && reads == self.reads {
                return Poll::Ready(());
            }
            let silent = reads == self.reads;
            self.reads = reads;
            // An error means that one is on its way already, or that the connection ends.
            self.waiting = self.waiting || (silent && pings.send_ping(Ping::opaque()).is_ok());
            let pause = if self.waiting { self.timeout } else { self.interval };
            self.timer.as_mut().reset(Instant::now() + pause);
            if self.waiting && pings.poll_pong(cx).is_ready() {
                self.waiting = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    const SECOND: Duration = Duration::from_secs(1);

    /// The server's end of a connection whose client answers pings for `lively`; when it ended.
    async fn ends_after(lively: Duration) -> Duration {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let client = async {
            let (_requests, mut connection) = h2::client::handshake(ours).await.unwrap();
            let _ = tokio::time::timeout(lively, &mut connection).await;
            // From here on it holds the connection and reads nothing.
            std::future::pending::<()>().await;
        };
        let server = async {
            let mut connection = h2::server::handshake(theirs).await.unwrap();
            let limits = Limits::default();
            let mut keep_alive = KeepAlive::new(connection.ping_pong(), &limits);
            let began = Instant::now();
            poll_fn(|cx| {
                let over = keep_alive.poll(cx, 0);
                // The connection must be driven for its pings to leave.
                if over.is_pending() {
                    let _ = connection.poll_closed(cx);
                }
                over
            })
            .await;
            began.elapsed()
        };
        tokio::select! {
            () = client => unreachable!("it never ends"),
            after = server => after,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_answers_pings_stays_and_a_silent_one_ends_in_time() {
        let limits = Limits::default();
        let (interval, timeout) = (limits.http2_ping_interval, limits.http2_ping_timeout);
        let silent = ends_after(Duration::ZERO).await;
        assert!((interval + timeout..interval + timeout + SECOND).contains(&silent), "{silent:?}");
        let lively = ends_after(10 * interval).await;
        assert!((10 * interval + timeout..11 * interval + timeout + SECOND).contains(&lively), "{lively:?}");
    }
}
