//! A service somebody else runs at an address: always awake, never started or ended here.

use super::{DriverError, Started, WakeDriver};
use crate::spec::SpriteSpec;
use backhaul::owner::BoxFuture;
use router::names::SpriteName;
use std::net::SocketAddr;
use std::time::Instant;

/// One such service.
#[derive(Clone, Copy, Debug)]
pub struct FixedDriver {
    address: SocketAddr,
}

impl FixedDriver {
    /// At `address`.
    #[must_use]
    pub const fn new(address: SocketAddr) -> Self {
        Self { address }
    }
}

impl WakeDriver for FixedDriver {
    fn start(&self, _spec: &SpriteSpec) -> BoxFuture<Result<Started, DriverError>> {
        Box::pin(async { Err(DriverError::NoGuest) })
    }

    fn resume(&self, _name: &SpriteName) -> BoxFuture<Result<Instant, DriverError>> {
        Box::pin(async { Err(DriverError::NoGuest) })
    }

    fn freeze(&self, _name: &SpriteName) -> BoxFuture<Result<(), DriverError>> {
        Box::pin(async { Err(DriverError::NoGuest) })
    }

    fn end(&self, _name: &SpriteName) -> BoxFuture<()> {
        Box::pin(async {})
    }

    fn owns_listener(&self, _name: &SpriteName, address: SocketAddr) -> bool {
        address == self.address
    }

    fn address(&self, _name: &SpriteName) -> Option<SocketAddr> {
        Some(self.address)
    }
}
