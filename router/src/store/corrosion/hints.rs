//! The updates feed: that a row has changed, some 400 ms before the subscription says how.
//!
//! It has no numbers and no past, so it is a hint and nothing more: the rows of the key it names are read, and count if
//! they are newer than what is known. Whatever is lost on this way comes by the subscription.

use super::Inner;
use super::wire::{self, Event, HEAD_BYTES, LINE_BYTES_MAX, Row};
use bytes::Bytes;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Rows of so many keys may wait to be taken; further ones come by the subscription (chosen).
const WAITING_MAX: usize = 64;
/// Keys looked up in a second; further ones come by the subscription (chosen: many at once are no hurry, and cost
/// the agent a query each).
const LOOKS_MAX: u32 = 64;
/// Pause after the feed has failed; twice as long each time (chosen).
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest one.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Rows of keys that have changed, all of a key's at once.
pub(super) type Hints = mpsc::Receiver<Vec<Row>>;

/// Ends the task when the feed it serves does.
pub(super) struct Hinting(AbortHandle);

impl Drop for Hinting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Follows the updates feed for the keys under a prefix.
pub(super) fn follow(inner: &Arc<Inner>, prefix: &str) -> (Hints, Hinting) {
    let (sender, hints) = mpsc::channel(WAITING_MAX);
    let task = tokio::spawn(run(Arc::downgrade(inner), prefix.to_owned(), sender));
    (hints, Hinting(task.abort_handle()))
}

async fn run(inner: Weak<Inner>, prefix: String, sender: mpsc::Sender<Vec<Row>>) {
    let mut pause = PAUSE_MIN;
    loop {
        let Some(inner) = inner.upgrade() else { return };
        let begun = Instant::now();
        let why = once(&inner, &prefix, &sender).await;
        tracing::debug!(prefix, why, "the updates feed ended");
        drop(inner);
        if begun.elapsed() > PAUSE_MAX {
            pause = PAUSE_MIN;
        }
        tokio::time::sleep(pause.mul_f64(crate::subscriber::random().max(0.5))).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Until it ends: why.
async fn once(inner: &Arc<Inner>, prefix: &str, sender: &mpsc::Sender<Vec<Row>>) -> String {
    let mut stream = match inner.open(&format!("/v1/updates/{}", inner.sql.table), &Bytes::new()).await {
        Ok(stream) if stream.status.is_success() => stream,
        Ok(stream) => return stream.status.to_string(),
        Err(error) => return error.to_string(),
    };
    let (mut second, mut looks) = (Instant::now(), 0);
    loop {
        let line = match stream.piece(LINE_BYTES_MAX, HEAD_BYTES).await {
            Ok(Some(piece)) if piece.whole => piece.bytes,
            Ok(Some(_)) => continue,
            Ok(None) => return "it was ended".into(),
            Err(why) => return why,
        };
        let key = match wire::event(&line) {
            Ok(Event::Notify(_, key)) => key,
            Ok(Event::Error(why)) => return why,
            Ok(_) => continue,
            Err(error) => return error.to_string(),
        };
        let Some(key) = key.first().and_then(|name| name.as_str()).filter(|name| name.starts_with(prefix)) else {
            continue;
        };
        if second.elapsed() >= Duration::from_secs(1) {
            (second, looks) = (Instant::now(), 0);
        }
        looks += 1;
        if looks > LOOKS_MAX {
            continue;
        }
        match inner.rows(key).await {
            Ok(rows) => drop(sender.try_send(rows)),
            Err(error) => return error.to_string(),
        }
    }
}
