//! The sprite's own door: HTTP on a unix socket that its guest finds in `$SPRITE_API`.
//!
//! An agent lives inside the sprite; here it can share a link, expose a port, stay awake for
//! a build, set a timer. A door is open while its guest lives and speaks for that sprite only:
//! whoever can open the socket is the guest.

mod api;

use crate::admin::Admin;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use router::names::SpriteName;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use wakeup::drivers::Doors;

/// Connections of one guest at a time; further ones wait (chosen: a tool or two and a watcher).
const CONNECTIONS_MAX: usize = 16;
/// A connection that says nothing is closed (chosen).
const HEAD_WAIT: Duration = Duration::from_secs(10);

/// The doors of this host's guests.
pub struct SpriteDoors {
    /// Each sprite has a directory in it, and its socket in that.
    directory: PathBuf,
    /// Set once the process is put together; until then nothing is answered.
    admin: OnceLock<Weak<Admin>>,
    open: Mutex<HashMap<SpriteName, AbortHandle>>,
    /// Doors are opened from the host's thread and serve on the control runtime.
    runtime: tokio::runtime::Handle,
}

impl SpriteDoors {
    /// For sprites with a directory in `directory`; they serve on the current runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(directory: PathBuf) -> Arc<Self> {
        let runtime = tokio::runtime::Handle::current();
        Arc::new(Self { directory, admin: OnceLock::new(), open: Mutex::default(), runtime })
    }

    /// What the doors work on, from now on.
    pub fn serve(&self, admin: &Arc<Admin>) {
        // The first one stays: there is one process.
        let _ = self.admin.set(Arc::downgrade(admin));
    }

    /// A timer of a sprite has rung: it is not to ring again after a restart.
    pub fn rang(&self, name: &SpriteName, at_unix_ms: u64) {
        if let Some(admin) = self.admin.get().and_then(Weak::upgrade) {
            api::forget_timer(&admin, name, at_unix_ms);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SpriteName, AbortHandle>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Doors for SpriteDoors {
    fn open(&self, name: &SpriteName) -> io::Result<PathBuf> {
        self.close(name);
        let path = std::path::absolute(self.directory.join(name.as_str()).join("api.sock"))?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = {
            let _runtime = self.runtime.enter();
            UnixListener::bind(&path)?
        };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        let serving = self.runtime.spawn(accept(listener, name.clone(), self.admin.get().cloned()));
        self.lock().insert(name.clone(), serving.abort_handle());
        Ok(path)
    }

    fn close(&self, name: &SpriteName) {
        if let Some(serving) = self.lock().remove(name) {
            serving.abort();
            // The next guest makes its own; a file that stays is one nobody answers on.
            let _ = std::fs::remove_file(self.directory.join(name.as_str()).join("api.sock"));
        }
    }
}

/// Serves the guest of one sprite until the door is closed.
async fn accept(listener: UnixListener, name: SpriteName, admin: Option<Weak<Admin>>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(sprite = %name, %error, "its door could not accept; pausing");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (name, admin) = (name.clone(), admin.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (name, admin) = (name.clone(), admin.clone());
                async move {
                    Ok::<_, Infallible>(api::answer(admin.and_then(|admin| admin.upgrade()), &name, request).await)
                }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD_WAIT);
            // The guest left: its business.
            drop(server.serve_connection(TokioIo::new(stream), service).await);
            drop(place);
        });
    }
}
