//! The host's ends of the sessions: one, and while its keys change two, the old one for what is open on it.

use super::{End, ServerEnd, peers};
use anyhow::Context;
use backhaul::session::{AppliedSink, HostServer};
use router::pops::PopTable;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use wakeup::owner::OwnerHandle;

/// What is asked of the host's thread. One at a time.
pub(crate) enum Order {
    /// Serves with other keys beside the present ones, and says where.
    Begin(Box<End>, SocketAddr, oneshot::Sender<anyhow::Result<SocketAddr>>),
    /// Edges have been told: the present keys are the old ones, and end after this long.
    Change(Duration),
    /// They could not be told: the other keys are given up.
    GiveUp,
}

/// The ends there are.
pub(super) struct Servers {
    present: Option<HostServer>,
    next: Option<HostServer>,
    old: Option<(HostServer, Instant)>,
    /// Who waits for what edges have applied.
    applied: Option<AppliedSink>,
}

impl Servers {
    pub(super) const fn new(present: Option<HostServer>, applied: Option<AppliedSink>) -> Self {
        Self { present, next: None, old: None, applied }
    }

    /// Lets in whoever the registry says and changes keys when it is asked to; never returns.
    pub(super) async fn serve(
        &mut self,
        owner: &OwnerHandle,
        pops: Option<Arc<PopTable>>,
        inner_mtu: u16,
        mut orders: mpsc::Receiver<Order>,
    ) {
        let Some(pops) = pops else { return std::future::pending().await };
        let mut changes = pops.changes();
        // The server began with what was known; there may be more by now.
        changes.mark_changed();
        loop {
            let ends = self.old.as_ref().map(|(_, ends)| *ends);
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    self.admit(&pops);
                }
                Some(order) = orders.recv() => self.obey(order, owner, &pops, inner_mtu),
                () = tokio::time::sleep_until(ends.unwrap_or_else(Instant::now)), if ends.is_some() => {
                    tracing::info!("the old keys of this host are out of use");
                    self.old = None;
                }
            }
        }
    }

    fn admit(&self, pops: &PopTable) {
        let old = self.old.as_ref().map(|(old, _)| old);
        for server in [self.present.as_ref(), self.next.as_ref(), old].into_iter().flatten() {
            server.set_edges(peers(pops));
        }
    }

    fn obey(&mut self, order: Order, owner: &OwnerHandle, pops: &Arc<PopTable>, inner_mtu: u16) {
        match order {
            Order::Begin(own, listen, told) => {
                let (edges, applied) = (super::Edges::All(Arc::clone(pops)), self.applied.clone());
                let server = ServerEnd { own: *own, edges, listen, inner_mtu, applied };
                let began = server.start(owner).context("the next keys").map(|server| {
                    let listens = server.local_addr();
                    self.next = Some(server);
                    self.admit(pops);
                    listens
                });
                drop(told.send(began));
            }
            Order::Change(old_for) => {
                if let Some(next) = self.next.take() {
                    let old = self.present.replace(next);
                    self.old = old.map(|old| (old, Instant::now() + old_for));
                }
            }
            Order::GiveUp => self.next = None,
        }
    }

    /// Says goodbye on all of them.
    pub(super) async fn shutdown(self) {
        let old = self.old.map(|(old, _)| old);
        for server in [self.present, self.next, old].into_iter().flatten() {
            server.shutdown().await;
        }
    }
}
