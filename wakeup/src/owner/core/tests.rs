mod ahead;
mod bounds;
mod runs;

use super::*;
use crate::spec::{Depth, StateName};
use backhaul::wire::{ClientClass, Opened};

/// What the guests have open, as the test says.
struct Quiet(Instant, u32);

impl Activity for Quiet {
    fn activity(&self, _name: &SpriteName, _run: u64) -> (u32, Instant) {
        (self.1, self.0)
    }
}

struct Bench {
    core: OwnerCore,
    now: Instant,
    quiet: Quiet,
    next: u128,
}

const EDGE: EdgeId = EdgeId(1);

impl Bench {
    fn new(names: &[&str]) -> Self {
        let host = config::Host { start_slots: 2, ..config::Host::default() };
        let settings = CoreSettings { seed: 1, ..CoreSettings::from(&host) };
        let now = Instant::now();
        let mut bench = Self { core: OwnerCore::new(settings), now, quiet: Quiet(now, 0), next: 0 };
        for sprite in names {
            bench.core.handle_upsert(now, &name(sprite), CoreSpec::new(2));
        }
        bench
    }

    fn wake(&mut self, sprite: &str) -> WaiterId {
        self.wake_at(sprite, 2)
    }

    fn wake_at(&mut self, sprite: &str, generation: u64) -> WaiterId {
        self.next += 1;
        self.ask(sprite, generation, (EDGE, self.next))
    }

    fn ask(&mut self, sprite: &str, generation: u64, waiter: WaiterId) -> WaiterId {
        let deadline = self.now + Duration::from_secs(30);
        let (name, reason, class) = (name(sprite), "test".into(), ClientClass::Anonymous);
        let request = WakeRequest { waiter, name, generation, deadline, reason, class };
        self.core.handle_wake(self.now, request);
        waiter
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.core.poll_action()).collect()
    }

    /// The starts among the actions: (run, token).
    fn starts(&mut self) -> Vec<(u64, u64)> {
        let starts = self.actions().into_iter().filter_map(|action| match action {
            Action::Start { run, token, .. } | Action::Continue { run, token, .. } => Some((run, token)),
            _ => None,
        });
        starts.collect()
    }

    fn ends(&mut self) -> Vec<(WaiterId, Answer)> {
        let ends = self.actions().into_iter().filter_map(|action| match action {
            Action::Answer { answer: Answer::Accepted { .. } | Answer::Progress(_), .. } => None,
            Action::Answer { waiter, answer, .. } => Some((waiter, answer)),
            _ => None,
        });
        ends.collect()
    }

    fn causes(&mut self) -> Vec<(WaiterId, Option<Cause>)> {
        self.ends().iter().map(|(waiter, answer)| (*waiter, cause(answer))).collect()
    }

    fn later(&mut self, seconds: f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        while let Some(at) = self.core.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.core.handle_timeout(self.now, &self.quiet);
        }
        self.now = end;
    }

    fn state(&self, sprite: &str) -> StateName {
        self.core.status(&name(sprite), self.now).unwrap().state
    }

    fn warmth(&self, sprite: &str) -> Option<Depth> {
        self.core.status(&name(sprite), self.now).unwrap().warmth
    }

    /// Wakes a sprite all the way; its run.
    fn run(&mut self, sprite: &str) -> u64 {
        self.wake(sprite);
        let (run, token) = self.starts()[0];
        self.core.handle_started(self.now, &name(sprite), token);
        self.core.handle_port_open(self.now, &name(sprite), token);
        self.quiet.0 = self.now;
        self.actions();
        run
    }

    /// The token of the gate the core wants closed.
    fn gate(&mut self) -> Option<u64> {
        self.actions().into_iter().find_map(|action| match action {
            Action::CloseGate { token, .. } => Some(token),
            _ => None,
        })
    }

    fn stop(&mut self) -> (u64, Depth) {
        let stop = self.actions().into_iter().find_map(|action| match action {
            Action::Freeze { token, .. } => Some((token, Depth::Warm)),
            Action::Suspend { token, .. } | Action::End { token, .. } => Some((token, Depth::Cold)),
            _ => None,
        });
        stop.expect("a stop was committed")
    }
}

