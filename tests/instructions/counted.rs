//! Runs this program under valgrind's callgrind and reads what it counted.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

/// Set for the program that is counted.
pub(crate) const COUNTED: &str = "EDGE_PROXY_COUNTED";

/// What happened between two marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) instructions: u64,
    /// Calls that get memory.
    pub(crate) allocations: u64,
    /// Calls that take a lock, of the standard library or of a map, as far as they are not inlined.
    pub(crate) locks: u64,
}

/// What callgrind counted between each two calls of `mark` in the test `test` of this program.
pub(crate) fn run(test: &str, mark: &str) -> Vec<Counts> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let status = Command::new("valgrind")
        .args(["--tool=callgrind", "--compress-strings=no", "--compress-pos=no", "--dump-instr=no"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(format!("--dump-before=*{mark}*"))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(COUNTED, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    // Numbered from 1: what came before the first mark; what is counted; what came between; and so on.
    (2..)
        .step_by(2)
        .map(|n| folder.path().join(format!("out.{n}")))
        .take_while(|part| part.exists())
        .map(|part| read(&part))
        .collect()
}

/// Reads one dump: `totals:` has the instructions; each `calls=` line belongs to the `cfn=` before it.
fn read(part: &Path) -> Counts {
    let text = std::fs::read(part).unwrap();
    let text = String::from_utf8_lossy(&text);
    let mut counts = Counts::default();
    let mut calls = BTreeMap::<&str, u64>::new();
    let mut called = "";
    for line in text.lines() {
        if let Some(function) = line.strip_prefix("cfn=") {
            called = function;
        } else if let Some(rest) = line.strip_prefix("calls=") {
            *calls.entry(called).or_default() += rest.split(' ').next().unwrap().parse::<u64>().unwrap();
        } else if let Some(rest) = line.strip_prefix("totals:").or_else(|| line.strip_prefix("summary:")) {
            counts.instructions = rest.trim().parse().unwrap();
        }
    }
    for (function, times) in calls {
        if ALLOCATES.contains(&function) {
            counts.allocations += times;
        }
        if LOCKS.iter().any(|[of, call]| function.contains(of) && function.contains(call)) {
            counts.locks += times;
        }
    }
    counts
}

/// The C library's, which every allocation of ours ends in.
const ALLOCATES: [&str; 5] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc"];
/// Part of a type's name and of the call's.
const LOCKS: [[&str; 2]; 4] = [["Mutex", "::lock"], ["RwLock", "::read"], ["RwLock", "::write"], ["RwLock", "lock_"]];
