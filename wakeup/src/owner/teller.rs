//! What runs beside the owner's task, one for each guest that is started: it drives the driver
//! and tells what came of it.

use super::handle::{Command, Event};
use crate::drivers::{DriverError, Started, WakeDriver};
use crate::spec::SpriteSpec;
use router::names::SpriteName;
use std::net::SocketAddr;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// A driver task's way back to the owner's task.
pub(super) struct Teller {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) name: SpriteName,
    pub(super) run: u64,
}

impl Teller {
    pub(super) async fn send(&self, event: Event) {
        // The owner's task has ended only when everything has.
        let _ = self.commands.send(Command::Event(self.name.clone(), self.run, event)).await;
    }

    /// Says that only the disk is left; whether it is to be started from that.
    pub(super) async fn memory_lost(&self, token: u64, reason: &str) -> bool {
        tracing::info!(sprite = %self.name, reason, "what it had in memory is lost");
        let (goes_on, told) = oneshot::channel();
        self.send(Event::MemoryLost { token, goes_on }).await;
        told.await.unwrap_or(false)
    }
}

/// Continues a frozen guest. One that cannot be continued has died in its sleep: it is ended,
/// and its memory is lost.
pub(super) async fn resumed(driver: &dyn WakeDriver, name: &SpriteName) -> Result<(Instant, SocketAddr), DriverError> {
    let resumed = driver.resume(name).await;
    match resumed.and_then(|at| Ok((at, driver.address(name).ok_or(DriverError::NoGuest)?))) {
        Ok(resumed) => Ok(resumed),
        Err(error) => {
            driver.end(name).await;
            Err(DriverError::MemoryLost { reason: error.to_string() })
        }
    }
}

/// Starts a guest, and has its end told.
pub(super) async fn started(
    driver: &dyn WakeDriver,
    spec: &SpriteSpec,
    tell: &Teller,
) -> Result<(Instant, SocketAddr), DriverError> {
    let Started { address, at, exited } = driver.start(spec).await?;
    tell_when_it_exits(exited, tell);
    Ok((at, address))
}

/// Tells the owner's task when the guest has ended, whoever ended it.
pub(super) fn tell_when_it_exits(exited: oneshot::Receiver<String>, tell: &Teller) {
    let (commands, name, born) = (tell.commands.downgrade(), tell.name.clone(), tell.run);
    tokio::spawn(async move {
        let Ok(detail) = exited.await else { return };
        if let Some(commands) = commands.upgrade() {
            let _ = commands.send(Command::Event(name, born, Event::Exited { detail, born: Some(born) })).await;
        }
    });
}
