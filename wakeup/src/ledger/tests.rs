//! The book on a real file system: what crashes leave, what is kept, what goes on.

mod day;
mod runs;

use super::segment::list;
use super::*;
use router::names::SpriteName;
use std::path::Path;
use tempfile::TempDir;

fn settings(directory: &Path) -> LedgerSettings {
    LedgerSettings { directory: directory.join("ledger"), segment_bytes: 1 << 20, keep_bytes: 0 }
}

fn boot(number: u32) -> Boot {
    Boot(format!("boot-{number}"))
}

/// A moment: milliseconds of both clocks, which agree here.
fn stamp(ms: u64) -> Stamp {
    Stamp { unix_ms: ms, mono_ms: ms }
}

fn name(text: &str) -> SpriteName {
    SpriteName::parse(text).unwrap()
}

fn start(sprite: &str, run: u64, at: u64) -> Entry {
    let event = Event::Start { kind: "cold".into(), reason: "test".into(), boot: boot(1), mono_ms: at };
    Entry { at_unix_ms: at, sprite: name(sprite), generation: 1, run, event }
}

fn stop(sprite: &str, run: u64, at: u64, awake_ms: u64) -> Entry {
    let event = Event::Stop { reason: StopReason::Idle, awake_ms, wakes: 1, bytes_to_guest: 10, bytes_from_guest: 20 };
    Entry { at_unix_ms: at, sprite: name(sprite), generation: 1, run, event }
}

fn open(directory: &TempDir) -> Book {
    Book::open(settings(directory.path()), boot(1), stamp(0)).unwrap()
}

/// Every record that is kept.
fn all(directory: &TempDir) -> Vec<Record> {
    let path = settings(directory.path()).directory;
    let first = list(&path).unwrap()[0].0;
    read::page(&path, first - 1, usize::MAX, u64::MAX).unwrap().records
}

fn last_segment(directory: &TempDir) -> PathBuf {
    list(&settings(directory.path()).directory).unwrap().pop().unwrap().1
}

#[test]
fn numbers_go_on_after_a_restart_and_a_torn_line_is_cut() {
    let directory = tempfile::tempdir().unwrap();
    let mut book = open(&directory);
    book.append(start("a", 1, 1_000)).unwrap();
    book.append(stop("a", 1, 3_000, 2_000)).unwrap();
    drop(book);
    let path = last_segment(&directory);
    let whole = std::fs::read(&path).unwrap();
    let torn = start("a", 2, 4_000).numbered(3).line();
    // However much of the line reached the disk, or zeros where it should be.
    let ends = (1..torn.len()).step_by(17).map(|length| torn[..length].to_vec()).chain([vec![0; 300]]);
    for end in ends {
        std::fs::write(&path, [whole.as_slice(), &end].concat()).unwrap();
        let book = open(&directory);
        assert_eq!(book.last(), 2, "{:?}", String::from_utf8_lossy(&end));
        drop(book);
        assert_eq!(std::fs::read(&path).unwrap(), whole, "it is cut");
    }
    let mut book = open(&directory);
    assert_eq!(book.append(start("a", 2, 5_000)).unwrap().seq, 3);
    drop(book);
    let (seqs, ids): (Vec<_>, std::collections::BTreeSet<_>) =
        all(&directory).into_iter().map(|record| (record.seq, record.id)).unzip();
    assert_eq!((seqs, ids.len()), (vec![1, 2, 3], 3));
}

