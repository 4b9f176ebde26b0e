//! What goes in and out of the owner's core, in types.
//!
//! Only words: nothing here decides, and nothing knows a driver or a socket.

use super::super::sprite::{WaiterId, WakeRecord};
use crate::ledger::StopReason;
use crate::spec::Depth;
use backhaul::wire::{Cause, ClientClass, Opened, Phase, WakeKind};
use router::names::SpriteName;
use std::time::{Duration, Instant};

/// Figures of the host that the core decides by.
#[derive(Clone, Debug)]
pub struct CoreSettings {
    /// Without activity for this long a sprite is frozen.
    pub idle_timeout: Duration,
    /// Frozen for this long it is ended.
    pub warm_for: Duration,
    /// It runs at least this long after a wake.
    pub minimum_run: Duration,
    /// Anonymous wakes of one sprite in an hour, and how many of them at once.
    pub wakes_per_hour: u32,
    /// See `wakes_per_hour`.
    pub wake_burst: u32,
    /// Idle timeout of a sprite that is over it, for the rest of the hour.
    pub busy_idle_timeout: Duration,
    /// Sprites of one tenant that may run at the same time; 0 is no bound.
    pub running_per_tenant: usize,
    /// Idle timeout of an abandoned wake.
    pub abandoned_timeout: Duration,
    /// How long open sockets without data keep a sprite awake.
    pub silent_sockets: Duration,
    /// How long a closed port is waited for.
    pub port_wait: Duration,
    /// Guests starting at once; four times as many may be queued.
    pub start_slots: usize,
    /// Seed of the jitter.
    pub seed: u64,
}

impl From<&config::Host> for CoreSettings {
    /// The figures of a host; the seed is to be set.
    fn from(host: &config::Host) -> Self {
        Self {
            idle_timeout: host.idle_timeout,
            warm_for: host.warm_for,
            minimum_run: host.minimum_run,
            wakes_per_hour: host.wakes_per_hour,
            wake_burst: host.wake_burst,
            busy_idle_timeout: host.busy_idle_timeout,
            running_per_tenant: host.running_per_tenant,
            abandoned_timeout: host.abandoned_timeout,
            silent_sockets: host.silent_sockets,
            port_wait: host.port_wait,
            start_slots: host.start_slots,
            seed: 0,
        }
    }
}

/// What the core asks of its shell. `token` comes back with the result.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the sentence of a variant covers its fields")]
pub enum Action {
    /// Start the guest from its disk, then watch its port.
    Start { name: SpriteName, run: u64, token: u64 },
    /// Continue the frozen guest, then watch its port.
    Continue { name: SpriteName, run: u64, token: u64 },
    /// Watch the port of the running guest.
    Probe { name: SpriteName, token: u64 },
    /// Close the run's gate: at once if nothing is open, else only with `force`, which
    /// gives what is open a little time.
    CloseGate { name: SpriteName, run: u64, token: u64, force: Option<Depth> },
    /// The stop was called off.
    ReopenGate { name: SpriteName, run: u64 },
    /// Nothing new begins with the run; what is open goes on.
    Hold { name: SpriteName, run: u64 },
    /// That is over.
    Unhold { name: SpriteName, run: u64 },
    /// Tell every edge that the run is about to end, and what is silent with it; `forced`: whatever
    /// is open. The edges' answers are for [`super::OwnerCore::handle_cordoned`].
    Cordon { name: SpriteName, run: u64, forced: bool },
    /// End the run's streams, then freeze the guest.
    Freeze { name: SpriteName, run: u64, token: u64 },
    /// End the run's streams, then put the guest to sleep with nothing left in memory.
    Suspend { name: SpriteName, run: u64, token: u64 },
    /// End the run's streams, then end the guest and whatever is kept of it.
    End { name: SpriteName, run: u64, token: u64 },
    /// The sprite is no more: end the run's streams and the guest, and remove what was made
    /// for it.
    Destroy { name: SpriteName, run: u64, token: u64 },
    /// Tell a stream that waited to be known here that it is worth asking again.
    CaughtUp { waiter: WaiterId },
    /// Tell one waiter.
    Answer { waiter: WaiterId, name: SpriteName, answer: Answer },
    /// The guest runs and its port answers (or answered once), since then.
    Running { name: SpriteName, run: u64, since: Instant },
    /// The run is over.
    Ended { name: SpriteName, run: u64 },
    /// A wake came to its end.
    Receipt { name: SpriteName, run: u64, record: WakeRecord, result: &'static str },
    /// For the metrics: a wake nobody waited for in the end.
    Unwanted(Unwanted),
    /// For the ledger: since `at` the driver has it running. `None` as kind: it was found so.
    RunBegan { name: SpriteName, generation: u64, run: u64, at: Instant, kind: WakeKind, reason: String },
    /// For the ledger: the run that began at `since` is over.
    RunEnded { name: SpriteName, generation: u64, run: u64, since: Instant, at: Instant, why: StopReason, wakes: u32 },
    /// For the ledger: a wake came to nothing, and why.
    WakeFailed { name: SpriteName, generation: u64, run: u64, at: Instant, reason: String, detail: String },
    /// For the ledger: it is destroyed.
    Destroyed { name: SpriteName, generation: u64, run: u64, at: Instant },
}

/// What became of a wake nobody waited for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwanted {
    /// It had not begun, and did not.
    Withdrawn,
    /// It was gone through with.
    Abandoned,
}

/// What a waiter is told.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the sentence of a variant covers its fields")]
pub enum Answer {
    /// The wake is known here.
    Accepted { joined: bool, held: bool, eta: Duration },
    /// It entered a phase.
    Progress(Phase),
    /// The port answers. Ends the wait.
    Ready(Opened),
    /// Ends the wait.
    Refused { cause: Cause, retry_after: Duration, detail: String },
    /// Ends the wait.
    Gone { generation: u64 },
    /// Ends the wait: it is placed on that host now.
    Moved { host: String, generation: u64 },
    /// Ends the wait.
    Unknown { generation: u64 },
}

/// What a run has open, as the shell sees it.
pub trait Activity {
    /// Items open now, and when the last byte moved.
    fn activity(&self, name: &SpriteName, run: u64) -> (u32, Instant);
}

/// One wake as an edge asks for it.
#[derive(Clone, Debug)]
pub struct WakeRequest {
    /// Who waits.
    pub waiter: WaiterId,
    /// For whom.
    pub name: SpriteName,
    /// The placement the edge believes in.
    pub generation: u64,
    /// When the waiter gives up.
    pub deadline: Instant,
    /// For the receipt.
    pub reason: String,
    /// Who asked, as far as its edge could tell.
    pub class: ClientClass,
}
