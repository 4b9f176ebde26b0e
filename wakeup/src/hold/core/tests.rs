use super::*;
use backhaul::wire::{Accepted, Progress, Refused, WakeKind};

mod interleavings;
mod turns;

const HOST: HostId = HostId(1);
/// What each held request keeps.
const BYTES: usize = 1_000;

struct Bench {
    holds: Holds,
    now: Instant,
    next: u64,
}

impl Bench {
    fn new(limits: HoldLimits) -> Self {
        Self { holds: Holds::new(limits, 7), now: Instant::now(), next: 0 }
    }

    fn standard() -> Self {
        // All at once: turns have tests of their own.
        Self::new(HoldLimits { release_window: 1_024, ..HoldLimits::from(&config::Hold::default()) })
    }

    fn request_from(&mut self, name: &str, client: &str, patience: u64) -> u64 {
        self.request_for(name, 0, client, patience)
    }

    fn request_for(&mut self, name: &str, port: u16, client: &str, patience: u64) -> u64 {
        let deadline = self.now + Duration::from_millis(patience);
        self.request_with(name, |arrival| {
            arrival.key.port = port;
            arrival.client = client.parse().unwrap();
            arrival.deadline = deadline;
        })
    }

    fn request_with(&mut self, name: &str, change: impl FnOnce(&mut Arrival)) -> u64 {
        self.next += 1;
        let mut arrival = Arrival {
            id: self.next,
            key: key(name, 0),
            host: HOST,
            client: "192.0.2.1".parse().unwrap(),
            class: ClientClass::Anonymous,
            arrived: self.now,
            deadline: self.now + Duration::from_secs(30),
            reason: "test".into(),
            tenant: Tenant::default(),
            bytes: BYTES,
            own: OwnBounds::default(),
        };
        change(&mut arrival);
        self.holds.handle_request(self.now, arrival);
        self.next
    }

    fn request(&mut self, name: &str) -> u64 {
        self.request_from(name, "192.0.2.1", 30_000)
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.holds.poll_action()).collect()
    }

    fn wakes(&mut self) -> Vec<Wake> {
        let wakes = self.actions().into_iter().filter_map(|action| match action {
            Action::Wake(_, wake) => Some(wake),
            _ => None,
        });
        wakes.collect()
    }

    fn answer(&mut self, wake: &Wake, outcome: Outcome) {
        let answer =
            WakeAnswer { wake_id_high: wake.wake_id_high, wake_id_low: wake.wake_id_low, outcome: Some(outcome) };
        self.holds.handle_answer(self.now, HOST, answer);
    }

    fn later(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.holds.handle_timeout(self.now);
    }

    fn refusal(&mut self, id: u64) -> Option<HoldError> {
        self.actions().into_iter().find_map(|action| match action {
            Action::Refuse(of, error) if of == id => Some(error),
            _ => None,
        })
    }

    fn accept(&mut self, wake: &Wake) {
        self.answer(wake, Outcome::Accepted(Accepted { joined: false, ..Accepted::default() }));
    }

    fn refuse(&mut self, wake: &Wake, cause: Cause, retry_after_ms: u32) {
        let refused = Refused { cause: cause.into(), retry_after_ms, detail: "exit status 1".into() };
        self.answer(wake, Outcome::Refused(refused));
    }

    fn assert_empty(&self) {
        assert_consistent(&self.holds);
        assert_eq!((self.holds.held(), self.holds.flights()), (0, 0));
        assert_eq!(self.holds.poll_timeout(), None);
    }
}

fn key(name: &str, port: u16) -> FlightKey {
    FlightKey { name: SpriteName::parse(name).unwrap(), generation: Generation(1), port }
}

