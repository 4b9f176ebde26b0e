//! What is counted: real code of the warm path and of a hold, one operation at a time.

use backhaul::Backhaul;
use backhaul::activity::RunActivity;
use backhaul::owner::{Admitted, AnswerSink, BoxFuture, EdgeId, Owner};
use backhaul::wire::{Asleep, ClientClass, Open, Opened, Outcome, Reply, ToOwner, WakeAnswer, WakeKind};
use edge_proxy::access::token;
use http::{HeaderMap, HeaderValue};
use router::access::{Access, Private};
use router::names::SpriteName;
use router::regions::{Region, Routes};
use router::route::{Generation, HostId, Route, Tenant};
use router::table::{Lookup, RouteTable};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wakeup::hold::core::{Action, Arrival, FlightKey, Holds, OwnBounds};
use wakeup::hold::{Fared, HoldLimits, Waker};

/// Sprites in each table and in each process's views: more than a few, so that a lookup is one.
const SPRITES: usize = 300;
/// Tables and views: each hashes by a seed of its own, and how far a lookup must go is theirs (measured:
/// one of them alone differs by 25 % from the next, the mean of so many by 0.5 %).
const SEEDS: usize = 40;

/// One thing that is done again and again.
pub(crate) struct Operation {
    /// Its name in `figures.txt`.
    pub(crate) name: &'static str,
    /// Does it once; the number picks the sprite.
    pub(crate) once: Box<dyn FnMut(usize)>,
}

/// All of them, in the order of the figures. Needs a runtime, for the waker's timer.
pub(crate) fn all() -> Vec<Operation> {
    let names: Arc<[SpriteName]> = (0..SPRITES).map(|n| SpriteName::parse(&format!("sprite-{n}")).unwrap()).collect();
    vec![lookup(&names), lookup_regions(&names), view(&names), access(), open_item(), hold(&names)]
}

/// A table in which each `every`th sprite is.
fn table(names: &[SpriteName], every: usize) -> Arc<RouteTable> {
    let table = RouteTable::new();
    for name in names.iter().step_by(every) {
        assert!(table.apply_put(name, route()));
    }
    table.followed().mark_synced();
    Arc::new(table)
}

fn find(name: &'static str, tables: Vec<Routes>, names: Arc<[SpriteName]>) -> Operation {
    let once = move |n: usize| {
        let found = black_box(tables[n % SEEDS].lookup(&names[n % SPRITES]));
        assert!(matches!(found, Lookup::Found(_)));
    };
    Operation { name, once: Box::new(once) }
}

/// A public sprite is looked up in the routing table of the only region.
fn lookup(names: &Arc<[SpriteName]>) -> Operation {
    find("lookup", (0..SEEDS).map(|_| table(names, 1).into()).collect(), Arc::clone(names))
}

/// The same of three regions: the own one has them all, one of the others every second.
fn lookup_regions(names: &Arc<[SpriteName]>) -> Operation {
    let region = |(name, every): (&str, usize)| Region { name: name.into(), table: table(names, every) };
    let three = || Routes::new(region(("own", 1)), [("a", 2), ("b", SPRITES)].map(region).into());
    find("lookup_regions", (0..SEEDS).map(|_| three()).collect(), Arc::clone(names))
}

/// What this process believes of a sprite that runs.
fn view(names: &Arc<[SpriteName]>) -> Operation {
    let limits = HoldLimits::from(&config::Hold::default());
    let waker = || Waker::new(limits.clone(), Backhaul::direct(Arc::new(NeverAsked)));
    let (wakers, names): (Vec<_>, _) = ((0..SEEDS).map(|_| waker()).collect(), Arc::clone(names));
    for waker in &wakers {
        names.iter().for_each(|name| waker.note_running(name, 1, 4));
    }
    let once = move |n: usize| assert_eq!(black_box(wakers[n % SEEDS].view(&names[n % SPRITES], 1)), Some(4));
    Operation { name: "view", once: Box::new(once) }
}

/// A private sprite's token is checked: one SHA-256 and a comparison.
fn access() -> Operation {
    let token = token::generate().unwrap();
    let private = Private { tokens: vec![token::hash(&token)], ..Private::default() };
    let mut headers = HeaderMap::new();
    headers.insert(token::SPRITE_TOKEN, HeaderValue::from_str(&token).unwrap());
    let once = move |_| assert!(black_box(token::opens(&private, &mut headers)));
    Operation { name: "access", once: Box::new(once) }
}

/// A request begins and ends at the gate of its run.
fn open_item() -> Operation {
    let run = RunActivity::new(Instant::now());
    let once = move |_| drop(black_box(run.begin()).expect("the run is open"));
    Operation { name: "open_item", once: Box::new(once) }
}

/// A request is held, its flight's wake is answered, it is let go and its turn ends.
fn hold(names: &Arc<[SpriteName]>) -> Operation {
    let mut holds = Holds::new(HoldLimits::from(&config::Hold::default()), 7);
    let (now, names) = (Instant::now(), Arc::clone(names));
    let client = "192.0.2.1".parse().unwrap();
    let once = move |n: usize| {
        let key = FlightKey { name: names[n % SPRITES].clone(), generation: Generation(1), port: 0 };
        let arrival = Arrival {
            id: n as u64,
            key: key.clone(),
            host: HostId(1),
            client,
            class: ClientClass::Anonymous,
            arrived: now,
            deadline: now + Duration::from_secs(30),
            reason: "http GET".into(),
            tenant: Tenant::default(),
            bytes: 1_000,
            own: OwnBounds::default(),
        };
        holds.handle_request(now, arrival);
        let Some(Action::Wake(host, wake)) = holds.poll_action() else { panic!("no wake") };
        let (wake_id_high, wake_id_low) = (wake.wake_id_high, wake.wake_id_low);
        holds.handle_sent(wake_id_high, wake_id_low, Duration::from_millis(70));
        let opened = Opened {
            generation: 1,
            run: 4,
            kind: WakeKind::Warm.into(),
            wake_ms: 9,
            joined: false,
            lost_memory: false,
        };
        let answer = WakeAnswer { wake_id_high, wake_id_low, outcome: Some(Outcome::Ready(opened)) };
        holds.handle_answer(now, host, answer);
        let mut released = false;
        while let Some(action) = holds.poll_action() {
            released |= matches!(action, Action::Release(..));
        }
        assert!(released);
        holds.handle_fared(now, &key, n as u64, Fared::Well);
        assert_eq!((holds.held(), holds.flights()), (0, 0));
    };
    Operation { name: "hold", once: Box::new(once) }
}

fn route() -> Route {
    Route {
        generation: Generation(1),
        tenant: Tenant::default(),
        host: HostId(1),
        access: Access::Public,
        wake: None,
        ports: [].into(),
        client_certificate: None,
        deleted: false,
    }
}

/// A view asks nobody.
struct NeverAsked;

impl Owner for NeverAsked {
    fn control(&self, _edge: EdgeId, _message: ToOwner, _answers: &AnswerSink) {
        panic!("a view asked the owner");
    }

    fn open(&self, _edge: EdgeId, _open: Open) -> BoxFuture<Result<Admitted, Reply>> {
        Box::pin(std::future::ready(Err(Reply::Asleep(Asleep::default()))))
    }

    fn edge_gone(&self, _edge: EdgeId) {}

    fn guest_unreachable(&self, _sprite: &str, _run: u64) {}
}
