//! Who asks by a placement this owner has not heard of yet.

use super::*;

const UNKNOWN: Answer = Answer::Unknown { generation: 2 };

#[test]
fn the_owner_s_own_news_come_in_time_and_the_wake_is_served() {
    for sprite in ["a", "new"] {
        let mut bench = Bench::new(&["a"]);
        let waiter = bench.wake_at(sprite, 3);
        bench.later(0.1);
        assert_eq!(bench.actions(), [], "nothing is begun or said before");
        bench.core.handle_upsert(bench.now, &name(sprite), CoreSpec::new(3));
        bench.later(0.0);
        let actions = bench.actions();
        let [Action::Start { token, .. }, Action::Answer { waiter: told, answer: Answer::Accepted { .. }, .. }] =
            &actions[..]
        else {
            panic!("{actions:?}")
        };
        assert_eq!(*told, waiter);
        bench.core.handle_started(bench.now, &name(sprite), *token);
        bench.core.handle_port_open(bench.now, &name(sprite), *token);
        assert!(matches!(&bench.ends()[..], [(to, Answer::Ready(opened))] if *to == waiter && opened.generation == 3));
        bench.later(1.0);
        assert_eq!(bench.ends(), [], "it is told once");
    }
}

#[test]
fn without_news_it_is_told_after_300_ms_and_not_before() {
    let mut bench = Bench::new(&["a"]);
    let waiter = bench.wake_at("a", 3);
    bench.later(0.299);
    assert_eq!(bench.actions(), []);
    bench.later(0.001);
    assert_eq!(bench.ends(), [(waiter, UNKNOWN)]);
    assert_eq!(bench.core.poll_timeout(), None, "nothing is left of it");
}

#[test]
fn who_gives_up_earlier_is_told_then() {
    let mut bench = Bench::new(&["a"]);
    let (waiter, name, reason, class) = ((EDGE, 9), name("a"), "test".into(), ClientClass::Anonymous);
    let deadline = bench.now + Duration::from_millis(50);
    bench.core.handle_wake(bench.now, WakeRequest { waiter, name, generation: 3, deadline, reason, class });
    bench.later(0.05);
    assert_eq!(bench.ends(), [(waiter, UNKNOWN)]);
}

#[test]
fn news_of_a_placement_in_between_do_not_end_the_wait_and_those_of_a_newer_one_do() {
    let mut bench = Bench::new(&["a"]);
    let waiter = bench.wake_at("a", 4);
    bench.later(0.1);
    bench.core.handle_upsert(bench.now, &name("a"), CoreSpec::new(3));
    bench.later(0.199);
    assert_eq!(bench.actions(), []);
    bench.later(0.001);
    assert_eq!(bench.ends(), [(waiter, Answer::Unknown { generation: 3 })]);
    let waiter = bench.wake_at("a", 4);
    bench.core.handle_upsert(bench.now, &name("a"), CoreSpec::new(5));
    bench.later(0.0);
    assert_eq!(bench.ends(), [(waiter, Answer::Unknown { generation: 5 })]);
}

#[test]
fn the_news_may_be_that_it_moved_or_is_destroyed() {
    let mut bench = Bench::new(&["a", "b"]);
    let moved = bench.wake_at("a", 3);
    assert!(bench.core.handle_moved(bench.now, &name("a"), "h2", 3));
    bench.later(0.0);
    assert_eq!(bench.ends(), [(moved, Answer::Moved { host: "h2".into(), generation: 3 })]);
    let ahead = bench.wake_at("b", 3);
    bench.core.handle_upsert(bench.now, &name("b"), CoreSpec::new(3));
    bench.core.handle_remove(bench.now, &name("b"));
    bench.later(0.0);
    assert_eq!(bench.ends(), [(ahead, Answer::Gone { generation: 3 })]);
}

#[test]
fn a_guest_that_is_found_with_the_news_is_not_started_again() {
    let mut bench = Bench::new(&[]);
    bench.wake_at("a", 3);
    bench.core.handle_upsert(bench.now, &name("a"), CoreSpec::new(3));
    bench.core.handle_adopted(bench.now, &name("a"), None, None).expect("it is new");
    bench.later(0.0);
    let actions = bench.actions();
    assert!(actions.iter().any(|action| matches!(action, Action::Probe { .. })), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::Start { .. })), "{actions:?}");
}

