//! The owner at work: one task owns the core, does what it decides and tells it what
//! happened.
//!
//! A running sprite is answered without that task: a map from name to run says where its
//! guest listens. Everything that changes a state goes through the task's queue.

use super::answers::{refused, result_of};
use super::clock::Clock;
use super::cordons::Cordons;
use super::core::{Activity, CoreSettings, OwnerCore, TaskError, WaiterId, WakeRequest};
use super::task::Task;
use super::timers::{Rang, Timers};
use crate::drivers::{Adopted, DoorKeeper, DriverError, Drivers, ProcessSettings};
use crate::ledger::{Ledger, LedgerError, LedgerSettings, Stamp};
use crate::metrics::OwnerMetrics;
use crate::spec::{Depth, DriverSpec, Receipt, SpriteSpec, SpriteStatus, Why};
use backhaul::activity::{RECONCILE_EVERY, RunActivity};
use backhaul::owner::{Admitted, AnswerSink, BoxFuture, EdgeId, Owner};
use backhaul::wire::{Asleep, Cause, ClientClass, Open, Opened, Reply, ToOwner, Unknown, VERSION, WakeKind};
use dashmap::DashMap;
use router::names::SpriteName;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Commands that may wait for the task (chosen); an edge's message over it is dropped and
/// sent again by the edge.
const QUEUE_LEN: usize = 4_096;
/// Receipts kept per sprite (`wake.md` §9).
pub(super) const RECEIPTS: usize = 100;
/// The owner's own waiters (admin, streams that ask for a wake).
pub(super) const SELF: EdgeId = EdgeId(u64::MAX);

/// What the worker host is told at its start.
#[derive(Clone, Debug)]
pub struct HostSettings {
    /// Where the sprites' directories are.
    pub directory: PathBuf,
    /// Section `[host]`.
    pub host: config::Host,
    /// Section `[drivers]`.
    pub drivers: config::Drivers,
    /// What guests can speak to.
    pub doors: DoorKeeper,
    /// Hears of a timer that rang (`SpriteSpec::wake_at`), which must not ring again after a
    /// restart. Must not block for long.
    pub rang: Rang,
    /// Where its runs are written down.
    pub ledger: LedgerSettings,
}

/// The owner of this host's sprites. Cheap to clone, usable from every thread.
#[derive(Clone)]
pub struct OwnerHandle {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

pub(super) struct Shared {
    pub(super) runs: DashMap<SpriteName, Run>,
    /// Every sprite known here, with its placement.
    pub(super) known: DashMap<SpriteName, u64>,
    pub(super) receipts: DashMap<SpriteName, VecDeque<Receipt>>,
    pub(super) sinks: Mutex<HashMap<EdgeId, AnswerSink>>,
    pub(super) next_waiter: AtomicU64,
    pub(super) drivers: Drivers,
    pub(super) metrics: OwnerMetrics,
    pub(super) ledger: Arc<Ledger>,
    /// Claims on a run of streams that are no more.
    pub(super) mismatches: AtomicU64,
    /// Guests of an owner before this one that were found alive, and when they were ended.
    pub(super) reaped: BTreeMap<SpriteName, Stamp>,
}

/// A guest that runs and may be spoken to.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) generation: u64,
    pub(super) run: u64,
    pub(super) ports: Arc<[u16]>,
    pub(super) address: SocketAddr,
    pub(super) activity: Arc<RunActivity>,
    /// Cleared when a connection was refused, until a probe says otherwise.
    pub(super) port_open: bool,
    pub(super) always: bool,
}

/// Why a sprite was not put to sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SleepError {
    /// There is none by this name here.
    #[error("no such sprite")]
    NoSuchSprite,
    /// It is on its way somewhere, or is always awake.
    #[error("it cannot be put to sleep in this state")]
    NotNow,
}

/// Something to do with the core.
pub(super) type OnCore = Box<dyn FnOnce(&mut OwnerCore, &Shared) + Send>;

