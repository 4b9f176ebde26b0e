//! What the cores want done, done: messages over a bad network, drivers that take their time.

use super::guests::Life;
use super::invariants;
use super::mutations::Mutation;
use super::requests::flight_of;
use super::world::{EDGES, Event, OWNERS, World};
use backhaul::owner::EdgeId;
use backhaul::wire::{Accepted, EdgeMessage, Gone, Moved, Outcome, Progress, Refused, Unknown, WakeAnswer};
use router::names::SpriteName;
use router::route::HostId;
use std::time::Duration;
use wakeup::hold::core as hold;
use wakeup::owner::core::{self as owner, Answer, WakeRequest};
use wakeup::spec::Depth;

/// What a driver reports.
#[derive(Clone, Debug)]
pub(crate) enum Told {
    /// To itself: what it did before is done, it starts or continues the guest.
    Free {
        run: u64,
        token: u64,
        life: Life,
    },
    Started {
        run: u64,
        token: u64,
    },
    PortOpen {
        run: u64,
        token: u64,
    },
    Failed {
        run: u64,
    },
    Exited {
        run: u64,
    },
    Stopped {
        run: u64,
        token: u64,
        depth: Depth,
    },
    Gate {
        run: u64,
        token: u64,
        force: Option<Depth>,
    },
}

