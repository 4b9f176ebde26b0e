//! The order of things, and that they come to their end whoever dies in between.

use super::*;
use crate::ca::{Authority, Class, Kind, NewOrder, Reply, View, Window};
use crate::certificate::{CertRow, cert_key};
use crate::lease::TAKE;
use crate::rows::{Answer, Memory, Row, Rows, RowsError};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const NOW: u64 = 1_800_000_000;
const ID: &str = "wild.first.sprites.test";

/// A CA that revokes, PoPs and tickets; what was done, in its order.
#[derive(Default)]
struct World {
    did: Mutex<Vec<&'static str>>,
    served: AtomicBool,
    refuses: AtomicUsize,
}

impl World {
    fn did(&self) -> Vec<&'static str> {
        self.did.lock().unwrap().clone()
    }
}

struct Ca(Arc<World>);

impl Authority for Ca {
    fn name(&self) -> &str {
        "first"
    }
    fn thumbprint(&self) -> &str {
        "p"
    }
    fn order<'a>(&'a self, _: NewOrder<'a>) -> Reply<'a, View> {
        unreachable!()
    }
    fn look<'a>(&'a self, _: &'a str) -> Reply<'a, View> {
        unreachable!()
    }
    fn ask<'a>(&'a self, _: &'a str, _: Kind) -> Reply<'a, ()> {
        unreachable!()
    }
    fn finalise<'a>(&'a self, _: &'a str, _: &'a [u8]) -> Reply<'a, ()> {
        unreachable!()
    }
    fn fetch<'a>(&'a self, _: &'a str) -> Reply<'a, Option<String>> {
        unreachable!()
    }
    fn window<'a>(&'a self, _: &'a [u8], _: u64) -> Reply<'a, Option<Window>> {
        unreachable!()
    }
    fn revoke<'a>(&'a self, _: &'a [u8], compromised: bool) -> Reply<'a, ()> {
        assert!(compromised && !self.0.served.load(Ordering::Relaxed), "somebody serves it");
        let refuses = self.0.refuses.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        self.0.did.lock().unwrap().push(if refuses.is_ok() { "refused" } else { "revoked" });
        Box::pin(async move { refuses.map_or(Ok(()), |_| Err(Problem::new(Class::Unavailable, "503"))) })
    }
}

struct Seen(Arc<World>);

impl Withdrawals for Seen {
    fn pending(&self) -> Vec<(String, u64)> {
        vec![(ID.into(), 1)]
    }
    fn changed(&self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::pending())
    }
    fn served_by(&self, _: &str, _: u64) -> Vec<String> {
        if self.0.served.load(Ordering::Relaxed) { vec!["fra-1".into()] } else { Vec::new() }
    }
    fn authority(&self, _: &str) -> Option<Arc<dyn Authority>> {
        Some(Arc::new(Ca(Arc::clone(&self.0))))
    }
    fn void_tickets(&self) -> Reply<'_, ()> {
        self.0.did.lock().unwrap().push("void");
        Box::pin(async { Ok(()) })
    }
}

/// A table whose process dies at its n-th write, before or after it was done.
struct Dies {
    rows: Arc<Memory>,
    left: AtomicUsize,
    after: bool,
}

impl Rows for Dies {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Row>> {
        self.rows.get(key)
    }
    fn scan<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Row>> {
        self.rows.scan(prefix)
    }
    fn compare_and_set<'a>(&'a self, key: &'a str, expected: Option<u64>, value: Option<&'a [u8]>) -> Answer<'a, u64> {
        Box::pin(async move {
            let dies = self.left.fetch_sub(1, Ordering::Relaxed) == 1;
            if dies && !self.after {
                return Err(RowsError::Unavailable("dead".into()));
            }
            let done = self.rows.compare_and_set(key, expected, value).await;
            if dies { Err(RowsError::Uncertain("dead".into())) } else { done }
        })
    }
}

