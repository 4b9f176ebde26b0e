//! Driver `qemu`: a real virtual machine, with a counter that only its memory holds.

use harness::demo::Leftovers;
use harness::vm::Counted;
use harness::{Demo, Options, processes, tools, until};
use router::store::EmbeddedStore;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

/// Something the machine or its owner has begun.
const SOON: Duration = Duration::from_secs(30);
const COUNT: &str = "/cgi-bin/count";

/// A port nobody listens on. The guest's own is forwarded at an address of its own, so only a
/// listener on all addresses could be in its way.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn a_machine_keeps_its_memory_through_both_sleeps_and_no_memory_is_loaded_twice() {
    let _quiet = tools::quiet().await;
    let demo = Demo::new().await;
    let port = free_port();
    demo.create_vm("vm", port, "").await;
    let began = Instant::now();
    let mut last = Counted::of(&demo.boot("vm").await);
    eprintln!("cold boot to the first answer: {:?}", began.elapsed());
    let memory = demo.data().join("sprites/vm");

    for (depth, kind) in [("warm", "warm"), ("cold", "cold"), ("warm", "warm"), ("cold", "cold")] {
        let began = Instant::now();
        match depth {
            "warm" => demo.sleep_warm("vm").await,
            _ => demo.sleep_cold("vm").await,
        }
        eprintln!("{depth} sleep: {:?}", began.elapsed());
        assert_eq!(demo.machines("vm").len(), usize::from(depth == "warm"), "cold is nothing in memory");
        assert_eq!(memory.join("memory.json").exists(), depth == "cold");
        let began = Instant::now();
        let answer = demo.get("vm", COUNT).await;
        eprintln!("{depth} wake to the first answer: {:?}", began.elapsed());
        assert_eq!((answer.status, answer.header("sprite-wake")), (200, kind), "{answer:?}");
        assert_eq!(Counted::of(&answer), last.next(), "its memory stayed");
        assert!(!memory.join("memory.json").exists() && !memory.join("memory").exists(), "it was used up");
        last = last.next();
    }

    // A port it declared is held like its own: it answers the first time.
    demo.sleep_cold("vm").await;
    let second = demo.get(&format!("{port}--vm"), COUNT).await;
    assert_eq!(Counted::of(&second), last.next());

    // One that was changed meanwhile is not loaded: the disk is what is left, and that is said.
    demo.sleep_cold("vm").await;
    let cut = || {
        let file = std::fs::OpenOptions::new().write(true).open(memory.join("memory")).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length / 2).unwrap();
    };
    cut();
    let before = demo.receipts("vm").await.len();
    let booted = Counted::of(&demo.boot("vm").await);
    assert_ne!(booted.boot, last.boot);
    assert_eq!(demo.receipts("vm").await[before]["lost_memory"], true);
    assert!(demo.log().contains("its memory is lost"), "{}", demo.log());
    assert!(!memory.join("memory.json").exists() && !memory.join("memory").exists());

    // Where its people want to decide about that, no visitor boots it; they do.
    demo.admin(&["sprite", "limits", "vm", "--refuse-lossy", "true"]).await;
    demo.sleep_cold("vm").await;
    cut();
    for _ in 0..2 {
        let refused = demo.get("vm", COUNT).await;
        assert_eq!((refused.status, &refused.json()["code"]), (503, &"wake_refused_lossy".into()), "{refused:?}");
        assert!(demo.machines("vm").is_empty());
    }
    let woken = demo.try_admin(&["sprite", "wake", "vm"]).await;
    eprintln!("woken by its people: {}", String::from_utf8_lossy(&woken.stdout));
    assert_ne!(Counted::of(&demo.boot("vm").await).boot, booted.boot);

    // Destroyed, nothing of it is left.
    demo.sleep_cold("vm").await;
    demo.admin(&["sprite", "delete", "vm"]).await;
    until("its memory to be gone", SOON, async || (!memory.join("memory").exists()).then_some(())).await;
    demo.stop().await;
}

