//! wake.md, test 14: the gate of a run under every order of threads that a scheduler tries, not
//! only those a machine happens to make. The very file the product is built of is built here a
//! second time, over atomics that let the scheduler choose who goes on at each of their calls.

#[allow(dead_code, unreachable_pub, reason = "the product's own file, of which this uses a part")]
#[path = "../src/activity.rs"]
mod activity;

mod sync {
    pub(super) use shuttle::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}

use activity::RunActivity;
use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tries `play` under that many schedules, half of them by chance and half by few preemptions
/// (<https://doi.org/10.1145/1736020.1736040>, depth 3); ten times as many in a full run.
fn try_schedules(each: usize, play: fn()) {
    let full = std::env::var_os("EDGE_PROXY_TEST_FULL").is_some_and(|full| full == "1");
    let schedules = if full { each * 10 } else { each };
    shuttle::check_random(play, schedules / 2);
    shuttle::check_pct(play, schedules / 2, 3);
}

fn run() -> (Arc<RunActivity>, Instant) {
    // Long ago: every touch is later.
    let epoch = Instant::now().checked_sub(Duration::from_secs(10)).expect("the machine runs for ten seconds");
    (RunActivity::new(epoch), epoch)
}

#[test]
fn a_request_either_begins_before_the_run_is_closed_or_sees_it_closed() {
    try_schedules(40_000, || {
        let (run, _) = run();
        let asleep = Arc::new(AtomicBool::new(false));
        let visitors = (0..2).map(|_| {
            let (run, asleep) = (Arc::clone(&run), Arc::clone(&asleep));
            thread::spawn(move || {
                for _ in 0..2 {
                    let stream = run.stream();
                    if let Some(guard) = run.begin() {
                        assert!(!asleep.load(Ordering::SeqCst), "it was put to sleep under a request");
                        drop(guard);
                    }
                    drop(stream);
                }
            })
        });
        let visitors: Vec<_> = visitors.collect();
        let closes = thread::spawn({
            let (run, asleep) = (Arc::clone(&run), Arc::clone(&asleep));
            move || {
                for _ in 0..3 {
                    if run.close_if_idle() {
                        asleep.store(true, Ordering::SeqCst);
                        assert!(run.is_closed());
                        // Called off, as by a wake in time.
                        asleep.store(false, Ordering::SeqCst);
                        run.reopen();
                    }
                }
            }
        });
        visitors.into_iter().for_each(|visitor| visitor.join().unwrap());
        closes.join().unwrap();
        assert_eq!((run.open(), run.streams(), run.is_closed()), (0, 0, false));
    });
}

#[test]
fn who_sees_nothing_open_also_sees_when_the_last_of_it_ended() {
    try_schedules(20_000, || {
        let (run, epoch) = run();
        let guard = run.begin().expect("open");
        let ends = thread::spawn(move || drop(guard));
        if run.open() == 0 {
            assert!(run.last() > epoch, "idle since its creation, although something has just ended");
        }
        ends.join().unwrap();
        assert!(run.open() == 0 && run.last() > epoch);
    });
}

#[test]
fn a_hold_closes_for_the_new_and_its_end_opens_for_all() {
    try_schedules(20_000, || {
        let (run, _) = run();
        let guard = run.begin().expect("open");
        let visitor = thread::spawn({
            let run = Arc::clone(&run);
            move || {
                let new = run.begin();
                assert!(new.is_some() || run.go_on().is_some(), "what is open goes on in a hold");
            }
        });
        run.close();
        assert!(run.begin().is_none());
        visitor.join().unwrap();
        drop(guard);
        run.reopen();
        assert!(run.begin().is_some());
        assert_eq!(run.open(), 0);
    });
}

#[test]
fn what_is_alive_is_never_taken_for_lost_and_what_is_lost_is_found() {
    try_schedules(40_000, || {
        let (run, _) = run();
        let lost = run.begin().expect("open");
        std::mem::forget(lost);
        let visitors = (0..2).map(|_| {
            let run = Arc::clone(&run);
            thread::spawn(move || {
                for _ in 0..2 {
                    let stream = run.stream();
                    let guard = run.begin();
                    assert!(run.open() >= 1, "a request that is open does not count");
                    drop(guard);
                    drop(stream);
                }
            })
        });
        let visitors: Vec<_> = visitors.collect();
        for _ in 0..4 {
            run.reconcile();
        }
        visitors.into_iter().for_each(|visitor| visitor.join().unwrap());
        run.reconcile();
        run.reconcile();
        assert_eq!((run.open(), run.streams()), (0, 0));
        assert!(run.close_if_idle());
    });
}