fn name(text: &str) -> SpriteName {
    SpriteName::parse(text).unwrap()
}

fn lease(sprite: &str, run: u64, open: u32) -> wire::Lease {
    wire::Lease { sprite: sprite.into(), run, open, ..wire::Lease::default() }
}

fn cause(answer: &Answer) -> Option<Cause> {
    match answer {
        Answer::Refused { cause, .. } => Some(*cause),
        _ => None,
    }
}

#[test]
fn a_question_that_comes_twice_is_answered_alike() {
    let mut bench = Bench::new(&["a"]);
    let waiter = bench.wake("a");
    let (_, token) = bench.starts()[0];
    bench.core.handle_started(bench.now, &name("a"), token);
    bench.core.handle_port_open(bench.now, &name("a"), token);
    let first = bench.ends();
    assert!(matches!(&first[..], [(_, Answer::Ready(opened))] if opened.kind() == WakeKind::Cold), "{first:?}");
    // Its answer was late, so it was asked again; who asks anew finds it running.
    bench.ask("a", 2, waiter);
    assert_eq!(bench.ends(), first);
    bench.wake("a");
    assert!(matches!(&bench.ends()[..], [(_, Answer::Ready(opened))] if opened.kind() == WakeKind::None));
}

#[test]
fn a_hundred_wakes_are_one_start_and_a_hundred_answers() {
    let mut bench = Bench::new(&["a"]);
    let waiters: Vec<_> = (0..100).map(|_| bench.wake("a")).collect();
    let starts = bench.starts();
    assert_eq!(starts.len(), 1);
    bench.core.handle_started(bench.now, &name("a"), starts[0].1);
    bench.core.handle_port_open(bench.now, &name("a"), starts[0].1);
    let ends = bench.ends();
    assert_eq!(ends.iter().map(|(waiter, _)| *waiter).collect::<Vec<_>>(), waiters);
    assert!(ends.iter().all(|(_, answer)| matches!(answer, Answer::Ready(opened) if opened.run == 1)));
}

#[test]
fn slots_bound_the_starts_the_queue_keeps_its_order_and_over_it_the_host_is_busy() {
    let names: Vec<_> = (0..11).map(|n| format!("s{n}")).collect();
    let mut bench = Bench::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for sprite in &names[..10] {
        bench.wake(sprite);
    }
    let started = bench.starts();
    assert_eq!(started.len(), 2);
    let over = bench.wake("s10");
    assert_eq!(bench.causes(), [(over, Some(Cause::HostBusy))]);
    bench.core.handle_started(bench.now, &name("s0"), started[0].1);
    let next = bench.actions().into_iter().find_map(|action| match action {
        Action::Start { name, .. } => Some(name),
        _ => None,
    });
    assert_eq!(next, Some(name("s2")));
}

#[test]
fn failed_starts_back_off_longer_each_time_until_it_has_run_for_a_minute() {
    let mut bench = Bench::new(&["a"]);
    let mut pauses = Vec::new();
    for _ in 0..7 {
        bench.wake("a");
        let run = bench.starts()[0].0;
        bench.core.handle_exited(bench.now, &name("a"), run, "exit status 1");
        let ends = bench.ends();
        let Answer::Refused { cause: Cause::WakeFailed, retry_after, detail } = &ends[0].1 else { panic!("{ends:?}") };
        assert_eq!(detail, "exit status 1");
        pauses.push(retry_after.as_secs_f64());
        // Until then it is refused without a start.
        let early = bench.wake("a");
        assert_eq!((bench.causes(), bench.state("a")), (vec![(early, Some(Cause::WakeFailed))], StateName::Failed));
        bench.later(retry_after.as_secs_f64());
    }
    for (pause, base) in pauses.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]) {
        assert!((0.8 * base..=1.2 * base).contains(pause), "{pauses:?}");
    }
    let run = bench.run("a");
    bench.quiet.1 = 1;
    bench.later(100.0);
    bench.core.handle_exited(bench.now, &name("a"), run, "killed by signal 9");
    bench.wake("a");
    let run = bench.starts()[0].0;
    bench.core.handle_exited(bench.now, &name("a"), run, "exit status 1");
    assert!(matches!(&bench.ends()[0].1, Answer::Refused { retry_after, .. } if retry_after.as_secs_f64() <= 1.2));
}

