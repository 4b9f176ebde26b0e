//! A long way for datagrams: each arrives late, and some do not arrive.
//!
//! Real sockets on real threads, outside of every runtime, so that what is under test is not
//! what delays. In order, as one path of a network mostly is.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Datagrams on their way in one direction (chosen: some 5 MiB); further ones are dropped and
/// counted.
const ON_THE_WAY_MAX: usize = 4_096;
/// How often a thread that hears nothing looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Largest datagram, bytes.
const DATAGRAM_MAX: usize = 65_535;

/// Passes datagrams between whoever sends to it and one address. Ends when it is dropped.
pub struct Relay {
    address: SocketAddr,
    facts: Arc<Facts>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Facts {
    ends: AtomicBool,
    lost_per_thousand: AtomicU32,
    passed: AtomicU64,
    lost: AtomicU64,
    overflowed: AtomicU64,
}

/// Whom an end answers: known from the start, or the last who spoke.
type Peer = Arc<Mutex<Option<SocketAddr>>>;

impl Relay {
    /// Starts one to `to` that takes `one_way` in each direction and loses nothing yet. `seed`
    /// says which datagrams are lost once some are.
    ///
    /// # Panics
    /// Without a socket or a thread.
    #[must_use]
    pub fn start(to: SocketAddr, one_way: Duration, seed: u64) -> Self {
        let bind = || {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
            socket.set_read_timeout(Some(LOOK)).expect("a timeout that is not zero");
            Arc::new(socket)
        };
        let (near, far) = (bind(), bind());
        let address = near.local_addr().expect("it is bound");
        let facts = Arc::<Facts>::default();
        let (caller, host) = (Peer::default(), Arc::new(Mutex::new(Some(to))));
        let mut threads = Vec::new();
        for (at, (ear, mouth, speaks, hears)) in
            [(&near, &far, Some(&caller), &host), (&far, &near, None, &caller)].into_iter().enumerate()
        {
            let (sender, receiver) = sync_channel(ON_THE_WAY_MAX);
            let way = Direction {
                ear: Arc::clone(ear),
                speaks: speaks.cloned(),
                one_way,
                facts: Arc::clone(&facts),
                rng: StdRng::seed_from_u64(seed * 2 + at as u64),
            };
            let (mouth, hears) = (Arc::clone(mouth), Arc::clone(hears));
            threads.push(std::thread::spawn(move || way.listen(&sender)));
            threads.push(std::thread::spawn(move || deliver(&receiver, &mouth, &hears)));
        }
        Self { address, facts, threads }
    }

    /// Where to send to.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on so many of a thousand are lost, in each direction.
    pub fn lose(&self, per_thousand: u32) {
        self.facts.lost_per_thousand.store(per_thousand, Ordering::Relaxed);
    }

    /// Datagrams that were passed on, were lost on purpose, and found no room.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.facts.passed), of(&self.facts.lost), of(&self.facts.overflowed))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.facts.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so already.
            drop(thread.join());
        }
    }
}

struct Direction {
    ear: Arc<UdpSocket>,
    speaks: Option<Peer>,
    one_way: Duration,
    facts: Arc<Facts>,
    rng: StdRng,
}

impl Direction {
    fn listen(mut self, onward: &SyncSender<(Instant, Vec<u8>)>) {
        let mut buffer = vec![0; DATAGRAM_MAX];
        while !self.facts.ends.load(Ordering::Relaxed) {
            // Silence, or the word that the other end is not there (yet).
            let Ok((length, from)) = self.ear.recv_from(&mut buffer) else { continue };
            let due = Instant::now() + self.one_way;
            if let Some(speaks) = &self.speaks {
                *speaks.lock().expect("nobody panics with it") = Some(from);
            }
            let count = if self.rng.random_range(0..1000) < self.facts.lost_per_thousand.load(Ordering::Relaxed) {
                &self.facts.lost
            } else if onward.try_send((due, buffer[..length].to_vec())).is_err() {
                &self.facts.overflowed
            } else {
                &self.facts.passed
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Sends each when it is due. All take the same time, so the first in is the first out.
#[expect(clippy::disallowed_methods, reason = "a thread of its own, which does nothing else")]
fn deliver(due: &Receiver<(Instant, Vec<u8>)>, mouth: &UdpSocket, to: &Peer) {
    while let Ok((at, datagram)) = due.recv() {
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        let to = *to.lock().expect("nobody panics with it");
        if let Some(to) = to {
            // Lost is lost.
            let _ = mouth.send_to(&datagram, to);
        }
    }
}