pub(super) enum Command {
    Upsert(Box<SpriteSpec>, Option<Adopted>, oneshot::Sender<()>),
    Remove(SpriteName, oneshot::Sender<()>),
    Moved(SpriteName, String, u64, oneshot::Sender<()>),
    Edge(EdgeId, ToOwner),
    EdgeGone(EdgeId),
    Wake(WakeRequest, u16, oneshot::Sender<Result<Opened, Reply>>),
    /// A stream that may know of a newer placement than this owner.
    CatchUp(WaiterId, SpriteName, u64, oneshot::Sender<()>),
    Withdraw(WaiterId),
    Sleep(SpriteName, Depth, oneshot::Sender<Result<(), SleepError>>),
    Order(SpriteName, Order, oneshot::Sender<bool>),
    /// Ask every edge what it has open with a run; the receiver resolves when all have answered.
    AskEdges(SpriteName, u64, oneshot::Sender<oneshot::Receiver<()>>),
    /// Some edges have not said in time that they keep a hold.
    HoldLate(SpriteName, u64),
    /// Something that needs the core and answers by itself.
    Core(OnCore),
    Statuses(Option<SpriteName>, oneshot::Sender<Vec<SpriteStatus>>),
    Specs(oneshot::Sender<Vec<SpriteSpec>>),
    PortLost(SpriteName, u64),
    Event(SpriteName, u64, Event),
    Shutdown(oneshot::Sender<()>),
}

/// What a sprite's people order (`core/orders.rs`).
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Stop,
    Start,
    Hold(Duration),
    Release,
}

/// What a driver task reports.
pub(super) enum Event {
    Started {
        token: u64,
        at: Instant,
        address: SocketAddr,
    },
    PortOpen {
        token: u64,
        address: SocketAddr,
    },
    /// `born` is the run its process was started for; none when nothing was started.
    Exited {
        detail: String,
        born: Option<u64>,
    },
    MemoryLost {
        token: u64,
        /// Whether to start it from its disk.
        goes_on: oneshot::Sender<bool>,
    },
    Gate {
        token: u64,
        closed: bool,
        forced: Option<Depth>,
    },
    Stopped {
        token: u64,
        depth: Depth,
    },
}

