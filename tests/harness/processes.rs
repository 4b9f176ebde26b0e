//! What the kernel says about processes: who is left, how much memory, which ports.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A process that has to do with a data directory.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its command line.
    pub command: String,
}

/// Every process, besides this one, that works in `folder` or names it in its command
/// line or environment: the program under test and all its guests.
#[must_use]
pub fn about(folder: &Path) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| pid != std::process::id())
        .filter_map(|pid| {
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let command = read("cmdline");
            let inside = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
            let named = contains(&command, folder) || contains(&read("environ"), folder);
            (inside || named).then(|| Process {
                pid,
                command: String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned(),
            })
        })
        .collect()
}

fn contains(bytes: &[u8], folder: &Path) -> bool {
    let wanted = folder.as_os_str().as_bytes();
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Whether `pid` runs: it exists and is no zombie that nobody has waited for.
#[must_use]
pub fn runs(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // "PID (COMMAND) STATE …"; a command may hold anything, so the last parenthesis counts.
    status.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Resident memory of `pid` at this moment, bytes (`smaps_rollup`).
#[must_use]
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    field_kib(&text, "Rss:").map(|kib| kib * 1024)
}

/// The most that was ever resident of `pid`, bytes, as the kernel counted.
#[must_use]
pub fn peak_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    field_kib(&text, "VmHWM:").map(|kib| kib * 1024)
}

fn field_kib(text: &str, field: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
}

/// Whether `pid` has a TCP socket whose own end is `local`: IPv4 alone.
#[must_use]
pub fn has_connection(pid: u32, local: SocketAddr) -> bool {
    let SocketAddr::V4(local) = local else { return false };
    // As the machine has it in memory, lowest byte first.
    let wanted = format!("{:08X}:{:04X}", u32::from_le_bytes(local.ip().octets()), local.port());
    let sockets = sockets(pid);
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace();
        fields.nth(1) == Some(&wanted) && fields.nth(7).is_some_and(|inode| sockets.contains(inode))
    })
}

/// The inodes of the sockets `pid` has open.
fn sockets(pid: u32) -> HashSet<String> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files
        .filter_map(|file| fs::read_link(file.path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect()
}

/// TCP ports `pid` listens on at 127.0.0.1.
#[must_use]
pub fn listening_ports(pid: u32) -> Vec<u16> {
    let sockets = sockets(pid);
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let mut ports: Vec<u16> = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // 0A is LISTEN; field 9 is the socket's inode.
            (*fields.get(3)? == "0A" && sockets.contains(*fields.get(9)?)).then_some(())?;
            // As the machine has it in memory, lowest byte first.
            u16::from_str_radix(fields.get(1)?.strip_prefix("0100007F:")?, 16).ok()
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}
