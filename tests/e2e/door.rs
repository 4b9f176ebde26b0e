//! The sprite's own door: what a guest can do for itself.

use harness::guest::shell;
use harness::{Demo, Options, until};
use serde_json::{Value, json};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// A guest that passes on what it is sent to its door, as an agent inside it would.
const AGENT: &str = r#"
import http.client, http.server, json, os, socket, sys

class Door(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["SPRITE_API"])

class Agent(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        door = Door("sprite")
        body = json.dumps(asked["body"]) if "body" in asked else None
        door.request(asked["method"], asked["path"], body)
        answer = door.getresponse()
        text = answer.read()
        self.send_response(answer.status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Agent).serve_forever()
"#;

struct Inside<'a> {
    demo: &'a Demo,
    name: &'a str,
}

impl Inside<'_> {
    async fn asks(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut asked = json!({ "method": method, "path": path });
        if let Some(body) = body {
            asked["body"] = body;
        }
        let answer = self.demo.post(self.name, "/", asked.to_string()).await;
        (answer.status, serde_json::from_slice(&answer.body).unwrap_or(Value::Null))
    }

    async fn gets(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let (status, value) = self.asks(method, path, body).await;
        assert_eq!(status, 200, "{method} {path}: {value}");
        value
    }
}

async fn agent(idle: &str) -> Demo {
    let demo = Demo::start(Options { idle_timeout: idle.into(), ..Options::default() }).await;
    let script = demo.script("agent.py", AGENT);
    demo.create("agent", &format!("exec python3 -u {} $PORT", shell(&script))).await;
    demo
}

#[tokio::test]
async fn a_guest_knows_itself_shares_links_and_exposes_ports() {
    let demo = agent("60s").await;
    let inside = Inside { demo: &demo, name: "agent" };
    let about = inside.gets("GET", "/v1/self", None).await;
    assert_eq!((&about["name"], &about["state"]), (&"agent".into(), &"running".into()));
    assert_eq!(about["url"].as_str().unwrap(), demo.url("agent", "/"));

    let (status, problem) = inside.asks("POST", "/v1/share", None).await;
    assert_eq!(status, 409, "it is public: {problem}");

    let ports = inside.gets("POST", "/v1/ports", Some(json!({ "port": 5173 }))).await;
    let url = ports["ports"]["5173"].as_str().unwrap();
    assert!(url.starts_with("https://5173--agent."), "{url}");
    // It is open for visitors from this moment: the guest does not listen there, and that is what is said.
    let answer = demo.get("5173--agent", "/").await;
    assert_eq!(answer.json()["code"], "port_closed", "{answer:?}");
    let ports = inside.gets("DELETE", "/v1/ports/5173", None).await;
    assert_eq!(ports["ports"], json!({}));
    assert_eq!(demo.get("5173--agent", "/").await.status, 404);

    for (method, path, body) in [
        ("POST", "/v1/ports", Some(json!({ "port": 70_000 }))),
        ("POST", "/v1/tasks", Some(json!({ "for": "2h" }))),
        ("POST", "/v1/wake-at", Some(json!({ "in": "3y" }))),
        ("POST", "/v1/wake-at", Some(json!({}))),
        ("POST", "/v1/sleep", Some(json!({ "depth": "deep" }))),
    ] {
        let (status, problem) = inside.asks(method, path, body).await;
        assert_eq!(status, 400, "{path}: {problem}");
        assert!(!problem["detail"].as_str().unwrap().is_empty());
    }
    assert_eq!(inside.asks("GET", "/v1/sprites", None).await.0, 404, "it speaks for this sprite only");
}

#[tokio::test]
async fn a_private_guest_makes_a_link_that_opens_it() {
    let demo = Demo::new().await;
    let script = demo.script("agent.py", AGENT);
    let command = format!("exec python3 -u {} $PORT", shell(&script));
    let made = demo.admin(&["sprite", "create", "own", "--command", &command]).await;
    let token = made["token"].as_str().unwrap().to_owned();
    let mut client = demo.connect(harness::Version::H2, "own").await;
    let asked = json!({ "method": "POST", "path": "/v1/share", "body": { "ttl": "5m" } }).to_string();
    let request = demo.request(http::Method::POST, "own", "/").header("authorization", format!("Bearer {token}"));
    let answer = client.send(request.body(harness::client::full(asked)).unwrap()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let link = answer.json()["url"].as_str().unwrap().to_owned();
    let query = link.split_once('?').unwrap().1.to_owned();
    let visit = demo.get("own", &format!("/?{query}")).await;
    assert_eq!(visit.status, 302, "the link becomes a cookie: {visit:?}");
}

#[tokio::test]
async fn a_task_keeps_it_awake_without_visitors_and_its_end_lets_it_sleep() {
    let demo = agent("300ms").await;
    let inside = Inside { demo: &demo, name: "agent" };
    let task = inside.gets("POST", "/v1/tasks", Some(json!({ "for": "10m" }))).await;
    let id = task["id"].as_u64().unwrap();
    // Ten idle timeouts.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(demo.row("agent").await["state"], "running");
    let why = demo.admin(&["sprite", "show", "agent", "--why"]).await;
    assert_eq!(why["tasks"][0]["id"], id, "{why}");
    inside.gets("DELETE", &format!("/v1/tasks/{id}"), None).await;
    demo.wait_state("agent", "asleep").await;
}

#[tokio::test]
async fn a_timer_wakes_it_from_its_sleep_once() {
    let demo = agent("60s").await;
    let inside = Inside { demo: &demo, name: "agent" };
    inside.gets("POST", "/v1/wake-at", Some(json!({ "in": "4s" }))).await;
    let slept = inside.gets("POST", "/v1/sleep", Some(json!({ "depth": "cold" }))).await;
    assert_eq!(slept["sleeps"], "cold");
    let woken = async || {
        let receipts = demo.receipts("agent").await;
        (receipts.last().unwrap()["reason"] == "timer").then_some(receipts.len())
    };
    assert_eq!(until("the timer", LIMIT, woken).await, 2);
    demo.wait_state("agent", "running").await;
    assert_eq!(inside.gets("GET", "/v1/wake-at", None).await["wake_at_unix_ms"], json!([]));
}
