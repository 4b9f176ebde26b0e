//! A git repository over smart HTTP, under git.

use harness::guest::shell;
use harness::{Demo, requires, tools, within};
use std::path::Path;
use std::time::Duration;

const SERVER: &str = include_str!("git_http.py");

#[tokio::test]
async fn a_git_repository_is_cloned_and_pushed_to_through_sleep() {
    if !requires(&["git", "python3"]) {
        return;
    }
    let demo = Demo::new().await;
    let python = tools::python(&[]).expect("python3 is installed");
    let server = demo.script("git_http.py", SERVER);
    let command = format!(
        "[ -e work.git ] || git init -q --bare -b main work.git; exec {} {} $PORT",
        shell(&python),
        shell(&server)
    );
    demo.create("forge", &command).await;
    let folder = tempfile::tempdir().unwrap();
    let url = demo.url("forge", "/work.git");

    git(&demo, folder.path(), &["clone", &url, "one"]).await;
    let one = folder.path().join("one");
    std::fs::write(one.join("small"), "small\n").unwrap();
    // Larger than git's post buffer below, so that it is sent chunked; random, so that it stays large.
    let large: Vec<u8> = (0..3 << 20).map(|_| rand::random()).collect();
    std::fs::write(one.join("large"), &large).unwrap();
    git(&demo, &one, &["checkout", "-q", "-B", "main"]).await;
    git(&demo, &one, &["add", "."]).await;
    git(&demo, &one, &["commit", "-q", "-m", "first"]).await;

    demo.sleep_warm("forge").await;
    git(&demo, &one, &["push", "-q", "origin", "main"]).await;

    demo.sleep_cold("forge").await;
    git(&demo, folder.path(), &["clone", &url, "two"]).await;
    let two = folder.path().join("two");
    assert_eq!(std::fs::read(two.join("large")).unwrap(), large);

    std::fs::write(two.join("small"), "changed\n").unwrap();
    git(&demo, &two, &["commit", "-q", "-am", "second"]).await;
    git(&demo, &two, &["push", "-q", "origin", "main"]).await;
    demo.sleep_warm("forge").await;
    git(&demo, &one, &["pull", "-q", "origin", "main"]).await;
    assert_eq!(std::fs::read_to_string(one.join("small")).unwrap(), "changed\n");
}

/// git with nobody's settings, our CA and our address.
async fn git(demo: &Demo, folder: &Path, arguments: &[&str]) {
    let settings = [
        format!("http.curloptResolve={}:127.0.0.1", demo.authority("forge")),
        "http.postBuffer=65536".into(),
        "user.name=Tester".into(),
        "user.email=tester@example.com".into(),
    ];
    let mut command = tokio::process::Command::new("git");
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
    // The variable, because one that is set already would win over the setting.
    command.env("GIT_SSL_CAINFO", demo.ca());
    for setting in &settings {
        command.args(["-c", setting]);
    }
    if arguments.contains(&"push") {
        // git with curl 7.88 hangs over HTTP/2 when the window is shut at the end of a large body:
        // curl asks for more, git waits in its own pipe for a packet that never comes, and not
        // even a PING is answered. Large bodies over HTTP/2 are bodies.rs's.
        command.args(["-c", "http.version=HTTP/1.1"]);
    }
    command.args(arguments).current_dir(folder).kill_on_drop(true);
    let what = format!("git {arguments:?}");
    let output = within(&what, Duration::from_secs(120), command.output()).await.unwrap();
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}
