//! wake.md, test 10: an hour of a browser that nobody looks at. Its sprite fell asleep under its
//! socket; it comes back by itself again and again, as each library does it, and causes at most
//! one wake. Somebody who comes back to the page wakes it at once.
//!
//! Holds, owner and damping are the real ones, in virtual time; the browser is ours. The same on
//! real sockets, for a few seconds: `tests/e2e/reconnects.rs`.

use super::chances::Chances;
use super::scenarios::{PATIENCE, ms, served};
use super::world::World;
use backhaul::wire::Lease;
use router::names::SpriteName;
use router::route::HostId;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use wakeup::hold::{Damping, SocketKey};
use wakeup::spec::StateName;

const HOST: HostId = HostId(0);
const HOUR: Duration = Duration::from_secs(3_600);
/// Open sockets without data keep a sprite awake for so long (`wake.md` §8).
const SILENCE: Duration = Duration::from_secs(900);

/// How long a client waits before its next try: which try in a row it is, what it was told.
type Pause = fn(u32, Duration) -> Duration;

const CLIENTS: [(&str, Pause); 5] = [
    ("every 3 s, whatever it is told", |_, _| Duration::from_secs(3)),
    ("1 s doubling to 30 s", |tries, _| Duration::from_secs(1 << tries.min(5)).min(Duration::from_secs(30))),
    ("5 s doubling to 10 min", |tries, _| Duration::from_secs(5 << tries.min(7)).min(Duration::from_secs(600))),
    ("as it is told", |_, told| told),
    ("a closed laptop, opened after 25 min", |_, _| Duration::from_secs(1_500)),
];

/// A browser with one page, on one edge.
struct Browser {
    world: World,
    damping: Damping,
    key: SocketKey,
    name: SpriteName,
    /// Its socket is open, and said something last.
    open: Option<Instant>,
    /// Whether the end of its socket leaves a mark.
    marks: bool,
}

impl Browser {
    /// With its page and its socket open, on a sprite that was just woken for it.
    fn new(marks: bool) -> Self {
        let mut world = World::new(17, Chances { delay_ms: 40, ..Chances::calm() });
        let name = world.name(0);
        let key = SocketKey::new(Ipv4Addr::new(192, 0, 2, 7).into(), 1, name.clone());
        let page = world.request(0, &name, 1, PATIENCE);
        world.run_for(ms(3_000));
        assert_eq!(served(&world, &[page]), 1);
        let open = Some(world.now);
        Self { world, damping: Damping::default(), key, name, open, marks }
    }

    fn run(&self) -> u64 {
        self.world.owners[0].core.status(&self.name, self.world.now).expect("it is known").run
    }

    /// A second passes. While its socket is open its edge says so; when the sprite is put to
    /// sleep the edge closes it and remembers whose it was.
    fn second(&mut self) {
        self.world.run_for(ms(1_000));
        let (now, run) = (self.world.now, self.run());
        let Some(said) = self.open else { return };
        let runs = self.world.state(&self.name) == StateName::Running;
        let quiet_ms = (now - said).as_millis() as u32;
        let open = u32::from(runs);
        let lease = Lease { sprite: self.name.as_str().into(), run, open, sockets: open, quiet_ms };
        let session = self.world.edges[0].sessions[0];
        self.world.owner(HOST).core.handle_lease(now, session, &lease);
        self.world.settle();
        if !runs {
            self.open = None;
            if self.marks {
                self.damping.mark(now, self.key.clone());
            }
        }
    }

    /// How many seconds pass until its socket is closed by its sprite's sleep.
    fn until_closed(&mut self) -> Duration {
        let began = self.world.now;
        while self.open.is_some() {
            self.second();
            assert!(self.world.now - began < SILENCE * 2, "it does not sleep");
        }
        self.world.now - began
    }

    /// What its edge makes of a request of it, as `edge-proxy/src/asleep.rs` does.
    fn tries(&mut self, socket: bool) -> Result<(), Duration> {
        let now = self.world.now;
        let runs = self.world.state(&self.name) == StateName::Running;
        if !runs {
            let holds = &self.world.edges[0].holds;
            self.damping.arrives(now, &self.key, socket, || holds.is_waking(&self.name))?;
        }
        let id = self.world.request(0, &self.name, 1, PATIENCE);
        let end = self.world.now + ms(3_000);
        while !self.world.ended.contains_key(&id) && self.world.now < end {
            self.world.run_for(ms(100));
        }
        assert_eq!(served(&self.world, &[id]), 1, "{:?}", self.world.ended.get(&id));
        if socket {
            self.open = Some(self.world.now);
        }
        Ok(())
    }

    /// An hour of tries; how often they woke it.
    fn hour(&mut self, pause: Pause) -> u64 {
        let (end, before) = (self.world.now + HOUR, self.run());
        let (mut tries, mut next) = (0, self.world.now + pause(0, Duration::ZERO));
        while self.world.now < end {
            let open = self.open.is_some();
            self.second();
            if open && self.open.is_none() {
                (tries, next) = (0, self.world.now + pause(0, Duration::ZERO));
            }
            if self.open.is_none() && self.world.now >= next {
                let told = self.tries(true).err();
                tries += 1;
                next = self.world.now + pause(tries, told.unwrap_or_default());
            }
        }
        self.run() - before
    }
}

#[test]
fn a_browser_that_reconnects_for_an_hour_wakes_at_most_once_and_a_visit_at_once() {
    for (client, pause) in CLIENTS {
        let mut browser = Browser::new(true);
        assert!(browser.until_closed() >= SILENCE - ms(5_000), "{client}: its socket kept it awake");
        let woken = browser.hour(pause);
        println!("{client}: woken {woken} times in an hour");
        assert!(woken <= 1, "{client}: woken {woken} times");
        browser.open = None;
        while browser.world.state(&browser.name) != StateName::Asleep {
            browser.second();
        }
        // Somebody looks at it again.
        let before = browser.run();
        assert_eq!(browser.tries(false), Ok(()), "{client}: a navigation");
        assert_eq!(browser.run(), before + 1, "{client}");
        assert_eq!(browser.tries(true), Ok(()), "{client}: the socket of its page");
    }
}

#[test]
fn without_a_mark_a_browser_that_nobody_looks_at_keeps_its_sprite_awake() {
    let mut browser = Browser::new(false);
    browser.until_closed();
    assert!(browser.hour(CLIENTS[0].1) > 2);
}