#[test]
fn a_port_that_stays_closed_is_told_after_ten_seconds_and_the_guest_is_left_alone() {
    let mut bench = Bench::new(&["a"]);
    let waiter = bench.wake("a");
    let token = bench.starts()[0].1;
    bench.core.handle_started(bench.now, &name("a"), token);
    bench.later(9.9);
    assert_eq!(bench.ends(), []);
    bench.later(0.2);
    assert_eq!(bench.causes(), [(waiter, Some(Cause::PortClosed))]);
    assert_eq!(bench.state("a"), StateName::Running);
    // The next one looks again without a start, as patiently while the run is young.
    let again = bench.wake("a");
    let actions = bench.actions();
    assert!(actions.iter().any(|action| matches!(action, Action::Probe { .. })), "{actions:?}");
    bench.later(9.9);
    assert_eq!(bench.causes(), []);
    bench.later(0.2);
    assert_eq!(bench.causes(), [(again, Some(Cause::PortClosed))]);
    // A minute old it has had its time to listen.
    bench.quiet.1 = 1;
    bench.later(50.0);
    let late = bench.wake("a");
    bench.later(1.9);
    assert_eq!(bench.causes(), []);
    bench.later(0.2);
    assert_eq!(bench.causes(), [(late, Some(Cause::PortClosed))]);
}

#[test]
fn an_older_placement_changes_nothing_and_an_edge_behind_is_told() {
    let mut bench = Bench::new(&["a"]);
    bench.core.handle_upsert(bench.now, &name("a"), CoreSpec::new(1));
    let waiter = bench.wake_at("a", 1);
    assert_eq!(bench.ends(), [(waiter, Answer::Unknown { generation: 2 })]);
}

#[test]
fn who_waits_when_the_owner_goes_is_told() {
    let mut bench = Bench::new(&["a"]);
    let waiter = bench.wake("a");
    bench.core.handle_shutdown();
    assert_eq!(bench.causes(), [(waiter, Some(Cause::ShuttingDown))]);
}

#[test]
fn a_guest_that_dies_while_its_port_is_looked_at_is_started_for_those_who_wait() {
    let mut bench = Bench::new(&["a"]);
    let run = bench.run("a");
    bench.core.handle_port_lost(&name("a"), run);
    let waiter = bench.wake("a");
    bench.actions();
    bench.core.handle_exited(bench.now, &name("a"), run, "killed by signal 9");
    let (_, token) = bench.starts()[0];
    bench.core.handle_started(bench.now, &name("a"), token);
    bench.core.handle_port_open(bench.now, &name("a"), token);
    assert!(matches!(&bench.ends()[..], [(told, Answer::Ready(opened))] if *told == waiter && opened.run == 2));
}

#[test]
fn an_idle_sprite_is_cordoned_then_frozen_and_in_the_end_ended() {
    let mut bench = Bench::new(&["a"]);
    bench.run("a");
    bench.later(29.0);
    assert_eq!(bench.gate(), None);
    bench.later(5.0);
    let token = bench.gate().expect("it is idle");
    bench.core.handle_gate(bench.now, &name("a"), token, true, None);
    assert_eq!(bench.state("a"), StateName::Stopping);
    assert!(bench.actions().iter().any(|action| matches!(action, Action::Cordon { run: 1, forced: false, .. })));
    bench.later(0.25);
    assert_eq!(bench.actions(), [], "an edge may have something open that it never claimed");
    bench.core.handle_cordoned(bench.now, &name("a"), 0);
    bench.later(0.0);
    assert_eq!(bench.actions(), [], "another run");
    bench.core.handle_cordoned(bench.now, &name("a"), 1);
    bench.later(0.0);
    let (token, depth) = bench.stop();
    assert_eq!(depth, Depth::Warm);
    bench.core.handle_stopped(bench.now, &name("a"), token, Depth::Warm);
    assert_eq!(bench.warmth("a"), Some(Depth::Warm));
    bench.actions();
    bench.later(601.0);
    let (token, depth) = bench.stop();
    assert_eq!(depth, Depth::Cold);
    bench.core.handle_stopped(bench.now, &name("a"), token, Depth::Cold);
    assert_eq!(bench.warmth("a"), Some(Depth::Cold));
}