#[tokio::test]
async fn a_new_owner_takes_the_machine_of_one_that_is_gone() {
    let _quiet = tools::quiet().await;
    let demo = Demo::new().await;
    let _leftovers = Leftovers(demo.keep_data());
    demo.create_vm("vm", free_port(), "").await;
    let mut last = Counted::of(&demo.boot("vm").await);
    let machine = demo.machines("vm");
    assert_eq!(machine.len(), 1);
    let again = |data| Demo::start(Options { data: Some(data), ..Options::default() });

    // Killed while it runs.
    let demo = again(demo.crash()).await;
    assert_eq!(demo.row("vm").await["state"], "running");
    assert_eq!(Counted::of(&demo.get("vm", COUNT).await), last.next());
    last = last.next();

    // Killed while it is frozen.
    demo.sleep_warm("vm").await;
    let demo = again(demo.crash()).await;
    let row = demo.row("vm").await;
    assert_eq!((&row["state"], &row["warmth"]), (&"asleep".into(), &"warm".into()), "{row}");
    let answer = demo.get("vm", COUNT).await;
    assert_eq!((Counted::of(&answer), answer.header("sprite-wake")), (last.next(), "warm"));
    last = last.next();

    // Ended in order: the machine goes on.
    let demo = again(demo.leave().await).await;
    assert_eq!(Counted::of(&demo.get("vm", COUNT).await), last.next());
    last = last.next();
    assert_eq!(demo.machines("vm"), machine, "the same process all the time");

    // Killed while it sleeps cold.
    demo.sleep_cold("vm").await;
    let demo = again(demo.crash()).await;
    let answer = demo.get("vm", COUNT).await;
    assert_eq!((Counted::of(&answer), answer.header("sprite-wake")), (last.next(), "cold"));

    // What was adopted is watched: its end is seen though it is nobody's child here.
    let demo = again(demo.crash()).await;
    assert_eq!(demo.get("vm", COUNT).await.status, 200);
    for pid in demo.machines("vm") {
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    let row = demo.wait_state("vm", "asleep").await;
    assert_eq!(row["warmth"], "cold", "{row}");
    demo.stop().await;
}

#[tokio::test]
async fn a_machine_whose_delete_was_cut_short_is_ended_at_the_next_start() {
    let _quiet = tools::quiet().await;
    let demo = Demo::new().await;
    let _leftovers = Leftovers(demo.keep_data());
    demo.create_vm("vm", free_port(), "").await;
    demo.boot("vm").await;
    let store = demo.data().join("store.redb");
    let data = demo.crash();
    // As far as a delete comes before it ends the guest: the definition is gone.
    let store = EmbeddedStore::open(&store).unwrap();
    let spec = store.get("spec/vm").unwrap().unwrap();
    store.compare_and_set("spec/vm", Some(spec.version), None).unwrap();
    drop(store);
    let demo = Demo::start(Options { data: Some(data), ..Options::default() }).await;
    assert!(demo.machines("vm").is_empty());
    assert_eq!(demo.log().matches("ending a machine that belongs to no sprite").count(), 1, "{}", demo.log());
    demo.stop().await;
}

#[tokio::test]
async fn a_machine_that_ends_is_asleep_and_one_that_cannot_boot_says_why() {
    let _quiet = tools::quiet().await;
    let demo = Demo::new().await;
    demo.create_vm("vm", free_port(), "").await;
    let first = Counted::of(&demo.boot("vm").await);
    assert_eq!(demo.get("vm", "/cgi-bin/off").await.status, 200);
    let row = demo.wait_state("vm", "asleep").await;
    assert_eq!(row["warmth"], "cold", "{row}");
    assert!(demo.machines("vm").is_empty());
    let second = Counted::of(&demo.boot("vm").await);
    assert_eq!(second.count, 1);
    assert_ne!(second.boot, first.boot);
    let console = std::fs::read_to_string(demo.data().join("sprites/vm/output.log")).unwrap();
    assert!(console.contains("guest is up"), "{console}");

    // No init: the kernel gives up.
    demo.create_vm("broken", free_port(), "rdinit=/nowhere").await;
    let cause = demo.why_it_failed("broken").await;
    assert!(cause.contains("machine: exit status"), "{cause}");

    // QEMU's own words when it does not begin.
    let kernel = demo.script("no-kernel", "no kernel");
    let text = format!("[qemu]\nkernel = '{}'\nmachine = 'no-such-machine'\n", kernel.display());
    let file = demo.script("refused.toml", &text);
    demo.admin(&["sprite", "create", "refused", "--public", "--driver", file.to_str().unwrap()]).await;
    let cause = demo.why_it_failed("refused").await;
    assert!(cause.contains("exit status 1") && cause.contains("machine"), "{cause}");

    for name in ["vm", "broken", "refused"] {
        demo.admin(&["sprite", "delete", name]).await;
    }
    until("no machine", SOON, async || demo.machines("vm").is_empty().then_some(())).await;
    assert!(processes::about(&demo.data().join("sprites/broken")).is_empty());
    demo.stop().await;
}

#[tokio::test]
async fn a_description_that_is_wrong_is_refused_by_its_field() {
    let demo = Demo::new().await;
    for (text, says) in [
        ("[qemu]\n", "qemu.kernel: a machine boots a kernel or a disk"),
        ("[qemu]\nkernel = '/no/such/kernel'\n", "qemu.kernel: an absolute path of a file"),
        ("[qemu]\nkernel = '/bin/sh'\nmemory_mib = 1\n", "qemu.memory_mib: 32 to 1048576"),
        ("[qemu]\nkernel = '/bin/sh'\nmemory = 1\n", "unknown field `memory`"),
        ("[qemu]\nkernel = '/bin/sh'\naccel = 'hvf'\n", "unknown variant `hvf`"),
        ("[qemu]\nkernel = '/bin/sh'\ndisks = [{ path = '/bin/sh' }]\n", "missing field `format`"),
    ] {
        let file = demo.script("wrong.toml", text);
        let output = demo.try_admin(&["sprite", "create", "wrong", "--driver", file.to_str().unwrap()]).await;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!output.status.success() && said.contains(says), "{text}: {said}");
    }
}
