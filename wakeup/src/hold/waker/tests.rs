use super::*;
use backhaul::owner::{Admitted, AnswerSink, BoxFuture, EdgeId, Owner};
use backhaul::wire::{Accepted, Asleep, Cordon, EdgeMessage, Open, Opened, Outcome, Reply, Wake, WakeAnswer};
use router::access::Access;
use router::route::Generation;
use std::collections::BTreeSet;
use std::sync::Mutex;
use tokio::task::JoinHandle;

/// An owner that notes what it is told and says what the test wants.
#[derive(Default)]
struct Script {
    heard: Mutex<Vec<EdgeMessage>>,
    sink: Mutex<Option<AnswerSink>>,
    more: Notify,
    /// What it answers to the first wake within the very call.
    at_once: Option<fn(&Wake) -> ToEdge>,
}

impl Owner for Script {
    fn control(&self, _edge: EdgeId, message: ToOwner, answers: &AnswerSink) {
        let message = message.message.expect("edges send no empty messages");
        *self.sink.lock().unwrap() = Some(Arc::clone(answers));
        let first = {
            let mut heard = self.heard.lock().unwrap();
            heard.push(message.clone());
            heard.len() == 1
        };
        self.more.notify_one();
        if let (true, Some(answer), EdgeMessage::Wake(wake)) = (first, self.at_once, message) {
            answers(answer(&wake));
        }
    }

    fn open(&self, _edge: EdgeId, _open: Open) -> BoxFuture<Result<Admitted, Reply>> {
        Box::pin(std::future::ready(Err(Reply::Asleep(Asleep::default()))))
    }

    fn edge_gone(&self, _edge: EdgeId) {}

    fn guest_unreachable(&self, _sprite: &str, _run: u64) {}
}

impl Script {
    fn heard(&self) -> Vec<EdgeMessage> {
        self.heard.lock().unwrap().clone()
    }

    fn say(&self, message: ToEdge) {
        let sink = self.sink.lock().unwrap().clone().expect("somebody asked");
        sink(message);
    }

    /// The first message that `pick` likes, once it is there.
    async fn hear<T>(&self, pick: impl Fn(&EdgeMessage) -> Option<T>) -> T {
        loop {
            if let Some(found) = self.heard().iter().find_map(&pick) {
                return found;
            }
            self.more.notified().await;
        }
    }

    async fn wake(&self) -> Wake {
        self.hear(|message| match message {
            EdgeMessage::Wake(wake) => Some(wake.clone()),
            _ => None,
        })
        .await
    }
}

fn answer(wake: &Wake, outcome: Outcome) -> ToEdge {
    let answer = WakeAnswer { wake_id_high: wake.wake_id_high, wake_id_low: wake.wake_id_low, outcome: Some(outcome) };
    ToEdge { message: Some(OwnerMessage::Answer(answer)) }
}

fn ready(wake: &Wake) -> ToEdge {
    let opened =
        Opened { generation: 1, run: 4, kind: WakeKind::Cold.into(), wake_ms: 9, joined: false, lost_memory: false };
    answer(wake, Outcome::Ready(opened))
}

/// It is asked again, but never given up.
fn accepted(wake: &Wake) -> ToEdge {
    answer(wake, Outcome::Accepted(Accepted::default()))
}

fn name() -> SpriteName {
    SpriteName::parse("a").unwrap()
}

fn request(patience: Duration) -> HoldRequest {
    let route = Route {
        generation: Generation(1),
        tenant: router::route::Tenant::default(),
        host: HostId(1),
        access: Access::Public,
        wake: None,
        ports: [].into(),
        client_certificate: None,
        deleted: false,
    };
    HoldRequest {
        name: name(),
        route,
        port: 0,
        deadline: Instant::now() + patience,
        client: "192.0.2.1".parse().unwrap(),
        client_class: ClientClass::Anonymous,
        reason: "test".into(),
        bytes: 1_000,
    }
}

/// A way that takes every message and has a length.
struct Far(Duration);

