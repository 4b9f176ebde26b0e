//! The loop that keeps a table as the store is, and the file of the table as the table is: the
//! same for routes and domains.

use crate::followed::Followed;
use crate::last_known_good;
use crate::store::{Cursor, FeedEvent, Store};
use crate::subscriber::{Heard, Subscriber};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

/// Quiet time after which changes are written to the last-known-good file (chosen).
const SETTLE: Duration = Duration::from_millis(200);
/// Longest time changes stay unwritten when it never gets quiet (chosen).
const UNWRITTEN_MAX: Duration = Duration::from_secs(5);
/// The loop turns this often at least, however quiet it is (chosen): whoever counts its turns
/// ([`Followed::turns`]) sees whether it stands still.
pub const TURN: Duration = Duration::from_secs(1);

/// What is due after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Nothing,
    /// The table is not what was written last.
    Changed,
    /// A snapshot is complete; the file is written at once.
    Synced,
}

/// Decides what an event does to a table: no clock, no disk, no task.
pub(crate) trait Applier {
    /// Keys of its rows begin with this.
    const PREFIX: &'static str;
    /// "routes": for the log.
    const WHAT: &'static str;

    /// The state of its table.
    fn followed(&self) -> &Followed;
    /// Applies one event.
    fn handle(&mut self, event: FeedEvent, now: Instant) -> After;
    /// The store is away.
    fn lost(&mut self) {}
    /// An operator says that what vanished is meant to be gone.
    fn accept_removals(&mut self) -> After;
    /// Does what is due without an event; asked every [`TURN`].
    fn turn(&mut self, _now: Instant) -> After {
        After::Nothing
    }
    /// Writes what is in the table now, or something newer, to a file; `None` while what the file
    /// has is better.
    fn save(&self) -> Option<impl FnOnce(&Path) -> io::Result<()> + Send + 'static>;
}

/// Applies the store's rows; never returns. The file is written beside it: what the store says is
/// applied meanwhile, however slow the disk is.
///
/// # Cancel safety
/// Dropping it stops the table where it is; the file may be a few seconds behind.
pub(crate) async fn follow<A: Applier>(store: Store, mut applier: A, file: PathBuf) {
    let mut subscriber = Subscriber::new(store, A::PREFIX);
    let mut unwritten_since = None;
    let mut quiet_at = Instant::now();
    let mut writing: Option<JoinHandle<io::Result<()>>> = None;
    let mut turns = tokio::time::interval(TURN);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        applier.followed().turn();
        let write_at = unwritten_since.map(|since: Instant| quiet_at.min(since + UNWRITTEN_MAX));
        let after = tokio::select! {
            // Overdue writing goes first, or a feed that never pauses would put it off for good.
            biased;
            written = end_of(&mut writing), if writing.is_some() => {
                writing = None;
                if let Err(error) = written {
                    tracing::warn!(path = %file.display(), %error, "last-known-good {} not written", A::WHAT);
                }
                After::Nothing
            }
            () = tokio::time::sleep_until(write_at.unwrap_or(quiet_at)), if write_at.is_some() && writing.is_none() => {
                writing = begin_to_write(&applier, &file);
                unwritten_since = None;
                After::Nothing
            }
            () = applier.followed().removals_accepted() => applier.accept_removals(),
            heard = subscriber.next() => match heard {
                Heard::Event(event) => {
                    applier.followed().mark_fresh();
                    applier.handle(event, Instant::now())
                }
                Heard::Lost => {
                    applier.followed().mark_stale();
                    applier.lost();
                    // From here on the file is all that a next start may have.
                    quiet_at = Instant::now();
                    After::Nothing
                }
            },
            now = turns.tick() => applier.turn(now),
        };
        match after {
            After::Nothing => continue,
            After::Changed => quiet_at = Instant::now() + SETTLE,
            After::Synced => quiet_at = Instant::now(),
        }
        unwritten_since.get_or_insert_with(Instant::now);
    }
}

