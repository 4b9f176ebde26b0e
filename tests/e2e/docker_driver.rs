//! Driver `docker`: containers of an engine, through the whole path. The engine is one of ours
//! that answers as the published API says.

use harness::{Demo, Helper, Options};
use serde_json::Value;
use std::sync::Arc;
use tempfile::TempDir;

const ENGINE: &str = include_str!("../../wakeup/src/drivers/docker/fake_engine.py");
/// Counts in memory; `/end` ends it.
const APP: &str = r#"
import http.server, os, socketserver
class Page(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Page.asked += 1
        said = f"{os.environ['SPRITE_NAME']} asked {Page.asked} times".encode()
        self.send_response(200); self.send_header("Content-Length", str(len(said))); self.end_headers()
        self.wfile.write(said)
        if self.path == "/end": os._exit(3)
    def log_message(self, *_): pass
class Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
Listener((os.environ["IP"], int(os.environ["PORT"])), Page).serve_forever()
"#;

async fn engine(data: &TempDir) -> Helper {
    Helper::python(ENGINE, &[&data.path().join("engine.sock"), &data.path().join("engine.log")]).await
}

async fn edge(data: &Arc<TempDir>) -> Demo {
    let config = format!("[drivers.docker]\nsocket = {:?}\nstop_timeout = \"1s\"\n", data.path().join("engine.sock"));
    Demo::start(Options { data: Some(Arc::clone(data)), config: Some(config), ..Options::default() }).await
}

async fn create(demo: &Demo, name: &str) {
    let file = demo.data().join("driver.toml");
    let text =
        format!("[docker]\nimage = \"localhost/web:1\"\nport = 8080\ncommand = [\"python3\", \"-c\", '''{APP}''']\n");
    std::fs::write(&file, text).unwrap();
    demo.admin(&["sprite", "create", name, "--public", "--driver", file.to_str().unwrap()]).await;
}

async fn get(demo: &Demo, name: &str) -> (u16, String, String) {
    let answer = demo.get(name, "/").await;
    (answer.status, answer.text(), answer.header("sprite-wake").to_owned())
}

fn said(name: &str, asked: u32, kind: &str) -> (u16, String, String) {
    (200, format!("{name} asked {asked} times"), kind.into())
}

/// What changed something at the engine, all of it as the API wants it.
fn steps(data: &TempDir) -> Vec<String> {
    let text = std::fs::read_to_string(data.path().join("engine.log")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let lines = lines.inspect(|line| assert_eq!(line.as_array().unwrap().len(), 4, "{line}"));
    let changed = lines.filter(|line| line[0] != "GET" && !line[1].as_str().unwrap().contains("/wait?"));
    changed.map(|line| format!("{} {}", line[0].as_str().unwrap(), line[1].as_str().unwrap())).collect()
}

#[tokio::test]
async fn a_container_is_made_wakes_sleeps_warm_and_cold_and_goes_with_its_sprite() {
    let data = Arc::new(tempfile::Builder::new().prefix("edge-e2e-").tempdir().unwrap());
    let _engine = engine(&data).await;
    let demo = edge(&data).await;
    create(&demo, "own").await;
    assert_eq!(get(&demo, "own").await, said("own", 1, "cold"));
    demo.sleep_warm("own").await;
    assert_eq!(get(&demo, "own").await, said("own", 2, "warm"));
    demo.sleep_cold("own").await;
    assert_eq!(get(&demo, "own").await, said("own", 1, "cold"));
    let show = demo.admin(&["sprite", "show", "own"]).await;
    assert_eq!(show["driver"]["docker"]["image"], "localhost/web:1");
    demo.admin(&["sprite", "delete", "own"]).await;
    let of_own = ["create?name=sprite-own", "sprite-own/start", "sprite-own/pause", "sprite-own/unpause"]
        .into_iter()
        .chain(["sprite-own/stop?t=1", "sprite-own/start"])
        .map(|step| format!("POST /containers/{step}"))
        .chain(["DELETE /containers/sprite-own?force=true&v=true".into()]);
    let of_own: Vec<_> = of_own.collect();
    harness::until("the container to be removed", std::time::Duration::from_secs(20), async || {
        let steps: Vec<_> = steps(&data).into_iter().filter(|step| step.contains("sprite-own")).collect();
        (steps == of_own).then_some(())
    })
    .await;
}

#[tokio::test]
async fn containers_outlive_the_edge_and_are_found_again_as_they_are() {
    let data = Arc::new(tempfile::Builder::new().prefix("edge-e2e-").tempdir().unwrap());
    let _engine = engine(&data).await;
    let demo = edge(&data).await;
    for name in ["awake", "frozen"] {
        create(&demo, name).await;
        assert_eq!(get(&demo, name).await, said(name, 1, "cold"));
    }
    demo.sleep_warm("frozen").await;
    demo.crash();
    let demo = edge(&data).await;
    assert_eq!(demo.row("awake").await["state"], "running");
    assert_eq!(demo.row("frozen").await["warmth"], "warm");
    assert_eq!(get(&demo, "awake").await.1, "awake asked 2 times");
    assert_eq!(get(&demo, "frozen").await, said("frozen", 2, "warm"));
}

#[tokio::test]
async fn a_container_that_ends_wakes_again_and_an_engine_that_is_away_is_told() {
    let data = Arc::new(tempfile::Builder::new().prefix("edge-e2e-").tempdir().unwrap());
    let engine = engine(&data).await;
    let demo = edge(&data).await;
    create(&demo, "web").await;
    assert_eq!(get(&demo, "web").await, said("web", 1, "cold"));
    assert_eq!(demo.get("web", "/end").await.text(), "web asked 2 times");
    demo.wait_state("web", "asleep").await;
    assert_eq!(get(&demo, "web").await, said("web", 1, "cold"));
    demo.sleep_cold("web").await;
    drop(engine);
    let answer = demo.get("web", "/").await;
    assert_eq!((answer.status, &answer.json()["code"]), (503, &"wake_failed".into()));
    let cause = demo.why_it_failed("web").await;
    assert!(cause.contains("engine.sock") && !answer.text().contains("engine"), "{cause}");
    std::fs::write(demo.data().join("driver.toml"), "[docker]\nport = 1\n").unwrap();
    let file = demo.data().join("driver.toml");
    let refused = demo.try_admin(&["sprite", "create", "neither", "--driver", file.to_str().unwrap()]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("exactly one of container and image"), "{refused:?}");
}
