//! A feed's two ends: what an engine says waits here for whoever applies it.
//!
//! Of a row that changes again before it was taken only the last change waits, so a
//! subscriber that is slow costs memory by the number of rows and not of changes.

use super::{FeedEvent, StoreError};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Changed rows that may wait for one subscriber before it must subscribe again (chosen: at
/// 1 KiB a row, 64 MiB at the worst).
const WAITING_MAX: usize = 65_536;
/// Rows of a snapshot that wait before the engine is read no further (chosen).
const SNAPSHOT_WAITING_MAX: usize = 1_024;

/// The subscriber's end. Dropping it ends the subscription.
pub struct Feed {
    shared: Arc<Shared>,
    first: VecDeque<FeedEvent>,
}

/// The engine's end. Dropping it ends the feed with [`StoreError::Unavailable`].
pub(crate) struct Feeder {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// Told when there is something to take, or the feed ended.
    filled: Notify,
    /// Told when something was taken, or the subscriber left.
    taken: Notify,
}

#[derive(Default)]
struct Queue {
    events: BTreeMap<u64, FeedEvent>,
    next: u64,
    /// Where a row's change waits.
    waiting: HashMap<String, u64>,
    ended: Option<StoreError>,
    closed: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing below can panic half way.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A feed that begins with `first`.
pub(crate) fn feed(first: VecDeque<FeedEvent>) -> (Feeder, Feed) {
    let shared = Arc::new(Shared { queue: Mutex::new(Queue::default()), filled: Notify::new(), taken: Notify::new() });
    (Feeder { shared: Arc::clone(&shared) }, Feed { shared, first })
}

impl Feed {
    /// The next event.
    ///
    /// # Errors
    /// Why there will be no more, after all that came before it; again when asked again.
    ///
    /// # Cancel safety
    /// No event is lost.
    pub async fn next(&mut self) -> Result<FeedEvent, StoreError> {
        if let Some(event) = self.first.pop_front() {
            return Ok(event);
        }
        loop {
            let filled = self.shared.filled.notified();
            {
                let mut queue = self.shared.queue();
                if let Some((_, event)) = queue.events.pop_first() {
                    if let Some(key) = event.changed_key() {
                        queue.waiting.remove(key);
                    }
                    self.shared.taken.notify_one();
                    return Ok(event);
                }
                if queue.closed {
                    let ended = queue.ended.take();
                    return Err(ended.unwrap_or_else(|| StoreError::Unavailable("the feed has ended".into())));
                }
            }
            filled.await;
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.taken.notify_one();
    }
}

impl Feeder {
    /// Adds an event; `false` when nobody takes it any more: the subscriber left or fell behind.
    /// A change takes the place of an earlier one of the same row, at the end of the queue, so
    /// cursors stay in order and the last one taken misses nothing.
    pub(crate) fn push(&self, event: FeedEvent) -> bool {
        let mut queue = self.shared.queue();
        if queue.closed {
            return false;
        }
        if let Some(earlier) = event.changed_key().and_then(|key| queue.waiting.remove(key)) {
            queue.events.remove(&earlier);
        }
        if queue.events.len() >= WAITING_MAX {
            queue.ended = Some(StoreError::Lagged);
            queue.closed = true;
            drop(queue);
            self.shared.filled.notify_one();
            return false;
        }
        let place = queue.next;
        queue.next += 1;
        if let Some(key) = event.changed_key() {
            let key = key.to_owned();
            queue.waiting.insert(key, place);
        }
        queue.events.insert(place, event);
        drop(queue);
        self.shared.filled.notify_one();
        true
    }

    /// As [`Feeder::push`], but waits for the subscriber to take what it has: for snapshots,
    /// which would otherwise be in memory twice.
    pub(crate) async fn push_when_taken(&self, event: FeedEvent) -> bool {
        loop {
            let taken = self.shared.taken.notified();
            {
                let queue = self.shared.queue();
                if queue.closed || queue.events.len() < SNAPSHOT_WAITING_MAX {
                    break;
                }
            }
            taken.await;
        }
        self.push(event)
    }

    /// Returns when the subscriber has left.
    pub(crate) async fn left(&self) {
        loop {
            let taken = self.shared.taken.notified();
            if self.is_closed() {
                return;
            }
            taken.await;
        }
    }

    /// Whether nobody takes events any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.queue().closed
    }

    /// Ends the feed; the subscriber hears it after everything that waits.
    pub(crate) fn end(self, error: StoreError) {
        let mut queue = self.shared.queue();
        if !queue.closed {
            queue.ended = Some(error);
        }
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.shared.queue().closed = true;
        self.shared.filled.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Cursor, Entry};

    fn put(key: &str, version: u64) -> FeedEvent {
        let entry = Entry { key: key.into(), value: version.to_string().into_bytes(), version };
        FeedEvent::Put(entry, Cursor { epoch: 1, version })
    }

    #[tokio::test]
    async fn of_a_row_that_changes_again_the_last_change_comes_in_its_own_turn() {
        let (feeder, mut feed) = feed(VecDeque::new());
        for event in
            [put("a", 1), put("b", 2), put("a", 3), FeedEvent::Delete("c".into(), Cursor { epoch: 1, version: 4 })]
        {
            assert!(feeder.push(event));
        }
        feeder.push(put("c", 5));
        for wanted in [put("b", 2), put("a", 3), put("c", 5)] {
            assert_eq!(feed.next().await.unwrap(), wanted);
        }
        // Taken is taken: the next change of it is a new one.
        feeder.push(put("a", 6));
        assert_eq!(feed.next().await.unwrap(), put("a", 6));
    }

    #[tokio::test]
    async fn a_subscriber_that_falls_behind_hears_it_after_what_it_has() {
        let (feeder, mut feed) = feed(VecDeque::new());
        for number in 0..WAITING_MAX as u64 {
            assert!(feeder.push(put(&number.to_string(), number)));
        }
        // A row that waits already costs nothing more.
        assert!(feeder.push(put("0", WAITING_MAX as u64)));
        assert!(!feeder.push(put("one more", WAITING_MAX as u64 + 1)));
        assert!(!feeder.push(put("and one", WAITING_MAX as u64 + 2)));
        for number in 1..=WAITING_MAX as u64 {
            assert!(matches!(feed.next().await.unwrap(), FeedEvent::Put(_, cursor) if cursor.version == number));
        }
        assert!(matches!(feed.next().await, Err(StoreError::Lagged)));
        assert!(feed.next().await.is_err());
    }

    #[tokio::test]
    async fn a_snapshot_waits_for_the_subscriber_and_ends_with_it() {
        let (feeder, mut feed) = feed(VecDeque::new());
        for number in 0..SNAPSHOT_WAITING_MAX as u64 {
            assert!(feeder.push_when_taken(put(&number.to_string(), number)).await);
        }
        let more = feeder.push_when_taken(put("more", 9999));
        tokio::pin!(more);
        assert!(tokio::time::timeout(std::time::Duration::ZERO, &mut more).await.is_err());
        feed.next().await.unwrap();
        assert!(more.await);
        let more = feeder.push_when_taken(put("and more", 10_000));
        tokio::pin!(more);
        assert!(tokio::time::timeout(std::time::Duration::ZERO, &mut more).await.is_err());
        drop(feed);
        assert!(!more.await);
        feeder.left().await;
    }

    #[tokio::test]
    async fn the_end_says_why() {
        let (feeder, mut feed) = feed(VecDeque::from([put("first", 1)]));
        feeder.push(put("a", 2));
        feeder.end(StoreError::Denied("no".into()));
        assert_eq!(feed.next().await.unwrap(), put("first", 1));
        assert_eq!(feed.next().await.unwrap(), put("a", 2));
        assert!(matches!(feed.next().await, Err(StoreError::Denied(_))));
        assert!(matches!(feed.next().await, Err(StoreError::Unavailable(_))));
    }
}
