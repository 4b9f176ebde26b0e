//! An owner that knows only time: each of its sprites runs as long after a wake was asked for as it was
//! told, and all of them are one guest. What an edge needs for a wake is then the edge's alone.
//!
//! It is enrolled as a worker host and speaks the product's own sessions, so the way to it is the real one.

use crate::clock::now_ns;
use crate::orchestrator::Wake;
use anyhow::{Context, anyhow, ensure};
use backhaul::activity::RunActivity;
use backhaul::keys::{PrivateKey, PublicKey};
use backhaul::owner::{Admitted, AnswerSink, BoxFuture, EdgeId, Owner};
use backhaul::session::{EdgePeer, HostServer, HostServerOptions, Identity, Limits};
use backhaul::wire::{
    self, Accepted, Asleep, Cordon, EdgeMessage, Open, Opened, Outcome, OwnerMessage, Reply, ToEdge, ToOwner,
    WakeAnswer, WakeKind,
};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Packets inside the tunnel, bytes: as the product's default.
const INNER_MTU: u16 = 1_420;
/// Longest wait until an edge has forgotten a run (chosen: it takes a millisecond).
const CORDON: Duration = Duration::from_secs(5);

/// The owner, on a thread of its own until the program ends.
pub(crate) struct FakeOwner {
    inner: Arc<Inner>,
    /// What `edge-proxy fleet host add` needs.
    pub(crate) key: PublicKey,
    pub(crate) pin: String,
    pub(crate) endpoint: SocketAddr,
}

struct Inner {
    guest: SocketAddr,
    sprites: Mutex<HashMap<String, Fake>>,
    edges: Mutex<HashMap<EdgeId, AnswerSink>>,
    cordoned: Notify,
}

/// One sprite.
struct Fake {
    wakes_in: Duration,
    run: u64,
    /// Of the run, while there is one.
    activity: Option<Arc<RunActivity>>,
    kind: WakeKind,
    wakes: Vec<Wake>,
    /// The last run an edge said it forgot.
    cordoned: u64,
}

impl FakeOwner {
    /// Serves one edge, whose public halves these are.
    ///
    /// # Errors
    /// No key, socket or thread.
    pub(crate) fn start(directory: &Path, edge: PublicKey, pin: &str, guest: SocketAddr) -> anyhow::Result<Self> {
        let key = PrivateKey::load_or_generate(&directory.join("owner.key"))?;
        let identity = Identity::load_or_generate(&directory.join("owner.identity"))?;
        let (public, own_pin) = (key.public(), identity.pin().to_owned());
        let inner =
            Arc::new(Inner { guest, sprites: Mutex::default(), edges: Mutex::default(), cordoned: Notify::new() });
        let options = HostServerOptions {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            address: public.derived_address(),
            key,
            identity,
            inner_mtu: INNER_MTU,
            edges: vec![EdgePeer { address: edge.derived_address(), key: edge, pins: vec![pin.into()] }],
            owner: Arc::new(Handle(Arc::clone(&inner))),
            limits: Limits::default(),
            applied: None,
        };
        let (told, hears) = std::sync::mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("owner".into()).spawn(move || {
            runtime.block_on(async move {
                let server = HostServer::start(options);
                drop(told.send(server.as_ref().map(HostServer::local_addr).map_err(ToString::to_string)));
                if server.is_ok() {
                    std::future::pending::<()>().await;
                }
            });
        })?;
        let endpoint = hears.recv().context("the owner's thread ended")?.map_err(|error| anyhow!(error))?;
        Ok(Self { inner, key: public, pin: own_pin, endpoint })
    }

    /// A sprite that sleeps.
    pub(crate) fn create(&self, name: &str, wakes_in: Duration) {
        let kind = WakeKind::Cold;
        let fake = Fake { wakes_in, run: 0, activity: None, kind, wakes: Vec::new(), cordoned: 0 };
        self.inner.sprites().insert(name.to_owned(), fake);
    }

    /// Puts a sprite to sleep; the next wake will be called `kind`. Returns when its edge has forgotten the run.
    ///
    /// # Errors
    /// It does not run, or the edge does not answer.
    pub(crate) async fn sleep(&self, name: &str, kind: WakeKind) -> anyhow::Result<()> {
        let run = {
            let mut sprites = self.inner.sprites();
            let fake = sprites.get_mut(name).context("no such sprite")?;
            fake.kind = kind;
            let activity = fake.activity.take();
            // Asleep already is as good.
            let Some(activity) = activity else { return Ok(()) };
            activity.end();
            fake.run
        };
        let cordon = Cordon { sprite: name.to_owned(), run, forced: true, ..Cordon::default() };
        let edges: Vec<_> = self.inner.edges().values().cloned().collect();
        ensure!(!edges.is_empty(), "no edge has ever spoken to the owner");
        for edge in edges {
            edge(ToEdge { message: Some(OwnerMessage::Cordon(cordon.clone())) });
        }
        let forgotten = async {
            loop {
                let again = self.inner.cordoned.notified();
                if self.inner.sprites().get(name).is_none_or(|fake| fake.cordoned >= run) {
                    return;
                }
                again.await;
            }
        };
        tokio::time::timeout(CORDON, forgotten).await.context("the edge did not forget the run")
    }