#[test]
fn a_cordon_lasts_a_fifth_of_a_second_when_every_edge_answers_and_a_second_when_one_does_not() {
    for (answered, lasts) in [(true, 0.2), (false, 1.0)] {
        let mut bench = Bench::new(&["a"]);
        let run = bench.run("a");
        bench.later(31.0);
        let token = bench.gate().unwrap();
        bench.core.handle_gate(bench.now, &name("a"), token, true, None);
        if answered {
            bench.core.handle_cordoned(bench.now, &name("a"), run);
        }
        bench.actions();
        bench.later(lasts - 0.001);
        assert_eq!(bench.actions(), []);
        bench.later(0.001);
        assert_eq!(bench.stop().1, Depth::Warm);
    }
}

#[test]
fn open_requests_and_leases_keep_it_awake_and_an_expired_lease_does_not() {
    let mut bench = Bench::new(&["a"]);
    let run = bench.run("a");
    bench.quiet.1 = 1;
    bench.later(100.0);
    assert_eq!(bench.gate(), None, "something is open");
    bench.quiet.1 = 0;
    bench.core.handle_lease(bench.now, EDGE, &lease("a", run, 2));
    bench.later(14.0);
    assert_eq!(bench.gate(), None, "an edge claims it");
    bench.later(6.0);
    assert!(bench.gate().is_some(), "the claim has expired");
}

#[test]
fn a_claim_that_comes_in_time_calls_a_stop_off_and_one_of_long_silence_does_not() {
    let mut bench = Bench::new(&["a"]);
    let run = bench.run("a");
    for (silent_for, state) in [(0, StateName::Running), (3_600, StateName::Stopping)] {
        bench.later(40.0);
        let token = bench.gate().unwrap();
        bench.core.handle_gate(bench.now, &name("a"), token, true, None);
        assert_eq!(bench.state("a"), StateName::Stopping);
        let claim = wire::Lease { sockets: 1, quiet_ms: silent_for * 1_000, ..lease("a", run, 1) };
        bench.core.handle_lease(bench.now, EDGE, &claim);
        assert_eq!(bench.state("a"), state, "{silent_for} s");
        let reopened = bench.actions().iter().any(|action| matches!(action, Action::ReopenGate { .. }));
        assert_eq!(reopened, state == StateName::Running);
        bench.core.handle_lease(bench.now, EDGE, &lease("a", run, 0));
    }
}

#[test]
fn a_gate_that_cannot_be_closed_keeps_it_running_and_is_tried_again() {
    let mut bench = Bench::new(&["a"]);
    bench.run("a");
    bench.later(40.0);
    let token = bench.gate().unwrap();
    bench.core.handle_gate(bench.now, &name("a"), token, false, None);
    assert_eq!(bench.state("a"), StateName::Running);
    bench.later(10.0);
    assert!(bench.gate().is_some());
}

#[test]
fn a_frozen_guest_continues_under_a_new_run_and_a_dead_one_starts_cold() {
    let mut bench = Bench::new(&["a"]);
    bench.run("a");
    bench.core.handle_sleep(bench.now, &name("a"), Depth::Warm);
    let token = bench.gate().unwrap();
    bench.core.handle_gate(bench.now, &name("a"), token, true, Some(Depth::Warm));
    bench.later(0.0);
    let (token, _) = bench.stop();
    bench.core.handle_stopped(bench.now, &name("a"), token, Depth::Warm);
    bench.actions();
    bench.wake("a");
    assert!(bench.actions().iter().any(|action| matches!(action, Action::Continue { run: 2, .. })));
    let mut dead = Bench::new(&["a"]);
    let run = dead.run("a");
    dead.core.handle_exited(dead.now, &name("a"), run, "killed by signal 9");
    dead.wake("a");
    assert!(dead.actions().iter().any(|action| matches!(action, Action::Start { run: 2, .. })));
}

