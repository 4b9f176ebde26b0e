//! Driver `http`: machines of an orchestrator that is asked over HTTPS and checks who asks.

use harness::{Demo, Helper, Options};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

const ORCHESTRATOR: &str = include_str!("orchestrator.py");
/// The key is the bytes 0 to 31.
const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

struct World {
    demo: Demo,
    orchestrator: Helper,
    log: PathBuf,
}

impl World {
    /// An orchestrator with a certificate of its own, and an edge that trusts it.
    async fn new() -> Self {
        let data = Arc::new(tempfile::Builder::new().prefix("edge-e2e-").tempdir().unwrap());
        let path = |name: &str| data.path().join(name);
        let (secret, log, pem) = (path("secret"), path("orchestrator.log"), path("orchestrator.pem"));
        std::fs::write(&secret, SECRET).unwrap();
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
        let key = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        std::fs::write(&pem, format!("{}{}", key.cert.pem(), key.signing_key.serialize_pem())).unwrap();
        let orchestrator = Helper::python(ORCHESTRATOR, &[&secret, &log, &pem]).await;
        let config = format!("[drivers.http]\nsecret_file = {secret:?}\nca_file = {pem:?}\n");
        let demo = Demo::start(Options { data: Some(data), config: Some(config), ..Options::default() }).await;
        Self { demo, orchestrator, log }
    }

    async fn create(&self, name: &str, url: &str) {
        let file = self.demo.data().join("driver.toml");
        std::fs::write(&file, format!("[http]\nurl = {url:?}\n")).unwrap();
        let file = file.to_str().unwrap();
        self.demo.admin(&["sprite", "create", name, "--public", "--driver", file]).await;
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/edge", self.orchestrator.ready)
    }

    fn heard(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[tokio::test]
async fn a_machine_of_an_orchestrator_wakes_sleeps_and_wakes_by_signed_requests() {
    let world = World::new().await;
    let demo = &world.demo;
    world.create("theirs", &world.url()).await;
    let get = async || {
        let answer = demo.get("theirs", "/").await;
        (answer.status, answer.text(), answer.header("sprite-wake").to_owned())
    };
    assert_eq!(get().await, (200, "asked 1 times".into(), "cold".into()));
    demo.sleep_warm("theirs").await;
    assert_eq!(get().await, (200, "asked 2 times".into(), "warm".into()));
    demo.sleep_cold("theirs").await;
    assert_eq!(get().await, (200, "asked 1 times".into(), "cold".into()));
    demo.admin(&["sprite", "delete", "theirs"]).await;
    harness::until("the machine to be put to sleep", std::time::Duration::from_secs(20), async || {
        (world.heard().len() == 7).then_some(())
    })
    .await;
    let wake = |resume: bool| json!({ "action": "wake", "generation": 1, "resume": resume, "sprite": "theirs" });
    let sleep = |depth: &str| json!({ "action": "sleep", "depth": depth, "generation": 1, "sprite": "theirs" });
    assert_eq!(
        world.heard(),
        [
            json!(["/edge/wake", wake(false), true, false]),
            // Its answer was a 503: the same event once more.
            json!(["/edge/wake", wake(false), true, true]),
            json!(["/edge/sleep", sleep("warm"), true, false]),
            json!(["/edge/wake", wake(true), true, false]),
            json!(["/edge/sleep", sleep("cold"), true, false]),
            json!(["/edge/wake", wake(false), true, false]),
            json!(["/edge/sleep", sleep("cold"), true, false]),
        ]
    );
}

#[tokio::test]
async fn an_orchestrator_that_refuses_or_is_away_is_told_to_its_people_only() {
    let world = World::new().await;
    let demo = &world.demo;
    // Another secret than the orchestrator's.
    let other = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHgA=";
    std::fs::write(demo.data().join("secret"), other).unwrap();
    world.create("stranger", &world.url()).await;
    let answer = demo.get("stranger", "/").await;
    assert_eq!((answer.status, &answer.json()["code"]), (503, &"wake_failed".into()));
    assert!(!answer.text().contains("signature"), "{}", answer.text());
    let cause = demo.why_it_failed("stranger").await;
    assert_eq!(cause, "its orchestrator did not wake: it answered 401 the signature is wrong");
    assert_eq!(world.heard().len(), demo.receipts("stranger").await.len(), "a refusal is final");

    let file = demo.data().join("wrong.toml");
    std::fs::write(&file, "[http]\nurl = \"ftp://localhost\"\n").unwrap();
    let refused = demo.try_admin(&["sprite", "create", "wrong", "--driver", file.to_str().unwrap()]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("http.url"), "{refused:?}");
}
