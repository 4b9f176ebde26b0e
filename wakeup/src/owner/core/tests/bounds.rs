//! What strangers and tenants may cost, with a driver that does everything at once.

use super::*;

impl Bench {
    /// Lets time pass; the driver does at once what it is told. What waiters are told.
    fn live(&mut self, seconds: u64) -> Vec<(WaiterId, Answer)> {
        let (end, mut ends) = (self.now + Duration::from_secs(seconds), Vec::new());
        loop {
            while let Some(action) = self.core.poll_action() {
                ends.extend(self.act(action));
            }
            let Some(at) = self.core.poll_timeout().filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            self.core.handle_timeout(self.now, &self.quiet);
        }
        self.now = end;
        ends
    }

    fn act(&mut self, action: Action) -> Option<(WaiterId, Answer)> {
        match action {
            Action::Start { name, token, .. } | Action::Continue { name, token, .. } => {
                self.core.handle_started(self.now, &name, token);
                self.core.handle_port_open(self.now, &name, token);
                self.quiet.0 = self.now;
            }
            Action::CloseGate { name, token, force, .. } => self.core.handle_gate(self.now, &name, token, true, force),
            Action::Freeze { name, token, .. } => self.core.handle_stopped(self.now, &name, token, Depth::Warm),
            Action::Suspend { name, token, .. } => self.core.handle_stopped(self.now, &name, token, Depth::Cold),
            Action::Answer { answer: Answer::Accepted { .. } | Answer::Progress(_), .. } => {}
            Action::Answer { waiter, answer, .. } => return Some((waiter, answer)),
            _ => {}
        }
        None
    }

    fn wake_as(&mut self, sprite: &str, class: ClientClass) {
        self.next += 1;
        let (waiter, deadline) = ((EDGE, self.next), self.now + Duration::from_secs(30));
        let (name, reason) = (name(sprite), "test".into());
        self.core.handle_wake(self.now, WakeRequest { waiter, name, generation: 2, deadline, reason, class });
    }

    fn set(&mut self, sprite: &str, change: impl FnOnce(&mut CoreSpec)) {
        let mut spec = CoreSpec::new(2);
        change(&mut spec);
        self.core.handle_upsert(self.now, &name(sprite), spec);
    }

    /// Until it is on its way to sleep by itself, whole seconds.
    fn awake_for(&mut self, sprite: &str) -> u64 {
        let mut seconds = 0;
        while self.state(sprite) != StateName::Asleep {
            self.live(1);
            seconds += 1;
            assert!(seconds < 3600, "it never sleeps");
        }
        // The second of the cordon.
        seconds - 1
    }
}

#[test]
fn a_stranger_who_wakes_too_often_is_served_and_makes_it_stay_awake_longer() {
    let mut bench = Bench::new(&["a"]);
    let mut wakes = 0;
    // A webhook every 90 s, more often than 30 an hour, for a week.
    for hook in 0..6_720 {
        wakes += u32::from(bench.state("a") == StateName::Asleep);
        bench.wake("a");
        bench.quiet.0 = bench.now;
        let answers = bench.live(90);
        assert!(matches!(answers[..], [(_, Answer::Ready(_))]), "webhook {hook} is refused: {answers:?}");
    }
    assert!((20..=30 * 168).contains(&wakes), "{wakes} wakes in a week");
}

#[test]
fn naps_make_the_minimum_run_grow_and_a_long_sleep_makes_them_forgotten() {
    let mut bench = Bench::new(&["a"]);
    bench.core.settings.idle_timeout = Duration::from_secs(1);
    bench.core.settings.wakes_per_hour = 0;
    let mut runs = Vec::new();
    for _ in 0..10 {
        bench.wake("a");
        bench.live(0);
        runs.push(bench.awake_for("a"));
        bench.live(5);
    }
    assert_eq!(runs, [10, 10, 10, 10, 20, 40, 80, 160, 300, 300], "seconds");
    bench.live(61);
    bench.wake("a");
    bench.live(0);
    assert_eq!(bench.awake_for("a"), 10);
}

#[test]
fn a_sleep_by_order_is_no_nap() {
    let mut bench = Bench::new(&["a"]);
    for _ in 0..10 {
        bench.wake("a");
        bench.live(1);
        assert!(bench.core.handle_sleep(bench.now, &name("a"), Depth::Warm));
        bench.live(1);
        assert_eq!(bench.state("a"), StateName::Asleep);
    }
    assert_eq!(bench.core.sprites[&name("a")].naps, 0);
}

#[test]
fn a_cap_on_awake_time_refuses_strangers_and_not_its_people() {
    let mut bench = Bench::new(&["a"]);
    bench.set("a", |spec| spec.limits.awake_per_day = Some(Duration::from_secs(15)));
    bench.wake("a");
    bench.live(0);
    assert!(bench.awake_for("a") >= 30);
    bench.wake("a");
    let answers = bench.live(0);
    let [(_, Answer::Refused { cause: Cause::AwakeBudget, retry_after, .. })] = &answers[..] else {
        panic!("{answers:?}");
    };
    assert!(*retry_after > Duration::from_secs(3600));
    bench.wake_as("a", ClientClass::Operator);
    assert_eq!(bench.starts().len(), 1);
}

