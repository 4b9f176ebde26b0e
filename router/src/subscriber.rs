//! Follows a store through its failures: whatever ends a feed, it subscribes again.
//!
//! The pause grows with each failure and is drawn at random, so that a fleet whose engine
//! comes back does not come back all at once.

use crate::store::{Cursor, Feed, FeedEvent, Store, StoreError};
use std::time::Duration;
use tokio::time::Instant;

/// Longest pause after the first failure (chosen).
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause after many (chosen: an engine that is back is noticed within half a minute).
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// One subscription, for as long as the process lives.
pub struct Subscriber {
    store: Store,
    prefix: &'static str,
    feed: Option<Feed>,
    cursor: Option<Cursor>,
    failures: u32,
    again_at: Option<Instant>,
}

/// What a subscriber hears.
#[derive(Debug)]
pub enum Heard {
    /// The feed said this.
    Event(FeedEvent),
    /// The store went away; what is known stays. It is asked again, nothing is to be done.
    Lost,
}

impl Subscriber {
    /// Of the rows under `prefix`, from the beginning.
    #[must_use]
    pub fn new(store: Store, prefix: &'static str) -> Self {
        Self::resuming(store, prefix, None)
    }

    /// Of the rows under `prefix`, from a state on that is known already, where the store can still say what has
    /// happened since; else from the beginning.
    #[must_use]
    pub fn resuming(store: Store, prefix: &'static str, cursor: Option<Cursor>) -> Self {
        Self { store, prefix, feed: None, cursor, failures: 0, again_at: None }
    }

    /// The next event, or that there will be none for a while.
    ///
    /// # Cancel safety
    /// No event is lost and no pause is shortened or begun anew.
    pub async fn next(&mut self) -> Heard {
        loop {
            if let Some(at) = self.again_at {
                tokio::time::sleep_until(at).await;
                self.again_at = None;
            }
            let failure = match &mut self.feed {
                Some(feed) => match feed.next().await {
                    Ok(event) => {
                        self.note(&event);
                        return Heard::Event(event);
                    }
                    Err(failure) => failure,
                },
                None => match self.store.subscribe(self.prefix, self.cursor).await {
                    Ok(feed) => {
                        self.feed = Some(feed);
                        continue;
                    }
                    Err(failure) => failure,
                },
            };
            self.feed = None;
            self.fail(&failure);
            return Heard::Lost;
        }
    }

    fn note(&mut self, event: &FeedEvent) {
        match event {
            // Half a snapshot is no place to go on from.
            FeedEvent::SnapshotBegin { .. } | FeedEvent::Entry(_) => return,
            FeedEvent::SnapshotEnd(cursor)
            | FeedEvent::Put(_, cursor)
            | FeedEvent::Delete(_, cursor)
            | FeedEvent::Current(cursor) => self.cursor = Some(*cursor),
        }
        self.failures = 0;
    }

    fn fail(&mut self, failure: &StoreError) {
        let pause = pause(self.failures, random());
        self.failures = self.failures.saturating_add(1);
        self.again_at = Some(Instant::now() + pause);
        let (engine, prefix) = (self.store.name(), self.prefix);
        match failure {
            StoreError::Lagged => tracing::warn!(engine, prefix, "fell behind the store; catching up"),
            error => tracing::warn!(engine, prefix, ?pause, %error, "the store is away; what is known stays"),
        }
    }
}

/// Between nothing and a bound that doubles with each failure; `random` is from 0 to 1.
fn pause(failures: u32, random: f64) -> Duration {
    let bound = PAUSE_MIN.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(PAUSE_MAX);
    bound.mul_f64(random.clamp(0.0, 1.0))
}

pub(crate) fn random() -> f64 {
    // Without random bytes: the whole bound.
    getrandom::u32().map_or(1.0, |bits| f64::from(bits) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Answer, Engine, Entry};
    use std::sync::Arc;
    use std::sync::Mutex;

    #[test]
    fn the_pause_doubles_up_to_its_bound_and_is_a_share_of_it() {
        assert_eq!(pause(0, 1.0), PAUSE_MIN);
        assert_eq!(pause(2, 1.0), PAUSE_MIN * 4);
        assert_eq!(pause(2, 0.5), PAUSE_MIN * 2);
        for failures in [7, 31, 32, u32::MAX] {
            assert_eq!(pause(failures, 1.0), PAUSE_MAX);
        }
        assert_eq!(pause(5, 0.0), Duration::ZERO);
    }

    /// Fails each other call, and is asked with what cursor.
    struct Moody(Mutex<Vec<Option<Cursor>>>);

    impl Engine for Moody {
        fn name(&self) -> &'static str {
            "moody"
        }
        fn get<'a>(&'a self, _: &'a str) -> Answer<'a, Option<Entry>> {
            Box::pin(async { Err(StoreError::Unavailable(String::new())) })
        }
        fn compare_and_set<'a>(&'a self, _: &'a str, _: Option<u64>, _: Option<&'a [u8]>) -> Answer<'a, u64> {
            Box::pin(async { Err(StoreError::Unavailable(String::new())) })
        }
        fn subscribe<'a>(&'a self, _: &'a str, resume: Option<Cursor>) -> Answer<'a, Feed> {
            let mut asked = self.0.lock().unwrap();
            asked.push(resume);
            let count = asked.len();
            Box::pin(async move {
                if count % 2 == 1 {
                    return Err(StoreError::Unavailable(String::new()));
                }
                let version = count as u64;
                let events = [
                    FeedEvent::SnapshotBegin { epoch: 1 },
                    FeedEvent::SnapshotEnd(Cursor { epoch: 1, version }),
                    FeedEvent::SnapshotBegin { epoch: 2 },
                ];
                Ok(crate::store::feed(events.into()).1)
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_each_failure_it_goes_on_from_the_last_whole_thing_it_heard() {
        let engine = Arc::new(Moody(Mutex::default()));
        let mut subscriber = Subscriber::new(Arc::clone(&engine) as Store, "a/");
        let (mut events, mut lost) = (0, 0);
        while events < 6 {
            match subscriber.next().await {
                Heard::Event(_) => events += 1,
                Heard::Lost => lost += 1,
            }
        }
        assert_eq!(lost, 3);
        let after = |version| Some(Cursor { epoch: 1, version });
        assert_eq!(*engine.0.lock().unwrap(), [None, None, after(2), after(2)]);
    }
}
