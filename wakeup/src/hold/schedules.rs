//! wake.md, test 14: join, leave and complete of a flight under every order of threads that a
//! scheduler tries. `desk.rs`, the very file the product is built of, is built here a second
//! time, over locks that let the scheduler choose who goes on. Its channels are tokio's own
//! and taken to be right.

#[allow(dead_code, clippy::duplicate_mod, reason = "the product's own file, of which this uses a part")]
#[path = "desk.rs"]
mod desk;

mod sync {
    pub(super) use shuttle::sync::{Mutex, MutexGuard};
}

use super::core::{Arrival, Fared, FlightKey, Holds, OwnBounds};
use super::{HoldError, HoldLimits};
use backhaul::Unreachable;
use backhaul::wire::{ClientClass, EdgeMessage, Opened, Outcome, ToOwner, Wake, WakeAnswer};
use desk::{Desk, Post, Released};
use router::names::SpriteName;
use router::route::{Generation, HostId, Tenant};
use shuttle::future::block_on;
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread::{self, JoinHandle};
use std::collections::{BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Tries `play` under that many schedules, half of them by chance and half by few preemptions
/// (<https://doi.org/10.1145/1736020.1736040>, depth 3); ten times as many in a full run. A wait
/// that nobody ends is a deadlock, and the scheduler says so.
fn try_schedules(each: usize, play: fn()) {
    let full = std::env::var_os("EDGE_PROXY_TEST_FULL").is_some_and(|full| full == "1");
    let schedules = if full { each * 10 } else { each };
    shuttle::check_random(play, schedules / 2);
    shuttle::check_pct(play, schedules / 2, 3);
}

const HOST: HostId = HostId(1);
/// Later than the first retransmission (`wake.md` §4), earlier than the second.
const UNANSWERED: Duration = Duration::from_millis(400);

/// What the owner does with a wake.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Says that it runs, from a thread of its own.
    Answers,
    /// Says so within the very call that asks.
    AtOnce,
    /// Says nothing.
    IsSilent,
    /// Cannot be reached.
    IsDown,
}

/// The link, and the owner behind it.
struct Link {
    owner: Owner,
    desk: OnceLock<Weak<Desk<Arc<Self>>>>,
    /// In the order in which they came.
    heard: Mutex<Vec<EdgeMessage>>,
    /// Wakes to be answered; none is the end.
    asked: Mutex<VecDeque<Option<Wake>>>,
    more: Condvar,
}

impl Post for Arc<Link> {
    fn round_trip(&self, _host: HostId) -> Duration {
        Duration::ZERO
    }

    fn send(&self, _host: HostId, message: ToOwner) -> Result<(), Unreachable> {
        let message = message.message.expect("edges send no empty messages");
        // A link has a queue of its own: here another thread may come in between.
        thread::yield_now();
        self.heard.lock().unwrap().push(message.clone());
        if self.owner == Owner::IsDown {
            return Err(Unreachable);
        }
        if let EdgeMessage::Wake(wake) = message {
            match self.owner {
                Owner::Answers => self.ask(Some(wake)),
                Owner::AtOnce => self.answer(&wake),
                Owner::IsSilent | Owner::IsDown => {}
            }
        }
        Ok(())
    }
}

impl Link {
    fn ask(&self, wake: Option<Wake>) {
        self.asked.lock().unwrap().push_back(wake);
        self.more.notify_one();
    }

    fn answer(&self, wake: &Wake) {
        let opened = Opened { generation: 1, run: 4, ..Opened::default() };
        let answer = WakeAnswer {
            wake_id_high: wake.wake_id_high,
            wake_id_low: wake.wake_id_low,
            outcome: Some(Outcome::Ready(opened)),
        };
        if let Some(desk) = self.desk.get().and_then(Weak::upgrade) {
            desk.drive(|holds| holds.handle_answer(Instant::now(), HOST, answer));
        }
    }