/// Every index says the same about who waits.
fn assert_consistent(holds: &Holds) {
    let mut sprites = BTreeMap::<_, usize>::new();
    let mut clients = BTreeMap::<_, usize>::new();
    for waiter in holds.waiters.values() {
        *sprites.entry(waiter.key.name.clone()).or_default() += 1;
        *clients.entry(waiter.counted.prefix).or_default() += 1;
        assert!(holds.flights.contains_key(&waiter.key) != holds.releases.contains_key(&waiter.key));
    }
    assert_eq!((holds.counts.of_sprites(), holds.counts.of_clients()), (sprites, &clients));
    assert_eq!(holds.held(), holds.waiters.len());
    let flying = holds.flights.values().map(Flight::held).sum::<usize>();
    let let_go = holds.releases.values().map(|release| release.waiting().count()).sum::<usize>();
    assert_eq!(flying + let_go, holds.waiters.len());
    assert_eq!(holds.counts.bytes(), holds.waiters.len() * BYTES);
    assert!(holds.releases.values().all(|release| !release.is_empty()), "a release without a waiter");
    assert!(holds.flights.values().all(|flight| !flight.is_empty()), "a flight without a waiter");
    assert!(holds.by_wake.values().all(|key| holds.flights.contains_key(key)));
    let flights = holds.flights.iter().map(|(key, flight)| (flight.next(), key.clone()));
    let releases = holds.releases.iter().filter_map(|(key, release)| Some((release.armed?, key.clone())));
    let timers: BTreeSet<_> = flights.chain(releases).collect();
    assert_eq!((holds.by_wake.len(), &holds.timers), (holds.flights.len(), &timers));
    assert_eq!(holds.by_host.values().sum::<usize>(), holds.flights.len());
}

fn ready() -> Outcome {
    Outcome::Ready(Opened {
        generation: 1,
        run: 1,
        kind: WakeKind::Cold.into(),
        wake_ms: 5,
        joined: false,
        lost_memory: false,
    })
}

