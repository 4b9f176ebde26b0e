//! What the kernel says about one process.

use std::io::Read;

/// The fields of `/proc/PID/stat` we need (proc(5): 3, 5 and 22).
pub(super) struct Stat {
    pub(super) state: char,
    pub(super) group: i32,
    /// Ticks from the machine's boot to its start: with the id it names one process, once.
    pub(super) started: u64,
}

impl Stat {
    pub(super) fn read(pid: i32) -> Option<Self> {
        // One read: the kernel writes it in one piece, and a wake waits for it.
        let mut bytes = [0; 1024];
        let length = std::fs::File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes[..length]);
        // The name in parentheses may hold anything, so count from behind it.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let group = fields.nth(1)?.parse().ok()?;
        let started = fields.nth(16)?.parse().ok()?;
        Some(Self { state, group, started })
    }
}
