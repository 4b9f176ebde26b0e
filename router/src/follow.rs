//! The loop that keeps a table as the store is, and the file of the table as the table is: the
//! same for routes and domains.

use crate::followed::Followed;
use crate::last_known_good;
use crate::store::{Cursor, FeedEvent, Store};
use crate::subscriber::{Heard, Subscriber};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// Quiet time after which changes are written to the last-known-good file (chosen).
const SETTLE: Duration = Duration::from_millis(200);
/// Longest time changes stay unwritten when it never gets quiet (chosen).
const UNWRITTEN_MAX: Duration = Duration::from_secs(5);

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
    /// An operator says that what vanished is meant to be gone.
    fn accept_removals(&mut self) -> After;
    /// Writes what is in the table now, or something newer, to a file; `None` while what the file
    /// has is better.
    fn save(&self) -> Option<impl FnOnce(&Path) -> io::Result<()> + Send + 'static>;
}

/// Applies the store's rows; never returns.
///
/// # Cancel safety
/// Dropping it stops the table where it is; the file may be a few seconds behind.
pub(crate) async fn follow<A: Applier>(store: Store, mut applier: A, file: PathBuf) {
    let mut subscriber = Subscriber::new(store, A::PREFIX);
    let mut unwritten_since = None;
    let mut quiet_at = Instant::now();
    loop {
        let write_at = unwritten_since.map(|since: Instant| quiet_at.min(since + UNWRITTEN_MAX));
        let after = tokio::select! {
            // Overdue writing goes first, or a feed that never pauses would put it off for good.
            biased;
            () = tokio::time::sleep_until(write_at.unwrap_or(quiet_at)), if write_at.is_some() => {
                save(&applier, &file).await;
                unwritten_since = None;
                continue;
            }
            () = applier.followed().removals_accepted() => applier.accept_removals(),
            heard = subscriber.next() => match heard {
                Heard::Event(event) => {
                    applier.followed().mark_fresh();
                    applier.handle(event, Instant::now())
                }
                Heard::Lost => {
                    applier.followed().mark_stale();
                    // From here on the file is all that a next start may have.
                    quiet_at = Instant::now();
                    After::Nothing
                }
            },
        };
        match after {
            After::Nothing => {}
            After::Changed => {
                quiet_at = Instant::now() + SETTLE;
                unwritten_since.get_or_insert_with(Instant::now);
            }
            After::Synced => save(&applier, &file).await,
        }
    }
}

async fn save<A: Applier>(applier: &A, file: &Path) {
    let Some(write) = applier.save() else { return };
    let to = file.to_owned();
    let written = tokio::task::spawn_blocking(move || write(&to)).await;
    if let Err(error) = written.unwrap_or_else(|error| Err(io::Error::other(error))) {
        tracing::warn!(path = %file.display(), %error, "last-known-good {} not written", A::WHAT);
    }
}

/// Which state of which store the file is from, if there is one.
pub(crate) fn saved_cursor(file: &Path) -> Option<Cursor> {
    // Whoever loaded the file has said already that it cannot be read.
    last_known_good::cursor(file).ok().flatten()
}