impl OwnerHandle {
    /// Starts the owner on the current runtime. Guests that an owner before it left
    /// behind are ended first. [`OwnerHandle::upsert`] makes its sprites known, then
    /// [`OwnerHandle::settle`] says that these are all.
    ///
    /// # Errors
    /// A ledger that cannot be opened.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn start(settings: HostSettings) -> Result<Self, LedgerError> {
        let ledger = Arc::new(Ledger::open(settings.ledger)?);
        let host = settings.host;
        let process = ProcessSettings {
            directory: settings.directory,
            first_port: host.first_port,
            last_port: host.last_port,
            stop_grace: host.stop_grace,
            log_bytes: host.log_bytes,
            cgroup: settings.drivers.process.cgroup.clone(),
            doors: settings.doors,
        };
        let drivers = Drivers::new(process, settings.drivers);
        let reaped = drivers.reap_orphans().await;
        let ended = Stamp::now();
        let reaped = reaped.into_iter().map(|name| (name, ended)).collect();
        let core = OwnerCore::new(CoreSettings { seed: rand::random(), ..CoreSettings::from(&host) });
        let shared = Arc::new(Shared {
            runs: DashMap::new(),
            known: DashMap::new(),
            receipts: DashMap::new(),
            sinks: Mutex::new(HashMap::new()),
            next_waiter: AtomicU64::new(0),
            drivers,
            metrics: OwnerMetrics::default(),
            ledger,
            mismatches: AtomicU64::new(0),
            reaped,
        });
        let (commands, receiver) = mpsc::channel(QUEUE_LEN);
        let task = Task {
            core,
            specs: HashMap::new(),
            addresses: HashMap::new(),
            born: HashMap::new(),
            counted: HashMap::new(),
            waiting: HashMap::new(),
            ahead: HashMap::new(),
            ports: HashMap::new(),
            watches: HashMap::new(),
            destroying: HashMap::new(),
            sleepers: HashMap::new(),
            cordons: Cordons::default(),
            holding: None,
            timers: Timers::default(),
            rang: settings.rang,
            clock: Clock::now(),
            shared: Arc::clone(&shared),
            // Weak: the task ends when the last handle is gone.
            commands: commands.downgrade(),
        };
        tokio::spawn(task.run(receiver));
        tokio::spawn(reconcile(Arc::downgrade(&shared)));
        Ok(Self { shared, commands })
    }

    /// Every sprite of this host was made known: guests that run and belong to none of them are
    /// ended, since an owner before this one was killed while it destroyed theirs, and what it
    /// left open in the ledger of any other has ended. Takes as long as an engine or a machine
    /// takes to end what there is; nothing else waits for it.
    pub async fn settle(&self) {
        let sprites = self.ask(Command::Specs).await.unwrap_or_default();
        let unowned = self.shared.drivers.end_unowned(&sprites).await;
        let now = Stamp::now();
        let unowned = unowned.into_iter().map(|name| (name, now));
        let ended = self.shared.reaped.clone().into_iter().chain(unowned).collect();
        self.shared.ledger.settle(&ended);
    }

    /// The ledger of this host's runs.
    #[must_use]
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.shared.ledger
    }

    /// What this owner counts.
    #[must_use]
    pub fn metrics(&self) -> &OwnerMetrics {
        &self.shared.metrics
    }

    /// Claims on runs of this host that had no stream under them and count no more
    /// ([`RunActivity::reconcile`]).
    #[must_use]
    pub fn lease_mismatches(&self) -> u64 {
        self.shared.mismatches.load(Ordering::Relaxed)
    }

    /// Bytes to and from the guest in the run that is awake.
    #[must_use]
    pub fn bytes(&self, name: &SpriteName) -> Option<(u64, u64)> {
        self.shared.runs.get(name).filter(|run| !run.always).map(|run| run.activity.bytes())
    }

    /// Whether this host can do what `spec` says, as far as that is known before it is done.
    ///
    /// # Errors
    /// Why not, in words for who defines it.
    pub fn check(&self, spec: &DriverSpec) -> Result<(), DriverError> {
        self.shared.drivers.check(spec)
    }

    /// Makes a sprite known, or changes it. Returns when it counts. Calls for one sprite must
    /// not overlap.
    pub async fn upsert(&self, spec: SpriteSpec) {
        let known = self.shared.known.contains_key(&spec.name);
        if let Err(error) = self.check(&spec.driver) {
            tracing::warn!(sprite = %spec.name, %error, "it will not wake on this host");
        }
        let adopted = if known { None } else { self.shared.drivers.of(&spec.driver).adopt(&spec).await };
        self.ask(|done| Command::Upsert(Box::new(spec), adopted, done)).await;
    }

    /// Destroys a sprite: waiters are told, its guest is ended. Its directory stays.
    pub async fn remove(&self, name: &SpriteName) {
        self.ask(|done| Command::Remove(name.clone(), done)).await;
    }

    /// A sprite lives on host `to` from now on, under a newer placement: who waits here is told.
    pub async fn moved(&self, name: &SpriteName, to: &str, generation: u64) {
        self.ask(|done| Command::Moved(name.clone(), to.into(), generation, done)).await;
    }

    /// State of every sprite, by name.
    pub async fn statuses(&self) -> Vec<SpriteStatus> {
        self.ask(|done| Command::Statuses(None, done)).await.unwrap_or_default()
    }

    /// State of one.
    pub async fn status(&self, name: &SpriteName) -> Option<SpriteStatus> {
        self.ask(|done| Command::Statuses(Some(name.clone()), done)).await?.pop()
    }

    /// Wakes a sprite and waits for it.
    ///
    /// # Errors
    /// What an edge would be told.
    pub async fn wake(&self, name: &SpriteName, patience: Duration) -> Result<Opened, Reply> {
        let Some(generation) = self.shared.known.get(name).map(|known| *known) else {
            return Err(Reply::Unknown(Unknown { my_generation: 0 }));
        };
        let deadline = Instant::now() + patience;
        self.wake_for(name.clone(), generation, 0, deadline, ("admin", ClientClass::Operator)).await
    }

    /// Puts a sprite to sleep and waits until it sleeps. Open requests get 2 s to end.
    ///
    /// # Errors
    /// [`SleepError`].
    pub async fn sleep(&self, name: &SpriteName, depth: Depth) -> Result<(), SleepError> {
        self.ask(|done| Command::Sleep(name.clone(), depth, done)).await.unwrap_or(Err(SleepError::NotNow))
    }

    /// Stops a sprite for as long as nobody starts it: it refuses who waits, ends, and no
    /// request wakes it. `false` for one that is unknown or never sleeps.
    pub async fn stop(&self, name: &SpriteName) -> bool {
        self.order(name, Order::Stop).await
    }

    /// Lets a stopped sprite wake again; `false` for one that is unknown.
    pub async fn start_again(&self, name: &SpriteName) -> bool {
        self.order(name, Order::Start).await
    }

    /// Lets new requests wait, for `longest` at most (30 s is the limit); what is open goes
    /// on. `false` for one that is unknown.
    pub async fn hold(&self, name: &SpriteName, longest: Duration) -> bool {
        self.order(name, Order::Hold(longest)).await
    }

    /// Ends a hold; `false` for one that is unknown.
    pub async fn release(&self, name: &SpriteName) -> bool {
        self.order(name, Order::Release).await
    }

    async fn order(&self, name: &SpriteName, order: Order) -> bool {
        self.ask(|done| Command::Order(name.clone(), order, done)).await.unwrap_or(false)
    }

    /// Begins a task of the guest, or renews it: it stays awake for `span` without visitors.
    /// When it ends by itself.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn task(&self, name: &SpriteName, id: u64, span: Duration) -> Result<Instant, TaskError> {
        let name = name.clone();
        let begun = self.on_core(move |core, _| core.handle_task(Instant::now(), &name, id, span)).await;
        begun.unwrap_or(Err(TaskError::NoSuchSprite))
    }

    /// A task is done; `false` when there is none with this id.
    pub async fn task_done(&self, name: &SpriteName, id: u64) -> bool {
        let name = name.clone();
        self.on_core(move |core, _| core.handle_task_done(Instant::now(), &name, id)).await.unwrap_or(false)
    }

    /// What keeps a sprite awake; nothing for one that is unknown.
    pub async fn why(&self, name: &SpriteName) -> Option<Why> {
        let name = name.clone();
        self.on_core(move |core, shared| core.why(Instant::now(), &name, shared)).await?
    }

    async fn on_core<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut OwnerCore, &Shared) -> T + Send + 'static,
    ) -> Option<T> {
        self.ask(|done| {
            Command::Core(Box::new(move |core, shared| {
                // Who asked may have given up.
                let _ = done.send(ask(core, shared));
            }))
        })
        .await
    }

    /// The last wakes of a sprite, oldest first.
    #[must_use]
    pub fn receipts(&self, name: &SpriteName) -> Vec<Receipt> {
        self.shared.receipts.get(name).map(|receipts| receipts.iter().cloned().collect()).unwrap_or_default()
    }

    /// Ends every guest that no other owner could find again; returns when nothing of them is
    /// left.
    pub async fn shutdown(&self) {
        self.ask(Command::Shutdown).await;
    }

    /// Sends a command and waits for its answer; `None` when the task has ended.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        self.commands.send(command(sender)).await.ok()?;
        receiver.await.ok()
    }

    async fn wake_for(
        &self,
        name: SpriteName,
        generation: u64,
        port: u16,
        deadline: Instant,
        (reason, class): (&str, ClientClass),
    ) -> Result<Opened, Reply> {
        let waiter = (SELF, u128::from(self.shared.next_waiter.fetch_add(1, Ordering::Relaxed)));
        let request = WakeRequest { waiter, name, generation, deadline, reason: reason.into(), class };
        let (sender, receiver) = oneshot::channel();
        let ending = refused(Cause::ShuttingDown, Duration::from_secs(1), "");
        if self.commands.send(Command::Wake(request, port, sender)).await.is_err() {
            return Err(Reply::Refused(ending));
        }
        let withdraw = Withdrawal { commands: &self.commands, waiter };
        let outcome = receiver.await.unwrap_or(Err(Reply::Refused(ending)));
        std::mem::forget(withdraw);
        outcome
    }

    /// Waits until this owner knows a placement as new as that, or gives up (`core/ahead.rs`).
    async fn catch_up(&self, name: SpriteName, generation: u64) {
        let waiter = (SELF, u128::from(self.shared.next_waiter.fetch_add(1, Ordering::Relaxed)));
        let (sender, receiver) = oneshot::channel();
        if self.commands.send(Command::CatchUp(waiter, name, generation, sender)).await.is_err() {
            return;
        }
        let withdraw = Withdrawal { commands: &self.commands, waiter };
        // Dropped without a word by an owner that goes away: as good as in vain.
        let _ = receiver.await;
        std::mem::forget(withdraw);
    }

    /// What became of a sprite that is not here: moved, destroyed, or never heard of.
    async fn absent(&self, name: SpriteName, generation: u64) -> Option<Reply> {
        let answer = self.on_core(move |core, _| core.told_of(&name, generation)).await??;
        result_of(answer)?.err()
    }

    /// The run that serves an [`Open`], or why none does.
    fn admit(&self, open: &Open) -> Result<Admitted, Reply> {
        if open.version != VERSION {
            return Err(Reply::Refused(refused(Cause::Version, Duration::ZERO, "")));
        }
        let Some(known) = self.shared.known.get(open.sprite.as_str()).map(|known| *known) else {
            return Err(Reply::Unknown(Unknown { my_generation: 0 }));
        };
        if open.generation != known {
            return Err(Reply::Unknown(Unknown { my_generation: known }));
        }
        let Some(run) = self.shared.runs.get(open.sprite.as_str()).map(|run| run.clone()) else {
            return Err(Reply::Asleep(Asleep::default()));
        };
        if !run.port_open || run.activity.is_closed() || open.expect_run.is_some_and(|expected| expected != run.run) {
            return Err(Reply::Asleep(Asleep { held: run.activity.is_held(), not_connected: false }));
        }
        let guest =
            run.guest(open.port).ok_or_else(|| Reply::Refused(refused(Cause::PortNotDeclared, Duration::ZERO, "")))?;
        let opened = Opened {
            generation: run.generation,
            run: run.run,
            kind: WakeKind::None.into(),
            wake_ms: 0,
            joined: false,
            lost_memory: false,
        };
        Ok(Admitted { opened, guest, activity: run.activity })
    }
}

