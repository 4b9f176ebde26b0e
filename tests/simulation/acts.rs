//! What the cores want done, done: messages over a bad network, drivers that take their time.

use super::guests::Life;
use super::world::{EDGES, Ended, Event, World};
use backhaul::owner::EdgeId;
use backhaul::wire::{Accepted, EdgeMessage, Gone, Moved, Outcome, Progress, Refused, Unknown, WakeAnswer};
use rand::Rng;
use router::names::SpriteName;
use std::time::Duration;
use wakeup::hold::core as hold;
use wakeup::owner::core::{self as owner, Answer, WakeRequest};
use wakeup::spec::Depth;

impl World {
    /// Does what the cores want done until they want nothing more.
    pub(super) fn settle(&mut self) {
        loop {
            let mut idle = true;
            for edge in 0..EDGES {
                while let Some(action) = self.edges[edge].poll_action() {
                    idle = false;
                    self.edge_acts(edge, action);
                }
            }
            while let Some(action) = self.owner.poll_action() {
                idle = false;
                self.owner_acts(action);
            }
            if idle {
                return;
            }
        }
    }

    /// Sends a control message over the network.
    pub(super) fn send(&mut self, event: &Event) {
        if let Some(at) = self.lose.iter().position(|likes| likes(event)) {
            self.lose.remove(at);
            return;
        }
        if self.chance(self.chances.doubled) {
            let delay = self.delay();
            self.after(delay, event.clone());
        }
        if !self.chance(self.chances.lost) {
            let delay = self.delay();
            self.after(delay, event.clone());
        }
    }

    fn edge_acts(&mut self, edge: usize, action: hold::Action) {
        let session = self.sessions[edge];
        match action {
            hold::Action::Wake(_, wake) => {
                self.wakes_sent += 1;
                self.send(&Event::ToOwner(session, EdgeMessage::Wake(wake)));
            }
            hold::Action::Withdraw(_, withdraw) => self.send(&Event::ToOwner(session, EdgeMessage::Withdraw(withdraw))),
            hold::Action::Release(id, opened) => {
                let request = self.requests.get_mut(&id).filter(|request| request.held);
                request.unwrap_or_else(|| panic!("I3: request {id} is released after its end")).held = false;
                let delay = self.delay();
                self.after(delay, Event::Open(id, opened));
            }
            hold::Action::Refuse(id, error) => self.end(id, Ended::Refused(error)),
            // Every request of this world asks.
            hold::Action::Runs(..) => {}
        }
    }

    /// A message at the owner.
    pub(super) fn at_owner(&mut self, from: EdgeId, message: EdgeMessage) {
        let id = |high: u64, low: u64| (u128::from(high) << 64) | u128::from(low);
        match message {
            EdgeMessage::Wake(wake) => {
                let name = SpriteName::parse(&wake.sprite).expect("edges send names");
                let request = WakeRequest {
                    waiter: (from, id(wake.wake_id_high, wake.wake_id_low)),
                    name,
                    generation: wake.generation,
                    deadline: self.now + Duration::from_millis(wake.deadline_ms.into()),
                    class: wake.client_class(),
                    reason: wake.reason,
                };
                self.owner.handle_wake(self.now, request);
            }
            EdgeMessage::Withdraw(withdraw) => {
                self.owner.handle_withdraw(self.now, (from, id(withdraw.wake_id_high, withdraw.wake_id_low)));
            }
            EdgeMessage::Cordoned(_) => {}
            EdgeMessage::Leases(leases) => {
                for lease in leases.leases {
                    self.owner.handle_lease(self.now, from, &lease);
                }
            }
        }
    }

    fn owner_acts(&mut self, action: owner::Action) {
        use owner::Action::{
            Answer, CloseGate, Continue, Cordon, Destroy, Destroyed, End, Ended, Freeze, Hold, Probe, Receipt,
            ReopenGate, RunBegan, RunEnded, Running, Start, Suspend, Unhold, WakeFailed,
        };
        match action {
            Start { name, run, token } => {
                self.guests.begin(self.now, &name, run, Life::Absent);
                self.starts += 1;
                self.start(name, run, token, self.chances.start_ms);
            }
            Continue { name, run, token } => {
                self.guests.begin(self.now, &name, run, Life::Frozen);
                self.start(name, run, token, 5);
            }
            Probe { name, token } => {
                let guest = self.guests.of(&name);
                if guest.life == Life::Alive {
                    let run = guest.run;
                    self.after(10, Event::PortOpen(name, run, token));
                }
            }
            CloseGate { name, run, token, force } => self.after(1, Event::Gate(name, run, token, force)),
            ReopenGate { name, .. } | Unhold { name, .. } => self.guests.of(&name).gate_closed = false,
            Hold { name, .. } => self.guests.of(&name).gate_closed = true,
            Freeze { name, token, .. } => self.stop(name, token, Depth::Warm),
            Suspend { name, token, .. } | End { name, token, .. } | Destroy { name, token, .. } => {
                self.stop(name, token, Depth::Cold)
            }
            Answer { waiter: (session, id), answer, .. } => {
                let answer = WakeAnswer {
                    wake_id_high: (id >> 64) as u64,
                    wake_id_low: id as u64,
                    outcome: Some(outcome(answer)),
                };
                self.send(&Event::ToEdge(session, answer));
            }
            Running { .. } | Ended { .. } | Cordon { .. } | Receipt { .. } => {}
            RunBegan { .. } | RunEnded { .. } | WakeFailed { .. } | Destroyed { .. } => self.awake.told(&action),
        }
    }

    fn start(&mut self, name: SpriteName, run: u64, token: u64, slow_ms: u64) {
        let status = self.owner.status(&name, self.now).expect("every sprite of the world is known");
        assert!(!status.held, "run {run} of {name} begins while it is held");
        let took = self.rng.random_range(0..=slow_ms);
        if self.chance(self.chances.start_hangs) {
            return;
        }
        if self.chance(self.chances.start_fails) {
            return self.after(took, Event::StartFailed(name, run));
        }
        self.after(took, Event::Started(name.clone(), token));
        if !self.chance(self.chances.never_listens) {
            let listens = took + self.rng.random_range(0..=slow_ms);
            self.after(listens, Event::PortOpen(name, run, token));
        }
    }

    /// It answers no more at once, and is gone or frozen a little later.
    fn stop(&mut self, name: SpriteName, token: u64, depth: Depth) {
        let life = self.guests.of(&name).life;
        self.guests.stop(&name, life);
        let took = self.rng.random_range(0..300);
        self.after(took, Event::Stopped(name, token, depth));
    }
}

fn outcome(answer: Answer) -> Outcome {
    match answer {
        Answer::Accepted { joined, held, eta } => {
            let eta_ms = u32::try_from(eta.as_millis()).unwrap_or(u32::MAX);
            Outcome::Accepted(Accepted { joined, held, eta_ms })
        }
        Answer::Progress(phase) => Outcome::Progress(Progress { phase: phase.into() }),
        Answer::Ready(opened) => Outcome::Ready(opened),
        Answer::Refused { cause, retry_after, detail } => {
            let retry_after_ms = u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX);
            Outcome::Refused(Refused { cause: cause.into(), retry_after_ms, detail })
        }
        Answer::Gone { generation } => Outcome::Gone(Gone { generation }),
        Answer::Moved { host, generation } => Outcome::Moved(Moved { host, generation }),
        Answer::Unknown { generation } => Outcome::Unknown(Unknown { my_generation: generation }),
    }
}