fn begin_to_write<A: Applier>(applier: &A, file: &Path) -> Option<JoinHandle<io::Result<()>>> {
    let (write, to) = (applier.save()?, file.to_owned());
    Some(tokio::task::spawn_blocking(move || write(&to)))
}

/// Waits for the end of what is being written; for ever when nothing is. Cancel safe.
async fn end_of(writing: &mut Option<JoinHandle<io::Result<()>>>) -> io::Result<()> {
    match writing {
        Some(writing) => writing.await.unwrap_or_else(|error| Err(io::Error::other(error))),
        None => std::future::pending().await,
    }
}

/// Which state of which store the file is from, if there is one.
pub(crate) fn saved_cursor(file: &Path) -> Option<Cursor> {
    // Whoever loaded the file has said already that it cannot be read.
    last_known_good::cursor(file).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Embedded, EmbeddedStore};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::mpsc::{Receiver, channel};
    use std::sync::{Mutex, PoisonError};

    /// Counts changes; its file is written when it is let.
    struct Slow {
        followed: Arc<Followed>,
        changes: Arc<AtomicUsize>,
        writes: Arc<AtomicUsize>,
        gate: Arc<Mutex<Receiver<()>>>,
    }

    impl Applier for Slow {
        const PREFIX: &'static str = "sprite/";
        const WHAT: &'static str = "rows";

        fn followed(&self) -> &Followed {
            &self.followed
        }

        fn handle(&mut self, event: FeedEvent, _: Instant) -> After {
            match event {
                FeedEvent::SnapshotEnd(_) => After::Synced,
                FeedEvent::Put(..) => {
                    self.changes.fetch_add(1, SeqCst);
                    After::Changed
                }
                _ => After::Nothing,
            }
        }

        fn accept_removals(&mut self) -> After {
            After::Nothing
        }

        fn save(&self) -> Option<impl FnOnce(&Path) -> io::Result<()> + Send + 'static> {
            let (gate, writes) = (Arc::clone(&self.gate), Arc::clone(&self.writes));
            Some(move |_: &Path| {
                writes.fetch_add(1, SeqCst);
                let _ = gate.lock().unwrap_or_else(PoisonError::into_inner).recv();
                Ok(())
            })
        }
    }

    async fn until(what: &str, wanted: impl Fn() -> bool) {
        let found = async {
            while !wanted() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), found).await.expect(what);
    }

    #[tokio::test]
    async fn changes_are_applied_while_the_file_is_written_one_write_at_a_time_and_the_loop_turns_when_it_is_quiet() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(EmbeddedStore::open(&dir.path().join("s")).unwrap());
        let (go_on, gate) = channel();
        let (followed, changes, writes) = (Arc::<Followed>::default(), Arc::default(), Arc::default());
        let slow = Slow {
            followed: Arc::clone(&followed),
            changes: Arc::clone(&changes),
            writes: Arc::clone(&writes),
            gate: Arc::new(Mutex::new(gate)),
        };
        let engine: Store = Arc::new(Embedded(Arc::clone(&store)));
        let following = tokio::spawn(follow(engine, slow, dir.path().join("f")));
        until("the first write does not begin", || writes.load(SeqCst) == 1).await;
        for (number, key) in ["sprite/a", "sprite/b", "sprite/c"].into_iter().enumerate() {
            store.compare_and_set(key, None, Some(b"x")).unwrap();
            until("a change is not applied", || changes.load(SeqCst) == number + 1).await;
        }
        // Long settled: but there is one write at a time.
        let turns = followed.turns();
        until("it does not turn", || followed.turns() >= turns + 2).await;
        assert_eq!(writes.load(SeqCst), 1);
        go_on.send(()).unwrap();
        until("what came meanwhile is not written", || writes.load(SeqCst) == 2).await;
        drop(go_on);
        following.abort();
    }
}