/// Looks each minute whether what claims a run has a stream, until the owner is gone.
async fn reconcile(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(RECONCILE_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        for run in &shared.runs {
            let found = run.activity.reconcile();
            if found > 0 {
                let streams = run.activity.streams();
                tracing::warn!(sprite = %run.key(), run = run.run, found, streams, "claims without a stream count no more");
                shared.mismatches.fetch_add(found.into(), Ordering::Relaxed);
            }
        }
    }
}

/// Withdraws the wake of a waiter that is dropped before its answer.
struct Withdrawal<'a> {
    commands: &'a mpsc::Sender<Command>,
    waiter: WaiterId,
}

impl Drop for Withdrawal<'_> {
    fn drop(&mut self) {
        // When the queue is full the waiter's deadline ends it instead.
        let _ = self.commands.try_send(Command::Withdraw(self.waiter));
    }
}

impl Owner for OwnerHandle {
    fn control(&self, edge: EdgeId, message: ToOwner, answers: &AnswerSink) {
        self.shared.sinks.lock().unwrap_or_else(PoisonError::into_inner).insert(edge, Arc::clone(answers));
        // Full: the edge sends it again.
        let _ = self.commands.try_send(Command::Edge(edge, message));
    }

    fn open(&self, _edge: EdgeId, open: Open) -> BoxFuture<Result<Admitted, Reply>> {
        let owner = self.clone();
        Box::pin(async move {
            let mut decided = owner.admit(&open);
            let Ok(name) = SpriteName::parse(&open.sprite) else { return decided };
            if let Err(Reply::Unknown(unknown)) = &decided
                && open.generation > unknown.my_generation
            {
                owner.catch_up(name.clone(), open.generation).await;
                decided = owner.admit(&open);
            }
            if matches!(decided, Err(Reply::Unknown(Unknown { my_generation: 0 })))
                && let Some(reply) = owner.absent(name.clone(), open.generation).await
            {
                decided = Err(reply);
            }
            match decided {
                Err(Reply::Asleep(_)) if open.wake => {}
                decided => return decided,
            }
            let deadline = Instant::now() + Duration::from_millis(open.deadline_ms.into());
            let port = u16::try_from(open.port).unwrap_or(0);
            let class = open.client_class();
            let opened = owner.wake_for(name, open.generation, port, deadline, ("stream", class)).await?;
            let admitted = owner.admit(&Open { expect_run: Some(opened.run), ..open })?;
            Ok(Admitted { opened, ..admitted })
        })
    }

