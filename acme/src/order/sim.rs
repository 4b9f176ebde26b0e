//! A CA in memory, PoPs that hold answers, and a fuse that ends a process at any point.

use super::OrderRow;
use super::issue::{Challenges, Issuer, Outcome, order_key};
use crate::ca::{Authority, Challenge, Class, Kind, NewOrder, Problem, Reply, Status, View, Window};
use crate::certificate::CertRow;
use crate::rows::{Answer, Memory, Row, Rows};
use crate::seal::{Kek, Sealer};
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer as Signer, KeyPair};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// The thumbprint of the account there.
pub(crate) const THUMBPRINT: &str = "thumb";

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

struct SimOrder {
    names: Vec<String>,
    status: Status,
    chain: Option<String>,
}

/// All there is.
pub(crate) struct World {
    pub(crate) rows: Arc<Memory>,
    pub(crate) fuse: Arc<Fuse>,
    /// Names in orders that were placed, in order.
    pub(crate) placed: Mutex<Vec<Vec<String>>>,
    orders: Mutex<BTreeMap<String, SimOrder>>,
    answers: Mutex<BTreeMap<String, BTreeSet<String>>>,
    /// What the CA says next instead of doing anything.
    pub(crate) refuses: Mutex<Vec<Problem>>,
    /// Why an order cannot be placed yet, so many times.
    pub(crate) unready: Mutex<Vec<Problem>>,
    signer: Signer<'static, KeyPair>,
    kek: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Arc<Self> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let fuse = Fuse::default();
        fuse.light(i64::MAX);
        Arc::new(Self {
            rows: Arc::default(),
            fuse: Arc::new(fuse),
            placed: Mutex::default(),
            orders: Mutex::default(),
            answers: Mutex::default(),
            refuses: Mutex::default(),
            unready: Mutex::default(),
            signer: Signer::new(params, key),
            kek: tempfile::tempdir().unwrap(),
        })
    }

    /// A process that has just started.
    pub(crate) async fn process(self: &Arc<Self>) -> Issuer {
        let kek = Kek::from_file_or_new(&self.kek.path().join("kek")).unwrap();
        let sealer = Sealer::load(&Arc::new(kek), &*self.rows).await.unwrap();
        Issuer {
            rows: Arc::new(Fused(Arc::clone(self))),
            sealer: Arc::new(sealer),
            challenges: Arc::new(Pops(Arc::clone(self))),
        }
    }

    /// Works on the order until it is done, beginning it if there is none; `now` goes on as it wants.
    pub(crate) async fn finish(self: &Arc<Self>, issuer: &Issuer, id: &str, new: &OrderRow, now: &mut u64) -> CertRow {
        let mut order = match issuer.find(id).await.unwrap() {
            Some(order) => order,
            None => match issuer.rows.get(&crate::certificate::cert_key(id, new.generation)).await.unwrap() {
                Some(done) => return serde_json::from_slice(&done.value).unwrap(),
                None => issuer.begin(id, new.clone()).await.unwrap(),
            },
        };
        for _ in 0..200 {
            match issuer.step(&mut order, &Ca(Arc::clone(self)), *now).await.unwrap() {
                Outcome::Issued(row) => return *row,
                Outcome::Wait(until) => *now = until,
                Outcome::Again => {}
            }
        }
        panic!("no end: {:?}", order.row);
    }

    fn unready(&self) -> Result<(), Problem> {
        self.unready.lock().unwrap().pop().map_or(Ok(()), Err)
    }

    fn refuse(&self) -> Result<(), Problem> {
        self.refuses.lock().unwrap().pop().map_or(Ok(()), Err)
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
        Box::pin(self.0.fuse.around(async move { self.0.rows.compare_and_set(key, expected, value).await }))
    }
}

/// The PoPs, all of which have an answer at once.
struct Pops(Arc<World>);

impl Challenges for Pops {
    fn publish<'a>(&'a self, id: &'a str, challenges: &'a [Challenge]) -> Reply<'a, ()> {
        Box::pin(self.0.fuse.around(async move {
            let answers = challenges.iter().map(|challenge| challenge.txt.clone());
            self.0.answers.lock().unwrap().entry(id.to_owned()).or_default().extend(answers);
            Ok(())
        }))
    }

    fn kind<'a>(&'a self, _id: &'a str, _names: &'a [String], wanted: Kind) -> Reply<'a, Kind> {
        Box::pin(async move {
            self.0.unready()?;
            Ok(wanted)
        })
    }

    fn withdraw<'a>(&'a self, id: &'a str) -> Reply<'a, ()> {
        Box::pin(self.0.fuse.around(async move {
            self.0.answers.lock().unwrap().remove(id);
            Ok(())
        }))
    }
}

