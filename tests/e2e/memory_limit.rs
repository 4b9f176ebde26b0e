//! `--memory-mib`: kept where this host can keep it, refused in words where it cannot.

use harness::{Demo, Options, until};
use std::process::Output;
use std::time::Duration;

/// Wants 200 MB and never listens.
const GREEDY: &str = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); sleep 1000";

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn a_limit_of_memory_is_kept_or_refused_and_a_guest_that_runs_out_of_it_says_so() {
    let config = Some("[drivers.process]\ncgroup = \"auto\"\n".into());
    let demo = Demo::start(Options { config, ..Options::default() }).await;
    for mib in ["3", "1048577"] {
        let refused = demo.try_admin(&["sprite", "create", "a", "--command", "true", "--memory-mib", mib]).await;
        assert!(!refused.status.success() && said(&refused).contains("memory_mib: 4 to 1048576"), "{refused:?}");
    }
    let log = demo.log();
    let used = log.lines().find(|line| line.contains("commands run in cgroups") || line.contains("have no cgroups"));
    eprintln!("{}", used.unwrap_or_else(|| panic!("nothing says how guests are held: {log}")));

    let create = ["sprite", "create", "greedy", "--public", "--command", GREEDY, "--memory-mib", "32"];
    let made = demo.try_admin(&create).await;
    if !made.status.success() {
        eprintln!("SKIPPED: no limit of memory here: {}", said(&made));
        assert!(said(&made).contains("memory_mib: memory cannot be limited on this host: "), "{made:?}");
        assert!(demo.try_admin(&["sprite", "show", "greedy"]).await.status.code() != Some(0), "nothing was made");
        return;
    }
    let answer = demo.get("greedy", "/").await;
    assert!((502..=504).contains(&answer.status), "{answer:?}");
    let cause = until("its cause", Duration::from_secs(20), async || {
        demo.row("greedy").await["cause"].as_str().map(str::to_owned)
    })
    .await;
    assert!(cause.starts_with("out of memory: it wanted more than its 32 MiB"), "{cause}");
}
