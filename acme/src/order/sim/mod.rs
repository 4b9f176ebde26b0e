//! A world in memory: rows, PoPs that hold answers, CAs, a clock, and a fuse that ends a process at any point.

pub(crate) mod ca;
pub(crate) mod limits;

use super::OrderRow;
use super::issue::{Challenges, Issuer, Outcome, order_key};
use super::ours::Ours;
use crate::ca::{Challenge, Kind, Problem, Reply};
use crate::certificate::{CertRow, cert_key};
use crate::clock::Clock;
use crate::limits::{Held, Limiter, Limits};
use crate::rows::{Answer, Memory, Row, Rows};
use crate::seal::{Kek, Sealer};
use ca::Ca;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer as Signer, KeyPair};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// Burns down by one at each point where a process can end: before and after each thing that is seen from outside.
#[derive(Default)]
pub(crate) struct Fuse {
    left: AtomicI64,
    burnt: AtomicI64,
    blown: Notify,
}

impl Fuse {
    /// Ends the process at the `at`th point from now.
    pub(crate) fn light(&self, at: i64) {
        self.left.store(at, Ordering::SeqCst);
        self.burnt.store(0, Ordering::SeqCst);
    }

    /// Points that were passed.
    pub(crate) fn burnt(&self) -> i64 {
        self.burnt.load(Ordering::SeqCst)
    }

    async fn point(&self) {
        self.burnt.fetch_add(1, Ordering::SeqCst);
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.blown.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// Returns when it has burnt down: whatever runs is to be dropped then.
    pub(crate) async fn blown(&self) {
        self.blown.notified().await;
    }

    async fn around<T>(&self, does: impl Future<Output = T>) -> T {
        self.point().await;
        let done = does.await;
        self.point().await;
        done
    }
}

/// Where our own names are: of sprites, of those in a region, and of those in a zone that a region is named in.
pub(crate) const SUFFIXES: [&str; 3] = ["sprites.test", "r0.sprites.test", "apps.example.org"];

/// What processes and CAs share.
pub(crate) struct Stage {
    pub(crate) fuse: Fuse,
    pub(crate) clock: Clock,
    answers: Mutex<BTreeMap<String, BTreeSet<String>>>,
    /// Why an order cannot be placed yet, so many times.
    pub(crate) undelegated: Mutex<Vec<Problem>>,
    signer: Signer<'static, KeyPair>,
}

/// All there is.
pub(crate) struct World {
    pub(crate) rows: Arc<Memory>,
    pub(crate) stage: Arc<Stage>,
    /// What the next process keeps below, by the CA's name.
    pub(crate) limits: Mutex<Vec<(String, Limits)>>,
    cas: Mutex<BTreeMap<String, Arc<Ca>>>,
    kek: Arc<Kek>,
    _dir: tempfile::TempDir,
}

impl World {
    /// With one CA, `sim`.
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let (answers, undelegated) = Default::default();
        let stage = Stage { fuse: Fuse::default(), clock, answers, undelegated, signer: Signer::new(params, key) };
        stage.fuse.light(i64::MAX);
        let dir = tempfile::tempdir().unwrap();
        let world = Self {
            rows: Arc::default(),
            stage: Arc::new(stage),
            limits: Mutex::default(),
            cas: Mutex::default(),
            kek: Arc::new(Kek::from_file_or_new(&dir.path().join("kek")).unwrap()),
            _dir: dir,
        };
        world.add_ca("sim");
        Arc::new(world)
    }

    /// A CA of this name.
    pub(crate) fn add_ca(&self, name: &str) -> Arc<Ca> {
        let ca = Arc::new(Ca::new(name, Arc::clone(&self.stage)));
        self.cas.lock().unwrap().insert(name.to_owned(), Arc::clone(&ca));
        ca
    }

    /// The CA of this name.
    pub(crate) fn ca(&self, name: &str) -> Arc<Ca> {
        Arc::clone(&self.cas.lock().unwrap()[name])
    }

    /// A process that has just started.
    pub(crate) async fn process(self: &Arc<Self>) -> Issuer {
        let sealer = Sealer::load(&self.kek, &*self.rows).await.unwrap();
        Issuer {
            rows: Arc::new(Fused(Arc::clone(self))),
            sealer: Arc::new(sealer),
            challenges: Arc::new(Pops(Arc::clone(&self.stage))),
            limits: Arc::new(Limiter::new(self.limits.lock().unwrap().clone())),
            ours: Ours::new(SUFFIXES.map(str::to_owned)),
        }
    }

    /// Works on the order until it is done, beginning it if there is none; `now` goes on as it wants.
    pub(crate) async fn finish(self: &Arc<Self>, issuer: &Issuer, id: &str, new: &OrderRow, now: &mut u64) -> CertRow {
        let mut order = match issuer.find(id).await.unwrap() {
            Some(order) => order,
            None => match issuer.rows.get(&cert_key(id, new.generation)).await.unwrap() {
                Some(done) => return serde_json::from_slice(&done.value).unwrap(),
                None => issuer.begin(id, new.clone()).await.unwrap(),
            },
        };
        for _ in 0..200 {
            match issuer.step(&mut order, &*self.ca(&new.ca), *now).await.unwrap() {
                Outcome::Issued(row) => return *row,
                Outcome::Wait(until) | Outcome::Held(Held { until, .. }) => *now = until,
                Outcome::Again => {}
            }
        }
        panic!("no end: {:?}", order.row);
    }

    /// Whether the order's row is gone.
    pub(crate) async fn is_gone(&self, id: &str) -> bool {
        self.rows.get(&order_key(id)).await.unwrap().is_none()
    }
}

/// The rows, as a process sees them.
struct Fused(Arc<World>);

impl Rows for Fused {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Row>> {
        self.0.rows.get(key)
    }

    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Row>> {
        self.0.rows.scan(prefix)
    }

    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64> {
        // Not before it is awaited.
        let does = async move { self.0.rows.compare_and_set(key, expected, value).await };
        Box::pin(self.0.stage.fuse.around(does))
    }
}

/// The PoPs, all of which have an answer at once.
struct Pops(Arc<Stage>);

impl Challenges for Pops {
    fn publish<'a>(&'a self, id: &'a str, challenges: &'a [Challenge]) -> Reply<'a, ()> {
        Box::pin(self.0.fuse.around(async move {
            let answers = challenges.iter().map(|challenge| challenge.txt.clone());
            self.0.answers.lock().unwrap().entry(id.to_owned()).or_default().extend(answers);
            Ok(())
        }))
    }

    fn kind<'a>(&'a self, _id: &'a str, _names: &'a [String], wanted: Kind) -> Reply<'a, Kind> {
        Box::pin(async move { self.0.undelegated.lock().unwrap().pop().map_or(Ok(wanted), Err) })
    }

    fn withdraw<'a>(&'a self, id: &'a str) -> Reply<'a, ()> {
        Box::pin(self.0.fuse.around(async move {
            self.0.answers.lock().unwrap().remove(id);
            Ok(())
        }))
    }
}