    /// The wakes of one sprite so far.
    pub(crate) fn wakes(&self, name: &str) -> Vec<Wake> {
        self.inner.sprites().get(name).map(|fake| fake.wakes.clone()).unwrap_or_default()
    }
}

impl Inner {
    fn sprites(&self) -> MutexGuard<'_, HashMap<String, Fake>> {
        self.sprites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn edges(&self) -> MutexGuard<'_, HashMap<EdgeId, AnswerSink>> {
        self.edges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It runs now; what to tell.
    fn runs(&self, name: &str, asked_ns: u64) -> Option<Opened> {
        let mut sprites = self.sprites();
        let fake = sprites.get_mut(name)?;
        fake.run += 1;
        fake.activity = Some(RunActivity::new(Instant::now()));
        let wake = Wake { asked_ns, answered_ns: now_ns() };
        fake.wakes.push(wake);
        let wake_ms = u32::try_from((wake.answered_ns - asked_ns) / 1_000_000).unwrap_or(u32::MAX);
        Some(Opened { run: fake.run, kind: fake.kind.into(), wake_ms, ..opened(fake) })
    }
}

fn opened(fake: &Fake) -> Opened {
    Opened { generation: 1, run: fake.run, kind: WakeKind::None.into(), wake_ms: 0, joined: false, lost_memory: false }
}

struct Handle(Arc<Inner>);

impl Owner for Handle {
    fn control(&self, edge: EdgeId, message: ToOwner, answers: &AnswerSink) {
        self.0.edges().insert(edge, Arc::clone(answers));
        match message.message {
            Some(EdgeMessage::Wake(wake)) => self.wake(wake, Arc::clone(answers)),
            Some(EdgeMessage::Cordoned(cordoned)) => {
                if let Some(fake) = self.0.sprites().get_mut(&cordoned.sprite) {
                    fake.cordoned = cordoned.run;
                }
                self.0.cordoned.notify_waiters();
            }
            Some(EdgeMessage::Withdraw(_) | EdgeMessage::Leases(_) | EdgeMessage::Applied(_)) | None => {}
        }
    }

    fn open(&self, _edge: EdgeId, open: Open) -> BoxFuture<Result<Admitted, Reply>> {
        let sprites = self.0.sprites();
        let run = sprites.get(&open.sprite).and_then(|fake| Some((fake, fake.activity.clone()?)));
        let decided = match run {
            Some((fake, activity)) if open.expect_run.is_none_or(|run| run == fake.run) => {
                Ok(Admitted { opened: opened(fake), guest: self.0.guest, activity })
            }
            _ => Err(Reply::Asleep(Asleep::default())),
        };
        drop(sprites);
        Box::pin(std::future::ready(decided))
    }

    fn edge_gone(&self, edge: EdgeId) {
        self.0.edges().remove(&edge);
    }

    fn guest_unreachable(&self, sprite: &str, _run: u64) {
        eprintln!("loadtest: the guest of {sprite} does not answer");
    }
}

impl Handle {
    fn wake(&self, wake: wire::Wake, answers: AnswerSink) {
        let asked_ns = now_ns();
        let answer = move |outcome| {
            let (wake_id_high, wake_id_low) = (wake.wake_id_high, wake.wake_id_low);
            let answer = WakeAnswer { wake_id_high, wake_id_low, outcome: Some(outcome) };
            answers(ToEdge { message: Some(OwnerMessage::Answer(answer)) });
        };
        let known = {
            let sprites = self.0.sprites();
            sprites.get(&wake.sprite).map(|fake| (fake.wakes_in, fake.activity.is_some().then(|| opened(fake))))
        };
        match known {
            None => answer(Outcome::Unknown(wire::Unknown { my_generation: 0 })),
            // Sent again: its answer may have been lost.
            Some((_, Some(runs))) => answer(Outcome::Ready(runs)),
            Some((Duration::ZERO, None)) => {
                let runs = self.0.runs(&wake.sprite, asked_ns);
                runs.into_iter().for_each(|runs| answer(Outcome::Ready(runs)));
            }
            Some((wakes_in, None)) => {
                answer(Outcome::Accepted(Accepted::default()));
                let inner = Arc::clone(&self.0);
                tokio::spawn(async move {
                    tokio::time::sleep(wakes_in).await;
                    let asleep = inner.sprites().get(&wake.sprite).is_some_and(|fake| fake.activity.is_none());
                    // Of a wake that was sent twice only the first makes a run.
                    let runs = asleep.then(|| inner.runs(&wake.sprite, asked_ns)).flatten();
                    runs.into_iter().for_each(|runs| answer(Outcome::Ready(runs)));
                });
            }
        }
    }
}