#[test]
fn a_withdrawal_meanwhile_leaves_nothing_and_the_news_start_nothing() {
    for withdraw in [true, false] {
        let mut bench = Bench::new(&["a"]);
        let waiter = bench.wake_at("a", 3);
        match withdraw {
            true => bench.core.handle_withdraw(bench.now, waiter),
            false => bench.core.handle_edge_gone(bench.now, EDGE),
        }
        bench.core.handle_upsert(bench.now, &name("a"), CoreSpec::new(3));
        bench.later(1.0);
        assert_eq!(bench.actions(), []);
    }
}

#[test]
fn asked_again_it_waits_no_longer_and_is_answered_once() {
    let mut bench = Bench::new(&["a"]);
    let waiter = bench.wake_at("a", 3);
    bench.later(0.25);
    bench.next -= 1;
    assert_eq!(bench.wake_at("a", 3), waiter);
    bench.later(0.05);
    assert_eq!(bench.ends(), [(waiter, UNKNOWN)]);
    // Again behind the news, before they were looked at.
    bench.wake_at("a", 3);
    bench.core.handle_upsert(bench.now, &name("a"), CoreSpec::new(3));
    bench.next -= 1;
    bench.wake_at("a", 3);
    assert_eq!(bench.starts().len(), 1);
    bench.later(0.3);
    assert_eq!(bench.ends(), []);
    assert_eq!(bench.core.status(&name("a"), bench.now).unwrap().waiting, 1);
}

#[test]
fn no_more_than_so_many_wait_and_one_more_is_told_at_once() {
    let mut bench = Bench::new(&["a"]);
    for _ in 0..AHEAD_MAX {
        bench.wake_at("a", 3);
    }
    assert_eq!(bench.actions(), []);
    let waiter = bench.wake_at("a", 3);
    assert_eq!(bench.ends(), [(waiter, UNKNOWN)]);
    bench.core.handle_stream_ahead(bench.now, (EDGE, 0), name("a"), 3);
    assert_eq!(bench.actions(), [Action::CaughtUp { waiter: (EDGE, 0) }]);
    bench.later(0.3);
    assert_eq!(bench.ends().len(), AHEAD_MAX);
}

#[test]
fn a_stream_asks_again_with_the_news_or_after_300_ms_and_wakes_nothing() {
    let mut bench = Bench::new(&["a"]);
    let stream = |id| (EDGE, id);
    let caught_up = |id| [Action::CaughtUp { waiter: stream(id) }];
    bench.core.handle_stream_ahead(bench.now, stream(1), name("a"), 2);
    assert_eq!(bench.actions(), caught_up(1), "it is known already");
    bench.core.handle_stream_ahead(bench.now, stream(2), name("a"), 3);
    bench.later(0.299);
    assert_eq!(bench.actions(), []);
    bench.later(0.001);
    assert_eq!(bench.actions(), caught_up(2));
    bench.core.handle_stream_ahead(bench.now, stream(3), name("a"), 3);
    bench.core.handle_upsert(bench.now, &name("a"), CoreSpec::new(3));
    bench.later(0.0);
    assert_eq!(bench.actions(), caught_up(3));
}

#[test]
fn an_owner_that_goes_tells_them_too() {
    let mut bench = Bench::new(&["a"]);
    let waiter = bench.wake_at("a", 3);
    bench.core.handle_stream_ahead(bench.now, (EDGE, 9), name("a"), 3);
    bench.core.handle_shutdown();
    let actions = bench.actions();
    assert!(actions.contains(&Action::CaughtUp { waiter: (EDGE, 9) }), "{actions:?}");
    let refused = actions.iter().find_map(|action| match action {
        Action::Answer { waiter, answer, .. } => Some((*waiter, cause(answer))),
        _ => None,
    });
    assert_eq!(refused, Some((waiter, Some(Cause::ShuttingDown))));
    assert_eq!(bench.core.poll_timeout(), None);
}
