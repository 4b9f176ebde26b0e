//! How a waiter hears: the core's answers in the words of the wire, for an edge or for us.

use super::core::Answer;
use backhaul::owner::AnswerSink;
use backhaul::wire::{
    Accepted, Cause, Gone, Moved, Opened, Outcome, OwnerMessage, Progress, Refused, Reply, ToEdge, Unknown, WakeAnswer,
};
use std::time::Duration;
use tokio::sync::oneshot;

/// How one waiter is reached.
pub(super) enum Ear {
    Own(Option<oneshot::Sender<Result<Opened, Reply>>>),
    Edge(Option<AnswerSink>, u128),
}

impl Ear {
    pub(super) fn tell(self, answer: Answer) {
        match self {
            Self::Own(Some(sender)) => {
                if let Some(result) = result_of(answer) {
                    // Dropped: it was withdrawn in this moment.
                    let _ = sender.send(result);
                }
            }
            Self::Edge(Some(sink), id) => {
                let answer = WakeAnswer {
                    wake_id_high: (id >> 64) as u64,
                    wake_id_low: id as u64,
                    outcome: Some(outcome_of(answer)),
                };
                sink(ToEdge { message: Some(OwnerMessage::Answer(answer)) });
            }
            Self::Own(None) | Self::Edge(None, _) => {}
        }
    }
}

pub(super) fn port_closed() -> Answer {
    Answer::Refused { cause: Cause::PortClosed, retry_after: Duration::from_secs(2), detail: String::new() }
}

pub(super) fn port_not_declared() -> Answer {
    Answer::Refused { cause: Cause::PortNotDeclared, retry_after: Duration::ZERO, detail: String::new() }
}

/// The ledger is full (chosen: a disk that is full or slow is not mended sooner).
pub(super) fn unwritten() -> Answer {
    let detail = "the ledger of runs cannot be written".into();
    Answer::Refused { cause: Cause::HostBusy, retry_after: Duration::from_secs(5), detail }
}

pub(super) fn refused(cause: Cause, retry_after: Duration, detail: &str) -> Refused {
    let retry_after_ms = u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX);
    Refused { cause: cause.into(), retry_after_ms, detail: detail.into() }
}

fn outcome_of(answer: Answer) -> Outcome {
    match answer {
        Answer::Accepted { joined, held, eta } => {
            let eta_ms = u32::try_from(eta.as_millis()).unwrap_or(u32::MAX);
            Outcome::Accepted(Accepted { joined, held, eta_ms })
        }
        Answer::Progress(phase) => Outcome::Progress(Progress { phase: phase.into() }),
        Answer::Ready(opened) => Outcome::Ready(opened),
        Answer::Refused { cause, retry_after, detail } => Outcome::Refused(refused(cause, retry_after, &detail)),
        Answer::Gone { generation } => Outcome::Gone(Gone { generation }),
        Answer::Moved { host, generation } => Outcome::Moved(Moved { host, generation }),
        Answer::Unknown { generation } => Outcome::Unknown(Unknown { my_generation: generation }),
    }
}

/// `None` while the wait goes on.
pub(super) fn result_of(answer: Answer) -> Option<Result<Opened, Reply>> {
    match outcome_of(answer) {
        Outcome::Accepted(_) | Outcome::Progress(_) => None,
        Outcome::Ready(opened) => Some(Ok(opened)),
        Outcome::Refused(refused) => Some(Err(Reply::Refused(refused))),
        Outcome::Moved(moved) => Some(Err(Reply::Moved(moved))),
        Outcome::Gone(gone) => Some(Err(Reply::Gone(gone))),
        Outcome::Unknown(unknown) => Some(Err(Reply::Unknown(unknown))),
    }
}
