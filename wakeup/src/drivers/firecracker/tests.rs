use super::super::http_client::{Call, HttpClient};
use super::*;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use tempfile::TempDir;

const VMM: &str = include_str!("fake_vmm.py");

struct Bench {
    directory: TempDir,
    settings: Settings,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("vmm");
        std::fs::write(&program, VMM).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        for file in ["kernel", "disk"] {
            std::fs::write(directory.path().join(file), file).unwrap();
        }
        let timeout = Duration::from_secs(30);
        Self { directory, settings: Settings { program, timeout, ..config::Drivers::default().firecracker } }
    }

    fn driver(&self) -> FirecrackerDriver {
        FirecrackerDriver::new(self.settings.clone(), self.directory.path().join("sprites"), 1 << 20)
    }

    /// Each machine has an address of the loopback network for itself.
    fn spec(&self) -> SpriteSpec {
        let [a, b, c] = rand::random::<[u8; 3]>().map(|byte| byte.clamp(1, 254));
        let (address, port) = (format!("127.{a}.{b}.{c}"), 18_080);
        let machine = json!({
            "kernel": self.path("kernel"), "rootfs": self.path("disk"), "boot_args": format!("guest={address}:{port}"),
            "vcpus": 2, "memory_mib": 256, "tap": "tap7", "mac": "06:00:AC:10:00:02",
            "guest_address": address, "port": port,
        });
        let driver = DriverSpec::Firecracker(serde_json::from_value(machine).unwrap());
        SpriteSpec::new(SpriteName::parse("a").unwrap(), 3, driver)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn own(&self) -> PathBuf {
        self.path("sprites/a/firecracker")
    }

    /// Each request since the last call, without the looks; all of them were fine.
    fn asked(&self) -> Vec<(String, Value)> {
        let path = self.own().join("requests.log");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(&path, "").unwrap();
        let lines =
            text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).filter(|line| line[1] != "GET");
        let lines = lines.inspect(|line| assert_eq!(line[4], 204, "{line}"));
        lines
            .map(|line| (format!("{} {}", line[1].as_str().unwrap(), line[2].as_str().unwrap()), line[3].clone()))
            .collect()
    }

    fn steps(&self) -> Vec<String> {
        self.asked().into_iter().map(|(step, _)| step).collect()
    }
}

