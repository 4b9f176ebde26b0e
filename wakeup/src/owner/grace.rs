//! A sleep by order closes the gate when what is open has ended, or has had its time.
//!
//! What passes through this host is bytes: a request that is with its guest, and not answered yet, is known to its
//! edge alone. So the edges are asked, again and again, until none of them has one, and then the gate is closed.

use super::handle::{Command, Event};
use crate::spec::Depth;
use backhaul::activity::RunActivity;
use router::names::SpriteName;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How long an explicit sleep lets open requests end (chosen).
const SLEEP_GRACE: Duration = Duration::from_secs(2);
/// How long the edges may take to say what they have open (`super::core`: what a stop waits for them).
const ANSWERS: Duration = Duration::from_secs(1);
/// Pause before they are asked again, and between two tries to close the gate (chosen).
const PAUSE: Duration = Duration::from_millis(5);

/// Whose gate is closed, and how it was asked for.
pub(super) struct Closing {
    pub(super) name: SpriteName,
    pub(super) run: u64,
    pub(super) token: u64,
    pub(super) force: Option<Depth>,
    /// None when its port never answered, so that nothing can be open.
    pub(super) activity: Option<Arc<RunActivity>>,
}

impl Closing {
    /// Closes it, and reports.
    pub(super) async fn run(self, commands: mpsc::Sender<Command>) {
        let end = Instant::now() + SLEEP_GRACE;
        if self.force.is_some() && self.activity.is_some() {
            self.edges_are_done(&commands, end).await;
        }
        let close = || self.activity.as_ref().is_none_or(|activity| activity.close_if_idle());
        let mut closed = close();
        while !closed && self.force.is_some() && Instant::now() < end {
            tokio::time::sleep(PAUSE).await;
            closed = close();
        }
        if let (Some(activity), Some(_)) = (&self.activity, self.force) {
            activity.end();
            closed = true;
        }
        let Self { name, run, token, force, .. } = self;
        let _ = commands.send(Command::Event(name, run, Event::Gate { token, closed, forced: force })).await;
    }

    /// Waits until no edge has a request open, `end` at the latest; sockets are told when the run ends.
    async fn edges_are_done(&self, commands: &mpsc::Sender<Command>, end: Instant) {
        loop {
            let (sender, asked) = oneshot::channel();
            if commands.send(Command::AskEdges(self.name.clone(), self.run, sender)).await.is_err() {
                return;
            }
            let Ok(answered) = asked.await else { return };
            // One that does not answer is not waited for: what it claimed last counts.
            let by = end.min(Instant::now() + ANSWERS);
            drop(tokio::time::timeout_at(by.into(), answered).await);
            let (sender, open) = oneshot::channel();
            let name = self.name.clone();
            let look = Command::Core(Box::new(move |core, _| {
                // Who asked may have given up.
                let _ = sender.send(core.requests_at_edges(Instant::now(), &name));
            }));
            if commands.send(look).await.is_err() {
                return;
            }
            match open.await {
                Ok(open) if open > 0 && Instant::now() < end => tokio::time::sleep(PAUSE).await,
                _ => return,
            }
        }
    }
}
