//! The `direct` link: no tunnel, no session. The owner is asked in-process and the
//! guest's port is connected over plain TCP. Insecure beyond one machine, and named so.

use crate::owner::{Admitted, AnswerSink, EdgeId, Owner};
use crate::stream::GuestStream;
use crate::wire::{Open, ToEdge, ToOwner};
use crate::{EdgeEvents, OpenError};
use router::route::HostId;
use std::sync::{Arc, OnceLock};
use tokio::net::TcpStream;

/// The only edge an in-process owner knows.
const EDGE: EdgeId = EdgeId(0);

/// The direct link of one process.
pub struct Direct {
    owner: Arc<dyn Owner>,
    events: OnceLock<Arc<dyn EdgeEvents>>,
}

impl Direct {
    pub(crate) fn new(owner: Arc<dyn Owner>) -> Self {
        Self { owner, events: OnceLock::new() }
    }

    pub(crate) fn set_events(&self, events: Arc<dyn EdgeEvents>) {
        // The first one stays: it is set once, when the edge is put together.
        let _ = self.events.set(events);
    }

    pub(crate) fn send(&self, host: HostId, message: ToOwner) {
        let events = self.events.get().cloned();
        let answers: AnswerSink = Arc::new(move |answer: ToEdge| {
            if let Some(events) = &events {
                events.answer(host, answer);
            }
        });
        self.owner.control(EDGE, message, &answers);
    }

    pub(crate) async fn open(&self, open: Open) -> Result<GuestStream, OpenError> {
        let sprite = open.sprite.clone();
        let Admitted { opened, guest, activity } = self.owner.open(EDGE, open).await.map_err(OpenError::NotOpened)?;
        let connected = TcpStream::connect(guest).await.and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp));
        match connected {
            Ok(tcp) => Ok(GuestStream::direct(tcp, opened, activity)),
            Err(error) => {
                self.owner.guest_unreachable(&sprite, opened.run);
                Err(OpenError::GuestConnect(error))
            }
        }
    }
}
