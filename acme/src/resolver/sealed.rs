//! Certificates that lie sealed until somebody asks for their name.
//!
//! They are opened before rustls is asked, since its resolver cannot wait: whoever accepts a connection reads its
//! ClientHello, looks the name up, and opens what is sealed on a thread for such work. However many ask for
//! one name at once, it is opened once.

use super::opened::Opened;
use super::{Certificate, Handle};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Names that are being opened at one moment (chosen: a burst after a start; 13 µs each, tls-acme-dns.md §6).
const FLIGHTS_MAX: usize = 1_024;

/// Why a certificate was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The store could not: the row is gone, was tampered with, or holds no certificate.
    #[error("a sealed certificate cannot be opened: {0}")]
    Store(String),
    /// Too many others are being opened.
    #[error("too many certificates are being opened")]
    Busy,
}

/// Where sealed certificates lie.
///
/// A handle names bytes that never change: another certificate has another handle.
pub trait SealedStore: Send + Sync + 'static {
    /// Reads and opens one. May block, for a disk at most: it is called on a thread for such work.
    ///
    /// # Errors
    /// [`OpenError::Store`].
    fn open(&self, handle: Handle) -> Result<Certificate, OpenError>;
}

type Outcome = Option<Result<Certificate, OpenError>>;

/// Opens, once for all who ask, and keeps what is open.
pub(super) struct Opener {
    store: Arc<dyn SealedStore>,
    pub(super) opened: Opened,
    flights: Mutex<HashMap<Handle, watch::Receiver<Outcome>>>,
}

impl Opener {
    pub(super) fn new(store: Arc<dyn SealedStore>, most: usize) -> Arc<Self> {
        Arc::new(Self { store, opened: Opened::new(most), flights: Mutex::default() })
    }

    /// On this thread, now.
    pub(super) fn open_here(&self, handle: Handle) -> Result<Certificate, OpenError> {
        let certificate = self.store.open(handle)?;
        self.opened.add(handle, certificate.clone());
        Ok(certificate)
    }

    /// # Cancel safety
    /// The opening goes on, for whoever asks next.
    pub(super) async fn open(self: &Arc<Self>, handle: Handle) -> Result<Certificate, OpenError> {
        if let Some(certificate) = self.opened.get(handle) {
            return Ok(certificate);
        }
        let mut landing = self.join(handle)?;
        let landed = landing.wait_for(Option::is_some).await;
        let outcome = landed.ok().and_then(|outcome| outcome.clone());
        outcome.unwrap_or_else(|| Err(OpenError::Store("whoever opened it has failed".into())))
    }

    fn join(self: &Arc<Self>, handle: Handle) -> Result<watch::Receiver<Outcome>, OpenError> {
        let mut flights = self.flights();
        if let Some(flight) = flights.get(&handle) {
            return Ok(flight.clone());
        }
        if flights.len() >= FLIGHTS_MAX {
            return Err(OpenError::Busy);
        }
        let (lands, landing) = watch::channel(None);
        flights.insert(handle, landing.clone());
        drop(flights);
        let landing_place = Landing { opener: Arc::clone(self), handle };
        tokio::task::spawn_blocking(move || {
            let outcome = landing_place.opener.open_here(handle);
            drop(landing_place);
            lands.send_replace(Some(outcome));
        });
        Ok(landing)
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Handle, watch::Receiver<Outcome>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the flight, however it ends.
struct Landing {
    opener: Arc<Opener>,
    handle: Handle,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.opener.flights().remove(&self.handle);
    }
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener").field("opened", &self.opened.len()).finish_non_exhaustive()
    }
}
