//! The driver against a QEMU of our own (`fake_qemu.py`) that does as it is told; the real one
//! is in the end-to-end tests.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Bench {
    root: tempfile::TempDir,
    first_port: u16,
    boot_wait: Duration,
}

impl Bench {
    /// Each test has a range of its own, since tests run side by side.
    fn new(first_port: u16) -> Self {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("fake-qemu");
        std::fs::write(&program, include_str!("fake_qemu.py")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(root.path().join("disk"), "disk").unwrap();
        Self { root, first_port, boot_wait: Duration::from_secs(15) }
    }

    fn driver(&self) -> Arc<QemuDriver> {
        let qemu = config::Qemu {
            program: self.root.path().join("fake-qemu"),
            boot_wait: self.boot_wait,
            ..config::Qemu::default()
        };
        let directory = self.root.path().join("sprites");
        let (first_port, last_port) = (self.first_port, self.first_port + 9);
        Arc::new(QemuDriver::new(QemuSettings { directory, first_port, last_port, log_bytes: 65536, qemu }))
    }

    fn sprite(&self) -> SpriteSpec {
        let disks = serde_json::json!([{ "path": self.root.path().join("disk"), "format": "raw" }]);
        let driver = DriverSpec::Qemu(serde_json::from_value(serde_json::json!({ "disks": disks })).unwrap());
        let sprite = SpriteSpec::new(SpriteName::parse("a").unwrap(), 1, driver);
        std::fs::create_dir_all(self.root.path().join("sprites/a")).unwrap();
        sprite
    }

    fn file(&self, name: &str) -> PathBuf {
        self.root.path().join("sprites/a").join(name)
    }

    fn tell(&self, name: &str) {
        std::fs::write(self.file(name), "2").unwrap();
    }

    /// The processes that were begun, and how.
    fn begun(&self) -> Vec<(i32, String)> {
        let text = std::fs::read_to_string(self.file("begun.log")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.map(|(pid, how)| (pid.parse().unwrap(), how.to_owned())).collect()
    }

    fn how(&self) -> Vec<String> {
        self.begun().into_iter().map(|(_, how)| how).collect()
    }

    fn alive(&self) -> usize {
        let lives = |pid: i32| super::super::stat::Stat::read(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'));
        self.begun().into_iter().filter(|&(pid, _)| lives(pid)).count()
    }

    fn has_memory(&self) -> bool {
        let labelled = self.file("memory.json").exists();
        assert_eq!(labelled, self.file("memory").exists());
        labelled
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Whatever a failed test has left, found by what was written down.
        if let Some(record) = Record::read(&self.root.path().join("sprites/a"))
            && let Some(pid) = rustix::process::Pid::from_raw(record.pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// What the guest answers: which process booted the memory it runs on.
async fn asked(address: SocketAddr) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text.rsplit_once("\r\n").unwrap().1.to_owned()
}

async fn ready(driver: &Arc<QemuDriver>, started: &Started, fresh: bool) {
    let name = SpriteName::parse("a").unwrap();
    let ready = Arc::clone(driver).ready(name, started.address, fresh);
    tokio::time::timeout(Duration::from_secs(20), ready).await.unwrap();
}

#[tokio::test]
async fn its_memory_goes_through_both_sleeps_and_is_used_up() {
    let bench = Bench::new(22_000);
    let (driver, sprite) = (bench.driver(), bench.sprite());
    let started = driver.start(&sprite).await.unwrap();
    ready(&driver, &started, true).await;
    let memory = asked(started.address).await;
    assert!(memory.starts_with("booted by "), "{memory}");
    driver.freeze(&sprite.name).await.unwrap();
    driver.resume(&sprite.name).await.unwrap();
    ready(&driver, &started, false).await;
    assert_eq!(asked(started.address).await, memory);

    // From a frozen one as from a running one.
    for frozen in [true, false] {
        if frozen {
            driver.freeze(&sprite.name).await.unwrap();
        }
        driver.suspend(&sprite.name).await;
        assert_eq!((bench.has_memory(), bench.alive()), (true, 0));
        let mode = |name: &str| std::fs::metadata(bench.file(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("memory"), mode("memory.json")), (0o600, 0o600));
        let started = driver.start(&sprite).await.unwrap();
        assert_eq!(asked(started.address).await, memory);
        assert_eq!((bench.has_memory(), bench.alive()), (false, 1));
    }

    driver.suspend(&sprite.name).await;
    driver.end(&sprite.name).await;
    assert_eq!((bench.has_memory(), bench.alive()), (false, 0), "an end keeps nothing");
    let started = driver.start(&sprite).await.unwrap();
    assert_ne!(asked(started.address).await, memory);
    assert_eq!(bench.how(), ["boots", "waits", "waits", "boots"]);
    driver.end(&sprite.name).await;
}

#[tokio::test]
async fn a_memory_that_cannot_be_written_is_lost_and_its_machine_ends() {
    let bench = Bench::new(22_010);
    let (driver, sprite) = (bench.driver(), bench.sprite());
    driver.start(&sprite).await.unwrap();
    bench.tell("fail-save");
    driver.suspend(&sprite.name).await;
    assert_eq!((bench.has_memory(), bench.alive()), (false, 0));
    assert!(matches!(driver.resume(&sprite.name).await, Err(DriverError::NoGuest)));
    std::fs::remove_file(bench.file("fail-save")).unwrap();
    // Told until somebody decides, whichever owner asks.
    for driver in [&driver, &bench.driver()] {
        assert!(driver.adopt(&sprite).await.is_none());
        assert!(is_lost(&driver.start(&sprite).await));
    }
    assert_eq!(bench.how(), ["boots"], "nothing began meanwhile");
    driver.end(&sprite.name).await;
    driver.start(&sprite).await.unwrap();
    driver.end(&sprite.name).await;
}

#[tokio::test]
async fn an_owner_that_dies_in_a_save_leaves_a_loss_and_what_a_deleted_sprite_left_is_none() {
    let bench = Bench::new(22_080);
    let (driver, sprite) = (bench.driver(), bench.sprite());
    driver.start(&sprite).await.unwrap();
    driver.suspend(&sprite.name).await;
    // As far as it had come: the mark is there, the label is not.
    std::fs::rename(bench.file("memory.json"), bench.file("label")).unwrap();
    std::fs::write(bench.file("memory.lost"), "1").unwrap();
    assert!(is_lost(&bench.driver().start(&sprite).await));

    // The name was given to another sprite: neither the mark nor the memory is of its own.
    let namesake = SpriteSpec { generation: 2, ..sprite };
    driver.start(&namesake).await.unwrap();
    driver.end(&namesake.name).await;
    std::fs::write(bench.file("memory"), "booted by nobody").unwrap();
    std::fs::rename(bench.file("label"), bench.file("memory.json")).unwrap();
    let driver = bench.driver();
    assert!(driver.adopt(&namesake).await.is_none());
    let started = driver.start(&namesake).await.unwrap();
    assert_ne!(asked(started.address).await, "booted by nobody");
    assert_eq!((bench.has_memory(), bench.alive()), (false, 1));
    driver.end(&namesake.name).await;
}

fn is_lost(started: &Result<Started, DriverError>) -> bool {
    matches!(started, Err(DriverError::MemoryLost { .. }))
}

#[tokio::test]
async fn a_memory_that_does_not_load_or_fit_is_lost_and_once_that_is_accepted_the_guest_boots() {
    let bench = Bench::new(22_020);
    let (driver, sprite) = (bench.driver(), bench.sprite());
    let disk = bench.root.path().join("disk");
    let cut = || std::fs::write(bench.file("memory"), "half").unwrap();
    let spoilers: [(&str, &dyn Fn()); 5] = [
        ("QEMU fails", &|| bench.tell("fail-load")),
        ("it is not whole", &cut),
        ("a disk was changed", &|| std::fs::write(&disk, "another disk").unwrap()),
        ("another QEMU", &|| bench.tell("version")),
        ("its label is broken", &|| std::fs::write(bench.file("memory.json"), "{}").unwrap()),
    ];
    for (what, spoil) in spoilers {
        let started = driver.start(&sprite).await.unwrap();
        let memory = asked(started.address).await;
        driver.suspend(&sprite.name).await;
        spoil();
        let before = bench.begun().len();
        for _ in 0..2 {
            assert!(is_lost(&driver.start(&sprite).await), "{what}");
            assert_eq!((bench.has_memory(), bench.alive()), (false, 0), "{what}");
        }
        driver.end(&sprite.name).await;
        let started = driver.start(&sprite).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_ne!(asked(started.address).await, memory, "{what}");
        assert_eq!(bench.how()[before..], ["waits", "boots"], "{what}");
        assert_eq!((bench.has_memory(), bench.alive()), (false, 1), "{what}");
        let _ = std::fs::remove_file(bench.file("fail-load"));
        driver.end(&sprite.name).await;
    }
}

#[tokio::test]
async fn a_machine_that_ends_while_it_boots_says_why_and_one_that_is_ended_begins_no_more() {
    let bench = Bench::new(22_030);
    let (driver, sprite) = (bench.driver(), bench.sprite());
    bench.tell("dies");
    let error = driver.start(&sprite).await.err().unwrap().to_string();
    assert_eq!(error, "its machine: exit status 1: fake-qemu: the machine is on fire");
    std::fs::remove_file(bench.file("dies")).unwrap();

    bench.tell("silent");
    let start = tokio::spawn(driver.start(&sprite));
    while driver.address(&sprite.name).is_none() || !bench.file("qmp.sock").exists() {
        tokio::time::sleep(LOOK).await;
    }
    driver.end(&sprite.name).await;
    assert!(start.await.unwrap().is_err());
    assert_eq!((bench.alive(), bench.file("machine.json").exists()), (0, false));
}

#[tokio::test]
async fn a_guest_that_is_slow_is_started_all_the_same_and_looked_for_after() {
    let mut bench = Bench::new(22_040);
    bench.boot_wait = Duration::from_millis(1);
    let (driver, sprite) = (bench.driver(), bench.sprite());
    bench.tell("silent");
    let started = driver.start(&sprite).await.unwrap();
    let (name, address) = (sprite.name.clone(), started.address);
    let mut looking = tokio::spawn(Arc::clone(&driver).ready(name, address, true));
    let silent = tokio::time::timeout(Duration::from_millis(300), &mut looking).await;
    assert!(silent.is_err(), "an open port is no answer");
    std::fs::remove_file(bench.file("silent")).unwrap();
    assert_eq!(looking.await.unwrap(), address);
    driver.end(&sprite.name).await;
    assert!(started.exited.await.unwrap().contains("signal 9"));
}

#[tokio::test]
async fn the_next_owner_takes_what_runs_and_what_is_frozen_and_ends_what_is_of_no_use() {
    let bench = Bench::new(22_050);
    let (driver, sprite) = (bench.driver(), bench.sprite());
    assert!(driver.adopt(&sprite).await.is_none(), "there was never one");
    let started = driver.start(&sprite).await.unwrap();
    let memory = asked(started.address).await;

    driver.leave(&sprite.name).await;
    let driver = bench.driver();
    let adopted = driver.adopt(&sprite).await.unwrap();
    let guest = adopted.guest.unwrap();
    assert_eq!((adopted.depth, guest.address), (None, started.address));
    ready(&driver, &guest, false).await;
    assert_eq!(asked(guest.address).await, memory);

    driver.freeze(&sprite.name).await.unwrap();
    driver.leave(&sprite.name).await;
    let driver = bench.driver();
    let adopted = driver.adopt(&sprite).await.unwrap();
    assert_eq!(adopted.depth, Some(Depth::Warm));
    driver.resume(&sprite.name).await.unwrap();
    assert_eq!(asked(started.address).await, memory);

    // Watched, although it is not this owner's child.
    driver.suspend(&sprite.name).await;
    assert_eq!(adopted.guest.unwrap().exited.await.unwrap(), "it ended");

    // Asleep on disk: nothing runs, and the next start goes on from there.
    let driver = bench.driver();
    let adopted = driver.adopt(&sprite).await.unwrap();
    assert!(adopted.depth == Some(Depth::Cold) && adopted.guest.is_none());
    let started = driver.start(&sprite).await.unwrap();
    assert_eq!(asked(started.address).await, memory);

    // One that was begun for an earlier placement.
    driver.leave(&sprite.name).await;
    let driver = bench.driver();
    assert!(driver.adopt(&SpriteSpec { generation: 2, ..sprite }).await.is_none());
    assert_eq!(bench.alive(), 0);
}

#[tokio::test]
async fn a_machine_of_no_sprite_is_ended_and_one_of_a_sprite_is_not() {
    let bench = Bench::new(22_090);
    let (driver, sprite) = (bench.driver(), bench.sprite());
    driver.start(&sprite).await.unwrap();
    driver.leave(&sprite.name).await;
    let driver = bench.driver();
    assert_eq!(driver.end_unowned(BTreeSet::from([sprite.name.clone()])).await, []);
    assert!(driver.adopt(&sprite).await.is_some());
    // Known to the driver, it is somebody's.
    assert_eq!(driver.end_unowned(BTreeSet::new()).await, []);
    assert_eq!(bench.alive(), 1);
    let driver = bench.driver();
    assert_eq!(driver.end_unowned(BTreeSet::new()).await, std::slice::from_ref(&sprite.name));
    assert_eq!((bench.alive(), bench.file("machine.json").exists()), (0, false));
    assert_eq!(driver.end_unowned(BTreeSet::new()).await, []);
}

#[tokio::test]
async fn a_stranger_with_its_number_is_left_alone() {
    let bench = Bench::new(22_060);
    let (driver, sprite) = (bench.driver(), bench.sprite());
    let own = i32::try_from(std::process::id()).unwrap();
    let record = Record { pid: own, started: 1, generation: 1, address: address_of(22_060) };
    write(&bench.file("machine.json"), &record);
    assert!(driver.adopt(&sprite).await.is_none());
    assert!(!bench.file("machine.json").exists());
}

#[tokio::test]
async fn a_machine_that_waited_for_its_memory_when_its_owner_died_has_not_run() {
    let bench = Bench::new(22_070);
    let (driver, sprite) = (bench.driver(), bench.sprite());
    let started = driver.start(&sprite).await.unwrap();
    let memory = asked(started.address).await;
    driver.suspend(&sprite.name).await;
    // As far as it had come: it waits, and the label is there.
    let begun = driver.0.begin(&Arc::new(sprite.clone()), true).await.unwrap();
    drop(begun);
    driver.leave(&sprite.name).await;
    let driver = bench.driver();
    let adopted = driver.adopt(&sprite).await.unwrap();
    assert!(adopted.depth == Some(Depth::Cold) && adopted.guest.is_none());
    assert_eq!((bench.has_memory(), bench.alive()), (true, 0));
    let started = driver.start(&sprite).await.unwrap();
    assert_eq!(asked(started.address).await, memory);
    driver.end(&sprite.name).await;
}

fn write(path: &Path, record: &Record) {
    std::fs::write(path, serde_json::to_vec(record).unwrap()).unwrap();
}
