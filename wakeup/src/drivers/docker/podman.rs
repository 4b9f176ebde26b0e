//! The driver on a real engine: Podman, where it can run (root, a static busybox).

use super::tests::{answers, of_image};
use super::*;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

const SERVICE: &str = include_str!("podman.sh");

struct Podman {
    service: Child,
    directory: TempDir,
}

impl Podman {
    /// None, and a word about it, where containers cannot run.
    async fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", SERVICE, "podman.sh"]).arg(directory.path());
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let started = spawned.ok().map(|service| Self { service, directory });
        let mut line = String::new();
        if let Some(mut podman) = started {
            let mut out = BufReader::new(podman.service.stdout.take().unwrap());
            let read = tokio::task::spawn_blocking(move || out.read_line(&mut line).map(|_| line));
            if read.await.unwrap().unwrap() == "ready\n" {
                return Some(podman);
            }
        }
        eprintln!("SKIPPED: no container of Podman can run here");
        None
    }

    fn driver(&self) -> DockerDriver {
        let socket = self.directory.path().join("engine.sock");
        let (timeout, stop_timeout) = (Duration::from_secs(60), Duration::from_secs(1));
        let settings = Settings { socket, timeout, stop_timeout };
        DockerDriver::new(settings, &self.directory.path().join("sprites"))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let errors = std::fs::read_to_string(self.directory.path().join("errors.log")).unwrap_or_default();
            eprintln!("--- Podman wrote ---\n{errors}---");
        }
        drop(self.service.stdin.take());
        let _ = self.service.wait();
    }
}

#[tokio::test]
async fn a_container_of_podman_goes_the_same_way() {
    let Some(podman) = Podman::start().await else { return };
    let driver = podman.driver();
    // This host's network, so that none is made on it; a port outside of what anybody is given.
    let port = 61_000 + u16::try_from(std::process::id() % 4_000).unwrap();
    let serve = ["/bin/httpd", "-f", "-p", &format!("127.0.0.1:{port}"), "-h", "/www"];
    let spec = of_image(json!({ "port": port, "network": "host", "command": serve, "memory_mib": 64 }));
    let name = &spec.name;
    assert!(driver.adopt(&spec).await.is_none());
    let started = driver.start(&spec).await.unwrap();
    assert_eq!(started.address, SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    answers(&driver, &spec, true).await;
    for _ in 0..2 {
        driver.freeze(name).await.unwrap();
        driver.freeze(name).await.unwrap();
        driver.resume(name).await.unwrap();
        driver.resume(name).await.unwrap();
        answers(&driver, &spec, false).await;
    }
    // Another owner finds it frozen, and its end is told to both.
    driver.freeze(name).await.unwrap();
    let next = podman.driver();
    let adopted = next.adopt(&spec).await.unwrap();
    assert_eq!(adopted.depth, Some(Depth::Warm));
    driver.suspend(name).await;
    let told = adopted.guest.unwrap().exited.await.unwrap();
    assert!(told.starts_with("exit status "), "{told}");
    drop(started);
    driver.start(&spec).await.unwrap();
    answers(&driver, &spec, true).await;
    driver.end(name).await;
    assert!(podman.driver().adopt(&spec).await.is_none());
    // Frozen, it is removed all the same.
    driver.start(&spec).await.unwrap();
    driver.freeze(name).await.unwrap();
    driver.destroy(name).await;
    let missing = driver.0.engine.inspect("sprite-a").await.unwrap();
    assert!(missing.is_none());
}
