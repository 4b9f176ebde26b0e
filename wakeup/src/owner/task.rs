//! The task that owns the core: takes commands and timers, does what the core decides,
//! tells it what the drivers did.

use super::answers::{Ear, port_closed, port_not_declared};
use super::clock::Clock;
use super::cordons::{ACKNOWLEDGE, Cordons};
use super::core::{Action, Answer, OwnerCore, WaiterId, WakeRecord, WakeRequest};
use super::grace::Closing;
use super::handle::{Command, Event, Order, RECEIPTS, Run, SELF, Shared, SleepError};
use super::sprite::CoreSpec;
use super::teller::{Teller, resumed, started, tell_when_it_exits};
use super::timers::{Rang, Timers};
use crate::drivers::{Adopted, DriverError, Started, WakeDriver};
use crate::spec::{Depth, DriverSpec, Receipt, SpriteSpec, SpriteStatus, StateName};
use backhaul::activity::RunActivity;
use backhaul::owner::EdgeId;
use backhaul::wire::{ClientClass, Cordon, EdgeMessage, Opened, OwnerMessage, Reply, ToEdge, ToOwner};
use router::names::SpriteName;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};

/// How long a wake by a timer may take (`wake.md` §6: the cap of every hold).
const TIMER_PATIENCE: Duration = Duration::from_secs(60);
/// The task.
pub(super) struct Task {
    pub(super) core: OwnerCore,
    pub(super) specs: HashMap<SpriteName, SpriteSpec>,
    pub(super) addresses: HashMap<SpriteName, SocketAddr>,
    /// The run each guest's process was started for.
    pub(super) born: HashMap<SpriteName, u64>,
    /// Whose bytes count for the ledger: the run, and what it counts in.
    pub(super) counted: HashMap<SpriteName, (u64, Arc<RunActivity>)>,
    /// Our own waiters.
    pub(super) waiting: HashMap<u128, oneshot::Sender<Result<Opened, Reply>>>,
    /// Streams that know of a newer placement than this owner.
    pub(super) ahead: HashMap<u128, oneshot::Sender<()>>,
    /// Waiters that asked for a declared port: it is probed once the sprite runs.
    pub(super) ports: HashMap<WaiterId, (u16, Instant)>,
    /// Dropped, it ends the watch over a guest's port.
    pub(super) watches: HashMap<SpriteName, watch::Sender<()>>,
    /// Sprites whose rest is being destroyed: one of the same name starts when that is over.
    pub(super) destroying: HashMap<SpriteName, watch::Receiver<()>>,
    pub(super) sleepers: HashMap<SpriteName, Vec<oneshot::Sender<Result<(), SleepError>>>>,
    /// Holds that are not kept by every edge yet.
    pub(super) cordons: Cordons,
    /// The one that was begun by the order being handled.
    pub(super) holding: Option<(u64, oneshot::Receiver<()>)>,
    /// When sprites want to be woken.
    pub(super) timers: Timers,
    pub(super) rang: Rang,
    pub(super) clock: Clock,
    pub(super) shared: Arc<Shared>,
    pub(super) commands: mpsc::WeakSender<Command>,
}

