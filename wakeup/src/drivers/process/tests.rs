use super::*;
use crate::drivers::probe;
use std::net::TcpListener;

struct Bench {
    driver: ProcessDriver,
    directory: tempfile::TempDir,
    cgroup: config::Cgroup,
    first_port: u16,
}

impl Bench {
    fn new(first_port: u16, cgroup: config::Cgroup) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let driver = ProcessDriver::new(settings(directory.path(), first_port, &cgroup));
        Self { driver, directory, cgroup, first_port }
    }

    /// One whose guests are held by signals and, where that can be, one whose guests have cgroups.
    /// Each test has a range of ports of its own, since tests run side by side.
    fn both(first_port: u16) -> Vec<Self> {
        let signals = Self::new(first_port, config::Cgroup::None);
        std::iter::once(signals).chain(Self::in_cgroups(first_port + 10)).collect()
    }

    /// None, and a word about it, where this machine lets us make none.
    fn in_cgroups(first_port: u16) -> Option<Self> {
        let bench = Self::new(first_port, config::Cgroup::Auto);
        if let Err(reason) = &bench.driver.inner.cgroups {
            eprintln!("SKIPPED: no cgroups for guests here: {reason}");
            return None;
        }
        Some(bench)
    }

    /// Another owner on the same directory.
    fn next(&self) -> ProcessDriver {
        ProcessDriver::new(settings(self.directory.path(), self.first_port, &self.cgroup))
    }

    /// The same, with time for guests that do end by themselves.
    fn patient(&self) -> ProcessDriver {
        let settings = settings(self.directory.path(), self.first_port, &self.cgroup);
        ProcessDriver::new(ProcessSettings { stop_grace: Duration::from_secs(60), ..settings })
    }

    fn spec(&self, name: &str, command: &str) -> SpriteSpec {
        let driver = DriverSpec::Process { command: command.into(), memory_mib: None };
        SpriteSpec::new(SpriteName::parse(name).unwrap(), 1, driver)
    }

    fn group(&self, name: &SpriteName) -> Group {
        self.driver.inner.group(name).unwrap()
    }

    fn file(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// What is in a file of sprite `a` once it is there.
    async fn told(&self, file: &str) -> String {
        let path = self.file("a/data").join(file);
        until(|| std::fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n'))).await.trim().to_owned()
    }
}

impl Group {
    fn is_frozen(&self) -> bool {
        match &self.cgroup {
            Some(cgroup) => std::fs::read_to_string(cgroup.path().join("cgroup.events")).unwrap().contains("frozen 1"),
            None => self.all_are(group::is_held),
        }
    }

    fn goes_on(&self) -> bool {
        match &self.cgroup {
            Some(_) => !self.is_frozen(),
            None => self.all_are(|state| !matches!(state, 'T' | 't')),
        }
    }

    fn all_are(&self, so: impl Fn(char) -> bool) -> bool {
        let members = members_of(self.leader);
        !members.is_empty() && members.iter().all(|(_, state)| so(*state))
    }
}

fn settings(directory: &Path, first_port: u16, cgroup: &config::Cgroup) -> ProcessSettings {
    ProcessSettings {
        directory: directory.into(),
        first_port,
        last_port: first_port + 9,
        stop_grace: Duration::from_millis(500),
        log_bytes: 65536,
        cgroup: cgroup.clone(),
        doors: DoorKeeper::default(),
    }
}

fn lives(pid: &str) -> bool {
    Stat::read(pid.parse().unwrap()).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

const SERVER: &str = "exec python3 -m http.server $PORT --bind 127.0.0.1";

#[tokio::test]
async fn a_frozen_listener_accepts_but_is_not_running_and_continues() {
    for bench in Bench::both(21_000) {
        let spec = bench.spec("a", SERVER);
        let started = bench.driver.start(&spec).await.unwrap();
        probe(started.address).await;
        bench.driver.freeze(&spec.name).await.unwrap();
        // The trap: the kernel accepts for it.
        tokio::net::TcpStream::connect(started.address).await.unwrap();
        let group = bench.group(&spec.name);
        assert!(group.is_frozen());
        bench.driver.resume(&spec.name).await.unwrap();
        assert!(group.goes_on());
        bench.driver.end(&spec.name).await;
        assert!(group.members().is_empty());
    }
}

#[tokio::test]
async fn children_are_frozen_and_ended_with_their_parent() {
    for bench in Bench::both(21_020) {
        let children = "sh -c 'sleep 1000 & sleep 1000' & exec python3 -m http.server $PORT --bind 127.0.0.1";
        let spec = bench.spec("a", children);
        let started = bench.driver.start(&spec).await.unwrap();
        probe(started.address).await;
        let group = bench.group(&spec.name);
        until(|| (group.members().len() >= 3).then_some(())).await;
        bench.driver.freeze(&spec.name).await.unwrap();
        assert!(group.is_frozen());
        bench.driver.end(&spec.name).await;
        assert!(group.members().is_empty());
    }
}

#[tokio::test]
async fn its_directory_survives_and_its_output_is_kept() {
    for bench in Bench::both(21_040) {
        let spec = bench.spec("a", "cat kept 2>/dev/null; echo $SPRITE_NAME > kept; pwd; echo \"$0,$#\"");
        for _ in 0..2 {
            let started = bench.driver.start(&spec).await.unwrap();
            assert_eq!(started.exited.await.unwrap(), "exit status 0");
            bench.driver.end(&spec.name).await;
        }
        let log = bench.file("a/output.log");
        let text = until(|| std::fs::read_to_string(&log).ok().filter(|text| text.matches("sh,0").count() == 2)).await;
        assert!(text.contains("\na\n") || text.contains("data\na"), "{text}");
        // Nothing of the host's is left.
        assert!(!bench.file("a/cgroup").exists() && !bench.file("a/process").exists());
    }
}

#[tokio::test]
async fn an_exit_is_told_at_once_with_its_status() {
    for bench in Bench::both(21_060) {
        let spec = bench.spec("a", "exit 7");
        assert_eq!(bench.driver.start(&spec).await.unwrap().exited.await.unwrap(), "exit status 7");
        let spec = bench.spec("b", "kill -9 $$");
        assert_eq!(bench.driver.start(&spec).await.unwrap().exited.await.unwrap(), "killed by signal 9");
    }
}

#[tokio::test]
async fn a_guest_that_ignores_sigterm_is_killed_and_one_that_is_frozen_hears_it() {
    for bench in Bench::both(21_080) {
        let spec = bench.spec("a", "trap '' TERM; echo yes > armed; while true; do sleep 1000; done");
        let started = bench.driver.start(&spec).await.unwrap();
        bench.told("armed").await;
        let group = bench.group(&spec.name);
        bench.driver.end(&spec.name).await;
        assert!(group.members().is_empty());
        assert_eq!(started.exited.await.unwrap(), "killed by signal 9");

        std::fs::remove_file(bench.file("a/data/armed")).unwrap();
        let spec = bench.spec("a", "trap 'exit 3' TERM; echo yes > armed; while true; do sleep 0.01; done");
        let patient = bench.patient();
        let started = patient.start(&spec).await.unwrap();
        bench.told("armed").await;
        patient.freeze(&spec.name).await.unwrap();
        patient.end(&spec.name).await;
        assert_eq!(started.exited.await.unwrap(), "exit status 3");
    }
}

#[tokio::test]
async fn a_new_owner_ends_the_orphans_of_the_old_one_and_nobody_else() {
    for bench in Bench::both(21_100) {
        let spec = bench.spec("a", "sleep 1000");
        let started = bench.driver.start(&spec).await.unwrap();
        let group = bench.group(&spec.name);
        bench.driver.freeze(&spec.name).await.unwrap();
        // A record whose process id now belongs to somebody else.
        std::fs::create_dir(bench.file("b")).unwrap();
        std::fs::write(bench.file("b/process"), format!("{} 1\n", std::process::id())).unwrap();

        let next = bench.next();
        assert_eq!(next.reap_orphans().await, [spec.name]);
        assert!(group.members().is_empty());
        assert_eq!(started.exited.await.unwrap(), "killed by signal 9");
        assert_eq!(next.reap_orphans().await, []);
    }
}

#[tokio::test]
async fn ports_are_given_once_and_a_strangers_port_is_passed_over() {
    let bench = Bench::new(21_120, config::Cgroup::None);
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
    for bench in Bench::both(21_140) {
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
}

#[tokio::test]
async fn in_a_cgroup_what_leaves_its_group_is_frozen_and_ended_too_and_nothing_of_it_stays() {
    let Some(bench) = Bench::in_cgroups(21_160) else { return };
    let escapes = "setsid sh -c 'echo $$ > escaped; exec sleep 1000' & wait";
    let spec = bench.spec("a", escapes);
    bench.driver.start(&spec).await.unwrap();
    let escaped = bench.told("escaped").await;
    let group = bench.group(&spec.name);
    assert!(group.members().contains(&escaped.parse().unwrap()), "{:?}", group.members());
    bench.driver.freeze(&spec.name).await.unwrap();
    assert!(group.is_frozen() && lives(&escaped));
    let path = std::fs::read_to_string(bench.file("a/cgroup")).unwrap();
    assert!(Path::new(&path).is_dir());
    bench.driver.end(&spec.name).await;
    assert!(!lives(&escaped) && !Path::new(&path).exists() && !bench.file("a/cgroup").exists());

    // A leader that ends takes with it what it left behind, whether that is in its group or not.
    std::fs::remove_file(bench.file("a/data/escaped")).unwrap();
    let leaves = "setsid sh -c 'echo $$ > escaped; exec sleep 1000' & while ! [ -s escaped ]; do sleep 0.01; done";
    let started = bench.driver.start(&bench.spec("a", leaves)).await.unwrap();
    assert_eq!(started.exited.await.unwrap(), "exit status 0");
    assert!(!lives(&bench.told("escaped").await));

    let folder = bench.driver.inner.cgroups.as_ref().unwrap().folder().to_owned();
    assert!(folder.is_dir());
    drop(bench);
    assert!(!folder.exists(), "an owner that ends leaves no folder");
}

#[tokio::test]
async fn a_new_owner_finds_in_cgroups_what_no_record_of_a_process_says() {
    let Some(bench) = Bench::in_cgroups(21_170) else { return };
    let spec = bench.spec("a", "setsid sh -c 'echo $$ > escaped; exec sleep 1000' & wait");
    let started = bench.driver.start(&spec).await.unwrap();
    let escaped = bench.told("escaped").await;
    std::fs::remove_file(bench.file("a/process")).unwrap();
    let path = PathBuf::from(std::fs::read_to_string(bench.file("a/cgroup")).unwrap());

    // An owner that may make no cgroups finds it by its record; a path that is none of ours is
    // not touched.
    std::fs::create_dir_all(bench.file("b")).unwrap();
    std::fs::write(bench.file("b/cgroup"), path.parent().unwrap().join("b/../a").to_str().unwrap()).unwrap();
    let signals = settings(bench.directory.path(), bench.first_port, &config::Cgroup::None);
    assert_eq!(ProcessDriver::new(signals).reap_orphans().await, std::slice::from_ref(&spec.name));
    assert!(!lives(&escaped) && !path.exists());
    assert_eq!(started.exited.await.unwrap(), "killed by signal 9");

    // Without any record it is found where it is.
    std::fs::remove_file(bench.file("a/data/escaped")).unwrap();
    bench.driver.start(&spec).await.unwrap();
    let escaped = bench.told("escaped").await;
    std::fs::remove_dir_all(bench.file("a")).unwrap();
    assert_eq!(bench.next().reap_orphans().await, [spec.name]);
    assert!(!lives(&escaped) && !path.exists());
}

#[tokio::test]
async fn folders_of_owners_that_died_are_removed_and_those_of_others_are_not() {
    let Some(bench) = Bench::in_cgroups(21_180) else { return };
    let folder = bench.driver.inner.cgroups.as_ref().unwrap().folder().to_owned();
    let dead = folder.with_file_name(format!("edge-proxy.dead{:012x}", std::process::id()));
    std::fs::create_dir_all(dead.join("a")).unwrap();
    let other = Bench::in_cgroups(21_185).unwrap();
    assert!(folder.is_dir() && !dead.exists());
    drop(other);
}

#[tokio::test]
async fn a_limit_of_memory_is_kept_or_refused() {
    let limited = |bench: &Bench, command: &str| {
        let driver = DriverSpec::Process { command: command.into(), memory_mib: Some(32) };
        SpriteSpec { driver, ..bench.spec("a", "") }
    };
    let signals = Bench::new(21_190, config::Cgroup::None);
    let refused = signals.driver.start(&limited(&signals, "true")).await.err().unwrap().to_string();
    assert_eq!(refused, "memory_mib: memory cannot be limited on this host: drivers.process.cgroup is \"none\"");
    assert_eq!(signals.driver.check_memory_limit().unwrap_err().to_string(), refused);

    let Some(bench) = Bench::in_cgroups(21_195) else { return };
    // The leader waits for a child that wants too much: both end.
    let spec = limited(&bench, "sh -c 'x=$(head -c 200000000 /dev/zero | tr \\\\0 x)'; sleep 1000");
    if let Err(error) = bench.driver.check_memory_limit() {
        eprintln!("SKIPPED: memory is not limited for real here: {error}");
        assert_eq!(bench.driver.start(&spec).await.err().unwrap().to_string(), error.to_string());
        return;
    }
    let started = bench.driver.start(&spec).await.unwrap();
    let cause = started.exited.await.unwrap();
    assert_eq!(cause, "out of memory: it wanted more than its 32 MiB (memory_mib)");
    let started = bench.driver.start(&limited(&bench, "exit 7")).await.unwrap();
    assert_eq!(started.exited.await.unwrap(), "exit status 7");
}

#[test]
fn what_is_no_cgroup_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let choice = config::Cgroup::At(folder.path().into());
    let refused = Cgroups::set_up(&choice, folder.path()).unwrap_err();
    assert_eq!(refused, format!("{} is no cgroup (v2)", folder.path().display()));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
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
