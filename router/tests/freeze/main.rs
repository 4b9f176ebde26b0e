//! A thread that is stopped in the middle of a write to a table holds up no reader.
//!
//! Writers write without a pause: routes (put, replaced, removed, a table that grows), domains and
//! hosts. One of them at a time is stopped wherever it happens to be, by a signal whose handler does
//! not return until it may; meanwhile each reader must get further by a number of rounds. A lock of
//! any kind on the read path that the writer holds at that moment makes this test end red; but for those of the
//! system's allocator, which has no part in it (`memory.rs`).

mod memory;

use router::access::{Access, Private};
use router::domains::name::DomainName;
use router::domains::row::{CHALLENGE_BYTES, Claim, DomainRow, Holder};
use router::domains::table::{DomainLookup, DomainTable};
use router::hosts::HostTable;
use router::names::SpriteName;
use router::route::{Generation, HostId, HostRow, Route, Tenant};
use router::table::{Lookup, RouteTable};
use std::collections::HashMap;
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

#[global_allocator]
static MEMORY: memory::OfEachThread = memory::OfEachThread;

/// How often each writer is stopped.
const STOPS: usize = 100;
/// Rounds each reader must make while a writer is stopped.
const ROUNDS: u64 = 50;
/// Readers of everything.
const READERS: usize = 2;
/// A reader that makes no round for so long is held up (chosen: a round takes some 10 µs).
const PATIENCE: Duration = Duration::from_secs(20);
/// Names of each table that come and go.
const CHURN: usize = 512;

/// The handler keeps its thread until this is false.
static STOP: AtomicBool = AtomicBool::new(false);
/// A thread is in the handler.
static STOPPED: AtomicBool = AtomicBool::new(false);
/// Which writers are in the middle of a write.
static WRITING: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// Keeps the thread it interrupted. Atomics and nanosleep(2) are all it uses, which a handler may
/// (signal-safety(7)).
extern "C" fn keep(_: libc::c_int) {
    STOPPED.store(true, SeqCst);
    while STOP.load(SeqCst) {
        let a_while = libc::timespec { tv_sec: 0, tv_nsec: 20_000 };
        // SAFETY: a valid timespec, and nothing is to be written back.
        #[allow(unsafe_code)]
        unsafe {
            libc::nanosleep(&raw const a_while, std::ptr::null_mut());
        }
    }
    STOPPED.store(false, SeqCst);
}

/// From now on SIGUSR1 keeps the thread it is sent to.
fn install() {
    let handler: extern "C" fn(libc::c_int) = keep;
    // SAFETY: `keep` is async-signal-safe, and lives as long as the process.
    #[allow(unsafe_code)]
    let before = unsafe { libc::signal(libc::SIGUSR1, handler as *const () as libc::sighandler_t) };
    assert_ne!(before, libc::SIG_ERR);
}

/// Stops one thread; returns when it stands.
fn stop(thread: &JoinHandle<()>) {
    STOP.store(true, SeqCst);
    // SAFETY: the thread has not been joined, so its handle is of a thread.
    #[allow(unsafe_code)]
    let sent = unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
    assert_eq!(sent, 0, "the writer lives");
    until("the writer does not stop", || STOPPED.load(SeqCst));
}

fn let_go() {
    STOP.store(false, SeqCst);
    until("the writer does not go on", || !STOPPED.load(SeqCst));
}

fn until(what: &str, wanted: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !wanted() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

/// Numbers without an order (SplitMix64).
fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

struct Tables {
    routes: RouteTable,
    domains: DomainTable,
    hosts: HostTable,
    over: AtomicBool,
    rounds: [AtomicU64; READERS],
}

fn name(number: usize) -> SpriteName {
    SpriteName::parse(&format!("s{number}")).expect("a name")
}

fn domain(number: usize) -> DomainName {
    DomainName::parse(&format!("d{number}.example")).expect("a domain")
}

/// Of every kind: plain, with a policy that others share, and private, with memory of its own.
fn route(number: usize, generation: u64) -> Route {
    Route {
        generation: Generation(generation),
        host: HostId(1),
        tenant: Tenant::from("t"),
        access: match number % 3 {
            0 => Access::Private(Arc::new(Private::default())),
            _ => Access::Public,
        },
        wake: None,
        ports: if number.is_multiple_of(2) { [].into() } else { [8080].into() },
        client_certificate: None,
        deleted: false,
    }
}

fn row(number: usize) -> DomainRow {
    let claim = Claim {
        tenant: "t".into(),
        sprite: name(number),
        challenge: "c".repeat(CHALLENGE_BYTES),
        claimed_at: 1,
        wildcard: false,
    };
    let holder = Holder { claim, proved_at: 1, missing_since: None, suspended_at: None };
    DomainRow { holder: Some(holder), ..DomainRow::empty() }
}

fn host(number: u32) -> HostRow {
    HostRow {
        papers: None,
        name: format!("host-{number}"),
        number: HostId(number),
        wireguard_key: "k".into(),
        endpoint: ([192, 0, 2, 1], 51820).into(),
        address: std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1),
        spki_pins: vec!["0a".repeat(32)],
    }
}

/// The name with this number is there all the time; the others come and go.
const STEADY: usize = 0;

