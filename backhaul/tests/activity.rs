//! The gate of one run: what begins, what closes it, and what is found of items that were lost.

use backhaul::activity::RunActivity;
use std::time::Instant;

#[test]
fn nothing_begins_after_the_gate_closed_and_nothing_closes_it_while_open() {
    let run = RunActivity::new(Instant::now());
    let _stream = run.stream();
    let guard = run.begin().expect("open");
    assert!(!run.close_if_idle());
    drop(guard);
    assert!(run.close_if_idle());
    assert!(run.begin().is_none());
    assert_eq!((run.open(), run.streams()), (0, 1));
    run.reopen();
    assert!(run.begin().is_some());
}

#[test]
fn a_hold_lets_what_is_open_go_on() {
    let run = RunActivity::new(Instant::now());
    let guard = run.begin().expect("open");
    run.close();
    assert!(run.begin().is_none() && run.open() == 1 && run.is_held());
    assert!(run.go_on().is_some(), "a piece of what is open");
    assert!(!run.close_if_idle(), "closed, but something is in progress");
    drop(guard);
    assert!(run.close_if_idle());
    run.end();
    assert!(run.go_on().is_none());
}

#[test]
fn a_lost_item_counts_no_more_after_two_looks_and_one_that_is_alive_does() {
    let run = RunActivity::new(Instant::now());
    let stream = run.stream();
    let mut lost = run.begin().expect("open");
    lost.becomes_socket();
    std::mem::forget(lost);
    drop(stream);
    let streams = [run.stream(), run.stream()];
    let alive = [run.begin(), run.begin()];
    assert_eq!((run.open(), run.sockets(), run.reconcile(), run.open()), (3, 1, 0, 3), "it may just be ending");
    assert_eq!((run.reconcile(), run.open(), run.sockets()), (1, 2, 0), "found");
    assert_eq!((run.reconcile(), run.open()), (0, 2), "and counted once");
    assert!(!run.close_if_idle(), "two are alive");
    drop(alive);
    drop(streams);
    assert_eq!((run.open(), run.streams()), (0, 0));
    assert!(run.close_if_idle(), "it sleeps in spite of the lost one");
    assert!(run.begin().is_none() && run.is_closed());
    run.reopen();
    assert_eq!(run.open(), 0);
}

#[test]
fn a_look_that_was_wrong_is_made_good_by_the_next() {
    let run = RunActivity::new(Instant::now());
    let late = run.begin().expect("open");
    assert_eq!((run.reconcile(), run.reconcile(), run.open()), (0, 1, 0));
    // It was not lost after all: it ends, and the count neither wraps nor stays short.
    drop(late);
    assert_eq!(run.open(), 0);
    assert!(run.close_if_idle());
    run.reopen();
    assert_eq!(run.reconcile(), 0);
    let (_stream, _guard) = (run.stream(), run.begin());
    assert_eq!(run.open(), 1);
}