impl Task {
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            let now = Instant::now();
            let rings = self.timers.quiet(SystemTime::now()).map(|quiet| now + quiet);
            let timeout = self.core.poll_timeout().into_iter().chain(rings).min();
            let timeout = timeout.unwrap_or_else(|| now + Duration::from_secs(3600));
            let command = tokio::select! {
                biased;
                command = commands.recv() => command,
                () = tokio::time::sleep_until(timeout.into()) => {
                    self.core.handle_timeout(Instant::now(), &*self.shared);
                    self.ring();
                    self.act();
                    continue;
                }
            };
            match command {
                None => return self.end_all().await,
                Some(Command::Shutdown(done)) => {
                    self.end_all().await;
                    let _ = done.send(());
                    return;
                }
                Some(command) => self.handle(command),
            }
            self.act();
        }
    }

    /// Wakes those whose time has come, as a visitor that is known would.
    fn ring(&mut self) {
        while let Some((at, name)) = self.timers.pop_due(SystemTime::now()) {
            let now = Instant::now();
            self.rang.tell(&name, at);
            let id = u128::from(self.shared.next_waiter.fetch_add(1, Ordering::Relaxed));
            let generation = self.specs.get(&name).map_or(0, |spec| spec.generation);
            // Nobody listens for the answer: it is in the receipt.
            self.core.handle_wake(
                now,
                WakeRequest {
                    waiter: (SELF, id),
                    name,
                    generation,
                    deadline: now + TIMER_PATIENCE,
                    reason: "timer".into(),
                    class: ClientClass::Authenticated,
                },
            );
        }
    }

    fn handle(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Upsert(spec, adopted, done) => {
                self.upsert(now, *spec, adopted);
                let _ = done.send(());
            }
            Command::Remove(name, done) => {
                self.shared.known.remove(&name);
                self.core.handle_remove(now, &name);
                self.act();
                self.specs.remove(&name);
                self.timers.forget(&name);
                let _ = done.send(());
            }
            Command::Moved(name, to, generation, done) => {
                if self.core.handle_moved(now, &name, &to, generation) {
                    self.shared.known.remove(&name);
                    self.act();
                    self.specs.remove(&name);
                    self.timers.forget(&name);
                }
                let _ = done.send(());
            }
            Command::Edge(edge, message) => self.edge_message(now, edge, message),
            Command::EdgeGone(edge) => {
                self.ports.retain(|(of, _), _| *of != edge);
                self.core.handle_edge_gone(now, edge);
                for (name, run) in self.cordons.gone(edge) {
                    self.core.handle_cordoned(now, &name, run);
                }
            }
            Command::Wake(request, port, sender) => {
                self.waiting.insert(request.waiter.1, sender);
                self.wake(now, request, port);
            }
            Command::CatchUp(waiter, name, generation, sender) => {
                self.ahead.insert(waiter.1, sender);
                self.core.handle_stream_ahead(now, waiter, name, generation);
            }
            Command::Withdraw(waiter) => {
                self.waiting.remove(&waiter.1);
                self.ahead.remove(&waiter.1);
                self.ports.remove(&waiter);
                self.core.handle_withdraw(now, waiter);
            }
            Command::Sleep(name, depth, done) => self.sleep(now, name, depth, done),
            Command::Order(name, order, done) => {
                let taken = self.order(now, &name, order);
                match self.holding.take() {
                    Some(in_effect) => self.tell_when_held(name, in_effect, done),
                    None => drop(done.send(taken)),
                }
            }
            Command::AskEdges(name, run, sender) => {
                self.cordon(&name, run, Cordon { asks: true, ..Cordon::default() });
                let _ = sender.send(self.cordons.in_effect(&name, run));
            }
            Command::Core(ask) => ask(&mut self.core, &self.shared),
            Command::HoldLate(name, run) => self.cordons.forget(&name, run),
            Command::Statuses(name, done) => {
                let statuses = match name {
                    Some(name) => self.core.status(&name, now).into_iter().collect(),
                    None => self.core.statuses(now),
                };
                let open = |status: SpriteStatus| SpriteStatus {
                    open: self.shared.open(&status.name).max(status.open),
                    ..status
                };
                let _ = done.send(statuses.into_iter().map(open).collect());
            }
            Command::Specs(done) => drop(done.send(self.specs.values().cloned().collect())),
            Command::PortLost(name, run) => self.core.handle_port_lost(&name, run),
            Command::Event(name, run, event) => self.event(now, &name, run, event),
            Command::Shutdown(_) => unreachable!("taken by the loop"),
        }
    }

    fn upsert(&mut self, now: Instant, spec: SpriteSpec, adopted: Option<Adopted>) {
        let always = matches!(spec.driver, DriverSpec::Fixed { .. });
        if let DriverSpec::Fixed { address } = spec.driver {
            self.addresses.insert(spec.name.clone(), address);
        }
        self.shared.known.insert(spec.name.clone(), spec.generation);
        let known = self.shared.ledger.take_known(&spec.name);
        let core = CoreSpec {
            generation: spec.generation,
            idle_timeout: spec.idle_timeout,
            always,
            stopped: spec.stopped,
            limits: spec.limits.clone(),
            tenant: spec.tenant.as_str().into(),
            run: known.run,
        };
        let name = spec.name.clone();
        self.timers.set(&name, &spec.wake_at);
        if let Some(mut present) = self.shared.runs.get_mut(&name) {
            // Ports may be declared while it runs, and it may be placed here anew.
            present.ports = spec.ports.as_slice().into();
            present.generation = present.generation.max(spec.generation);
        }
        self.specs.insert(name.clone(), spec);
        self.core.handle_upsert(now, &name, core);
        let open = self.still_open(&name, known.open, adopted.as_ref());
        if let Some(adopted) = adopted {
            self.adopt(now, &name, adopted, open);
        }
    }

    /// A guest that an owner before this one had goes on where it is.
    fn adopt(
        &mut self,
        now: Instant,
        name: &SpriteName,
        Adopted { depth, guest }: Adopted,
        open: Option<(u64, Instant)>,
    ) {
        let Some(run) = self.core.handle_adopted(now, name, depth, open) else { return };
        tracing::info!(sprite = %name, run, ?depth, "adopted");
        self.born.insert(name.clone(), run);
        if let (Some(Started { address, exited, .. }), Some(commands)) = (guest, self.commands.upgrade()) {
            self.addresses.insert(name.clone(), address);
            tell_when_it_exits(exited, &Teller { commands, name: name.clone(), run });
        }
    }

    fn edge_message(&mut self, now: Instant, edge: EdgeId, message: ToOwner) {
        match message.message {
            Some(EdgeMessage::Wake(wake)) => {
                let Ok(name) = SpriteName::parse(&wake.sprite) else { return };
                let waiter = (edge, (u128::from(wake.wake_id_high) << 64) | u128::from(wake.wake_id_low));
                let deadline = now + Duration::from_millis(wake.deadline_ms.into());
                let port = u16::try_from(wake.port).unwrap_or(0);
                let class = wake.client_class();
                let request =
                    WakeRequest { waiter, name, generation: wake.generation, deadline, reason: wake.reason, class };
                self.wake(now, request, port);
            }
            Some(EdgeMessage::Withdraw(withdraw)) => {
                let waiter = (edge, (u128::from(withdraw.wake_id_high) << 64) | u128::from(withdraw.wake_id_low));
                self.ports.remove(&waiter);
                self.core.handle_withdraw(now, waiter);
            }
            Some(EdgeMessage::Leases(leases)) => {
                for lease in leases.leases {
                    self.core.handle_lease(now, edge, &lease);
                }
            }
            Some(EdgeMessage::Cordoned(cordoned)) => {
                if let Some(claim) = &cordoned.claim {
                    self.core.handle_lease(now, edge, claim);
                }
                if let Ok(name) = SpriteName::parse(&cordoned.sprite)
                    && self.cordons.answered(edge, &name, cordoned.run, cordoned.number)
                {
                    self.core.handle_cordoned(now, &name, cordoned.run);
                }
            }
            // About tables; the server of the session has taken it.
            Some(EdgeMessage::Applied(_)) | None => {}
        }
    }

    fn wake(&mut self, now: Instant, request: WakeRequest, port: u16) {
        if port != 0 {
            // What a newer placement declares is looked at when it is known here.
            if !self.core.is_ahead(&request.name, request.generation) && !self.declares(&request.name, port) {
                return self.tell(request.waiter, port_not_declared());
            }
            self.ports.insert(request.waiter, (port, request.deadline));
        }
        if let Some(refused) = self.refused_unwritten(now, &request.name) {
            self.ports.remove(&request.waiter);
            return self.tell(request.waiter, refused);
        }
        self.core.handle_wake(now, request);
    }

    /// Whether visitors may ask for this port; for a sprite that is unknown somebody else decides.
    fn declares(&self, name: &SpriteName, port: u16) -> bool {
        let Some(spec) = self.specs.get(name) else { return true };
        spec.ports.contains(&port) || self.addresses.get(name).is_some_and(|address| address.port() == port)
    }

    fn sleep(&mut self, now: Instant, name: SpriteName, depth: Depth, done: oneshot::Sender<Result<(), SleepError>>) {
        let Some(status) = self.core.status(&name, now) else {
            let _ = done.send(Err(SleepError::NoSuchSprite));
            return;
        };
        let deep_enough = status.warmth.is_some_and(|warmth| warmth == depth || warmth == Depth::Cold);
        if deep_enough {
            let _ = done.send(Ok(()));
        } else if status.state == StateName::Stopping || self.core.handle_sleep(now, &name, depth) {
            self.sleepers.entry(name).or_default().push(done);
        } else {
            let _ = done.send(Err(SleepError::NotNow));
        }
    }

    fn order(&mut self, now: Instant, name: &SpriteName, order: Order) -> bool {
        if !self.specs.contains_key(name) {
            return false;
        }
        match order {
            Order::Stop => return self.core.handle_stop(now, name),
            Order::Start => self.core.handle_start(name),
            Order::Hold(longest) => {
                let known = self.core.handle_hold(now, name, longest);
                // Now, so that there is something to wait for.
                self.act();
                return known;
            }
            Order::Release => self.core.handle_release(now, name),
        }
        true
    }

    fn event(&mut self, now: Instant, name: &SpriteName, run: u64, event: Event) {
        match event {
            Event::Started { token, at, address } => {
                self.addresses.insert(name.clone(), address);
                self.core.handle_started(at, name, token);
            }
            Event::PortOpen { token, address } => {
                self.addresses.insert(name.clone(), address);
                self.core.handle_port_open(now, name, token);
            }
            Event::Exited { detail, born: None } => self.core.handle_exited(now, name, run, &detail),
            Event::Exited { detail, born: Some(born) } => {
                // A process outlives its run when it is frozen and continued, and its end may
                // be told after the next one was started.
                if self.born.get(name) == Some(&born) {
                    let run = self.core.status(name, now).map_or(0, |status| status.run);
                    self.core.handle_exited(now, name, run, &detail);
                }
            }
            Event::MemoryLost { token, goes_on } => {
                self.born.insert(name.clone(), run);
                // It is dropped only when the owner ends.
                let _ = goes_on.send(self.core.handle_memory_lost(now, name, token));
            }
            Event::Gate { token, closed, forced } => self.core.handle_gate(now, name, token, closed, forced),
            Event::Stopped { token, depth } => self.core.handle_stopped(now, name, token, depth),
        }
    }

    /// Does everything the core has decided.
    fn act(&mut self) {
        // Some actions feed the core again (a stop that is due at once), hence the loop.
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Start { name, run, token } => self.start(name, run, token, false),
                Action::Continue { name, run, token } => self.start(name, run, token, true),
                Action::Probe { name, token } => self.watch_port(name, token),
                Action::CloseGate { name, run, token, force } => self.close_gate(name, run, token, force),
                Action::ReopenGate { name, run } | Action::Unhold { name, run } => {
                    if let Some(present) = self.shared.runs.get(&name).filter(|present| present.run == run) {
                        present.activity.reopen();
                    }
                }
                Action::Hold { name, run } => self.hold(&name, run),
                Action::Cordon { name, run, forced } => self.cordon(&name, run, Cordon { forced, ..Cordon::default() }),
                Action::Freeze { name, token, .. } => self.stop(name, token, Stop::Freeze),
                Action::Suspend { name, token, .. } => self.stop(name, token, Stop::Suspend),
                Action::End { name, token, .. } => self.stop(name, token, Stop::End),
                Action::Destroy { name, token, .. } => self.stop(name, token, Stop::Destroy),
                Action::CaughtUp { waiter } => {
                    // The stream may be gone.
                    let _ = self.ahead.remove(&waiter.1).map(|sender| sender.send(()));
                }
                Action::Answer { waiter, name, answer } => self.answer(waiter, &name, answer),
                Action::Running { name, run, since } => self.running(name, run, since),
                Action::Ended { name, run } => self.ended(&name, run),
                Action::Receipt { name, run, record, result } => self.receipt(&name, run, &record, result),
                Action::Unwanted(what) => self.shared.metrics.unwanted(what),
                for_the_ledger @ (Action::RunBegan { .. }
                | Action::RunEnded { .. }
                | Action::WakeFailed { .. }
                | Action::Destroyed { .. }) => self.write_down(for_the_ledger),
            }
        }
    }

    fn driver(&self, name: &SpriteName) -> Option<(Arc<dyn WakeDriver>, SpriteSpec)> {
        let spec = self.specs.get(name)?;
        Some((self.shared.drivers.of(&spec.driver), spec.clone()))
    }

    fn start(&mut self, name: SpriteName, run: u64, token: u64, resume: bool) {
        let (Some((driver, spec)), Some(commands)) = (self.driver(&name), self.commands.upgrade()) else { return };
        if !resume {
            self.born.insert(name.clone(), run);
        }
        let mut over = self.watch(&name);
        let before = self.destroying.remove(&name);
        tokio::spawn(async move {
            if let Some(mut before) = before {
                // An error is the end of it.
                let _ = before.changed().await;
            }
            let tell = Teller { commands, name, run };
            let begun = match resume {
                true => resumed(&*driver, &tell.name).await,
                false => started(&*driver, &spec, &tell).await,
            };
            let begun = match begun {
                // Its disk is what is left.
                Err(DriverError::MemoryLost { reason }) => {
                    if !tell.memory_lost(token, &reason).await {
                        return;
                    }
                    // Its driver need not remember any more that there was a memory.
                    driver.end(&tell.name).await;
                    if over.has_changed().is_err() {
                        // Ended meanwhile: what began now would belong to nobody.
                        return;
                    }
                    started(&*driver, &spec, &tell).await
                }
                begun => begun,
            };
            match begun {
                Ok((at, address)) => {
                    tell.send(Event::Started { token, at, address }).await;
                    tokio::select! {
                        open = driver.ready(tell.name.clone(), address, !resume) => tell.send(Event::PortOpen { token, address: open }).await,
                        // It was ended meanwhile; without this it would be looked for for ever.
                        _ = over.changed() => {}
                    }
                }
                Err(error) => tell.send(Event::Exited { detail: error.to_string(), born: None }).await,
            }
        });
    }

    /// Ends the watch there was, begins another.
    fn watch(&mut self, name: &SpriteName) -> watch::Receiver<()> {
        let (sender, over) = watch::channel(());
        self.watches.insert(name.clone(), sender);
        over
    }

    fn watch_port(&self, name: SpriteName, token: u64) {
        let (Some(address), Some(commands)) = (self.addresses.get(&name).copied(), self.commands.upgrade()) else {
            return;
        };
        let Some((driver, _)) = self.driver(&name) else { return };
        tokio::spawn(async move {
            let ready = driver.ready(name.clone(), address, false);
            // Bounded by the core's port wait: a late result has an old token.
            if let Ok(address) = tokio::time::timeout(Duration::from_secs(60), ready).await {
                let _ = commands.send(Command::Event(name, 0, Event::PortOpen { token, address })).await;
            }
        });
    }

    fn close_gate(&self, name: SpriteName, run: u64, token: u64, force: Option<Depth>) {
        let Some(commands) = self.commands.upgrade() else { return };
        let activity = self.shared.runs.get(&name).map(|present| Arc::clone(&present.activity));
        tokio::spawn(Closing { name, run, token, force, activity }.run(commands));
    }

    /// New streams are told that it sleeps, and the edges that theirs may begin nothing.
    fn hold(&mut self, name: &SpriteName, run: u64) {
        if let Some(present) = self.shared.runs.get(name).filter(|present| present.run == run) {
            present.activity.close();
        }
        self.cordon(name, run, Cordon { hold: true, ..Cordon::default() });
        self.holding = Some((run, self.cordons.in_effect(name, run)));
    }

    /// The hold counts once every edge keeps it, or has had its time to.
    fn tell_when_held(
        &self,
        name: SpriteName,
        (run, in_effect): (u64, oneshot::Receiver<()>),
        done: oneshot::Sender<bool>,
    ) {
        let Some(commands) = self.commands.upgrade() else { return };
        tokio::spawn(async move {
            if tokio::time::timeout(ACKNOWLEDGE, in_effect).await.is_err() {
                let _ = commands.send(Command::HoldLate(name, run)).await;
            }
            let _ = done.send(true);
        });
    }

    fn cordon(&mut self, name: &SpriteName, run: u64, cordon: Cordon) {
        // With the lock released: an edge in this process answers on the very call.
        let sinks = self.shared.sinks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let number = self.cordons.begin(name, run, sinks.keys().copied());
        let cordon = Cordon { sprite: name.as_str().into(), run, number, ..cordon };
        let message = ToEdge { message: Some(OwnerMessage::Cordon(cordon)) };
        for sink in sinks.values() {
            sink(message.clone());
        }
        if sinks.is_empty() {
            self.cordons.forget(name, run);
            self.core.handle_cordoned(Instant::now(), name, run);
        }
    }

    fn stop(&mut self, name: SpriteName, token: u64, how: Stop) {
        let (Some((driver, _)), Some(commands)) = (self.driver(&name), self.commands.upgrade()) else { return };
        self.end_streams(&name);
        self.watches.remove(&name);
        let ends = (how == Stop::Destroy).then(|| self.destroys(&name));
        tokio::spawn(async move {
            // Dropped in the end, which is what a successor waits for.
            let _ends = ends;
            let depth = match how {
                Stop::Freeze if driver.freeze(&name).await.is_ok() => Depth::Warm,
                // What cannot be frozen must not run on unseen.
                Stop::Freeze | Stop::Suspend => {
                    driver.suspend(&name).await;
                    Depth::Cold
                }
                Stop::End => {
                    driver.end(&name).await;
                    Depth::Cold
                }
                Stop::Destroy => {
                    driver.destroy(&name).await;
                    Depth::Cold
                }
            };
            let _ = commands.send(Command::Event(name, 0, Event::Stopped { token, depth })).await;
        });
    }

    /// What is left of a destroyed sprite is being ended until the sender is dropped.
    fn destroys(&mut self, name: &SpriteName) -> watch::Sender<()> {
        self.destroying.retain(|_, over| over.has_changed().is_ok());
        let (ends, over) = watch::channel(());
        self.destroying.insert(name.clone(), over);
        ends
    }

    fn end_streams(&self, name: &SpriteName) {
        if let Some((_, run)) = self.shared.runs.remove(name) {
            run.activity.end();
        }
    }

    fn running(&mut self, name: SpriteName, run: u64, since: Instant) {
        let (Some(spec), Some(&address)) = (self.specs.get(&name), self.addresses.get(&name)) else { return };
        let (generation, ports) = (spec.generation, spec.ports.as_slice().into());
        let present =
            self.shared.runs.get(&name).filter(|present| present.run == run).map(|run| Arc::clone(&run.activity));
        // From the core's own instant: a later one would look like a visitor's.
        let activity = present.unwrap_or_else(|| RunActivity::new(since));
        let always = matches!(spec.driver, DriverSpec::Fixed { .. });
        if !always {
            self.counted.insert(name.clone(), (run, Arc::clone(&activity)));
        }
        self.shared.runs.insert(name, Run { generation, run, ports, address, activity, port_open: true, always });
    }

    fn ended(&mut self, name: &SpriteName, run: u64) {
        self.end_streams(name);
        self.cordons.forget(name, run);
        self.watches.remove(name);
        for done in self.sleepers.remove(name).into_iter().flatten() {
            let _ = done.send(Ok(()));
        }
    }

    fn receipt(&self, name: &SpriteName, run: u64, record: &WakeRecord, result: &'static str) {
        let span = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => u64::try_from(to.saturating_duration_since(from).as_millis()).unwrap_or(u64::MAX),
            _ => 0,
        };
        let receipt = Receipt {
            sprite: name.clone(),
            run,
            kind: record.kind.as_str().into(),
            lost_memory: record.lost_memory,
            reason: record.reason.clone(),
            result: result.into(),
            waiters: record.waiters,
            queued_ms: span(Some(record.asked), record.slot),
            starting_ms: span(record.slot, record.started),
            port_wait_ms: span(record.started, record.ready),
            at_unix_ms: self.clock.unix_ms(record.asked),
            started_monotonic_ns: record.started.map_or(0, |at| self.clock.monotonic_ns(at)),
            ready_monotonic_ns: record.ready.map_or(0, |at| self.clock.monotonic_ns(at)),
        };
        let phases = [receipt.queued_ms, receipt.starting_ms, receipt.port_wait_ms].map(Duration::from_millis);
        self.shared.metrics.woke(&record.reason, record.kind, result, record.waiters, phases);
        tracing::debug!(sprite = %name, run, kind = receipt.kind, result, "wake");
        let mut receipts = self.shared.receipts.entry(name.clone()).or_default();
        if receipts.len() >= RECEIPTS {
            receipts.pop_front();
        }
        receipts.push_back(receipt);
    }

    fn answer(&mut self, waiter: WaiterId, name: &SpriteName, answer: Answer) {
        let ends = !matches!(answer, Answer::Accepted { .. } | Answer::Progress(_));
        let port = if ends { self.ports.remove(&waiter) } else { None };
        match (answer, port) {
            (Answer::Ready(opened), Some((port, deadline))) => self.wait_for_port(waiter, name, opened, port, deadline),
            (answer, _) => self.tell(waiter, answer),
        }
    }

    /// The sprite runs; the declared port this waiter asked for may still be closed.
    fn wait_for_port(&mut self, waiter: WaiterId, name: &SpriteName, opened: Opened, port: u16, deadline: Instant) {
        if !self.declares(name, port) {
            return self.tell(waiter, port_not_declared());
        }
        let Some(ip) = self.addresses.get(name).map(SocketAddr::ip) else { return };
        let Some((driver, _)) = self.driver(name) else { return };
        let ready = driver.ready(name.clone(), SocketAddr::new(ip, port), false);
        let ear = self.ear(waiter);
        let now = Instant::now();
        let until = deadline.min(now + self.core.port_wait(name, now));
        tokio::spawn(async move {
            let open = tokio::time::timeout_at(until.into(), ready).await;
            ear.tell(match open {
                Ok(_) => Answer::Ready(opened),
                Err(_) => port_closed(),
            });
        });
    }

    fn tell(&mut self, waiter: WaiterId, answer: Answer) {
        if let Answer::Refused { cause, .. } = &answer {
            self.shared.metrics.refused(*cause);
        }
        // Our own waiters hear the end only, and are forgotten with it.
        if waiter.0 == SELF && matches!(answer, Answer::Accepted { .. } | Answer::Progress(_)) {
            return;
        }
        self.ear(waiter).tell(answer);
    }

    fn ear(&mut self, (edge, id): WaiterId) -> Ear {
        if edge == SELF {
            return Ear::Own(self.waiting.remove(&id));
        }
        let sink = self.shared.sinks.lock().unwrap_or_else(PoisonError::into_inner).get(&edge).cloned();
        Ear::Edge(sink, id)
    }

    /// Ends every wait, and every guest that no other owner could find again.
    async fn end_all(mut self) {
        self.core.handle_shutdown();
        // Nothing is under way that the core would begin now: these are answers only.
        self.act();
        let names: Vec<_> = self.specs.keys().cloned().collect();
        let mut endings = Vec::new();
        for name in names {
            self.end_streams(&name);
            if let Some((driver, _)) = self.driver(&name) {
                endings.push(tokio::spawn(async move {
                    driver.leave(&name).await;
                    (name, Instant::now(), driver.leaves_running())
                }));
            }
        }
        for ending in endings {
            if let Ok((name, at, false)) = ending.await {
                self.core.handle_left(at, &name);
            }
        }
        self.act();
        self.close_ledger().await;
    }
}

/// How a guest is put to rest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    Freeze,
    Suspend,
    End,
    Destroy,
}
