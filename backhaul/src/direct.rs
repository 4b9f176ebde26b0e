//! The `direct` link: no tunnel, no session. The owner is asked in-process and the
//! guest's port is connected over plain TCP. Insecure beyond one machine, and named so.

use crate::owner::{Admitted, AnswerSink, EdgeId, Owner};
use crate::stream::GuestStream;
use crate::wire::{Cordon, Cordoned, EdgeMessage, Open, OwnerMessage, ToEdge, ToOwner};
use crate::{EdgeEvents, OpenError};
use router::route::HostId;
use std::sync::{Arc, OnceLock, Weak};
use tokio::net::TcpStream;

/// The only edge an in-process owner knows.
const EDGE: EdgeId = EdgeId(0);

/// The direct link of one process.
pub struct Direct {
    owner: Arc<dyn Owner>,
    events: OnceLock<Arc<dyn EdgeEvents>>,
    me: Weak<Self>,
}

impl Direct {
    pub(crate) fn new(owner: Arc<dyn Owner>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self { owner, events: OnceLock::new(), me: me.clone() })
    }

    pub(crate) fn set_events(&self, events: Arc<dyn EdgeEvents>) {
        // The first one stays: it is set once, when the edge is put together.
        let _ = self.events.set(events);
    }

    pub(crate) fn send(&self, host: HostId, message: ToOwner) {
        let events = self.events.get().cloned();
        let me = self.me.clone();
        let answers: AnswerSink = Arc::new(move |answer: ToEdge| {
            let cordoned = match &answer.message {
                Some(OwnerMessage::Cordon(Cordon { sprite, run, number, .. })) => {
                    Some(Cordoned { sprite: sprite.clone(), run: *run, number: *number, claim: None })
                }
                _ => None,
            };
            if let Some(events) = &events {
                events.answer(host, answer);
            }
            // The gate is the owner's own: it was closed before this was said.
            if let (Some(cordoned), Some(me)) = (cordoned, me.upgrade()) {
                me.send(host, ToOwner { message: Some(EdgeMessage::Cordoned(cordoned)) });
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