impl Tables {
    fn new() -> Self {
        let tables = Self {
            routes: RouteTable::new(),
            domains: DomainTable::new(HashMap::new(), &[], &[]),
            hosts: HostTable::new(),
            over: AtomicBool::new(false),
            rounds: std::array::from_fn(|_| AtomicU64::new(0)),
        };
        for number in 0..CHURN {
            tables.routes.apply_put(&name(number), route(number, 1));
            tables.domains.apply_put(domain(number), row(number));
        }
        for number in 0..16 {
            tables.hosts.apply_put(host(number));
        }
        tables.routes.followed().mark_synced();
        tables.domains.followed().mark_synced();
        tables
    }

    /// One write of the `kind`'s table; `turn` grows.
    fn write(&self, kind: usize, turn: u64) {
        let at = (scatter(turn) % CHURN as u64) as usize;
        match kind {
            0 if at != STEADY && turn.is_multiple_of(5) => {
                self.routes.apply_remove(&name(at));
            }
            // A table that grows moves its entries, and shrinks again one by one.
            0 if turn.is_multiple_of(7) => {
                let number = CHURN + (turn % 20_000) as usize;
                {
                    self.routes.apply_put(&name(number), route(number, turn + 2));
                }
            }
            0 => {
                self.routes.apply_put(&name(at), route(at, turn + 2));
            }
            1 if at != STEADY && turn.is_multiple_of(5) => self.domains.apply_remove(&domain(at)),
            1 => self.domains.apply_put(domain(at), row(at)),
            _ if turn.is_multiple_of(5) => self.hosts.apply_remove(&HostId(1 + (at % 15) as u32)),
            _ => self.hosts.apply_put(host((at % 16) as u32)),
        }
    }

    /// Asks each table for what is there, what may be, and what is not.
    fn read(&self, turn: u64, asked: &Asked) {
        let at = (scatter(turn) % CHURN as u64) as usize;
        assert!(matches!(self.routes.lookup(&asked.names[STEADY]), Lookup::Found(_)));
        drop(self.routes.lookup(&asked.names[at]));
        assert_eq!(self.routes.lookup("absent"), Lookup::Unknown);
        assert!(matches!(self.domains.lookup(&asked.domains[STEADY]), DomainLookup::Sprite(_)));
        drop(self.domains.lookup(&asked.domains[at]));
        assert_eq!(self.domains.lookup("absent.example"), DomainLookup::Unknown);
        assert!(self.hosts.lookup(HostId(STEADY as u32)).is_some());
        drop(self.hosts.lookup(HostId(at as u32 % 16)));
        assert!(self.hosts.lookup(HostId(99)).is_none());
    }
}

/// What a request has in its head, made before: a lookup is what is tested.
struct Asked {
    names: Vec<SpriteName>,
    domains: Vec<String>,
}

fn writer(tables: &Arc<Tables>, kind: usize) -> JoinHandle<()> {
    let tables = Arc::clone(tables);
    std::thread::spawn(move || {
        for turn in 0.. {
            if tables.over.load(SeqCst) {
                return;
            }
            WRITING[kind].store(true, SeqCst);
            tables.write(kind, turn);
            WRITING[kind].store(false, SeqCst);
        }
    })
}

fn reader(tables: &Arc<Tables>, number: usize) -> JoinHandle<()> {
    let tables = Arc::clone(tables);
    std::thread::spawn(move || {
        let asked = Asked {
            names: (0..CHURN).map(name).collect(),
            domains: (0..CHURN).map(|number| domain(number).to_string()).collect(),
        };
        for turn in 0.. {
            if tables.over.load(SeqCst) {
                return;
            }
            tables.read(turn, &asked);
            tables.rounds[number].fetch_add(1, SeqCst);
        }
    })
}

/// Whether every reader gets on by [`ROUNDS`].
fn readers_get_on(tables: &Tables) -> bool {
    let rounds = || [0, 1].map(|number: usize| tables.rounds[number].load(SeqCst));
    let (before, end) = (rounds(), Instant::now() + PATIENCE);
    while Instant::now() < end {
        if rounds().iter().zip(before).all(|(now, before)| now - before >= ROUNDS) {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

#[test]
fn a_writer_that_is_stopped_in_the_middle_of_a_write_holds_up_no_reader() {
    install();
    let tables = Arc::new(Tables::new());
    let writers: Vec<_> = (0..WRITING.len()).map(|kind| writer(&tables, kind)).collect();
    let readers: Vec<_> = (0..READERS).map(|number| reader(&tables, number)).collect();
    assert!(readers_get_on(&tables), "the readers do not begin");
    let (in_the_middle, mut held_up) = ([const { AtomicUsize::new(0) }; 3], None);
    'stops: for round in 0..STOPS as u64 {
        for (kind, thread) in writers.iter().enumerate() {
            // Somewhere in what it is doing: up to 100 µs after it was let go.
            let later = Instant::now() + Duration::from_nanos(scatter(round * 3 + kind as u64) % 100_000);
            while Instant::now() < later {
                std::hint::spin_loop();
            }
            stop(thread);
            in_the_middle[kind].fetch_add(usize::from(WRITING[kind].load(SeqCst)), SeqCst);
            let get_on = readers_get_on(&tables);
            let_go();
            if !get_on {
                held_up = Some((kind, round));
                break 'stops;
            }
        }
    }
    tables.over.store(true, SeqCst);
    for thread in writers.into_iter().chain(readers) {
        thread.join().expect("nobody was told anything wrong");
    }
    assert_eq!(held_up, None, "readers stand while the writer (0 routes, 1 domains, 2 hosts) is stopped");
    let in_the_middle = in_the_middle.map(|count| count.load(SeqCst));
    assert!(in_the_middle.iter().all(|&count| count >= STOPS / 2), "hardly ever in a write: {in_the_middle:?}");
}