    fn answers_until_the_end(&self) {
        loop {
            let mut asked = self.asked.lock().unwrap();
            while asked.is_empty() {
                asked = self.more.wait(asked).unwrap();
            }
            let next = asked.pop_front().flatten();
            drop(asked);
            let Some(wake) = next else { return };
            self.answer(&wake);
        }
    }
}

struct World {
    desk: Arc<Desk<Arc<Link>>>,
    link: Arc<Link>,
    /// How many the sprite serves at a time.
    concurrency: Option<usize>,
    owner: Option<JoinHandle<()>>,
}

impl World {
    fn new(owner: Owner) -> Self {
        let link = Arc::new(Link {
            owner,
            desk: OnceLock::new(),
            heard: Mutex::new(Vec::new()),
            asked: Mutex::new(VecDeque::new()),
            more: Condvar::new(),
        });
        let holds = Holds::new(HoldLimits::from(&config::Hold::default()), 1);
        let desk = Arc::new(Desk::new(holds, Arc::clone(&link), Arc::new(Notify::new())));
        assert!(link.desk.set(Arc::downgrade(&desk)).is_ok());
        let answers = (owner == Owner::Answers).then(|| {
            let link = Arc::clone(&link);
            thread::spawn(move || link.answers_until_the_end())
        });
        Self { desk, link, concurrency: None, owner: answers }
    }

    /// A request that waits to the end.
    fn waits(&self, patience: u64) -> JoinHandle<Result<Released, HoldError>> {
        let (desk, concurrency) = (Arc::clone(&self.desk), self.concurrency);
        thread::spawn(move || {
            let (id, ended) = block_on(desk.wait(Instant::now(), |id| arrival(id, patience, concurrency)));
            // It is served, and its turn over.
            desk.drive(|holds| holds.handle_fared(Instant::now(), &key(), id, Fared::Well));
            ended
        })
    }

    /// A request whose client leaves as soon as it waits.
    fn leaves(&self, patience: u64) -> JoinHandle<()> {
        let (desk, concurrency) = (Arc::clone(&self.desk), self.concurrency);
        thread::spawn(move || {
            block_on(async {
                let mut wait = pin!(desk.wait(Instant::now(), |id| arrival(id, patience, concurrency)));
                let ended = poll_fn(|context| Poll::Ready(wait.as_mut().poll(context))).await;
                if let Poll::Ready((id, _)) = ended {
                    // It had been let go before it could leave.
                    return desk.drive(|holds| holds.handle_fared(Instant::now(), &key(), id, Fared::Well));
                }
                // Others may come between the wait and its end.
                thread::yield_now();
            });
        })
    }

    /// The holds' timer, at the moment when a wake that was not answered is asked for again: a
    /// thread that sends for a flight without being one of those who wait for it.
    fn asks_again(&self) -> JoinHandle<()> {
        let desk = Arc::clone(&self.desk);
        thread::spawn(move || desk.drive(|holds| holds.handle_timeout(Instant::now() + UNANSWERED)))
    }

    /// Nobody waits and nothing is pending; every wake that was heard of is over, and nothing
    /// of one comes behind its end.
    fn ends(mut self) {
        if let Some(owner) = self.owner.take() {
            self.link.ask(None);
            owner.join().unwrap();
        }
        assert_eq!(self.desk.look(|holds| (holds.held(), holds.flights())), (0, 0));
        let (mut woken, mut withdrawn) = (BTreeSet::new(), BTreeSet::new());
        for message in self.link.heard.lock().unwrap().iter() {
            match message {
                EdgeMessage::Wake(wake) => {
                    assert!(!withdrawn.contains(&wake.wake_id_low), "a wake behind its withdrawal");
                    woken.insert(wake.wake_id_low);
                }
                EdgeMessage::Withdraw(withdraw) => {
                    assert!(woken.contains(&withdraw.wake_id_low), "a withdrawal in front of its wake");
                    withdrawn.insert(withdraw.wake_id_low);
                }
                EdgeMessage::Leases(_) | EdgeMessage::Cordoned(_) | EdgeMessage::Applied(_) => {}
            }
        }
        assert!(!woken.is_empty(), "a wake was lost");
        if self.link.owner == Owner::IsSilent {
            assert_eq!(woken, withdrawn, "a withdrawal was lost");
        }
    }
}

