//! An owner at work, with a sprite that always runs: no driver, no session.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics where it stands")]

mod clock;
mod distrusts_edges;

use router::names::SpriteName;
use wakeup::drivers::DoorKeeper;
use wakeup::ledger::LedgerSettings;
use wakeup::owner::{HostSettings, OwnerHandle, Rang};
use wakeup::spec::{DriverSpec, SpriteSpec};

async fn owner() -> (OwnerHandle, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let settings = HostSettings {
        directory: directory.path().join("sprites"),
        host: config::Host::default(),
        drivers: config::Drivers::default(),
        doors: DoorKeeper::default(),
        rang: Rang::default(),
        ledger: LedgerSettings { directory: directory.path().join("ledger"), segment_bytes: 1 << 20, keep_bytes: 0 },
    };
    (OwnerHandle::start(settings).await.unwrap(), directory)
}

/// A sprite that always runs.
fn app(generation: u64) -> SpriteSpec {
    let driver = DriverSpec::Fixed { address: "127.0.0.1:9".parse().unwrap() };
    SpriteSpec::new(SpriteName::parse("app").unwrap(), generation, driver)
}
