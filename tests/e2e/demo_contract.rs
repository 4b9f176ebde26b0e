//! What scripts rely on: the demo's lines, files, JSON and exit codes.

use harness::{Demo, Options, admin, processes, requires};

#[tokio::test]
async fn a_stranger_runs_one_command_and_curls_a_sleeping_sprite() {
    if !requires(&["curl"]) {
        return;
    }
    let mut demo = Demo::new().await;
    assert_eq!(demo.row("hello").await["state"], "asleep");

    let answer = demo.curl("hello", "/", &[]).await;

    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("sprite-wake"), "cold");
    let timing = answer.header("server-timing");
    assert!(timing.contains("hold;dur=") && timing.contains("wake;dur="), "{timing}");
    let again = demo.curl("hello", "/", &[]).await;
    assert_eq!((again.status, again.header("sprite-wake")), (200, ""), "it runs by now");

    assert_eq!(demo.line("ready ").await, format!("ready {}", demo.url("hello", "/")));
}

#[tokio::test]
async fn it_prints_each_url_and_a_curl_line_that_works_as_it_stands() {
    if !requires(&["curl", "sh"]) {
        return;
    }
    let mut demo = Demo::new().await;
    let curl = demo.line("curl ").await;
    for name in ["hello", "counter", "chat", "clock"] {
        let url = demo.url(name, "");
        assert!(demo.printed().iter().any(|line| line.contains(&url)), "{url} is not in {:?}", demo.printed());
    }
    assert!(curl.contains("--cacert") && curl.contains("--resolve"), "{curl}");

    let output = tokio::process::Command::new("sh").args(["-c", &curl]).output().await.unwrap();

    assert!(output.status.success(), "{curl}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn the_list_has_the_fields_scripts_read() {
    let demo = Demo::new().await;
    for name in ["hello", "counter", "chat", "clock"] {
        let row = demo.row(name).await;
        assert!(row["url"].as_str().is_some_and(|url| url.starts_with(&demo.url(name, ""))), "{row}");
        assert_eq!((&row["state"], &row["warmth"]), (&"asleep".into(), &"cold".into()), "{row}");
        assert!(row["generation"].is_u64() && row["run"].is_u64(), "{row}");
    }
    assert_eq!(demo.get("hello", "/").await.status, 200);
    let row = demo.wait_state("hello", "running").await;
    assert!(row["warmth"].is_null(), "{row}");
    demo.sleep_warm("hello").await;
}

#[tokio::test]
async fn a_second_start_finds_the_sprites_and_their_data() {
    let demo = Demo::new().await;
    demo.create_guest("mine").await;
    assert_eq!(demo.get("mine", "/").await.json()["starts"], 1);
    let generation = demo.row("mine").await["generation"].clone();
    let ca = std::fs::read(demo.ca()).unwrap();
    let data = demo.keep_data();
    assert_eq!(demo.stop().await.code(), Some(0), "Ctrl-C is a proper end");

    let demo = Demo::start(Options { data: Some(data), ..Options::default() }).await;

    let row = demo.row("mine").await;
    assert_eq!((&row["state"], &row["generation"]), (&"asleep".into(), &generation), "{row}");
    // `starts` is a file of the sprite's own folder.
    assert_eq!(demo.get("mine", "/").await.json()["starts"], 2);
    assert_eq!(std::fs::read(demo.ca()).unwrap(), ca, "a client that trusted the CA still does");
}

#[tokio::test]
async fn the_counter_counts_on_disk_and_in_memory() {
    let demo = Demo::new().await;
    let count = async || demo.get("counter", "/").await.text();
    let first = count().await;
    demo.sleep_warm("counter").await;
    let second = count().await;
    demo.sleep_cold("counter").await;
    let third = count().await;
    assert!(first != second && second != third, "{first:?} {second:?} {third:?}");
}

#[tokio::test]
async fn ctrl_c_leaves_no_process_whatever_its_sprites_do() {
    let demo = Demo::new().await;
    demo.create("stubborn", "trap '' TERM INT HUP; sleep 1000 & python3 -m http.server $PORT").await;
    demo.create_guest("frozen").await;
    assert_eq!(demo.get("stubborn", "/").await.status, 200);
    assert_eq!(demo.get("frozen", "/").await.status, 200);
    assert_eq!(demo.get("clock", "/").await.status, 200);
    demo.sleep_warm("frozen").await;
    // Proves the second assertion means something.
    assert!(processes::about(demo.data()).len() >= 4);

    let status = demo.stop().await;

    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn orphans_of_a_crashed_demo_are_reaped_by_the_next() {
    let demo = Demo::new().await;
    demo.create_guest("orphan").await;
    let pid = demo.get("orphan", "/").await.json()["pid"].as_u64().unwrap();
    let data = demo.crash();
    let demo = Demo::start(Options { data: Some(data), ..Options::default() }).await;

    let answer = demo.get("orphan", "/").await;
    assert_eq!((answer.status, answer.header("sprite-wake")), (200, "cold"));
    assert_ne!(answer.json()["pid"], pid, "a guest of the dead owner serves nobody");
    assert!(!processes::runs(u32::try_from(pid).unwrap()), "the orphan still runs");
    demo.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_one_line_and_exit_code_70() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    for (flag, other) in [("--https", "--http"), ("--http", "--https")] {
        let output = admin::run(&["demo", flag, &address, other, "127.0.0.1:0", "--data-dir", folder]).await;
        refused(&output, 70, &address);
    }
}

#[tokio::test]
async fn a_bad_flag_is_exit_code_64() {
    for arguments in
        [&["demo", "--htps", "x"][..], &["demo", "--idle-timeout", "soon"], &["sprite", "frobnicate"], &["nonsense"]]
    {
        let output = admin::run(arguments).await;
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
}

#[tokio::test]
async fn a_bad_config_is_exit_code_78_with_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edge.toml");
    std::fs::write(&file, "[listen]\nhttps = [\"127.0.0.1:0\"]\n\n[hold]\n  per_spirte = 3\n").unwrap();
    let path = file.to_str().unwrap();
    for command in ["check", "run"] {
        let output = admin::run(&[command, "--config", path]).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{command}: {text}");
        assert!(text.contains(&format!("{path}:5:3")) && text.contains("per_spirte"), "{command}: {text}");
    }
}

#[tokio::test]
async fn an_admin_socket_that_nobody_serves_is_one_line_and_exit_code_70() {
    let output = admin::run(&["--admin", "/nonexistent/admin.sock", "sprite", "list"]).await;
    refused(&output, 70, "/nonexistent/admin.sock");
}

#[tokio::test]
async fn a_sprite_whose_program_is_missing_fails_clearly() {
    let demo = Demo::new().await;
    demo.create("nothing", "exec no-such-program-anywhere $PORT").await;
    let answer = demo.get("nothing", "/").await;
    assert!(matches!(answer.status, 502 | 503), "{answer:?}");
    assert!(answer.json()["code"].as_str().unwrap().starts_with("wake_failed"), "{answer:?}");
}

#[tokio::test]
async fn a_new_sprite_is_private_unless_it_is_made_public() {
    let demo = Demo::new().await;
    for (name, flag, status) in
        [("silent", None, 401), ("closed", Some("--private"), 401), ("open", Some("--public"), 200)]
    {
        let command = demo.guest_command();
        let mut create = vec!["sprite", "create", name, "--command", &command];
        create.extend(flag);
        demo.admin(&create).await;
        assert_eq!(demo.get(name, "/").await.status, status, "{name}");
    }
    let both = demo.try_admin(&["sprite", "create", "x", "--command", "true", "--public", "--private"]).await;
    refused(&both, 64, "--private");
}

/// One clear line, on stderr, that names `what`.
fn refused(output: &std::process::Output, code: i32, what: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert!(text.contains(what), "{what} is not named: {text}");
}
