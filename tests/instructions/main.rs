//! wake.md, test 15, by instructions: what the warm path and a hold cost, counted and compared with
//! the figures in `figures.txt`; no allocation and no lock where there must be none.
//!
//! Counted in whatever profile the tests are built in, since a build of its own would take minutes:
//! the figures of a debug build say nothing about speed, but that more is done than before.
//! `cargo test --release -p tests --test instructions` counts the other column.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics where it stands")]

mod counted;
mod operations;

use counted::{COUNTED, Counts};
use std::fmt::Write;

/// Each operation runs so many times, and then so many times more: the difference has no start in it.
const TIMES: [usize; 2] = [500, 2_500];
/// More than this much above its figure is red; as much below asks for a new figure (chosen: compilers
/// differ by some per cent from version to version, a lock or an allocation more is 10 % of the least).
const TOLERATED: f64 = 0.10;
/// These take no lock and no memory.
const BARE: [&str; 4] = ["lookup", "lookup_regions", "view", "open_item"];
/// The program as callgrind sees it marks its parts by calls of this function.
const MARK: &str = "the_next_part_begins";

#[test]
fn the_warm_path_and_a_hold_cost_what_is_written_down() {
    if std::env::var_os(COUNTED).is_some() {
        return work();
    }
    if !harness::tools::requires(&["valgrind"]) {
        return;
    }
    let parts = counted::run("the_warm_path_and_a_hold_cost_what_is_written_down", MARK);
    let names: Vec<_> = figures().into_iter().map(|(name, _)| name).collect();
    // The last mark ends the last part.
    assert_eq!(parts.len(), names.len() * TIMES.len(), "one part for each run of each operation");
    let (mut wrong, mut report) = (String::new(), String::new());
    for ((name, figure), pair) in figures().into_iter().zip(parts.chunks(2)) {
        let (once, each) = per_operation([pair[0], pair[1]]);
        writeln!(report, "{name} {once:.0} instructions, {:.3} allocations, {:.3} locks", each[0], each[1]).unwrap();
        if once > figure * (1.0 + TOLERATED) {
            writeln!(wrong, "{name} takes {once:.0} instructions; figures.txt has {figure}").unwrap();
        } else if once < figure * (1.0 - TOLERATED) {
            println!(
                "HINT: {name} takes only {once:.0} instructions now; write it into figures.txt, which has {figure}"
            );
        }
        if BARE.contains(&name.as_str()) && each != [0.0, 0.0] {
            writeln!(wrong, "{name} allocates or locks: {each:?} a time").unwrap();
        }
    }
    println!("{report}");
    assert!(wrong.is_empty(), "{wrong}\nall of them:\n{report}");
}

/// Instructions of one time, and its allocations and locks.
fn per_operation([short, long]: [Counts; 2]) -> (f64, [f64; 2]) {
    let each = |of: fn(&Counts) -> u64| (of(&long) as f64 - of(&short) as f64) / (TIMES[1] - TIMES[0]) as f64;
    (each(|counts| counts.instructions), [each(|counts| counts.allocations), each(|counts| counts.locks)])
}

/// Name and figure of each operation, of the profile this was built in.
fn figures() -> Vec<(String, f64)> {
    let column = if cfg!(debug_assertions) { 1 } else { 2 };
    let lines = include_str!("figures.txt").lines().filter(|line| !line.starts_with('#'));
    let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
    words.map(|words| (words[0].to_owned(), words[column].parse().unwrap())).collect()
}

/// What is counted: each operation a few times, then many times.
fn work() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _inside = runtime.enter();
    let mut all = operations::all();
    let names: Vec<_> = all.iter().map(|operation| operation.name.to_owned()).collect();
    assert_eq!(names, figures().into_iter().map(|(name, _)| name).collect::<Vec<_>>());
    for operation in &mut all {
        // Every sprite once: what grows on first use is grown then.
        (0..1_000).for_each(&mut operation.once);
        for times in TIMES {
            the_next_part_begins();
            (0..times).for_each(&mut operation.once);
            the_next_part_begins();
        }
    }
}

/// A place callgrind knows by its name: it writes down there what it has counted.
#[inline(never)]
fn the_next_part_begins() {
    std::hint::black_box(());
}
