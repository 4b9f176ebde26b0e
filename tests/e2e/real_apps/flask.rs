//! A Flask app with server-sent events, under curl.

use harness::guest::shell;
use harness::{Demo, requires, tools, within};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};

const APP: &str = include_str!("flask_app.py");

#[tokio::test]
async fn a_flask_app_keeps_its_memory_and_streams_events_through_sleep() {
    if !requires(&["curl", "python3"]) {
        return;
    }
    let Some(python) = tools::python(&["flask"]) else {
        let _ = tools::missing("Python module flask");
        return;
    };
    let demo = Demo::new().await;
    let app = demo.script("flask_app.py", APP);
    demo.create("notes", &format!("exec {} {} $PORT", shell(&python), shell(&app))).await;
    let add = async |text: &str| {
        let answer = demo.curl("notes", "/notes", &["--data-urlencode", &format!("text={text}")]).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
    };

    add("first note").await;
    demo.sleep_warm("notes").await;
    let mut events = Events::open(&demo).await;
    assert_eq!(events.next().await, "first note");
    // The next event does not exist yet: what arrives, arrives while the stream is open.
    add("second note").await;
    assert_eq!(events.next().await, "second note");
    add("third note").await;
    assert_eq!(events.next().await, "third note");
    drop(events);

    demo.sleep_warm("notes").await;
    let answer = demo.curl("notes", "/", &[]).await;
    assert_eq!(answer.header("sprite-wake"), "warm");
    let seen: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(seen["notes"].as_array().map(Vec::len), Some(3), "{seen}");
    assert_eq!((&seen["scheme"], &seen["host"]), (&"https".into(), &demo.authority("notes").into()));
}

/// `curl --no-buffer` on the event stream.
struct Events {
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    _curl: tokio::process::Child,
}

impl Events {
    async fn open(demo: &Demo) -> Self {
        let resolve = format!("{}:127.0.0.1", demo.authority("notes"));
        let mut command = tokio::process::Command::new("curl");
        command.args(["--silent", "--no-buffer", "--cacert"]).arg(demo.ca()).args(["--resolve", &resolve]);
        command.arg(demo.url("notes", "/events")).stdout(Stdio::piped()).kill_on_drop(true);
        let mut curl = command.spawn().expect("curl is installed");
        let lines = BufReader::new(curl.stdout.take().expect("stdout is piped")).lines();
        Self { lines, _curl: curl }
    }

    async fn next(&mut self) -> String {
        within("an event", Duration::from_secs(30), async {
            loop {
                let line = self.lines.next_line().await.unwrap().expect("the stream is open");
                if let Some(data) = line.strip_prefix("data: ") {
                    return data.to_owned();
                }
            }
        })
        .await
    }
}
