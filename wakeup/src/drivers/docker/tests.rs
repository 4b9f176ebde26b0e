use super::*;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

const ENGINE: &str = include_str!("fake_engine.py");
/// What a container of the tests runs.
const SERVE: &str = r#"exec python3 -c '
import http.server, os, socketserver
class Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
Listener((os.environ["IP"], int(os.environ["PORT"])), http.server.SimpleHTTPRequestHandler).serve_forever()
'"#;

/// An engine of its own for each test, and drivers on it.
struct Bench {
    engine: Child,
    directory: TempDir,
}

impl Bench {
    async fn new(kind: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let mut command = Command::new("python3");
        command.arg("-c").arg(ENGINE).arg(path.join("engine.sock")).arg(path.join("log")).arg(kind);
        let mut engine = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(engine.stdout.take().unwrap());
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            out.read_line(&mut line).map(|_| line)
        });
        assert_eq!(line.await.unwrap().unwrap(), "ready\n");
        Self { engine, directory }
    }

    fn driver(&self) -> DockerDriver {
        let socket = self.directory.path().join("engine.sock");
        let stop_timeout = Duration::from_secs(1);
        let settings = Settings { socket, stop_timeout, ..config::Drivers::default().docker };
        DockerDriver::new(settings, &self.directory.path().join("sprites"))
    }

    /// Method, path and status of each request since the last call, without the looks.
    fn asked(&self) -> Vec<String> {
        let path = self.directory.path().join("log");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(&path, "").unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let lines = lines.inspect(|line| assert_eq!(line.as_array().unwrap().len(), 4, "{line}"));
        let shown = lines.filter(|line| line[0] != "GET" && !line[1].as_str().unwrap().contains("/wait?"));
        shown.map(|line| format!("{} {} {}", line[0].as_str().unwrap(), line[1].as_str().unwrap(), line[3])).collect()
    }

    fn body_of_create(&self) -> Value {
        let text = std::fs::read_to_string(self.directory.path().join("log")).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.rfind(|line| line[1].as_str().unwrap().contains("create")).unwrap()[2].clone()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        drop(self.engine.stdin.take());
        let _ = self.engine.wait();
    }
}

fn spec(docker: &str) -> SpriteSpec {
    let driver = DriverSpec::Docker(serde_json::from_str(docker).unwrap());
    SpriteSpec::new(SpriteName::parse("a").unwrap(), 3, driver)
}

pub(super) fn of_image(more: Value) -> SpriteSpec {
    let mut docker = json!({ "image": "localhost/web:1", "port": 8080, "command": ["sh", "-c", SERVE] });
    docker.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec(&docker.to_string())
}