#[test]
fn a_tenant_at_its_bound_waits_for_itself_and_another_does_not() {
    let mut bench = Bench::new(&["a", "b", "c"]);
    bench.core.settings.running_per_tenant = 1;
    bench.set("c", |spec| spec.tenant = "other".into());
    bench.wake("a");
    bench.live(0);
    bench.wake("b");
    assert!(matches!(&bench.live(0)[..], [(_, Answer::Refused { cause: Cause::TenantAtCapacity, .. })]));
    bench.wake("c");
    assert!(matches!(&bench.live(0)[..], [(_, Answer::Ready(_))]));
}

#[test]
fn a_lossy_wake_can_be_left_to_its_people() {
    let mut bench = Bench::new(&["a"]);
    bench.set("a", |spec| spec.limits.refuse_lossy = true);
    bench.wake("a");
    bench.live(0);
    bench.awake_for("a");
    assert_eq!(bench.warmth("a"), Some(Depth::Warm));
    bench.wake("a");
    let (_, token) = bench.starts()[0];
    assert!(!bench.core.handle_memory_lost(bench.now, &name("a"), token), "it is not started from its disk");
    for _ in 0..2 {
        assert!(matches!(&bench.live(0)[..], [(_, Answer::Refused { cause: Cause::LossyWake, .. })]));
        bench.wake("a");
    }
    bench.live(0);
    bench.wake_as("a", ClientClass::Operator);
    let answers = bench.live(0);
    assert!(matches!(&answers[..], [(_, Answer::Ready(opened))] if opened.lost_memory), "{answers:?}");
}

#[test]
fn a_memory_on_disk_that_is_lost_is_told_and_a_start_without_it_has_its_time() {
    let mut bench = Bench::new(&["a", "b"]);
    for (sprite, refuses) in [("a", false), ("b", true)] {
        bench.set(sprite, |spec| spec.limits.refuse_lossy = refuses);
        bench.wake(sprite);
        bench.live(0);
        assert!(bench.core.handle_sleep(bench.now, &name(sprite), Depth::Cold));
        bench.live(0);
        assert_eq!(bench.warmth(sprite), Some(Depth::Cold));
        bench.wake(sprite);
        let (_, token) = bench.starts()[0];
        bench.now += START_TIMEOUT - Duration::from_secs(1);
        assert_eq!(bench.core.handle_memory_lost(bench.now, &name(sprite), token), !refuses);
        if refuses {
            assert!(matches!(&bench.live(0)[..], [(_, Answer::Refused { cause: Cause::LossyWake, .. })]));
        } else {
            assert_eq!(bench.live(2), [], "it does not hang yet");
            bench.core.handle_started(bench.now, &name(sprite), token);
            bench.core.handle_port_open(bench.now, &name(sprite), token);
            let answers = bench.live(0);
            assert!(matches!(&answers[..], [(_, Answer::Ready(opened))] if opened.lost_memory), "{answers:?}");
        }
    }
}

#[test]
fn how_a_guest_died_is_shown_until_it_runs_again() {
    let mut bench = Bench::new(&["a"]);
    bench.wake("a");
    bench.live(0);
    let cause = |bench: &Bench| bench.core.status(&name("a"), bench.now).unwrap().cause;
    let run = bench.core.status(&name("a"), bench.now).unwrap().run;
    bench.core.handle_exited(bench.now, &name("a"), run, "out of memory: it wanted more than its 32 MiB");
    bench.live(1);
    assert_eq!(bench.state("a"), StateName::Asleep);
    assert_eq!(cause(&bench).unwrap(), "out of memory: it wanted more than its 32 MiB");
    bench.wake("a");
    bench.live(0);
    bench.awake_for("a");
    assert_eq!((bench.state("a"), cause(&bench)), (StateName::Asleep, None), "it fell asleep by itself");
}

#[test]
fn one_that_moved_says_where_to_who_is_behind_and_ends_here() {
    let mut bench = Bench::new(&["a"]);
    let waiter = bench.wake("a");
    assert!(!bench.core.handle_moved(bench.now, &name("a"), "h2", 2), "that is no newer placement");
    assert!(bench.core.handle_moved(bench.now, &name("a"), "h2", 3));
    let moved = Answer::Moved { host: "h2".into(), generation: 3 };
    let actions = bench.actions();
    assert!(actions.iter().any(|action| matches!(action, Action::End { .. })));
    assert!(actions.contains(&Action::Answer { waiter, name: name("a"), answer: moved.clone() }));
    bench.wake("a");
    assert_eq!(bench.ends()[0].1, moved);
    bench.wake_at("a", 4);
    bench.later(AHEAD_WAIT.as_secs_f64());
    assert_eq!(bench.ends()[0].1, Answer::Unknown { generation: 3 });
}