/// The CA.
pub(crate) struct Ca(pub(crate) Arc<World>);

impl Ca {
    fn view(url: &str, order: &SimOrder) -> View {
        View { url: url.to_owned(), status: order.status.clone(), profile: None }
    }

    fn with<T>(&self, url: &str, does: impl FnOnce(&mut SimOrder) -> Result<T, Problem>) -> Result<T, Problem> {
        let mut orders = self.0.orders.lock().unwrap();
        does(orders.get_mut(url).ok_or_else(|| Problem::new(Class::Order, "no such order"))?)
    }
}

impl Authority for Ca {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn thumbprint(&self) -> &str {
        THUMBPRINT
    }

    fn order<'a>(&'a self, new: NewOrder<'a>) -> Reply<'a, View> {
        Box::pin(self.0.fuse.around(async move {
            self.0.refuse()?;
            self.0.placed.lock().unwrap().push(new.names.to_vec());
            let mut orders = self.0.orders.lock().unwrap();
            let number = orders.len() + 1;
            let url = format!("https://ca/order/{number}");
            let names: BTreeSet<_> = new.names.iter().map(|name| name.trim_start_matches("*.").to_owned()).collect();
            let challenge =
                |name: String| Challenge::new(name, Kind::Dns01, format!("token{number}"), THUMBPRINT, false);
            let status = Status::Pending(names.into_iter().map(challenge).collect());
            let order = SimOrder { names: new.names.to_vec(), status, chain: None };
            let view = Self::view(&url, &order);
            orders.insert(url, order);
            Ok(view)
        }))
    }

    fn look<'a>(&'a self, url: &'a str) -> Reply<'a, View> {
        Box::pin(async move {
            self.0.refuse()?;
            self.with(url, |order| {
                let view = Self::view(url, order);
                // It is done by the next time somebody looks.
                if order.status == Status::Processing {
                    order.status = Status::Valid;
                }
                Ok(view)
            })
        })
    }

    fn ask<'a>(&'a self, url: &'a str, _kind: Kind) -> Reply<'a, ()> {
        Box::pin(self.0.fuse.around(async move {
            self.0.refuse()?;
            let answers: BTreeSet<_> = self.0.answers.lock().unwrap().values().flatten().cloned().collect();
            self.with(url, |order| {
                let Status::Pending(challenges) = &order.status else { return Ok(()) };
                order.status = match challenges.iter().all(|challenge| answers.contains(&challenge.txt)) {
                    true => Status::Ready,
                    false => Status::Invalid(Problem::new(Class::Unauthorized, "no such record")),
                };
                Ok(())
            })
        }))
    }

    fn finalise<'a>(&'a self, url: &'a str, request: &'a [u8]) -> Reply<'a, ()> {
        Box::pin(self.0.fuse.around(async move {
            self.0.refuse()?;
            self.with(url, |order| {
                if order.status != Status::Ready {
                    return Err(Problem::new(Class::Order, "orderNotReady"));
                }
                let request = CertificateSigningRequestParams::from_der(&request.to_vec().into()).unwrap();
                let has: BTreeSet<_> =
                    request.params.subject_alt_names.iter().map(|name| format!("{name:?}")).collect();
                assert_eq!(has.len(), order.names.len());
                order.chain = Some(request.signed_by(&self.0.signer).unwrap().pem());
                order.status = Status::Processing;
                Ok(())
            })
        }))
    }

    fn fetch<'a>(&'a self, url: &'a str) -> Reply<'a, Option<String>> {
        Box::pin(async move {
            self.0.refuse()?;
            self.with(url, |order| Ok(order.chain.clone()))
        })
    }

    fn window<'a>(&'a self, _leaf: &'a [u8]) -> Reply<'a, Option<Window>> {
        Box::pin(async { Ok(None) })
    }

    fn revoke<'a>(&'a self, _leaf: &'a [u8], _compromised: bool) -> Reply<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}

/// Whether the order's row is gone.
pub(crate) async fn is_gone(world: &World, id: &str) -> bool {
    world.rows.get(&order_key(id)).await.unwrap().is_none()
}