impl Post for Far {
    fn send(&self, _host: HostId, _message: ToOwner) -> Result<(), Unreachable> {
        Ok(())
    }

    fn round_trip(&self, _host: HostId) -> Duration {
        self.0
    }
}

/// By when the timer of the holds is due next.
#[tokio::test]
async fn a_wake_is_asked_about_again_as_late_as_its_host_is_far() {
    for far in [0, 300] {
        let holds = Holds::new(HoldLimits::from(&config::Hold::default()), 7);
        let desk = Desk::new(holds, Far(Duration::from_millis(far)), Arc::default());
        let (now, asked) = (Instant::now(), request(LONG));
        let wait = desk.wait(now, |id| Arrival {
            id,
            key: FlightKey { name: asked.name, generation: asked.route.generation, port: asked.port },
            host: asked.route.host,
            client: asked.client,
            class: asked.client_class,
            arrived: now,
            deadline: asked.deadline,
            reason: asked.reason,
            tenant: asked.route.tenant,
            bytes: asked.bytes,
            own: OwnBounds::default(),
        });
        let mut wait = std::pin::pin!(wait);
        let waits = std::future::poll_fn(|cx| std::task::Poll::Ready(wait.as_mut().poll(cx).is_pending())).await;
        assert!(waits, "nobody answers");
        assert_eq!(desk.look(Holds::poll_timeout), Some(now + Duration::from_millis(250 + 2 * far)));
    }
}

const LONG: Duration = Duration::from_secs(60);

fn bench(at_once: Option<fn(&Wake) -> ToEdge>) -> (Waker, Arc<Script>) {
    let owner = Arc::new(Script { at_once, ..Script::default() });
    let limits = HoldLimits {
        per_sprite: 1_000,
        per_client: 1_000,
        per_process: 1_000,
        flights: 1_000,
        release_window: 1_000,
        ..HoldLimits::from(&config::Hold::default())
    };
    (Waker::new(limits, Backhaul::direct(Arc::clone(&owner) as Arc<dyn Owner>)), owner)
}

fn hold(waker: &Waker, patience: Duration) -> JoinHandle<Result<Woken, HoldError>> {
    let waker = waker.clone();
    tokio::spawn(async move { waker.hold(request(patience)).await.map(|(woken, _)| woken) })
}

#[tokio::test]
async fn a_dropped_future_frees_its_place_and_the_last_one_withdraws() {
    let (waker, owner) = bench(Some(accepted));
    let (first, second) = (hold(&waker, LONG), hold(&waker, LONG));
    let wake = owner.wake().await;
    while waker.held() < 2 {
        tokio::task::yield_now().await;
    }
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!((waker.held(), owner.heard().len()), (1, 1));
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    assert_eq!(waker.held(), 0);
    let withdrawn = owner.heard().pop();
    assert!(matches!(withdrawn, Some(EdgeMessage::Withdraw(withdraw)) if withdraw.wake_id_low == wake.wake_id_low));
}

#[tokio::test]
async fn an_owner_may_answer_on_the_very_call() {
    let (waker, owner) = bench(Some(ready));
    let (woken, _turn) = waker.hold(request(LONG)).await.unwrap();
    assert_eq!((woken.run, woken.kind, woken.joined, woken.wake_ms), (4, WakeKind::Cold, false, 9));
    assert_eq!((owner.heard().len(), waker.held()), (1, 0));
}

#[tokio::test]
async fn a_view_is_learnt_from_a_wake_and_dropped_by_a_cordon() {
    let (waker, owner) = bench(Some(ready));
    assert_eq!(waker.view(&name(), 1), None);
    waker.hold(request(LONG)).await.unwrap();
    assert_eq!(waker.view(&name(), 1), Some(4));
    let cordon = |run| {
        let cordon = Cordon { sprite: "a".into(), run, ..Cordon::default() };
        ToEdge { message: Some(OwnerMessage::Cordon(cordon)) }
    };
    owner.say(cordon(3));
    assert_eq!(waker.view(&name(), 1), Some(4));
    owner.say(cordon(4));
    assert_eq!(waker.view(&name(), 1), None);
}

