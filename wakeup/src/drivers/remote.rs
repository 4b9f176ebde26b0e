//! Machines somebody else runs: who is told to wake one says where it is, and nobody here
//! sees it end. What is common to every way of telling is here; how it is told is an
//! [`Orchestrator`]'s.

use super::{DriverError, Started, WakeDriver};
use crate::spec::{Depth, SpriteSpec};
use backhaul::owner::BoxFuture;
use router::names::SpriteName;
use serde::Deserialize;
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::oneshot;

/// Wakes machines and puts them to sleep. Both must be safe to repeat.
pub trait Orchestrator: Send + Sync + 'static {
    /// Wakes one, after a warm sleep if `resume`; where it will answer.
    fn wake(&self, spec: &SpriteSpec, resume: bool) -> impl Future<Output = Result<SocketAddr, DriverError>> + Send;
    /// Puts one to sleep; nothing of it runs afterwards.
    fn sleep(&self, spec: &SpriteSpec, depth: Depth) -> impl Future<Output = Result<(), DriverError>> + Send;
}

/// What a wake is answered with.
#[derive(Deserialize)]
pub(super) struct Woken {
    pub(super) address: SocketAddr,
}

/// The driver of one orchestrator's machines.
pub struct Remote<O>(Arc<Inner<O>>);

struct Inner<O> {
    orchestrator: O,
    machines: Mutex<HashMap<SpriteName, Machine>>,
}

struct Machine {
    spec: SpriteSpec,
    address: SocketAddr,
    /// Nobody tells when it ends; dropped with it.
    _exited: oneshot::Sender<String>,
}

impl<O> Remote<O> {
    pub(super) fn of(orchestrator: O) -> Self {
        Self(Arc::new(Inner { orchestrator, machines: Mutex::default() }))
    }

    /// The orchestrator, before anything is under way; for tests.
    #[cfg(test)]
    pub(super) fn orchestrator_mut(&mut self) -> &mut O {
        &mut Arc::get_mut(&mut self.0).expect("nothing is under way").orchestrator
    }
}

impl<O> Inner<O> {
    fn lock(&self) -> MutexGuard<'_, HashMap<SpriteName, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spec_of(&self, name: &SpriteName) -> Result<SpriteSpec, DriverError> {
        self.lock().get(name).map(|machine| machine.spec.clone()).ok_or(DriverError::NoGuest)
    }
}

impl<O: Orchestrator> WakeDriver for Remote<O> {
    fn start(&self, spec: &SpriteSpec) -> BoxFuture<Result<Started, DriverError>> {
        let (inner, spec) = (Arc::clone(&self.0), spec.clone());
        Box::pin(async move {
            let at = Instant::now();
            let address = inner.orchestrator.wake(&spec, false).await?;
            let (sender, exited) = oneshot::channel();
            inner.lock().insert(spec.name.clone(), Machine { spec, address, _exited: sender });
            Ok(Started { address, at, exited })
        })
    }

    fn resume(&self, name: &SpriteName) -> BoxFuture<Result<Instant, DriverError>> {
        let (inner, name) = (Arc::clone(&self.0), name.clone());
        Box::pin(async move {
            let spec = inner.spec_of(&name)?;
            let at = Instant::now();
            let address = inner.orchestrator.wake(&spec, true).await?;
            if let Some(machine) = inner.lock().get_mut(&name) {
                machine.address = address;
            }
            Ok(at)
        })
    }

    fn freeze(&self, name: &SpriteName) -> BoxFuture<Result<(), DriverError>> {
        let (inner, name) = (Arc::clone(&self.0), name.clone());
        Box::pin(async move { inner.orchestrator.sleep(&inner.spec_of(&name)?, Depth::Warm).await })
    }

    fn end(&self, name: &SpriteName) -> BoxFuture<()> {
        let (inner, name) = (Arc::clone(&self.0), name.clone());
        Box::pin(async move {
            let Some(machine) = inner.lock().remove(&name) else { return };
            if let Err(error) = inner.orchestrator.sleep(&machine.spec, Depth::Cold).await {
                tracing::warn!(sprite = %name, %error, "a machine may still run");
            }
        })
    }

    /// Whoever woke it says where it is; nobody here can know better.
    fn owns_listener(&self, _name: &SpriteName, _address: SocketAddr) -> bool {
        true
    }

    fn address(&self, name: &SpriteName) -> Option<SocketAddr> {
        self.0.lock().get(name).map(|machine| machine.address)
    }
}