impl Drop for Bench {
    /// A test that fails leaves no VMM behind.
    fn drop(&mut self) {
        let record = std::fs::read_to_string(self.own().join("vmm")).unwrap_or_default();
        if let Some(leader) = super::super::process::recorded_leader(&record) {
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
    }
}

const BOOT: [&str; 5] =
    ["PUT /machine-config", "PUT /boot-source", "PUT /drives/rootfs", "PUT /network-interfaces/eth0", "PUT /actions"];

/// What the guest says: how often it was asked in its life.
async fn says(driver: &FirecrackerDriver, spec: &SpriteSpec) -> String {
    let address = driver.address(&spec.name).unwrap();
    let ready = Arc::new(driver.clone()).ready(spec.name.clone(), address, true);
    let address = tokio::time::timeout(Duration::from_secs(60), ready).await.unwrap();
    let client = HttpClient::url(&format!("http://{address}/").parse().unwrap(), None).unwrap();
    let within = Duration::from_secs(20);
    let call = Call { method: http::Method::GET, path: "/", headers: &[], body: None, within };
    String::from_utf8(client.call(call).await.unwrap().body.to_vec()).unwrap()
}

#[tokio::test]
async fn it_boots_a_machine_as_the_api_wants_it() {
    let bench = Bench::new();
    let (driver, spec) = (bench.driver(), bench.spec());
    let started = driver.start(&spec).await.unwrap();
    assert_eq!(says(&driver, &spec).await, "asked 1 times\n");
    assert_eq!(driver.address(&spec.name), Some(started.address));
    let boot_args = format!("guest={}", started.address);
    let expected = [
        json!({ "vcpu_count": 2, "mem_size_mib": 256 }),
        json!({ "kernel_image_path": bench.path("kernel"), "boot_args": boot_args }),
        json!({
            "drive_id": "rootfs", "path_on_host": bench.path("disk"),
            "is_root_device": true, "is_read_only": false, "cache_type": "Writeback",
        }),
        json!({ "iface_id": "eth0", "host_dev_name": "tap7", "guest_mac": "06:00:AC:10:00:02" }),
        json!({ "action_type": "InstanceStart" }),
    ];
    assert_eq!(bench.asked(), BOOT.map(str::to_owned).into_iter().zip(expected).collect::<Vec<_>>());
    assert_eq!(std::fs::read_to_string(bench.path("sprites/a/output.log")).unwrap(), "the VMM begins\n");
    driver.end(&spec.name).await;
    assert_eq!(started.exited.await.unwrap(), "killed by signal 9");
    assert!(!bench.own().join("vmm").exists());
}

#[tokio::test]
async fn frozen_it_keeps_its_memory_and_continues() {
    let bench = Bench::new();
    let (driver, spec) = (bench.driver(), bench.spec());
    let name = &spec.name;
    driver.start(&spec).await.unwrap();
    says(&driver, &spec).await;
    bench.asked();
    driver.freeze(name).await.unwrap();
    driver.freeze(name).await.unwrap();
    driver.resume(name).await.unwrap();
    assert_eq!(says(&driver, &spec).await, "asked 2 times\n");
    let vm = |state: &str| ("PATCH /vm".to_owned(), json!({ "state": state }));
    assert_eq!(bench.asked(), [vm("Paused"), vm("Paused"), vm("Resumed")]);
    driver.end(name).await;
    assert!(matches!(driver.freeze(name).await, Err(DriverError::NoGuest)));
}

#[tokio::test]
async fn asleep_its_memory_is_on_disk_and_good_for_one_start() {
    let bench = Bench::new();
    let (driver, spec) = (bench.driver(), bench.spec());
    let name = &spec.name;
    driver.start(&spec).await.unwrap();
    says(&driver, &spec).await;
    bench.asked();
    driver.suspend(name).await;
    let (own, folder) = (bench.own(), |name: &str| bench.own().join(name));
    let create = json!({
        "snapshot_type": "Full",
        "snapshot_path": own.join("next/state"), "mem_file_path": own.join("next/memory"),
    });
    let paused = ("PATCH /vm".to_owned(), json!({ "state": "Paused" }));
    assert_eq!(bench.asked(), [paused, ("PUT /snapshot/create".to_owned(), create)]);
    assert!(folder("snapshot").exists() && !folder("next").exists() && !folder("vmm").exists());

    driver.start(&spec).await.unwrap();
    let load = json!({
        "snapshot_path": own.join("claimed/state"),
        "mem_backend": { "backend_type": "File", "backend_path": own.join("claimed/memory") },
        "resume_vm": true,
    });
    assert_eq!(bench.asked(), [("PUT /snapshot/load".to_owned(), load)]);
    assert_eq!(says(&driver, &spec).await, "asked 2 times\n");
    assert!(!folder("snapshot").exists() && !folder("claimed").exists());
    // It dies: its disk has gone on, so it boots.
    let started = driver.start(&spec).await.unwrap();
    assert_eq!(bench.steps(), BOOT);
    assert_eq!(says(&driver, &spec).await, "asked 1 times\n");
    drop(started);
    // Ended for good, nothing of it is left.
    driver.suspend(name).await;
    driver.end(name).await;
    assert!(!folder("snapshot").exists());
    driver.start(&spec).await.unwrap();
    assert_eq!(says(&driver, &spec).await, "asked 1 times\n");
    driver.end(name).await;
}

#[tokio::test]
async fn a_memory_that_cannot_be_loaded_or_is_of_an_earlier_placement_is_not_kept() {
    let bench = Bench::new();
    let (driver, spec) = (bench.driver(), bench.spec());
    driver.start(&spec).await.unwrap();
    says(&driver, &spec).await;
    driver.suspend(&spec.name).await;
    std::fs::write(bench.own().join("snapshot/state"), "not one").unwrap();
    std::fs::write(bench.own().join("requests.log"), "").unwrap();
    // Told until somebody decides, whichever owner asks.
    let next = bench.driver();
    for driver in [&driver, &next] {
        assert!(matches!(driver.start(&spec).await, Err(DriverError::MemoryLost { .. })));
    }
    next.end(&spec.name).await;
    driver.start(&spec).await.unwrap();
    assert_eq!(says(&driver, &spec).await, "asked 1 times\n");
    let log = std::fs::read_to_string(bench.own().join("requests.log")).unwrap();
    let loads: Vec<_> = log.lines().filter(|line| line.contains("/snapshot/load")).collect();
    assert!(loads.len() == 1 && loads[0].ends_with("400]"), "{log}");
    std::fs::write(bench.own().join("requests.log"), "").unwrap();
    driver.suspend(&spec.name).await;
    bench.asked();
    let moved = SpriteSpec { generation: 5, ..spec };
    assert!(driver.adopt(&moved).await.is_none());
    driver.start(&moved).await.unwrap();
    assert_eq!(bench.steps(), BOOT);
    driver.end(&moved.name).await;
    assert!(!bench.own().join("snapshot").exists());
}

#[tokio::test]
async fn a_new_owner_finds_a_machine_as_it_is() {
    let bench = Bench::new();
    let (old, spec) = (bench.driver(), bench.spec());
    let name = &spec.name;
    assert!(old.adopt(&spec).await.is_none());
    old.start(&spec).await.unwrap();
    says(&old, &spec).await;
    old.leave(name).await;

    let next = bench.driver();
    let adopted = next.adopt(&spec).await.unwrap();
    assert_eq!(adopted.depth, None);
    assert_eq!(says(&next, &spec).await, "asked 2 times\n");
    next.freeze(name).await.unwrap();
    next.leave(name).await;

    let third = bench.driver();
    let adopted = third.adopt(&spec).await.unwrap();
    assert_eq!(adopted.depth, Some(Depth::Warm));
    third.suspend(name).await;
    assert_eq!(adopted.guest.unwrap().exited.await.unwrap(), "the VMM ended");

    let fourth = bench.driver();
    let adopted = fourth.adopt(&spec).await.unwrap();
    assert!(adopted.depth == Some(Depth::Cold) && adopted.guest.is_none());
    fourth.start(&spec).await.unwrap();
    assert_eq!(says(&fourth, &spec).await, "asked 3 times\n");
    fourth.end(name).await;
    assert!(bench.driver().adopt(&spec).await.is_none());
}

#[tokio::test]
async fn a_vmm_of_no_sprite_is_ended_and_one_of_a_sprite_is_not() {
    let bench = Bench::new();
    let (old, spec) = (bench.driver(), bench.spec());
    old.start(&spec).await.unwrap();
    old.leave(&spec.name).await;
    let next = bench.driver();
    assert_eq!(next.end_unowned(BTreeSet::from([spec.name.clone()])).await, []);
    assert!(next.adopt(&spec).await.is_some());
    assert_eq!(next.end_unowned(BTreeSet::new()).await, []);
    says(&next, &spec).await;
    assert_eq!(bench.driver().end_unowned(BTreeSet::new()).await, std::slice::from_ref(&spec.name));
    assert!(!bench.own().join("vmm").exists());
    assert_eq!(bench.driver().end_unowned(BTreeSet::new()).await, []);
}

#[tokio::test]
async fn what_keeps_it_from_starting_is_told_and_nothing_is_left() {
    let mut bench = Bench::new();
    let spec = bench.spec();
    std::fs::remove_file(bench.path("kernel")).unwrap();
    let driver = bench.driver();
    let error = driver.start(&spec).await.err().unwrap().to_string();
    assert!(error.contains("the VMM did not boot it: 400 The kernel file cannot be opened"), "{error}");
    assert!(driver.0.lock()[&spec.name].vmm.as_ref().unwrap().is_gone());

    bench.settings.program = bench.path("no-such-vmm");
    let error = bench.driver().start(&spec).await.err().unwrap();
    assert!(error.to_string().contains("drivers.firecracker.program"), "{error}");
    bench.settings.program = "false".into();
    let error = bench.driver().start(&spec).await.err().unwrap().to_string();
    assert!(error.contains("ended at once"), "{error}");
}

#[tokio::test]
async fn an_end_during_a_start_leaves_nothing_running() {
    let mut bench = Bench::new();
    // It never opens its socket.
    std::fs::write(&bench.settings.program, "#!/bin/sh\necho begun\nexec sleep 1000\n").unwrap();
    bench.settings.timeout = Duration::from_secs(600);
    let (driver, spec) = (bench.driver(), bench.spec());
    let start = tokio::spawn(driver.start(&spec));
    while driver.0.vmm(&spec.name).is_none() {
        tokio::task::yield_now().await;
    }
    let vmm = driver.0.vmm(&spec.name).unwrap();
    driver.end(&spec.name).await;
    assert!(vmm.is_gone());
    assert!(start.await.unwrap().is_err());
    assert!(driver.0.lock().is_empty());
}