#[test]
fn a_task_keeps_it_awake_without_visitors_and_no_longer_than_it_is_renewed() {
    let mut bench = Bench::new(&["a"]);
    let task = |bench: &mut Bench, minutes: u64| {
        bench.core.handle_task(bench.now, &name("a"), 7, Duration::from_secs(60 * minutes))
    };
    assert_eq!(task(&mut bench, 1), Err(TaskError::NotRunning));
    bench.wake("a");
    bench.live(0);
    // A build of twenty minutes.
    assert_eq!(task(&mut bench, 20), Ok(bench.now + Duration::from_secs(1_200)));
    bench.live(1_199);
    assert_eq!(bench.state("a"), StateName::Running);
    bench.live(2);
    assert_eq!(bench.state("a"), StateName::Asleep, "its time is over");

    bench.wake("a");
    bench.live(0);
    assert_eq!(task(&mut bench, 600), Ok(bench.now + TASK_MAX), "an hour at most");
    bench.live(3_000);
    assert_eq!(task(&mut bench, 30), Ok(bench.now + Duration::from_secs(1_800)));
    bench.live(1_000);
    assert_eq!(bench.state("a"), StateName::Running);
    assert!(bench.core.handle_task_done(bench.now, &name("a"), 7));
    assert!(!bench.core.handle_task_done(bench.now, &name("a"), 7));
    bench.live(31);
    assert_eq!(bench.state("a"), StateName::Asleep);

    bench.wake("a");
    bench.live(0);
    task(&mut bench, 20).unwrap();
    assert!(bench.core.handle_sleep(bench.now, &name("a"), Depth::Warm), "an order is an order");
    bench.live(1);
    assert_eq!(bench.state("a"), StateName::Asleep);
}

#[test]
fn sockets_without_data_keep_it_awake_for_a_quarter_of_an_hour_and_no_longer() {
    let mut bench = Bench::new(&["a"]);
    let run = bench.run("a");
    let mut quiet_ms = 0;
    // Renewed every second, as an edge does; the last data came before all of it.
    while bench.state("a") != StateName::Asleep {
        let sockets = wire::Lease { sockets: 2, quiet_ms, ..lease("a", run, 2) };
        bench.core.handle_lease(bench.now, EDGE, &sockets);
        bench.live(1);
        quiet_ms += 1_000;
        assert!(quiet_ms < 1_000_000, "it never sleeps");
    }
    assert!((900_000..=935_000).contains(&quiet_ms), "{quiet_ms}");

    // One request among them, and it stays awake for as long as that lasts.
    let run = bench.run("a");
    for _ in 0..2_000 {
        let busy = wire::Lease { sockets: 2, quiet_ms: 3_600_000, ..lease("a", run, 3) };
        bench.core.handle_lease(bench.now, EDGE, &busy);
        bench.live(1);
    }
    assert_eq!(bench.state("a"), StateName::Running);
    let why = bench.core.why(bench.now, &name("a"), &bench.quiet).unwrap();
    assert_eq!((why.leases[0].open, why.leases[0].sockets, why.sleeps_in_ms > Some(0)), (3, 2, true), "{why:?}");
}

#[test]
fn a_claim_that_was_lost_does_not_keep_it_awake_for_ever() {
    // Its streams are compared with its items each minute, as the owner does.
    for reconciled in [true, false] {
        let mut bench = Bench::new(&["a"]);
        bench.run("a");
        let activity = backhaul::activity::RunActivity::new(bench.now);
        std::mem::forget(activity.begin());
        for _ in 0..3 {
            bench.quiet.1 = activity.open();
            bench.later(60.0);
            if reconciled {
                activity.reconcile();
            }
        }
        assert_eq!(bench.gate().is_some(), reconciled);
    }
}

#[test]
fn a_wake_nobody_waits_for_is_counted_as_withdrawn_or_as_abandoned() {
    let unwanted = |bench: &mut Bench| -> Vec<_> {
        let counted = bench.actions().into_iter().filter_map(|action| match action {
            Action::Unwanted(what) => Some(what),
            _ => None,
        });
        counted.collect()
    };
    let mut bench = Bench::new(&["a", "b", "c"]);
    let waiters: Vec<_> = ["a", "b", "c"].into_iter().map(|sprite| bench.wake(sprite)).collect();
    let starts = bench.starts();
    // It is behind the two slots.
    bench.core.handle_withdraw(bench.now, waiters[2]);
    assert_eq!(unwanted(&mut bench), [Unwanted::Withdrawn]);
    bench.core.handle_withdraw(bench.now, waiters[0]);
    bench.core.handle_withdraw(bench.now, waiters[0]);
    assert_eq!(unwanted(&mut bench), [], "somebody may still join");
    for (sprite, (_, token)) in ["a", "b"].into_iter().zip(starts) {
        bench.core.handle_started(bench.now, &name(sprite), token);
        bench.core.handle_port_open(bench.now, &name(sprite), token);
    }
    assert_eq!(unwanted(&mut bench), [Unwanted::Abandoned], "and not the one that was waited for");
}