#[test]
fn what_the_owner_does_not_know_or_has_destroyed_is_said_and_never_started() {
    let mut bench = Bench::new(&["a"]);
    bench.wake_at("nobody", 1);
    bench.wake_at("a", 9);
    bench.later(AHEAD_WAIT.as_secs_f64());
    bench.core.handle_remove(bench.now, &name("a"));
    bench.wake("a");
    let actions = bench.actions();
    assert!(!actions.iter().any(|action| matches!(action, Action::Start { .. })));
    let answers: Vec<_> = actions
        .into_iter()
        .filter_map(|action| match action {
            Action::Answer { answer, .. } => Some(answer),
            _ => None,
        })
        .collect();
    let expected =
        [Answer::Unknown { generation: 0 }, Answer::Unknown { generation: 2 }, Answer::Gone { generation: 2 }];
    assert_eq!(answers, expected);
}

#[test]
fn a_retransmitted_wake_is_the_same_wake() {
    let mut bench = Bench::new(&["a"]);
    bench.wake("a");
    bench.next -= 1;
    bench.wake("a");
    assert_eq!(bench.core.status(&name("a"), bench.now).unwrap().waiting, 1);
    assert_eq!(bench.starts().len(), 1);
}

#[test]
fn late_results_of_a_start_that_was_given_up_change_nothing() {
    let mut bench = Bench::new(&["a"]);
    bench.wake("a");
    let (run, token) = bench.starts()[0];
    bench.core.handle_exited(bench.now, &name("a"), run, "exit status 1");
    bench.core.handle_started(bench.now, &name("a"), token);
    bench.core.handle_port_open(bench.now, &name("a"), token);
    assert_eq!(bench.state("a"), StateName::Failed);
}

#[test]
fn a_stopped_sprite_ends_refuses_and_is_not_woken_until_it_is_started() {
    let mut bench = Bench::new(&["a"]);
    bench.run("a");
    assert!(bench.core.handle_stop(bench.now, &name("a")));
    let token = bench.gate().expect("it is to end");
    bench.core.handle_gate(bench.now, &name("a"), token, true, Some(Depth::Cold));
    let (token, depth) = bench.stop();
    assert_eq!(depth, Depth::Cold);
    let early = bench.wake("a");
    assert_eq!(bench.causes(), [(early, Some(Cause::StoppedByOwner))]);
    bench.core.handle_stopped(bench.now, &name("a"), token, Depth::Cold);
    assert_eq!((bench.state("a"), bench.warmth("a")), (StateName::Stopped, None));
    let late = bench.wake("a");
    assert_eq!((bench.causes(), bench.starts()), (vec![(late, Some(Cause::StoppedByOwner))], vec![]));
    bench.core.handle_start(&name("a"));
    assert_eq!(bench.state("a"), StateName::Asleep);
    bench.wake("a");
    assert_eq!(bench.starts().len(), 1);
}

#[test]
fn a_stop_during_a_start_follows_it_and_one_in_the_queue_never_starts() {
    let mut bench = Bench::new(&["a", "b", "c"]);
    let waiters = [bench.wake("a"), bench.wake("b"), bench.wake("c")];
    let token = bench.starts()[0].1;
    for sprite in ["a", "c"] {
        bench.core.handle_stop(bench.now, &name(sprite));
    }
    assert_eq!(bench.causes(), [(waiters[0], Some(Cause::StoppedByOwner)), (waiters[2], Some(Cause::StoppedByOwner))]);
    assert_eq!(bench.state("c"), StateName::Stopped);
    bench.core.handle_started(bench.now, &name("a"), token);
    assert_eq!(bench.stop().1, Depth::Cold, "nobody waits for its port any more");
}