fn arrival(id: u64, patience: u64, concurrency: Option<usize>) -> Arrival {
    let now = Instant::now();
    Arrival {
        id,
        key: key(),
        host: HOST,
        client: [192, 0, 2, 1].into(),
        class: ClientClass::Anonymous,
        arrived: now,
        // Each longer than those before by far: then the owner is told of it.
        deadline: now + Duration::from_secs(60 + 60 * patience),
        reason: "test".into(),
        tenant: Tenant::default(),
        bytes: 1_000,
        own: OwnBounds { concurrency, ..OwnBounds::default() },
    }
}

fn key() -> FlightKey {
    FlightKey { name: name(), generation: Generation(1), port: 0 }
}

fn name() -> SpriteName {
    SpriteName::parse("a").unwrap()
}

#[test]
fn who_joins_is_released_however_others_leave_and_the_owner_answers() {
    try_schedules(8_000, || {
        let world = World::new(Owner::Answers);
        let (first, leaves, second) = (world.waits(0), world.leaves(1), world.waits(2));
        for held in [first, second] {
            assert!(matches!(held.join().unwrap(), Ok((opened, _)) if opened.run == 4));
        }
        leaves.join().unwrap();
        world.ends();
    });
}

#[test]
fn a_turn_is_passed_on_by_who_was_served_and_by_who_left_in_that_moment() {
    try_schedules(12_000, || {
        // One at a time, and no clock that would let all go in the end.
        let world = World { concurrency: Some(1), ..World::new(Owner::Answers) };
        let (first, leaves, second) = (world.waits(0), world.leaves(1), world.waits(2));
        for held in [first, second] {
            assert!(held.join().unwrap().is_ok());
        }
        leaves.join().unwrap();
        world.ends();
    });
}

#[test]
fn an_owner_that_answers_on_the_very_call_releases_all() {
    try_schedules(8_000, || {
        let world = World::new(Owner::AtOnce);
        let (first, leaves, second) = (world.waits(0), world.leaves(1), world.waits(2));
        for held in [first, second] {
            assert!(matches!(held.join().unwrap(), Ok((opened, _)) if opened.run == 4));
        }
        leaves.join().unwrap();
        world.ends();
    });
}

#[test]
fn no_withdrawal_overtakes_its_wake_and_none_is_lost() {
    try_schedules(12_000, || {
        let world = World::new(Owner::IsSilent);
        for thread in [world.leaves(0), world.leaves(1), world.asks_again(), world.leaves(2)] {
            thread.join().unwrap();
        }
        world.ends();
    });
}

#[test]
fn a_host_that_cannot_be_reached_ends_every_wait() {
    try_schedules(8_000, || {
        let world = World::new(Owner::IsDown);
        let (first, leaves, second) = (world.waits(0), world.leaves(1), world.waits(2));
        for held in [first, second] {
            assert!(matches!(held.join().unwrap(), Err(HoldError::HostUnreachable)));
        }
        leaves.join().unwrap();
        world.ends();
    });
}

#[test]
fn who_watches_hears_the_end_of_a_flight_whether_it_runs_or_everybody_left() {
    try_schedules(8_000, || {
        for owner in [Owner::Answers, Owner::IsSilent] {
            let world = World::new(owner);
            let watches = {
                let desk = Arc::clone(&world.desk);
                thread::spawn(move || block_on(desk.runs(&name(), 1)))
            };
            let (waits, leaves) = ((owner == Owner::Answers).then(|| world.waits(0)), world.leaves(1));
            if let Some(waits) = waits {
                assert!(waits.join().unwrap().is_ok());
            }
            leaves.join().unwrap();
            // An end that it missed is a deadlock.
            let runs = watches.join().unwrap();
            assert!(!runs || owner == Owner::Answers);
            world.ends();
        }
    });
}
