//! Driver `command`: machines of others, woken and put to sleep by commands that keep its contract.

use harness::guest::shell;
use harness::{Demo, tools, until};
use std::path::PathBuf;
use std::time::Duration;

/// A web server that binds a free port itself and tells it, whole or not at all: a port that
/// was merely found free may be another test's by the time it is bound.
const MACHINE: &str = r#"
import http.server, os
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
with open("port.new", "w") as file:
    file.write(str(server.server_address[1]))
os.replace("port.new", "port")
server.serve_forever()
"#;

/// An orchestrator in two scripts: its machine is a web server in a session of its own.
struct Orchestrator {
    wake: PathBuf,
    sleep: PathBuf,
    log: PathBuf,
}

impl Orchestrator {
    fn new(demo: &Demo) -> Self {
        let python = shell(&tools::python(&[]).expect("python3 is installed"));
        let log = demo.data().join("orchestrator.log");
        let to = shell(&log);
        let machine = shell(&demo.script("machine.py", MACHINE));
        let wake = demo.script(
            "wake.sh",
            &format!(
                r#"echo "wake $SPRITE_NAME $SPRITE_RESUME" >> {to}
if [ -e refuse ]; then echo one >&2; echo "the machine is on fire" >&2; exit 3; fi
if [ "$SPRITE_RESUME" = 1 ]; then
  kill -CONT "$(cat pid)"
else
  rm -f port
  echo "from a machine" > page
  setsid {python} {machine} < /dev/null > /dev/null 2>&1 &
  echo $! > pid
  tries=0
  while [ ! -e port ] && [ "$tries" -lt 750 ]; do sleep 0.02; tries=$((tries + 1)); done
fi
echo "{{\"address\":\"127.0.0.1:$(cat port)\"}}""#
            ),
        );
        let sleep = demo.script(
            "sleep.sh",
            &format!(
                r#"echo "sleep $SPRITE_NAME $SPRITE_DEPTH" >> {to}
if [ "$SPRITE_DEPTH" = warm ]; then kill -STOP "$(cat pid)"; else kill -KILL "$(cat pid)"; fi"#
            ),
        );
        Self { wake, sleep, log }
    }

    async fn create(&self, demo: &Demo, name: &str) {
        let (wake, sleep) = (format!("sh {}", shell(&self.wake)), format!("sh {}", shell(&self.sleep)));
        let create = ["sprite", "create", name, "--public", "--wake-command", &wake, "--sleep-command", &sleep];
        demo.admin(&create).await;
    }

    fn heard(&self) -> Vec<String> {
        std::fs::read_to_string(&self.log).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn a_machine_of_somebody_else_wakes_sleeps_and_wakes_by_its_commands() {
    let demo = Demo::new().await;
    let orchestrator = Orchestrator::new(&demo);
    orchestrator.create(&demo, "theirs").await;
    for (kind, heard) in [("cold", "wake theirs 0"), ("warm", "wake theirs 1"), ("cold", "wake theirs 0")] {
        let answer = demo.get("theirs", "/page").await;
        assert_eq!((answer.text().as_str(), answer.header("sprite-wake")), ("from a machine\n", kind), "{answer:?}");
        assert_eq!(orchestrator.heard().last().unwrap(), heard);
        match kind {
            "cold" if orchestrator.heard().len() == 1 => demo.sleep_warm("theirs").await,
            _ => demo.sleep_cold("theirs").await,
        }
    }
    let expected = [
        "wake theirs 0",
        "sleep theirs warm",
        "wake theirs 1",
        "sleep theirs cold",
        "wake theirs 0",
        "sleep theirs cold",
    ];
    assert_eq!(orchestrator.heard(), expected);
    // Ctrl-C puts away what runs.
    assert_eq!(demo.get("theirs", "/page").await.status, 200);
    let pid = std::fs::read_to_string(demo.data().join("sprites/theirs/data/pid")).unwrap();
    // Its machine is nobody's child, and ends a moment after its command.
    let data = demo.leave().await;
    assert_eq!(orchestrator.heard().last().unwrap(), "sleep theirs cold");
    until("the machine to be gone", Duration::from_secs(10), async || {
        (!PathBuf::from(format!("/proc/{}/cmdline", pid.trim())).exists()).then_some(())
    })
    .await;
    drop(data);
}

#[tokio::test]
async fn a_command_that_fails_says_why_to_its_people_and_not_to_visitors() {
    let demo = Demo::new().await;
    let orchestrator = Orchestrator::new(&demo);
    orchestrator.create(&demo, "burning").await;
    let data = demo.data().join("sprites/burning/data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("refuse"), "").unwrap();
    let answer = demo.get("burning", "/page").await;
    assert_eq!((answer.status, &answer.json()["code"]), (503, &"wake_failed".into()));
    assert!(!answer.text().contains("fire"), "{}", answer.text());
    let cause = demo.why_it_failed("burning").await;
    assert!(cause.contains("wake command failed") && cause.contains("the machine is on fire"), "{cause}");
    // Mended, it is served once its back-off is over.
    std::fs::remove_file(data.join("refuse")).unwrap();
    until("the mended machine", Duration::from_secs(20), async || {
        (demo.get("burning", "/page").await.status == 200).then_some(())
    })
    .await;

    for (wake, why) in [("echo nothing", "printed no"), ("true", "printed no"), ("exit 9", "9")] {
        let name = format!("wrong-{}", wake.len());
        let create = ["sprite", "create", &name, "--public", "--wake-command", wake, "--sleep-command", "true"];
        demo.admin(&create).await;
        let cause = demo.why_it_failed(&name).await;
        assert!(cause.contains(why), "{wake}: {cause}");
    }
    let half = demo.try_admin(&["sprite", "create", "half", "--wake-command", "true"]).await;
    assert_eq!(half.status.code(), Some(64), "{half:?}");
}