#[test]
fn a_held_sprite_lets_wait_and_its_release_lets_go_on() {
    let mut bench = Bench::new(&["a", "b"]);
    bench.run("a");
    for sprite in ["a", "b"] {
        assert!(bench.core.handle_hold(bench.now, &name(sprite), Duration::from_secs(20)));
    }
    assert!(bench.actions().iter().any(|action| matches!(action, Action::Hold { run: 1, .. })));
    let running = bench.wake("a");
    let asleep = bench.wake("b");
    bench.later(19.0);
    assert_eq!((bench.ends(), bench.starts()), (vec![], vec![]), "neither told nor started");
    bench.core.handle_release(bench.now, &name("a"));
    let actions = bench.actions();
    assert!(matches!(&actions[0], Action::Unhold { run: 1, .. }), "{actions:?}");
    let told = |action: &Action| matches!(action, Action::Answer { waiter, answer: Answer::Ready(_), .. } if *waiter == running);
    assert!(actions.iter().any(told), "{actions:?}");
    // The other one's hold ends by itself.
    bench.later(1.1);
    let (_, token) = bench.starts()[0];
    bench.core.handle_started(bench.now, &name("b"), token);
    bench.core.handle_port_open(bench.now, &name("b"), token);
    assert!(matches!(&bench.ends()[..], [(waiter, Answer::Ready(_))] if *waiter == asleep));
    assert!(!bench.core.status(&name("b"), bench.now).unwrap().held);
}

#[test]
fn a_hold_is_bounded_and_keeps_a_sprite_from_falling_asleep() {
    let mut bench = Bench::new(&["a"]);
    bench.run("a");
    bench.later(29.0);
    bench.core.handle_hold(bench.now, &name("a"), Duration::from_secs(3_600));
    bench.actions();
    bench.later(29.9);
    assert_eq!(bench.gate(), None, "idle, but held");
    bench.later(1.0);
    assert!(bench.gate().is_some(), "30 s are the limit");
}

#[test]
fn of_two_holds_the_later_end_counts_and_one_release_ends_both() {
    let mut bench = Bench::new(&["a"]);
    let hold = |bench: &mut Bench, seconds| {
        assert!(bench.core.handle_hold(bench.now, &name("a"), Duration::from_secs(seconds)));
    };
    let held = |bench: &Bench| bench.core.status(&name("a"), bench.now).unwrap().held;
    hold(&mut bench, 20);
    bench.later(5.0);
    hold(&mut bench, 2);
    bench.later(14.9);
    assert!(held(&bench), "a shorter one does not end what another works under");
    bench.later(0.2);
    assert!(!held(&bench), "nor do they add up");
    hold(&mut bench, 2);
    hold(&mut bench, 20);
    bench.later(19.9);
    assert!(held(&bench));
    bench.core.handle_release(bench.now, &name("a"));
    assert!(!held(&bench));
}

/// Found by the simulation: destroyed in the middle of its start and made again, the new one
/// was taken to run when the old start was reported, and to have died with the old guest.
#[test]
fn what_is_told_of_a_destroyed_sprite_is_not_believed_of_the_one_that_has_its_name_now() {
    let mut bench = Bench::new(&["a"]);
    bench.wake("a");
    let (old_run, old_token) = bench.starts()[0];
    bench.core.handle_remove(bench.now, &name("a"));
    bench.core.handle_upsert(bench.now, &name("a"), CoreSpec::new(4));
    let waiter = bench.wake_at("a", 4);
    let (run, token) = *bench.starts().last().unwrap();
    assert!(run > old_run && token > old_token, "run {run}, token {token}");
    bench.core.handle_started(bench.now, &name("a"), old_token);
    bench.core.handle_port_open(bench.now, &name("a"), old_token);
    bench.core.handle_exited(bench.now, &name("a"), old_run, "killed by signal 9");
    bench.core.handle_stopped(bench.now, &name("a"), old_token + 1, Depth::Cold);
    assert_eq!((bench.state("a"), bench.ends()), (StateName::Waking, vec![]));
    bench.core.handle_started(bench.now, &name("a"), token);
    bench.core.handle_port_open(bench.now, &name("a"), token);
    assert!(matches!(bench.ends()[..], [(of, Answer::Ready(Opened { generation: 4, .. }))] if of == waiter));
}

#[test]
fn a_sprite_that_moves_away_and_back_goes_on_counting_its_runs() {
    let mut bench = Bench::new(&["a"]);
    let run = bench.run("a");
    assert!(bench.core.handle_moved(bench.now, &name("a"), "other", 3));
    bench.core.handle_upsert(bench.now, &name("a"), CoreSpec::new(4));
    bench.wake_at("a", 4);
    assert!(bench.starts().last().unwrap().0 > run);
}
