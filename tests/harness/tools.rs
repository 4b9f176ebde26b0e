//! Programs a test needs besides ours, and the lock of tests that need the machine.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

/// Where `tool` is, on `PATH`.
#[must_use]
pub fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(tool)).find(|candidate| candidate.is_file())
}

/// Whether all `tools` are there. Without one the caller returns: a skipped test says so.
///
/// # Panics
/// With `CI` set: there a skipped test would be a lie.
#[must_use]
pub fn requires(tools: &[&str]) -> bool {
    tools.iter().all(|tool| find(tool).is_some() || missing(tool))
}

/// Reports that `what` is missing; always false.
///
/// # Panics
/// With `CI` set.
#[must_use]
pub fn missing(what: &str) -> bool {
    assert!(std::env::var_os("CI").is_none(), "\n\n  {what} is missing, and CI is set: install it (tests/run does)\n");
    eprintln!("SKIPPED: {what} is missing (tests/run installs it)");
    false
}

/// A Python that can import `modules`: its real path, because a version manager's
/// wrapper would cost each wake of a guest a tenth of a second.
#[must_use]
pub fn python(modules: &[&str]) -> Option<PathBuf> {
    let script =
        format!("import sys{}; print(sys.executable)", modules.iter().map(|m| format!(", {m}")).collect::<String>());
    ["python3", "/usr/bin/python3"].iter().find_map(|candidate| {
        let output = Command::new(candidate).args(["-c", &script]).output().ok()?;
        let path = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| PathBuf::from(path.trim()))
    })
}

/// Held by a test that moves gigabytes or compares times: one at a time, over all
/// test processes of this machine's target folder.
pub struct Quiet(#[allow(dead_code, reason = "held for its drop")] File);

/// Waits for the machine; see [`Quiet`].
///
/// # Panics
/// When the lock file cannot be made.
pub async fn quiet() -> Quiet {
    let path = std::env::current_exe().unwrap().with_file_name("one-at-a-time.lock");
    let file = File::create(path).unwrap();
    tokio::task::spawn_blocking(move || {
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
        Quiet(file)
    })
    .await
    .unwrap()
}