#[test]
fn a_line_that_is_damaged_in_the_middle_is_not_taken_for_a_torn_end() {
    let directory = tempfile::tempdir().unwrap();
    let mut book = open(&directory);
    for run in 1..=3 {
        book.append(start("a", run, run)).unwrap();
    }
    drop(book);
    let path = last_segment(&directory);
    let text = std::fs::read_to_string(&path).unwrap().replacen("\"seq\":2", "\"seq\":X", 1);
    std::fs::write(&path, &text).unwrap();
    let Err(refused) = Book::open(settings(directory.path()), boot(1), stamp(0)) else { panic!("it was opened") };
    assert!(matches!(refused, LedgerError::Damaged { line: 3, .. }), "{refused}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "nothing is cut");
}

#[test]
fn one_owner_at_a_time_writes() {
    let directory = tempfile::tempdir().unwrap();
    let _book = open(&directory);
    let second = Book::open(settings(directory.path()), boot(1), stamp(0));
    assert!(matches!(second.err(), Some(LedgerError::InUse { .. })));
}

#[test]
fn segments_follow_each_other_and_run_numbers_survive_those_that_are_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let small = LedgerSettings { segment_bytes: 2_000, keep_bytes: 6_000, ..settings(directory.path()) };
    let mut book = Book::open(small.clone(), boot(1), stamp(0)).unwrap();
    book.append(start("once", 7, 1)).unwrap();
    book.append(stop("once", 7, 2, 1)).unwrap();
    book.append(start("still", 1, 3)).unwrap();
    for run in 1..=100 {
        book.append(start("often", run, run * 10)).unwrap();
        book.append(stop("often", run, run * 10 + 5, 5)).unwrap();
    }
    let segments = list(&small.directory).unwrap();
    assert!((2..=6).contains(&segments.len()), "{segments:?}");
    let first = segments[0].0;
    assert!(first > 100);
    book.mark(stamp(2_000), true).unwrap();
    drop(book);

    let kept = all(&directory);
    assert_eq!(kept.iter().map(|record| record.seq).collect::<Vec<_>>(), (first..=203).collect::<Vec<_>>());
    let gone = read::page(&small.directory, first - 2, 10, 203).unwrap_err();
    assert!(matches!(gone, LedgerError::NoLongerKept { last_gone } if last_gone == first - 1), "{gone}");
    assert!(matches!(read::page(&small.directory, 204, 10, 203), Err(LedgerError::Beyond { .. })));
    assert!(read::page(&small.directory, 203, 10, 203).unwrap().records.is_empty());

    let book = Book::open(small, boot(1), stamp(0)).unwrap();
    let runs: Vec<_> =
        book.runs().map(|(name, run, open)| (name.to_string(), run, open.map(|open| open.run))).collect();
    assert_eq!(runs, [("often".into(), 100, None), ("once".into(), 7, None), ("still".into(), 1, Some(1))]);
}

#[test]
fn a_destroyed_sprite_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let mut book = open(&directory);
    book.append(start("a", 4, 1)).unwrap();
    book.append(stop("a", 4, 2, 1)).unwrap();
    book.append(Entry { event: Event::Gone, ..start("a", 4, 3) }).unwrap();
    assert_eq!(book.runs().count(), 0);
}

#[test]
fn pages_end_where_the_disk_does() {
    let directory = tempfile::tempdir().unwrap();
    let mut book = open(&directory);
    for run in 1..=10 {
        book.append(start("a", run, run)).unwrap();
    }
    let path = settings(directory.path()).directory;
    let seqs = |after, limit, durable| -> Vec<u64> {
        let page = read::page(&path, after, limit, durable).unwrap();
        assert_eq!((page.first, page.last), (1, durable));
        page.records.iter().map(|record| record.seq).collect()
    };
    assert_eq!(seqs(0, 3, 10), [1, 2, 3]);
    assert_eq!(seqs(7, 100, 9), [8, 9]);
    assert!(seqs(9, 100, 9).is_empty());
}

#[test]
fn usage_is_cut_at_both_ends_and_counts_the_run_that_is_open() {
    let directory = tempfile::tempdir().unwrap();
    let small = LedgerSettings { segment_bytes: 700, ..settings(directory.path()) };
    let mut book = Book::open(small.clone(), boot(1), stamp(0)).unwrap();
    for run in 0..20 {
        let at = 10_000 + run * 10_000;
        book.append(start("a", run + 1, at)).unwrap();
        book.append(start("other", run + 1, at)).unwrap();
        book.append(stop("a", run + 1, at + 4_000, 4_000)).unwrap();
        book.append(stop("other", run + 1, at + 9_000, 9_000)).unwrap();
    }
    book.append(start("a", 21, 300_000)).unwrap();
    assert!(list(&small.directory).unwrap().len() > 5);
    let usage = |since, until| {
        let usage = usage::usage(&small.directory, &name("a"), since, until, stamp(302_500), &boot(1)).unwrap();
        (usage.awake_ms, usage.runs, usage.wakes, usage.bytes_to_guest, usage.bytes_from_guest)
    };
    assert_eq!(usage(0, u64::MAX), (20 * 4_000 + 2_500, 21, 20, 200, 400));
    assert_eq!(usage(101_000, 103_000), (2_000, 1, 0, 0, 0), "the middle of one run");
    assert_eq!(usage(102_000, 111_000), (2_000 + 1_000, 2, 1, 10, 20), "the end of one, the beginning of another");
    assert_eq!(usage(105_000, 109_000), (0, 0, 0, 0, 0));
    let whole = usage::usage(&small.directory, &name("a"), 0, u64::MAX, stamp(302_500), &boot(1)).unwrap();
    assert_eq!((whole.open_since_ms, whole.until_ms), (Some(300_000), 302_500));
    assert!(!usage::usage(&small.directory, &name("b"), 0, u64::MAX, stamp(302_500), &boot(1)).unwrap().known);
}