impl World {
    /// Does what the cores want done until they want nothing more.
    pub(super) fn settle(&mut self) {
        loop {
            let mut idle = true;
            for edge in 0..EDGES {
                while let Some(action) = self.edges[edge].next_action() {
                    idle = false;
                    self.edge_acts(edge, action);
                }
            }
            for host in 0..OWNERS {
                while let Some(action) = self.owners[host].core.poll_action() {
                    idle = false;
                    self.owner_acts(HostId(host as u32), action);
                }
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
        let session = |world: &Self, host: HostId| world.edges[edge].sessions[host.0 as usize];
        match action {
            hold::Action::Wake(host, wake) => {
                invariants::at_a_wake(self, edge, &wake);
                let name = SpriteName::parse(&wake.sprite).expect("edges send names");
                self.edges[edge].turns.remove(&flight_of(&name, wake.generation));
                self.wakes_sent += 1;
                // A way there and back takes this long in the mean.
                let round_trip = Duration::from_millis(self.chances.delay_ms);
                self.edges[edge].holds.handle_sent(wake.wake_id_high, wake.wake_id_low, round_trip);
                self.send(&Event::ToOwner(session(self, host), EdgeMessage::Wake(wake)));
            }
            hold::Action::Withdraw(host, withdraw) => {
                if !self.mutated(Mutation::NoWithdrawal) {
                    self.send(&Event::ToOwner(session(self, host), EdgeMessage::Withdraw(withdraw)));
                }
            }
            hold::Action::Release(id, opened, _) => self.released(id, &opened),
            hold::Action::Refuse(id, error) => self.refused(id, error),
            hold::Action::Runs(name, generation, run) => {
                self.edges[edge].turns.remove(&flight_of(&name, generation));
                self.edges[edge].views.insert(name, (generation, run));
            }
        }
    }

    /// A message at the owner.
    pub(super) fn at_owner(&mut self, host: HostId, from: EdgeId, message: EdgeMessage) {
        let id = |high: u64, low: u64| (u128::from(high) << 64) | u128::from(low);
        let now = self.now;
        let core = &mut self.owner(host).core;
        match message {
            EdgeMessage::Wake(wake) => {
                let name = SpriteName::parse(&wake.sprite).expect("edges send names");
                let request = WakeRequest {
                    waiter: (from, id(wake.wake_id_high, wake.wake_id_low)),
                    name,
                    generation: wake.generation,
                    deadline: now + Duration::from_millis(wake.deadline_ms.into()),
                    class: wake.client_class(),
                    reason: wake.reason,
                };
                core.handle_wake(now, request);
            }
            EdgeMessage::Withdraw(withdraw) => {
                core.handle_withdraw(now, (from, id(withdraw.wake_id_high, withdraw.wake_id_low)));
            }
            EdgeMessage::Cordoned(_) | EdgeMessage::Applied(_) => {}
            EdgeMessage::Leases(leases) => {
                for lease in leases.leases {
                    core.handle_lease(now, from, &lease);
                }
            }
        }
    }

    fn owner_acts(&mut self, host: HostId, action: owner::Action) {
        use owner::Action::{
            Answer, CaughtUp, CloseGate, Continue, Cordon, Destroy, Destroyed, End, Ended, Freeze, Hold, Probe,
            Receipt, ReopenGate, RunBegan, RunEnded, Running, Start, Suspend, Unhold, Unwanted, WakeFailed,
        };
        match action {
            Start { name, run, token } => {
                invariants::at_a_start(self, host, &name, run);
                self.starts += 1;
                self.begin(host, name, run, token, Life::Absent);
            }
            Continue { name, run, token } => {
                invariants::at_a_start(self, host, &name, run);
                self.begin(host, name, run, token, Life::Frozen);
            }
            Probe { name, token } => {
                let guest = self.owner(host).guests.of(&name);
                if guest.life == Life::Alive && guest.listening {
                    let run = guest.run;
                    self.driver(10, host, name, Told::PortOpen { run, token });
                }
            }
            CloseGate { name, run, token, force } => self.driver(1, host, name, Told::Gate { run, token, force }),
            ReopenGate { name, .. } | Unhold { name, .. } => self.owner(host).guests.of(&name).gate_closed = false,
            Hold { name, .. } => self.owner(host).guests.of(&name).gate_closed = true,
            Freeze { name, token, .. } => self.stop(host, name, token, Depth::Warm),
            Suspend { name, token, .. } | End { name, token, .. } | Destroy { name, token, .. } => {
                self.stop(host, name, token, Depth::Cold);
            }
            Answer { waiter: (session, id), answer, .. } => {
                let answer = WakeAnswer {
                    wake_id_high: (id >> 64) as u64,
                    wake_id_low: id as u64,
                    outcome: Some(outcome(answer)),
                };
                self.send(&Event::ToEdge(session, answer));
            }
            Running { name, run, .. } => {
                if let Some(guest) = self.owner(host).guests.in_run(&name, run) {
                    guest.present = guest.listening;
                }
            }
            Cordon { name, run, .. } => {
                // What edges have open, a guest here sees too: they have no more to claim.
                let answered = (0..EDGES).map(|_| self.delay() + self.delay()).max().unwrap_or_default();
                self.after(answered, Event::Cordoned(host, name, run));
            }
            // Streams here are opened by edges that were told a run: none of them is ahead.
            CaughtUp { .. } | Ended { .. } | Receipt { .. } | Unwanted(_) => {}
            RunBegan { ref name, generation, run, .. } | WakeFailed { ref name, generation, run, .. } => {
                self.owner(host).runs.insert(name.clone(), (generation, run));
                self.awake.told(host, &action);
            }
            RunEnded { .. } | Destroyed { .. } => self.awake.told(host, &action),
        }
    }

    /// A driver's report, on its way to the owner that lives now.
    fn driver(&mut self, ms: u64, host: HostId, name: SpriteName, told: Told) {
        let epoch = self.owner(host).epoch;
        self.after(ms, Event::Driver(host, epoch, name, told));
    }

    /// A guest is started or continued as soon as its driver is done with what was before.
    fn begin(&mut self, host: HostId, name: SpriteName, run: u64, token: u64, life: Life) {
        let now = self.now;
        let busy = self.owner(host).guests.of(&name).busy_until;
        match busy.filter(|until| *until > now) {
            Some(until) => {
                let ms = (until - now).as_millis() as u64 + 1;
                self.driver(ms, host, name, Told::Free { run, token, life });
            }
            None => {
                if self.owner(host).guests.of(&name).ending {
                    // It has been done for a while, and its owner stood still and has not been told.
                    self.owner(host).guests.stop(&name, Life::Absent);
                    self.awake.ends(now, host, &name);
                }
                self.driver_begins(host, name, run, token, life);
            }
        }
    }

    fn driver_begins(&mut self, host: HostId, name: SpriteName, run: u64, token: u64, life: Life) {
        let now = self.now;
        let mut slow_ms = if life == Life::Frozen { 5 } else { self.chances.start_ms };
        let guest = self.owner(host).guests.of(&name);
        let dead = life == Life::Frozen && guest.life == Life::Absent;
        if dead || (life == Life::Frozen && self.chance(self.chances.memory_lost)) {
            self.owner(host).guests.stop(&name, Life::Absent);
            if !self.owner(host).core.handle_memory_lost(now, &name, token) {
                return;
            }
            slow_ms = self.chances.start_ms;
            self.owner(host).guests.begin(now, &name, run, Life::Absent);
        } else {
            self.owner(host).guests.begin(now, &name, run, life);
        }
        let took = self.up_to(slow_ms);
        if self.chance(self.chances.start_hangs) {
            return;
        }
        if self.chance(self.chances.start_fails) {
            return self.driver(took, host, name, Told::Failed { run });
        }
        self.driver(took, host, name.clone(), Told::Started { run, token });
        if !self.chance(self.chances.never_listens) {
            let listens = took + self.up_to(slow_ms);
            self.driver(listens, host, name, Told::PortOpen { run, token });
        }
    }

    /// It answers no more at once, and is gone or frozen a little later.
    fn stop(&mut self, host: HostId, name: SpriteName, token: u64, depth: Depth) {
        let (now, took) = (self.now, self.up_to(299));
        let owner = self.owner(host);
        let forgotten = owner.core.status(&name, now).is_none();
        let guest = owner.guests.of(&name);
        guest.ending = true;
        guest.listening = false;
        guest.present = false;
        guest.open = 0;
        guest.busy_until = Some(now + Duration::from_millis(took));
        let (run, was) = (guest.run, guest.life);
        if forgotten {
            // For the ledger a life ends with the order.
            self.awake.ends(now, host, &name);
        }
        self.driver(took, host, name.clone(), Told::Stopped { run, token, depth });
        if was == Life::Alive && depth == Depth::Cold {
            // Whoever watched the process tells of its end too.
            let late = took + self.delay();
            self.driver(late, host, name, Told::Exited { run });
        }
    }

    pub(super) fn driver_told(&mut self, host: HostId, name: &SpriteName, told: Told) {
        let now = self.now;
        let owner = self.owner(host);
        match told {
            Told::Free { run, token, life } => {
                let status = owner.core.status(name, now);
                // Destroyed before its driver came to it: the driver's own queue forgets it.
                if status.is_some_and(|status| status.run == run) {
                    self.begin(host, name.clone(), run, token, life);
                }
            }
            Told::Started { run, token } => {
                let counts = owner.guests.in_run(name, run).is_some();
                owner.core.handle_started(now, name, token);
                if counts {
                    self.awake.begins(now, host, name);
                }
            }
            Told::PortOpen { run, token } => {
                if let Some(guest) = owner.guests.in_run(name, run) {
                    guest.listening = true;
                    guest.last = Some(now);
                    owner.core.handle_port_open(now, name, token);
                }
            }
            Told::Failed { run } => {
                if owner.guests.in_run(name, run).is_some() {
                    owner.guests.stop(name, Life::Absent);
                }
                owner.core.handle_exited(now, name, run, "exit status 1");
            }
            Told::Exited { run } => owner.core.handle_exited(now, name, run, "it was ended"),
            Told::Stopped { run, token, depth } => {
                let guest = owner.guests.of(name);
                if guest.run == run && guest.ending && guest.busy_until.is_none_or(|until| until <= now) {
                    let life = match depth {
                        Depth::Warm if guest.life != Life::Absent => Life::Frozen,
                        _ => Life::Absent,
                    };
                    owner.guests.stop(name, life);
                    self.awake.ends(now, host, name);
                }
                self.owner(host).core.handle_stopped(now, name, token, depth);
            }
            Told::Gate { run, token, force } => {
                let guest = owner.guests.of(name);
                let closed = force.is_some() || guest.run != run || guest.open == 0;
                guest.gate_closed = closed;
                owner.core.handle_gate(now, name, token, closed, force);
            }
        }
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