async fn table() -> Arc<Memory> {
    let key = rcgen::KeyPair::generate().unwrap();
    let chain = rcgen::CertificateParams::new(vec!["sprites.test".into()]).unwrap().self_signed(&key).unwrap().pem();
    let row = CertRow {
        names: vec!["sprites.test".into()],
        ca: "first".into(),
        generation: 1,
        chain,
        sealed_key: String::new(),
        not_before: NOW - DAY,
        not_after: NOW + 80 * DAY,
        issued_at: NOW - DAY,
        ari: None,
        window: None,
        compromised: true,
        renew_asked: None,
        revocation: Some(Revocation::new(NOW)),
    };
    let rows = Arc::new(Memory::default());
    rows.compare_and_set(&cert_key(ID, 1), None, Some(&row.encode())).await.unwrap();
    rows
}

async fn revocation(rows: &Memory) -> Revocation {
    let row = rows.get(&cert_key(ID, 1)).await.unwrap().unwrap();
    serde_json::from_slice::<CertRow>(&row.value).unwrap().revocation.unwrap()
}

#[tokio::test(start_paused = true)]
async fn nobody_serves_it_before_it_is_revoked_and_tickets_are_void_last() {
    let (rows, world) = (table().await, Arc::new(World::default()));
    world.served.store(true, Ordering::Relaxed);
    let mut revoker = Revoker::new(rows.clone(), Arc::new(Seen(Arc::clone(&world))), "a".into());
    for _ in 0..20 {
        revoker.turn(NOW).await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert!(world.did().is_empty());
    assert_eq!(revocation(&rows).await.step, Step::Replacing);
    world.served.store(false, Ordering::Relaxed);
    revoker.turn(NOW + 5).await.unwrap();
    assert_eq!(world.did(), ["revoked", "void"]);
    let done = revocation(&rows).await;
    assert_eq!((done.step, done.revoked_at, done.tickets_void), (Step::Revoked, Some(NOW + 5), true));
    assert!(done.is_over(NOW + DAY, NOW));
    revoker.turn(NOW + 6).await.unwrap();
    assert_eq!(world.did().len(), 2, "nothing is done twice by one that lives");
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_does_not_revoke_is_told_again_and_tickets_do_not_wait_for_it() {
    let (rows, world) = (table().await, Arc::new(World::default()));
    world.refuses.store(2, Ordering::Relaxed);
    let mut revoker = Revoker::new(rows.clone(), Arc::new(Seen(Arc::clone(&world))), "a".into());
    revoker.turn(NOW).await.unwrap();
    assert_eq!(world.did(), ["refused", "void"]);
    let first = revocation(&rows).await;
    assert_eq!((first.step, first.next_try, first.failures), (Step::Revoking, NOW + 60, 1));
    assert!(first.last_problem.is_some() && !first.is_over(NOW + DAY, NOW) && first.is_over(NOW, NOW));
    revoker.turn(NOW + 59).await.unwrap();
    assert_eq!(world.did().len(), 2);
    revoker.turn(NOW + 60).await.unwrap();
    assert_eq!(revocation(&rows).await.next_try, NOW + 60 + 120);
    revoker.turn(NOW + 180).await.unwrap();
    assert_eq!(world.did(), ["refused", "void", "refused", "revoked"]);
    assert_eq!(revocation(&rows).await.last_problem, None);
}

#[tokio::test(start_paused = true)]
async fn whoever_dies_in_between_is_followed_by_another() {
    let mut deaths = 0;
    for left in 1..=6 {
        for after in [false, true] {
            let (rows, world) = (table().await, Arc::new(World::default()));
            let dies = Arc::new(Dies { rows: rows.clone(), left: AtomicUsize::new(left), after });
            let mut first = Revoker::new(dies, Arc::new(Seen(Arc::clone(&world))), "a".into());
            deaths += usize::from(first.turn(NOW).await.is_err());
            drop(first);
            let mut second = Revoker::new(rows.clone(), Arc::new(Seen(Arc::clone(&world))), "b".into());
            for _ in 0..3 {
                second.turn(NOW + 1).await.unwrap();
                tokio::time::advance(TAKE).await;
            }
            let done = revocation(&rows).await;
            assert!(done.is_over(NOW + DAY, NOW) && done.step == Step::Revoked, "{left} {after}: {done:?}");
            let did = world.did();
            let (revoked, void) =
                (did.iter().position(|did| *did == "revoked"), did.iter().rposition(|did| *did == "void"));
            assert!(revoked < void && did.len() <= 3, "{left} {after}: {did:?}");
        }
    }
    // The lease, and a row for each of three things that are begun or done.
    assert_eq!(deaths, 8);
}