#[tokio::test]
async fn a_hold_ends_at_its_deadline_although_nobody_says_anything() {
    let (waker, _owner) = bench(None);
    let patient = hold(&waker, LONG);
    let began = Instant::now();
    let ended = waker.hold(request(Duration::from_millis(60))).await;
    assert!(matches!(ended, Err(HoldError::Deadline { .. })), "{ended:?}");
    assert!(began.elapsed() >= Duration::from_millis(60));
    assert_eq!(waker.held(), 1);
    patient.abort();
}

#[tokio::test]
async fn the_timer_ends_with_the_last_clone() {
    let (waker, _owner) = bench(None);
    let metrics = tokio::runtime::Handle::current().metrics();
    let clone = waker.clone();
    drop(waker);
    tokio::task::yield_now().await;
    assert_eq!(metrics.num_alive_tasks(), 1);
    drop(clone);
    while metrics.num_alive_tasks() > 0 {
        tokio::task::yield_now().await;
    }
}

/// Runs `work` on four threads with a runtime each, as the cores of the edge do.
async fn on_four_cores<F>(waker: &Waker, work: fn(Waker, usize) -> F)
where
    F: Future<Output = ()> + 'static,
{
    let cores = (0..4).map(|core| {
        let waker = waker.clone();
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(waker, core));
        })
    });
    for core in cores.collect::<Vec<_>>() {
        core.await.unwrap();
    }
}

#[tokio::test]
async fn requests_of_every_core_share_one_wake() {
    let (waker, owner) = bench(Some(accepted));
    let answering = {
        let (waker, owner) = (waker.clone(), Arc::clone(&owner));
        tokio::spawn(async move {
            let wake = owner.wake().await;
            while waker.held() < 100 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            owner.say(ready(&wake));
        })
    };
    on_four_cores(&waker, |waker, _| async move {
        let holds: Vec<_> = (0..25).map(|_| hold(&waker, LONG)).collect();
        for held in holds {
            assert_eq!(held.await.unwrap().unwrap().run, 4);
        }
    })
    .await;
    answering.await.unwrap();
    // A machine that is slow to bring them all has it asked again.
    let wakes = owner.heard().into_iter().map(|message| match message {
        EdgeMessage::Wake(wake) => (wake.wake_id_high, wake.wake_id_low),
        other => panic!("{other:?}"),
    });
    assert_eq!((wakes.collect::<BTreeSet<_>>().len(), waker.held()), (1, 0));
}

#[tokio::test]
async fn no_withdrawal_overtakes_its_wake_however_the_cores_race() {
    let (waker, owner) = bench(None);
    on_four_cores(&waker, |waker, core| async move {
        for round in 0..200_u64 {
            // Deadlines that grow make every arrival tell the owner.
            let mut held = Box::pin(waker.hold(request(Duration::from_millis(500 + 40 * round + core as u64))));
            std::future::poll_fn(|context| {
                let _ = held.as_mut().poll(context);
                std::task::Poll::Ready(())
            })
            .await;
        }
    })
    .await;
    assert_eq!(waker.held(), 0);
    let mut over = BTreeSet::new();
    let mut pending = BTreeSet::new();
    for message in owner.heard() {
        match message {
            EdgeMessage::Wake(wake) => {
                assert!(!over.contains(&wake.wake_id_low), "a wake behind its withdrawal");
                pending.insert(wake.wake_id_low);
            }
            EdgeMessage::Withdraw(withdraw) => {
                assert!(pending.remove(&withdraw.wake_id_low));
                over.insert(withdraw.wake_id_low);
            }
            EdgeMessage::Leases(_) | EdgeMessage::Cordoned(_) | EdgeMessage::Applied(_) => {}
        }
    }
    assert!(pending.is_empty());
}