    fn edge_gone(&self, edge: EdgeId) {
        self.shared.sinks.lock().unwrap_or_else(PoisonError::into_inner).remove(&edge);
        let _ = self.commands.try_send(Command::EdgeGone(edge));
    }

    fn guest_unreachable(&self, sprite: &str, run: u64) {
        if let Ok(name) = SpriteName::parse(sprite) {
            if let Some(mut present) = self.shared.runs.get_mut(&name) {
                present.port_open = present.always || present.run != run;
            }
            let _ = self.commands.try_send(Command::PortLost(name, run));
        }
    }
}

impl Run {
    /// 0 is the sprite's own port; others must be declared.
    fn guest(&self, port: u32) -> Option<SocketAddr> {
        let port = u16::try_from(port).ok()?;
        if port == 0 || port == self.address.port() {
            return Some(self.address);
        }
        self.ports.contains(&port).then(|| SocketAddr::new(self.address.ip(), port))
    }
}

impl Shared {
    pub(super) fn open(&self, name: &SpriteName) -> u32 {
        self.runs.get(name).map_or(0, |run| run.activity.open())
    }
}

impl Activity for Shared {
    fn activity(&self, name: &SpriteName, run: u64) -> (u32, Instant) {
        match self.runs.get(name).filter(|present| present.run == run) {
            Some(present) => (present.activity.open(), present.activity.last()),
            None => (0, Instant::now() - Duration::from_secs(3600)),
        }
    }
}
