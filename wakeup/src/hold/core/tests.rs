use super::*;
use backhaul::wire::{Accepted, Refused, WakeKind};

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
        Self::new(HoldLimits { per_sprite: 128, per_client: 512, per_process: 8192, flights: 4096 })
    }

    fn request_from(&mut self, name: &str, client: &str, patience: u64) -> u64 {
        self.next += 1;
        let key = FlightKey { name: SpriteName::parse(name).unwrap(), generation: Generation(1), port: 0 };
        let arrival = Arrival {
            id: self.next,
            key,
            host: HostId(1),
            client: client.parse().unwrap(),
            class: ClientClass::Anonymous,
            deadline: self.now + Duration::from_millis(patience),
            reason: "test".into(),
        };
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
        self.holds.handle_answer(self.now, answer);
    }

    fn later(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.holds.handle_timeout(self.now);
    }

    fn assert_empty(&self) {
        assert_eq!((self.holds.held(), self.holds.flights()), (0, 0));
        assert!(self.holds.per_client.is_empty() && self.holds.by_wake.is_empty());
        assert_eq!(self.holds.poll_timeout(), None);
    }
}

fn ready() -> Outcome {
    Outcome::Ready(Opened { generation: 1, run: 1, kind: WakeKind::Cold.into(), wake_ms: 5, joined: false })
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
        .map(|action| match action {
            Action::Release(id, _) => id,
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
    bench.answer(&first[0], Outcome::Accepted(Accepted { joined: false }));
    bench.later(1_000);
    assert_eq!(bench.actions(), [Action::Refuse(short, HoldError::Deadline { phase: Phase::Queued })]);
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

#[test]
fn an_accepted_wake_is_not_sent_again() {
    let mut bench = Bench::standard();
    bench.request("a");
    let wakes = bench.wakes();
    bench.answer(&wakes[0], Outcome::Accepted(Accepted { joined: false }));
    bench.later(10_000);
    assert!(bench.actions().is_empty());
}

#[test]
fn every_bound_refuses_with_its_own_reason() {
    let limits = HoldLimits { per_sprite: 4, per_client: 6, per_process: 8, flights: 3 };
    let mut bench = Bench::new(limits);
    let refusal = |bench: &mut Bench, id| {
        bench.actions().into_iter().find_map(|action| match action {
            Action::Refuse(of, error) if of == id => Some(error),
            _ => None,
        })
    };
    for _ in 0..4 {
        bench.request("a");
    }
    let full = bench.request("a");
    assert_eq!(refusal(&mut bench, full), Some(HoldError::HoldFull));
    bench.request("b");
    bench.request("b");
    let client = bench.request("b");
    assert_eq!(refusal(&mut bench, client), Some(HoldError::ClientHoldFull));
    bench.request_from("c", "192.0.2.2", 1_000);
    let flights = bench.request_from("d", "192.0.2.3", 1_000);
    assert_eq!(refusal(&mut bench, flights), Some(HoldError::EdgeBusy));
    bench.request_from("c", "192.0.2.3", 1_000);
    let process = bench.request_from("c", "192.0.2.4", 1_000);
    assert_eq!(refusal(&mut bench, process), Some(HoldError::EdgeBusy));
}

#[test]
fn beyond_half_of_the_bound_the_largest_client_is_refused_and_a_small_one_is_not() {
    let mut bench = Bench::new(HoldLimits { per_sprite: 8, per_client: 100, per_process: 100, flights: 10 });
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
            Action::Release(id, _) => Some(id),
            _ => None,
        })
        .collect();
    assert_eq!(order, [big[0], small, big[1], big[2]]);
}

#[test]
fn a_failed_wake_is_remembered_as_long_as_the_owner_said() {
    let mut bench = Bench::standard();
    bench.request("a");
    let wakes = bench.wakes();
    let refused = Refused { cause: Cause::WakeFailed.into(), retry_after_ms: 2_000, detail: "exit status 1".into() };
    bench.answer(&wakes[0], Outcome::Refused(refused));
    bench.actions();
    bench.later(500);
    let id = bench.request("a");
    assert!(
        matches!(&bench.actions()[..], [Action::Refuse(of, HoldError::Refused { retry_after_ms: 1_500, .. })] if *of == id)
    );
    bench.later(1_500);
    bench.request("a");
    assert_eq!(bench.wakes().len(), 1);
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
