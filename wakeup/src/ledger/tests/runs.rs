//! What happens to open runs and run numbers when an owner is lost, and the queue in front.

use super::*;
use std::collections::BTreeMap;

/// How the run ended in the book of the next owner: when, after how long, and its reason.
fn ended(mut book: Book, seen: Option<Stamp>) -> (u64, u64, StopReason) {
    let record = book.lost(&name("a"), seen).map(|entry| book.append(entry).unwrap()).unwrap();
    assert_eq!(record.run, 3, "the run that was open");
    assert!(book.lost(&name("a"), seen).is_none(), "it ends once");
    match record.event {
        Event::Stop { reason, awake_ms, .. } => (record.at_unix_ms, awake_ms, reason),
        other => panic!("{other:?}"),
    }
}

/// A ledger whose owner was lost at 9 s with run 3 open since 4 s; its last mark says 8.5 s.
fn lost() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut book = open(&directory);
    book.append(start("a", 3, 4_000)).unwrap();
    book.mark(stamp(8_500), false).unwrap();
    directory
}

#[test]
fn a_guest_that_was_found_alive_ran_until_it_was_ended() {
    let directory = lost();
    // The wall clock was set back an hour meanwhile: no matter.
    let seen = Stamp { unix_ms: 20_000, mono_ms: 60_000 };
    let (at, awake_ms, reason) = ended(open(&directory), Some(seen));
    assert_eq!((at, awake_ms, reason), (20_000, 56_000, StopReason::OwnerLost));
}

#[test]
fn one_that_was_not_found_ran_as_long_as_its_owner() {
    let directory = lost();
    assert_eq!(ended(open(&directory), None), (8_500, 4_500, StopReason::OwnerLost));
    // Another boot, whose monotonic clock says nothing about this one.
    let directory = lost();
    let book = Book::open(settings(directory.path()), boot(2), Stamp { unix_ms: 900_000, mono_ms: 77 }).unwrap();
    assert_eq!(ended(book, None), (8_500, 4_500, StopReason::OwnerLost));
}

#[test]
fn an_owner_that_is_lost_before_it_has_ended_old_runs_prolongs_none() {
    let directory = lost();
    drop(Book::open(settings(directory.path()), boot(1), stamp(500_000)).unwrap());
    assert_eq!(ended(open(&directory), None), (8_500, 4_500, StopReason::OwnerLost));
}

#[test]
fn a_run_younger_than_the_last_mark_has_no_negative_length() {
    let directory = tempfile::tempdir().unwrap();
    let mut book = open(&directory);
    book.mark(stamp(1_000), false).unwrap();
    book.append(start("a", 3, 4_000)).unwrap();
    drop(book);
    assert_eq!(ended(open(&directory), None), (4_000, 0, StopReason::OwnerLost));
}

#[test]
fn numbers_that_no_line_tells_are_skipped_after_a_crash_only() {
    for (clean, next) in [(true, 3), (false, 3 + 16)] {
        let directory = tempfile::tempdir().unwrap();
        let mut book = open(&directory);
        book.append(start("a", 3, 1)).unwrap();
        book.append(stop("a", 3, 2, 1)).unwrap();
        book.mark(stamp(3), clean).unwrap();
        drop(book);
        let book = open(&directory);
        assert_eq!(book.runs().map(|(_, run, _)| run).collect::<Vec<_>>(), [next]);
    }
}

fn records(ledger: &Ledger) -> Vec<Record> {
    ledger.page(0, 1_000_000).unwrap().records
}

#[test]
fn the_thread_writes_in_order_and_shows_what_is_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(settings(directory.path())).unwrap();
    ledger.settle(&BTreeMap::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for run in 1..=500 {
        ledger.add(start("a", run, run));
        ledger.add(stop("a", run, run, 0));
    }
    let mut durable = ledger.durable();
    runtime.block_on(durable.wait_for(|seq| *seq == 1_000)).unwrap();
    assert_eq!(ledger.waiting(), 0);
    let seqs: Vec<_> = records(&ledger).into_iter().map(|record| (record.seq, record.run)).collect();
    assert_eq!(seqs, (1..=1_000_u64).map(|seq| (seq, seq.div_ceil(2))).collect::<Vec<_>>());
}

#[test]
fn a_ledger_that_was_closed_goes_on_and_an_open_run_of_a_sprite_that_is_no_more_ends() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(settings(directory.path())).unwrap();
    ledger.add(start("left", 1, 1));
    ledger.add(start("adopted", 5, 2));
    ledger.close();
    drop(ledger);
    let ledger = Ledger::open(settings(directory.path())).unwrap();
    assert_eq!(ledger.begun_after(), 2);
    let known = ledger.take_known(&name("adopted"));
    assert_eq!((known.run, known.open.map(|open| open.run)), (5, Some(5)), "it ended in order: no number is skipped");
    assert_eq!(ledger.take_known(&name("adopted")).run, 0, "told once");
    ledger.settle(&BTreeMap::new());
    ledger.close();
    let last = records(&ledger).pop().unwrap();
    assert_eq!((last.seq, last.sprite, last.event.name()), (3, name("left"), "stop"));
}

#[test]
fn a_disk_that_takes_nothing_loses_nothing_and_says_that_it_is_full() {
    let directory = tempfile::tempdir().unwrap();
    let tiny = LedgerSettings { segment_bytes: 1, ..settings(directory.path()) };
    let ledger = Ledger::open(tiny.clone()).unwrap();
    // The next segment cannot be made while a directory has its place.
    let obstacle = tiny.directory.join("next.part");
    std::fs::create_dir(&obstacle).unwrap();
    let count = 65_536;
    for run in 1..count {
        ledger.add(start("a", run, run));
    }
    assert!(!ledger.is_full());
    ledger.add(start("a", count, count));
    assert!(ledger.is_full());
    assert_eq!(*ledger.durable().borrow(), 0);
    drop(ledger);

    let roomy = settings(directory.path());
    std::fs::remove_dir(&obstacle).unwrap();
    let ledger = Ledger::open(roomy).unwrap();
    assert_eq!(ledger.begun_after(), 0, "what was never taken was never shown");
}

#[test]
fn a_disk_that_takes_records_again_gets_all_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let tiny = LedgerSettings { segment_bytes: 1, ..settings(directory.path()) };
    let ledger = Ledger::open(tiny.clone()).unwrap();
    let obstacle = tiny.directory.join("next.part");
    std::fs::create_dir(&obstacle).unwrap();
    (1..=5).for_each(|run| ledger.add(start("a", run, run)));
    assert_eq!(ledger.waiting(), 5);
    std::fs::remove_dir(&obstacle).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut durable = ledger.durable();
    runtime.block_on(durable.wait_for(|seq| *seq == 5)).unwrap();
    assert_eq!(records(&ledger).iter().map(|record| record.run).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}