pub(super) async fn answers(driver: &DockerDriver, spec: &SpriteSpec, fresh: bool) {
    let address = driver.address(&spec.name).unwrap();
    let ready = Arc::new(driver.clone()).ready(spec.name.clone(), address, fresh);
    let ready = tokio::time::timeout(Duration::from_secs(60), ready).await.unwrap();
    let client = super::super::http_client::HttpClient::url(&format!("http://{ready}/").parse().unwrap(), None);
    let call = super::super::http_client::Call {
        method: http::Method::GET,
        path: "/",
        headers: &[],
        body: None,
        within: Duration::from_secs(20),
    };
    assert_eq!(client.unwrap().call(call).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_container_of_ours_is_made_started_paused_continued_stopped_and_removed() {
    for kind in ["docker", "podman"] {
        let bench = Bench::new(kind).await;
        let driver = bench.driver();
        let spec = of_image(json!({}));
        let name = &spec.name;
        assert!(driver.adopt(&spec).await.is_none());
        let started = driver.start(&spec).await.unwrap();
        assert_eq!(started.address.port(), 8080);
        answers(&driver, &spec, true).await;
        assert_eq!(
            bench.asked(),
            ["POST /containers/create?name=sprite-a 201", "POST /containers/sprite-a/start 204",]
        );
        driver.freeze(name).await.unwrap();
        // As often as you like.
        driver.freeze(name).await.unwrap();
        let again = if kind == "podman" { "500" } else { "409" };
        assert_eq!(
            bench.asked(),
            ["POST /containers/sprite-a/pause 204".to_owned(), format!("POST /containers/sprite-a/pause {again}"),]
        );
        driver.resume(name).await.unwrap();
        driver.resume(name).await.unwrap();
        answers(&driver, &spec, false).await;
        assert_eq!(bench.asked()[0], "POST /containers/sprite-a/unpause 204");
        driver.suspend(name).await;
        assert_eq!(bench.asked(), ["POST /containers/sprite-a/stop?t=1 204"]);
        // Frozen, it goes on to stop.
        driver.start(&spec).await.unwrap();
        driver.freeze(name).await.unwrap();
        driver.suspend(name).await;
        assert_eq!(
            bench.asked(),
            [
                "POST /containers/sprite-a/start 204",
                "POST /containers/sprite-a/pause 204",
                "POST /containers/sprite-a/unpause 204",
                "POST /containers/sprite-a/stop?t=1 204",
            ]
        );
        // Ended, its disk is still there; the sprite gone, it is removed.
        driver.start(&spec).await.unwrap();
        driver.end(name).await;
        assert_eq!(bench.asked().last().unwrap(), "POST /containers/sprite-a/stop?t=0 204");
        driver.start(&spec).await.unwrap();
        driver.destroy(name).await;
        assert_eq!(
            bench.asked(),
            ["POST /containers/sprite-a/start 204", "DELETE /containers/sprite-a?force=true&v=true 204",]
        );
        assert_eq!(driver.address(name), None);
        assert!(matches!(driver.freeze(name).await, Err(DriverError::NoGuest)));
    }
}

#[tokio::test]
async fn what_a_container_is_made_of_is_what_the_sprite_says() {
    let bench = Bench::new("docker").await;
    let more = json!({
        "publish": true, "environment": { "COLOUR": "green" }, "volumes": ["data:/data", "/srv:/srv:ro"],
        "network": "inside", "memory_mib": 64, "cpu_millis": 500,
    });
    let spec = of_image(more);
    bench.driver().start(&spec).await.unwrap();
    let owner = bench.directory.path().join("sprites");
    assert_eq!(
        bench.body_of_create(),
        json!({
            "Image": "localhost/web:1",
            "Cmd": ["sh", "-c", SERVE],
            "Env": ["COLOUR=green", "PORT=8080", "SPRITE_NAME=a"],
            "Labels": { SPRITE: "a", GENERATION: "3", OWNER: owner },
            "ExposedPorts": { "8080/tcp": {} },
            "HostConfig": {
                "RestartPolicy": { "Name": "no" },
                "PortBindings": { "8080/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "" }] },
                "Binds": ["data:/data", "/srv:/srv:ro"],
                "NetworkMode": "inside",
                "Memory": 64 << 20,
                "NanoCpus": 500_000_000,
            },
        })
    );
}

#[tokio::test]
async fn a_published_port_is_ready_when_the_container_listens_and_not_when_its_proxy_does() {
    let bench = Bench::new("docker").await;
    let driver = bench.driver();
    // It listens when it is told to.
    let gate = bench.directory.path().join("gate");
    let command = format!("until [ -e {} ]; do sleep 0.01; done; {SERVE}", gate.display());
    let spec = of_image(json!({ "publish": true, "command": ["sh", "-c", command] }));
    let address = driver.start(&spec).await.unwrap().address;
    assert!(address.ip().is_loopback() && address.port() != 8080, "{address}");
    tokio::net::TcpStream::connect(address).await.unwrap();
    // On a busy machine the proxy may take its time to hang up, not every time.
    while stays_open(address).await {}
    std::fs::write(gate, "").unwrap();
    let ready = Arc::new(driver).ready(spec.name.clone(), address, true);
    assert_eq!(tokio::time::timeout(Duration::from_secs(60), ready).await.unwrap(), address);
}

#[tokio::test]
async fn the_end_of_a_container_is_told_with_its_status() {
    let bench = Bench::new("docker").await;
    let driver = bench.driver();
    let gate = bench.directory.path().join("gate");
    let command = format!("until [ -e {} ]; do sleep 0.01; done; exit 7", gate.display());
    let started = driver.start(&of_image(json!({ "command": ["sh", "-c", command] }))).await.unwrap();
    std::fs::write(gate, "").unwrap();
    assert_eq!(started.exited.await.unwrap(), "exit status 7");
}

#[tokio::test]
async fn a_new_owner_finds_containers_as_they_are() {
    let bench = Bench::new("docker").await;
    let old = bench.driver();
    let spec = of_image(json!({}));
    let address = old.start(&spec).await.unwrap().address;
    old.leave(&spec.name).await;

    let next = bench.driver();
    let adopted = next.adopt(&spec).await.unwrap();
    assert_eq!((adopted.depth, adopted.guest.unwrap().address), (None, address));
    next.freeze(&spec.name).await.unwrap();
    let third = bench.driver();
    let adopted = third.adopt(&spec).await.unwrap();
    assert_eq!(adopted.depth, Some(Depth::Warm));
    third.resume(&spec.name).await.unwrap();
    answers(&third, &spec, false).await;
    // Its end is told to who adopted it last.
    third.suspend(&spec.name).await;
    let fourth = bench.driver();
    assert!(fourth.adopt(&spec).await.is_none());
    bench.asked();
    fourth.destroy(&spec.name).await;
    assert_eq!(bench.asked(), ["DELETE /containers/sprite-a?force=true&v=true 204"]);
}

#[tokio::test]
async fn a_container_of_somebody_else_is_started_and_stopped_and_never_removed() {
    let bench = Bench::new("docker").await;
    let theirs = of_image(json!({}));
    bench.driver().start(&theirs).await.unwrap();
    let spec = spec(r#"{"container":"sprite-a","port":8080}"#);
    let driver = bench.driver();
    let adopted = driver.adopt(&spec).await.unwrap();
    assert_eq!(adopted.depth, None);
    answers(&driver, &spec, true).await;
    bench.asked();
    driver.destroy(&spec.name).await;
    assert_eq!(bench.asked(), ["POST /containers/sprite-a/stop?t=1 204"]);
    driver.start(&spec).await.unwrap();
    answers(&driver, &spec, true).await;
}

#[tokio::test]
async fn a_name_that_is_taken_is_not_taken_over_and_that_of_an_earlier_sprite_is() {
    let bench = Bench::new("docker").await;
    let spec = of_image(json!({}));
    bench.driver().start(&spec).await.unwrap();
    let mut other = bench.driver();
    Arc::get_mut(&mut other.0).unwrap().owner = "/elsewhere".into();
    assert!(other.adopt(&spec).await.is_none());
    let error = other.start(&spec).await.err().unwrap().to_string();
    assert!(error.contains("this owner did not make"), "{error}");
    bench.asked();
    let made_again = SpriteSpec { generation: 5, ..spec };
    let driver = bench.driver();
    assert!(driver.adopt(&made_again).await.is_none());
    driver.start(&made_again).await.unwrap();
    assert_eq!(
        bench.asked(),
        [
            "DELETE /containers/sprite-a?force=true&v=true 204",
            "POST /containers/create?name=sprite-a 201",
            "POST /containers/sprite-a/start 204",
        ]
    );
}

#[tokio::test]
async fn a_container_of_no_sprite_is_stopped_and_kept_and_one_of_anybody_else_is_left_alone() {
    for frozen in [false, true] {
        let bench = Bench::new("docker").await;
        let spec = of_image(json!({}));
        let old = bench.driver();
        old.start(&spec).await.unwrap();
        if frozen {
            old.freeze(&spec.name).await.unwrap();
        }
        bench.asked();
        let mut other = bench.driver();
        Arc::get_mut(&mut other.0).unwrap().owner = "/elsewhere".into();
        assert_eq!(other.end_unowned(BTreeSet::new()).await, []);
        assert_eq!(bench.driver().end_unowned(BTreeSet::from([spec.name.clone()])).await, []);
        assert_eq!(old.end_unowned(BTreeSet::new()).await, [], "it is known");
        assert_eq!(bench.asked(), [""; 0]);
        assert_eq!(bench.driver().end_unowned(BTreeSet::new()).await, std::slice::from_ref(&spec.name));
        let asked = bench.asked();
        assert!(asked.last().unwrap().ends_with("/stop?t=1 204"), "{asked:?}");
        assert_eq!(bench.driver().end_unowned(BTreeSet::new()).await, []);
        // It is there for whoever has its name next, which is a sprite that was made again.
        bench.driver().start(&SpriteSpec { generation: 4, ..spec }).await.unwrap();
        assert_eq!(bench.asked()[0], "DELETE /containers/sprite-a?force=true&v=true 204");
    }
}

#[tokio::test]
async fn what_the_engine_refuses_is_told_in_its_words() {
    let bench = Bench::new("docker").await;
    let driver = bench.driver();
    let told = async |spec: &SpriteSpec| driver.start(spec).await.err().unwrap().to_string();
    let missing = told(&of_image(json!({ "image": "no/such:1" }))).await;
    assert!(missing.contains("did not make it: 404 No such image: no/such:1"), "{missing}");
    let none = told(&spec(r#"{"container":"none","port":80}"#)).await;
    assert!(none.contains("there is no container none"), "{none}");
    // Seen running for a moment or not, it ends with its status.
    let ends = match driver.start(&of_image(json!({ "command": ["sh", "-c", "exit 3"] }))).await {
        Ok(started) => started.exited.await.unwrap(),
        Err(error) => error.to_string(),
    };
    assert!(ends.contains("exit status 3"), "{ends}");
    drop(bench);
    let gone = told(&spec(r#"{"container":"none","port":80}"#)).await;
    assert!(gone.contains("cannot be reached at") && gone.contains("engine.sock"), "{gone}");
}
