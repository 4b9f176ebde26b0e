//! What the ledger is told: each end with its reason, each run once, and a run that is
//! older than its owner.

use super::*;
use crate::ledger::StopReason;

/// Begins and ends among the actions: the run; for an end why, how long, how many wakes.
#[derive(Debug, PartialEq)]
enum Told {
    Began(u64, WakeKind),
    Ended(u64, StopReason, f64, u32),
    Failed(u64),
    Gone,
}

impl Bench {
    fn told(&mut self) -> Vec<Told> {
        let told = self.actions().into_iter().filter_map(|action| match action {
            Action::RunBegan { run, kind, .. } => Some(Told::Began(run, kind)),
            Action::RunEnded { run, why, since, at, wakes, .. } => {
                Some(Told::Ended(run, why, (at - since).as_secs_f64(), wakes))
            }
            Action::WakeFailed { run, .. } => Some(Told::Failed(run)),
            Action::Destroyed { .. } => Some(Told::Gone),
            _ => None,
        });
        told.collect()
    }

    /// Closes the gate the core asks for and freezes what it wants frozen.
    fn let_it_sleep(&mut self, forced: Option<Depth>) {
        let token = self.gate().expect("a gate to close");
        self.core.handle_gate(self.now, &name("a"), token, true, forced);
        if forced.is_none() {
            let run = self.core.status(&name("a"), self.now).unwrap().run;
            self.core.handle_cordoned(self.now, &name("a"), run);
            self.later(0.2);
        }
        let (token, depth) = self.stop();
        self.core.handle_stopped(self.now, &name("a"), token, depth);
    }
}

#[test]
fn every_sleep_is_told_with_who_wanted_it() {
    let mut bench = Bench::new(&["a"]);
    bench.run("a");
    bench.later(30.0);
    bench.let_it_sleep(None);
    assert_eq!(bench.told(), [Told::Ended(1, StopReason::Idle, 30.2, 1)]);

    bench.run("a");
    bench.core.handle_sleep(bench.now, &name("a"), Depth::Warm);
    bench.let_it_sleep(Some(Depth::Warm));
    assert_eq!(bench.told(), [Told::Ended(2, StopReason::Asked, 0.0, 1)]);

    bench.run("a");
    bench.core.handle_stop(bench.now, &name("a"));
    bench.let_it_sleep(Some(Depth::Cold));
    assert_eq!(bench.told(), [Told::Ended(3, StopReason::StoppedByOwner, 0.0, 1)]);
    bench.core.handle_start(&name("a"));

    let waiter = bench.wake("a");
    let token = bench.starts()[0].1;
    bench.core.handle_started(bench.now, &name("a"), token);
    assert_eq!(bench.told(), [Told::Began(4, WakeKind::Cold)]);
    bench.core.handle_withdraw(bench.now, waiter);
    bench.core.handle_port_open(bench.now, &name("a"), token);
    bench.later(5.0);
    bench.let_it_sleep(None);
    assert_eq!(bench.told(), [Told::Ended(4, StopReason::Abandoned, 5.2, 1)]);

    // Cold from warm: nothing ran.
    bench.core.handle_sleep(bench.now, &name("a"), Depth::Cold);
    let (token, depth) = bench.stop();
    bench.core.handle_stopped(bench.now, &name("a"), token, depth);
    assert_eq!(bench.told(), []);
}

#[test]
fn a_sleep_that_is_called_off_is_a_wake_of_the_same_run() {
    let mut bench = Bench::new(&["a"]);
    bench.run("a");
    bench.later(30.0);
    let token = bench.gate().unwrap();
    bench.core.handle_gate(bench.now, &name("a"), token, true, None);
    bench.wake("a");
    assert_eq!(bench.told(), []);
    bench.later(30.0);
    bench.let_it_sleep(None);
    assert_eq!(bench.told(), [Told::Ended(1, StopReason::Idle, 60.2, 2)]);
}

#[test]
fn a_death_a_failed_start_and_a_destroyed_sprite_are_told() {
    let mut bench = Bench::new(&["a"]);
    bench.run("a");
    bench.later(7.0);
    bench.core.handle_exited(bench.now, &name("a"), 1, "killed by signal 9");
    assert_eq!(bench.told(), [Told::Ended(1, StopReason::GuestDied, 7.0, 1)]);

    bench.wake("a");
    let (run, token) = bench.starts()[0];
    bench.core.handle_started(bench.now, &name("a"), token);
    bench.later(1.0);
    bench.core.handle_exited(bench.now, &name("a"), run, "exit status 1");
    let ended = Told::Ended(2, StopReason::WakeFailed, 1.0, 1);
    assert_eq!(bench.told(), [Told::Began(2, WakeKind::Cold), ended, Told::Failed(2)]);
    bench.later(5.0);

    // One the driver could not start had no run.
    bench.wake("a");
    let run = bench.starts()[0].0;
    bench.core.handle_exited(bench.now, &name("a"), run, "no free port");
    assert_eq!(bench.told(), [Told::Failed(3)]);
    bench.later(5.0);

    bench.run("a");
    bench.later(2.0);
    bench.core.handle_remove(bench.now, &name("a"));
    assert_eq!(bench.told(), [Told::Ended(4, StopReason::Destroyed, 2.0, 1), Told::Gone]);
    bench.core.handle_left(bench.now, &name("a"));
    assert_eq!(bench.told(), []);
}

#[test]
fn an_owner_goes_on_where_the_one_before_it_stood() {
    let spec = |run| CoreSpec { run, ..CoreSpec::new(2) };
    let mut bench = Bench::new(&[]);
    let begun = bench.now;
    bench.later(100.0);

    // Its run was open and it still runs: neither a begin nor another number.
    bench.core.handle_upsert(bench.now, &name("a"), spec(23));
    assert_eq!(bench.core.handle_adopted(bench.now, &name("a"), None, Some((7, begun))), Some(7));
    assert_eq!(bench.told(), []);
    bench.later(10.0);
    bench.core.handle_left(bench.now, &name("a"));
    assert_eq!(bench.told(), [Told::Ended(7, StopReason::OwnerEnded, 110.0, 1)]);

    // It runs, and nobody had told of it.
    bench.core.handle_upsert(bench.now, &name("b"), spec(23));
    assert_eq!(bench.core.handle_adopted(bench.now, &name("b"), None, None), Some(24));
    assert_eq!(bench.told(), [Told::Began(24, WakeKind::None)]);

    // It does not: the next run is a new one.
    bench.core.handle_upsert(bench.now, &name("c"), spec(23));
    assert_eq!(bench.run("c"), 24);
}
