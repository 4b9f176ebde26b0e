use super::*;
use crate::drivers::probe;
use std::net::TcpListener;

struct Bench {
    driver: ProcessDriver,
    directory: tempfile::TempDir,
}

impl Bench {
    /// Each test has a range of its own, since tests run side by side.
    fn new(first_port: u16) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let driver = ProcessDriver::new(settings(directory.path(), first_port));
        Self { driver, directory }
    }

    fn spec(&self, name: &str, command: &str) -> SpriteSpec {
        SpriteSpec::new(SpriteName::parse(name).unwrap(), 1, DriverSpec::Process { command: command.into() })
    }
}

fn settings(directory: &Path, first_port: u16) -> ProcessSettings {
    ProcessSettings {
        directory: directory.into(),
        first_port,
        last_port: first_port + 19,
        stop_grace: Duration::from_millis(500),
        log_bytes: 65536,
        doors: DoorKeeper::default(),
    }
}

const SERVER: &str = "exec python3 -m http.server $PORT --bind 127.0.0.1";

#[tokio::test]
async fn a_frozen_listener_accepts_but_is_not_running_and_continues() {
    let bench = Bench::new(21_000);
    let spec = bench.spec("a", SERVER);
    let started = bench.driver.start(&spec).await.unwrap();
    probe(started.address).await;
    bench.driver.freeze(&spec.name).await.unwrap();
    // The trap: the kernel accepts for it.
    tokio::net::TcpStream::connect(started.address).await.unwrap();
    let leader = bench.driver.inner.group(&spec.name).unwrap().leader;
    assert_eq!(state_of(leader), Some('T'));
    bench.driver.resume(&spec.name).await.unwrap();
    assert_ne!(state_of(leader), Some('T'));
    bench.driver.end(&spec.name).await;
    assert_eq!(members_of(leader), []);
}

#[tokio::test]
async fn children_are_frozen_and_ended_with_their_parent() {
    let bench = Bench::new(21_020);
    let spec = bench.spec("a", "sh -c 'sleep 1000 & sleep 1000' & exec python3 -m http.server $PORT --bind 127.0.0.1");
    let started = bench.driver.start(&spec).await.unwrap();
    probe(started.address).await;
    let leader = bench.driver.inner.group(&spec.name).unwrap().leader;
    assert!(members_of(leader).len() >= 3);
    bench.driver.freeze(&spec.name).await.unwrap();
    assert!(members_of(leader).iter().all(|(_, state)| *state == 'T'), "{:?}", members_of(leader));
    bench.driver.end(&spec.name).await;
    assert_eq!(members_of(leader), []);
}

#[tokio::test]
async fn its_directory_survives_and_its_output_is_kept() {
    let bench = Bench::new(21_040);
    let spec = bench.spec("a", "cat kept 2>/dev/null; echo $SPRITE_NAME > kept; pwd");
    for _ in 0..2 {
        let started = bench.driver.start(&spec).await.unwrap();
        assert_eq!(started.exited.await.unwrap(), "exit status 0");
        bench.driver.end(&spec.name).await;
    }
    let log = bench.directory.path().join("a/output.log");
    let text = until(|| std::fs::read_to_string(&log).ok().filter(|text| text.matches("data").count() == 2)).await;
    assert!(text.contains("\na\n") || text.contains("data\na"), "{text}");
}

#[tokio::test]
async fn an_exit_is_told_at_once_with_its_status() {
    let bench = Bench::new(21_060);
    let spec = bench.spec("a", "exit 7");
    assert_eq!(bench.driver.start(&spec).await.unwrap().exited.await.unwrap(), "exit status 7");
    let spec = bench.spec("b", "kill -9 $$");
    assert_eq!(bench.driver.start(&spec).await.unwrap().exited.await.unwrap(), "killed by signal 9");
}

#[tokio::test]
async fn a_group_that_ignores_sigterm_is_killed() {
    let bench = Bench::new(21_080);
    let spec = bench.spec("a", "trap '' TERM; echo armed; while true; do sleep 1000; done");
    let started = bench.driver.start(&spec).await.unwrap();
    let log = bench.directory.path().join("a/output.log");
    until(|| std::fs::read_to_string(&log).ok().filter(|text| text.contains("armed"))).await;
    let leader = bench.driver.inner.group(&spec.name).unwrap().leader;
    bench.driver.end(&spec.name).await;
    assert_eq!(members_of(leader), []);
    assert_eq!(started.exited.await.unwrap(), "killed by signal 9");
}

#[tokio::test]
async fn a_new_owner_ends_the_orphans_of_the_old_one_and_nobody_else() {
    let bench = Bench::new(21_100);
    let spec = bench.spec("a", "sleep 1000");
    let started = bench.driver.start(&spec).await.unwrap();
    let leader = bench.driver.inner.group(&spec.name).unwrap().leader;
    // A record whose process id now belongs to somebody else.
    let stranger = bench.directory.path().join("b");
    std::fs::create_dir(&stranger).unwrap();
    std::fs::write(stranger.join("process"), format!("{} 1\n", std::process::id())).unwrap();

    let next = ProcessDriver::new(settings(bench.directory.path(), 21_100));
    assert_eq!(next.reap_orphans().await.len(), 1);
    assert_eq!(members_of(leader), []);
    assert_eq!(started.exited.await.unwrap(), "killed by signal 9");
    assert_eq!(next.reap_orphans().await.len(), 0);
}

#[tokio::test]
async fn ports_are_given_once_and_a_strangers_port_is_passed_over() {
    let bench = Bench::new(21_120);
    let _stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, 21_120)).unwrap();
    let mut ports = Vec::new();
    for name in ["a", "b"] {
        let started = bench.driver.start(&bench.spec(name, "sleep 1000")).await.unwrap();
        ports.push(started.address.port());
    }
    assert_eq!(ports, [21_121, 21_122]);
    for name in ["a", "b"] {
        bench.driver.end(&SpriteName::parse(name).unwrap()).await;
    }
}

#[tokio::test]
async fn a_strangers_listener_on_its_port_is_not_the_guest() {
    let bench = Bench::new(21_140);
    let deaf = bench.spec("a", "sleep 1000");
    let address = bench.driver.start(&deaf).await.unwrap().address;
    let _stranger = TcpListener::bind(address).unwrap();
    assert!(!bench.driver.owns_listener(&deaf.name, address));
    let honest = bench.spec("b", SERVER);
    let address = bench.driver.start(&honest).await.unwrap().address;
    probe(address).await;
    assert!(bench.driver.owns_listener(&honest.name, address));
    for spec in [deaf, honest] {
        bench.driver.end(&spec.name).await;
    }
}

/// Awaits something that another task writes to a file.
async fn until<T>(look: impl Fn() -> Option<T>) -> T {
    for _ in 0..2_000 {
        if let Some(found) = look() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never came");
}
