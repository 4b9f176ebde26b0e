//! The sprite's own door, as drivers see it: something that listens for one guest and speaks
//! for that sprite only. What it says is not theirs to know.

use router::names::SpriteName;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Opens and closes the doors of guests.
pub trait Doors: Send + Sync + 'static {
    /// Opens the door of a guest that is about to start; the unix socket it can speak to.
    ///
    /// # Errors
    /// The socket could not be made; the guest starts without a door then.
    fn open(&self, name: &SpriteName) -> io::Result<PathBuf>;
    /// Its guest has ended.
    fn close(&self, name: &SpriteName);
}

/// The doors of a host; none when guests get none.
#[derive(Clone, Default)]
pub struct DoorKeeper(Option<Arc<dyn Doors>>);

impl DoorKeeper {
    /// Guests get these.
    #[must_use]
    pub fn new(doors: Arc<dyn Doors>) -> Self {
        Self(Some(doors))
    }

    /// The door of a guest that is about to start, if it can have one.
    pub(super) fn open(&self, name: &SpriteName) -> Option<PathBuf> {
        let opened = self.0.as_ref()?.open(name);
        opened.inspect_err(|error| tracing::warn!(sprite = %name, %error, "it starts without its door")).ok()
    }

    pub(super) fn close(&self, name: &SpriteName) {
        if let Some(doors) = &self.0 {
            doors.close(name);
        }
    }
}

impl std::fmt::Debug for DoorKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DoorKeeper({})", if self.0.is_some() { "open" } else { "none" })
    }
}