#[test]
fn all_requests_of_one_sprite_share_one_wake_and_each_is_released_once() {
    let mut bench = Bench::standard();
    let ids: Vec<_> = (0..100).map(|_| bench.request("a")).collect();
    let wakes = bench.wakes();
    assert_eq!(wakes.len(), 1);
    bench.answer(&wakes[0], ready());
    bench.answer(&wakes[0], ready());
    let released: Vec<_> = bench
        .actions()
        .into_iter()
        .filter(|action| !matches!(action, Action::Runs(..)))
        .map(|action| match action {
            Action::Release(id, ..) => id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(released, ids);
    bench.assert_empty();
}

#[test]
fn a_leader_that_leaves_takes_nobody_with_it_and_the_last_one_withdraws() {
    let mut bench = Bench::standard();
    let ids: Vec<_> = (0..50).map(|_| bench.request("a")).collect();
    let wakes = bench.wakes();
    bench.holds.handle_client_gone(ids[0]);
    assert!(bench.actions().is_empty());
    for &id in &ids[1..] {
        bench.holds.handle_client_gone(id);
    }
    assert!(
        matches!(&bench.actions()[..], [Action::Withdraw(_, withdraw)] if withdraw.wake_id_low == wakes[0].wake_id_low)
    );
    bench.assert_empty();
    bench.answer(&wakes[0], ready());
    assert!(bench.actions().is_empty());
}

#[test]
fn a_waiter_ends_at_its_own_deadline_and_the_others_wait_on() {
    let mut bench = Bench::standard();
    let short = bench.request_from("a", "192.0.2.1", 1_000);
    let first = bench.wakes();
    assert_eq!(first[0].deadline_ms, 1_000);
    bench.request_from("a", "192.0.2.1", 9_000);
    let longer = bench.wakes();
    assert_eq!((longer[0].wake_id_low, longer[0].deadline_ms), (first[0].wake_id_low, 9_000));
    bench.accept(&first[0]);
    bench.answer(&first[0], Outcome::Progress(Progress { phase: Phase::PortWait.into() }));
    bench.later(1_000);
    assert_eq!(
        bench.actions(),
        [Action::Refuse(short, HoldError::Deadline { phase: Phase::PortWait, eta: Duration::ZERO })]
    );
    assert_eq!(bench.holds.held(), 1);
}

#[test]
fn an_unanswered_wake_is_sent_three_times_and_then_the_host_is_suspect() {
    let mut bench = Bench::standard();
    let id = bench.request("a");
    assert_eq!(bench.wakes().len(), 1);
    bench.later(250);
    assert_eq!(bench.wakes().len(), 1);
    bench.later(500);
    assert_eq!(bench.wakes().len(), 1);
    bench.later(1_250);
    assert_eq!(bench.actions(), [Action::Refuse(id, HoldError::HostUnreachable)]);
    let refused = bench.request("b");
    assert_eq!(bench.actions(), [Action::Refuse(refused, HoldError::HostUnreachable)]);
    bench.later(1_001);
    bench.request("b");
    assert_eq!(bench.wakes().len(), 1);
}

/// At 300 ms the answer is there at 300 ms, where the question was sent a second time at 250 before.
#[test]
fn over_a_long_way_a_wake_is_sent_again_two_round_trips_later_and_the_host_is_suspect_so_much_later() {
    for (told, waited) in [(0, 0), (70, 140), (300, 600), (60_000, 2_000)] {
        let mut bench = Bench::standard();
        let id = bench.request("a");
        let wake = bench.wakes().remove(0);
        let sent = |bench: &mut Bench| {
            let round_trip = Duration::from_millis(told);
            bench.holds.handle_sent(wake.wake_id_high, wake.wake_id_low, round_trip);
            assert_consistent(&bench.holds);
        };
        sent(&mut bench);
        bench.later(249 + waited);
        assert!(bench.actions().is_empty(), "{told} ms: sent twice for nothing");
        for pause in [1, 500] {
            bench.later(pause);
            assert_eq!(bench.wakes().len(), 1, "{told} ms");
            sent(&mut bench);
        }
        bench.later(1_249);
        assert!(bench.actions().is_empty(), "{told} ms");
        bench.later(1);
        assert_eq!(bench.actions(), [Action::Refuse(id, HoldError::HostUnreachable)], "{told} ms");
        // Of a flight that has ended nothing is kept.
        sent(&mut bench);
        bench.assert_empty();
    }
}

#[test]
fn a_silent_host_is_probed_by_one_flight_at_a_time_and_its_answer_clears_it() {
    let mut bench = Bench::standard();
    for pause in [1_000, 2_000, 4_000, 5_000, 5_000] {
        bench.holds.handle_host_down(bench.now, HOST);
        bench.later(pause - 1);
        let early = bench.request("a");
        assert_eq!(bench.refusal(early), Some(HoldError::HostUnreachable), "{pause} ms");
        bench.later(1);
    }
    let prober = bench.request("a");
    let wakes = bench.wakes();
    let other = bench.request("b");
    assert_eq!(bench.refusal(other), Some(HoldError::HostUnreachable));
    bench.holds.handle_client_gone(prober);
    bench.request("b");
    assert_eq!(bench.wakes().len(), 1, "the prober left, another takes its place");
    assert_ne!(wakes.len(), 0);
    let third = bench.request("c");
    assert_eq!(bench.refusal(third), Some(HoldError::HostUnreachable));
    let key = FlightKey { name: SpriteName::parse("b").unwrap(), generation: Generation(1), port: 0 };
    let wake = bench.holds.flights[&key].wake.clone();
    bench.accept(&wake);
    bench.request("c");
    assert_eq!(bench.wakes().len(), 1);
}

#[test]
fn an_accepted_wake_is_asked_about_every_two_seconds_so_that_a_lost_ready_is_told_again() {
    let mut bench = Bench::standard();
    bench.request("a");
    let wakes = bench.wakes();
    bench.accept(&wakes[0]);
    bench.later(1_999);
    assert!(bench.actions().is_empty());
    bench.later(1);
    let again = bench.wakes();
    assert_eq!((again.len(), again[0].wake_id_low), (1, wakes[0].wake_id_low));
    assert_eq!(again[0].deadline_ms, 28_000);
    bench.later(20_000);
    assert_eq!(bench.holds.held(), 1, "an accepted wake is never given up");
}

#[test]
fn a_second_question_that_is_accepted_when_the_first_was_answered_is_withdrawn() {
    let mut bench = Bench::standard();
    bench.request("a");
    let first = bench.wakes().remove(0);
    bench.later(250);
    let second = bench.wakes().remove(0);
    bench.answer(&first, ready());
    bench.actions();
    bench.accept(&second);
    let [Action::Withdraw(HOST, withdraw)] = &bench.actions()[..] else { panic!("the owner waits for nobody") };
    assert_eq!((withdraw.wake_id_high, withdraw.wake_id_low), (first.wake_id_high, first.wake_id_low));
    // Nobody is to be told about what has an end by itself.
    bench.answer(&second, ready());
    bench.answer(&second, Outcome::Progress(Progress::default()));
    assert!(bench.actions().is_empty());
    bench.assert_empty();
}

#[test]
fn deadlines_that_grow_by_little_are_told_with_the_next_question() {
    let mut bench = Bench::standard();
    for _ in 0..100 {
        bench.request("a");
        bench.later(1);
    }
    let wakes = bench.wakes();
    assert_eq!(wakes.len(), 1);
    bench.accept(&wakes[0]);
    bench.later(2_000);
    assert_eq!(bench.wakes()[0].deadline_ms, 28_000 - 1);
}

#[test]
fn the_owner_s_deadline_ends_nobody_who_has_patience_left() {
    let mut bench = Bench::standard();
    let short = bench.request_from("a", "192.0.2.1", 1_000);
    let wakes = bench.wakes();
    bench.accept(&wakes[0]);
    let patient = bench.request_from("a", "192.0.2.1", 9_000);
    bench.actions();
    // The message with the longer deadline was lost.
    bench.later(1_000);
    assert_eq!(bench.refusal(short), Some(HoldError::Deadline { phase: Phase::Queued, eta: Duration::ZERO }));
    bench.refuse(&wakes[0], Cause::WakeDeadline, 1_000);
    assert_eq!((bench.holds.held(), bench.wakes()[0].deadline_ms), (1, 8_000));
    // An owner that says so again and again is not asked in a circle.
    for _ in 0..100 {
        bench.refuse(&wakes[0], Cause::WakeDeadline, 1_000);
    }
    assert!(bench.actions().is_empty());
    bench.later(250);
    assert_eq!(bench.wakes().len(), 1);
    bench.answer(&wakes[0], ready());
    assert!(matches!(bench.actions()[..], [Action::Release(id, ..), Action::Runs(..)] if id == patient));
    bench.assert_empty();
}

#[test]
fn only_the_host_that_was_asked_may_answer() {
    let mut bench = Bench::standard();
    bench.request("a");
    let wakes = bench.wakes();
    let Wake { wake_id_high, wake_id_low, .. } = wakes[0];
    let forged = WakeAnswer { wake_id_high, wake_id_low, outcome: Some(ready()) };
    bench.holds.handle_answer(bench.now, HostId(2), forged);
    assert!(bench.actions().is_empty());
    assert_eq!(bench.holds.held(), 1);
}

#[test]
fn ports_of_one_sprite_end_apart_and_share_its_bound() {
    let mut bench = Bench::new(HoldLimits {
        per_sprite: 4,
        per_client: 99,
        per_process: 99,
        flights: 9,
        ..HoldLimits::from(&config::Hold::default())
    });
    let web = bench.request_for("a", 0, "192.0.2.1", 9_000);
    let wakes = bench.wakes();
    for port in [8080, 8080, 9090] {
        bench.request_for("a", port, "192.0.2.1", 9_000);
    }
    bench.actions();
    let full = bench.request_for("a", 7070, "192.0.2.2", 9_000);
    assert_eq!(bench.refusal(full), Some(HoldError::HoldFull));
    bench.refuse(&wakes[0], Cause::PortClosed, 0);
    assert_eq!(bench.actions().len(), 1);
    assert!(!bench.holds.waiters.contains_key(&web));
    assert_eq!(bench.holds.held(), 3);
    assert_consistent(&bench.holds);
}

#[test]
fn every_bound_refuses_with_its_own_reason() {
    let limits = HoldLimits {
        per_sprite: 4,
        per_client: 6,
        per_process: 8,
        flights: 3,
        ..HoldLimits::from(&config::Hold::default())
    };
    let mut bench = Bench::new(limits);
    for _ in 0..4 {
        bench.request("a");
    }
    let full = bench.request("a");
    assert_eq!(bench.refusal(full), Some(HoldError::HoldFull));
    bench.request("b");
    bench.request("b");
    let client = bench.request("b");
    assert_eq!(bench.refusal(client), Some(HoldError::ClientHoldFull));
    bench.request_from("c", "192.0.2.2", 1_000);
    let flights = bench.request_from("d", "192.0.2.3", 1_000);
    assert_eq!(bench.refusal(flights), Some(HoldError::EdgeBusy));
    bench.request_from("c", "192.0.2.3", 1_000);
    let process = bench.request_from("c", "192.0.2.4", 1_000);
    assert_eq!(bench.refusal(process), Some(HoldError::EdgeBusy));
}

#[test]
fn beyond_half_of_the_bound_the_largest_client_is_refused_and_a_small_one_is_not() {
    let mut bench = Bench::new(HoldLimits {
        per_sprite: 8,
        per_client: 100,
        per_process: 100,
        flights: 10,
        ..HoldLimits::from(&config::Hold::default())
    });
    bench.request_from("a", "192.0.2.9", 1_000);
    let refused = (0..10)
        .filter(|_| {
            let id = bench.request_from("a", "192.0.2.1", 1_000);
            bench.actions().contains(&Action::Refuse(id, HoldError::ClientHoldFull))
        })
        .count();
    assert_eq!(refused, 6);
    let small = bench.request_from("a", "192.0.2.9", 1_000);
    assert!(!bench.actions().iter().any(|action| matches!(action, Action::Refuse(id, _) if *id == small)));
}

#[test]
fn release_goes_round_the_clients() {
    let mut bench = Bench::standard();
    let big: Vec<_> = (0..3).map(|_| bench.request_from("a", "192.0.2.1", 1_000)).collect();
    let small = bench.request_from("a", "192.0.2.2", 1_000);
    let wakes = bench.wakes();
    bench.answer(&wakes[0], ready());
    let order: Vec<_> = bench
        .actions()
        .into_iter()
        .filter_map(|action| match action {
            Action::Release(id, ..) => Some(id),
            _ => None,
        })
        .collect();
    assert_eq!(order, [big[0], small, big[1], big[2]]);
}

#[test]
fn a_failed_wake_is_remembered_as_long_as_the_owner_said_and_a_minute_at_most() {
    let mut bench = Bench::standard();
    bench.request("a");
    let wakes = bench.wakes();
    bench.refuse(&wakes[0], Cause::WakeFailed, 2_000);
    bench.actions();
    bench.later(500);
    let id = bench.request("a");
    assert!(matches!(bench.refusal(id), Some(HoldError::Refused { retry_after_ms: 1_500, .. })));
    bench.later(1_500);
    bench.request("a");
    let wakes = bench.wakes();
    bench.refuse(&wakes[0], Cause::WakeFailed, u32::MAX);
    bench.later(59_999);
    let id = bench.request("a");
    assert!(bench.refusal(id).is_some());
    bench.later(1);
    bench.request("a");
    assert_eq!(bench.wakes().len(), 1);
}

#[test]
fn gone_is_remembered_for_that_placement_only() {
    let mut bench = Bench::standard();
    bench.request("a");
    let wakes = bench.wakes();
    bench.answer(&wakes[0], Outcome::Gone(backhaul::wire::Gone { generation: 1 }));
    bench.actions();
    let id = bench.request("a");
    assert_eq!(bench.refusal(id), Some(HoldError::Gone { generation: 1 }));
    bench.request_with("a", |arrival| arrival.key.generation = Generation(2));
    assert_eq!(bench.wakes().len(), 1);
    // Nor does it say anything about another host's.
    bench.request_with("a", |arrival| arrival.host = HostId(HOST.0 + 1));
    assert_eq!(bench.wakes().len(), 1);
}

#[test]
fn what_was_learnt_while_a_request_waited_does_not_answer_it() {
    let mut bench = Bench::standard();
    let arrived = bench.now;
    bench.later(500);
    bench.request("a");
    let wakes = bench.wakes();
    bench.refuse(&wakes[0], Cause::WakeFailed, 5_000);
    bench.actions();
    bench.request_with("a", |arrival| arrival.arrived = arrived);
    assert_eq!(bench.wakes().len(), 1, "the owner is asked");
}

#[test]
fn clients_of_one_network_share_a_bound_and_others_do_not() {
    let one =
        |a: &str, b: &str| Prefix::from(a.parse::<IpAddr>().unwrap()) == Prefix::from(b.parse::<IpAddr>().unwrap());
    assert!(one("2001:db8:0:100::1", "2001:db8:0:1ff:ffff::2"));
    assert!(!one("2001:db8:0:100::1", "2001:db8:0:200::1"));
    assert!(one("192.0.2.1", "::ffff:192.0.2.1"));
    assert!(!one("192.0.2.1", "192.0.2.2"));
    assert!(!one("0.0.0.0", "::"));
}

#[test]
fn draining_refuses_new_holds_and_ends_the_old_ones_in_time() {
    let mut bench = Bench::standard();
    let held = bench.request("a");
    let until = bench.now + Duration::from_secs(1);
    bench.holds.handle_drain(until);
    bench.actions();
    let refused = bench.request("b");
    assert_eq!(bench.actions(), [Action::Refuse(refused, HoldError::Draining)]);
    bench.later(1_000);
    assert!(bench.actions().contains(&Action::Refuse(held, HoldError::Draining)));
    bench.assert_empty();
}

#[test]
fn a_sprite_is_waking_on_any_of_its_ports_and_no_other_is() {
    let mut bench = Bench::standard();
    let waits = bench.request_for("b", 8080, "192.0.2.1", 30_000);
    for (name, waking) in [("a", false), ("b", true), ("ba", false), ("c", false)] {
        assert_eq!(bench.holds.is_waking(&SpriteName::parse(name).unwrap()), waking, "{name}");
    }
    bench.holds.handle_client_gone(waits);
    assert!(!bench.holds.is_waking(&SpriteName::parse("b").unwrap()));
}
