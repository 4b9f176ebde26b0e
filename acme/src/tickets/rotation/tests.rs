use super::*;
use crate::tickets::TicketRing;
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

const HOUR: u64 = 3_600_000;
const MINUTE: u64 = 60_000;
/// Some day.
const BEGIN: u64 = 1_800_000_000_000;

/// Seals by saying for whom.
struct Plain;

impl Sealer for Plain {
    fn seal(&self, name: &str, generation: u64, plain: &[u8]) -> Result<Vec<u8>, String> {
        Ok([plain, format!("{name} {generation}").as_bytes()].concat())
    }
    fn open(&self, name: &str, generation: u64, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
        let about = format!("{name} {generation}");
        let plain = sealed.strip_suffix(about.as_bytes()).ok_or("another row's")?;
        Ok(Zeroizing::new(plain.to_vec()))
    }
}

#[derive(Clone)]
enum Event {
    Put(String, u64, Vec<u8>),
    Delete(String),
}

struct Process {
    rotation: Rotation,
    ring: Arc<TicketRing>,
    tickets: Arc<dyn ProducesTickets>,
    /// Events that have not come yet.
    from: usize,
    away: bool,
    /// Its clock is so much ahead.
    ahead: u64,
}

/// A store, its history, and processes that follow it.
struct World {
    now: u64,
    rows: BTreeMap<String, (u64, Vec<u8>)>,
    history: Vec<Event>,
    processes: Vec<Process>,
}

impl World {
    fn new(members: &[&str]) -> Self {
        let mut world = Self { now: BEGIN, rows: BTreeMap::new(), history: Vec::new(), processes: Vec::new() };
        for member in members {
            world.join(member);
        }
        world.step(0);
        world
    }

    fn join(&mut self, member: &str) {
        let mut rotation = Rotation::new(Policy::Normal, member, Duration::from_millis(HOUR));
        rotation.snapshot_begin();
        for (key, (version, value)) in &self.rows {
            rotation.put(key, *version, value, &Plain, self.now);
        }
        rotation.snapshot_end();
        let ring = TicketRing::new(Duration::from_millis(HOUR));
        let tickets = ring.ticketer([0; 32]);
        let from = self.history.len();
        self.processes.push(Process { rotation, ring, tickets, from, away: false, ahead: 0 });
    }

    fn write(&mut self, write: Write) -> bool {
        let actual = self.rows.get(&write.key).map(|(version, _)| *version);
        if actual != write.expected {
            return false;
        }
        let version = self.history.len() as u64 + 1;
        match write.value {
            Some(value) => {
                self.rows.insert(write.key.clone(), (version, value.clone()));
                self.history.push(Event::Put(write.key, version, value));
            }
            None => {
                self.rows.remove(&write.key);
                self.history.push(Event::Delete(write.key));
            }
        }
        true
    }

    /// Time passes; everybody hears everything and does what is due.
    fn step(&mut self, ms: u64) {
        self.now += ms;
        for _ in 0..4 {
            for at in 0..self.processes.len() {
                let process = &mut self.processes[at];
                let now = self.now + process.ahead;
                if !process.away {
                    for event in self.history[process.from..].iter().cloned() {
                        match event {
                            Event::Put(key, version, value) => {
                                process.rotation.put(&key, version, &value, &Plain, now);
                            }
                            Event::Delete(key) => process.rotation.delete(&key),
                        }
                    }
                    process.from = self.history.len();
                }
                let writes = process.rotation.turn(&Plain, now);
                let (active, all) = process.rotation.ring(now);
                process.ring.install(active, all);
                if !process.away {
                    for write in writes {
                        self.write(write);
                    }
                }
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        while self.now < end {
            self.step(10_000.min(end - self.now));
        }
    }

    /// Every key row of the store: epoch, and whether it is staged.
    fn stored(&self) -> Vec<(u64, bool)> {
        let key = |(key, (_, value)): (&String, &(u64, Vec<u8>))| match Policy::Normal.about(key) {
            Some(About::Key(epoch)) => Some((epoch, KeyRow::decode(value).unwrap().active_at.is_none())),
            _ => None,
        };
        self.rows.iter().filter_map(key).collect()
    }

    fn epochs(&self) -> Vec<Option<u64>> {
        self.processes.iter().map(|process| process.ring.active()).collect()
    }
}

#[test]
fn every_ticket_opens_everywhere_for_six_periods_through_many_rotations() {
    let mut world = World::new(&["a", "b", "c"]);
    let mut tickets: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut epochs = std::collections::BTreeSet::new();
    let end = BEGIN + 12 * HOUR;
    while world.now < end {
        world.step(30_000);
        for process in &world.processes {
            tickets.push((world.now, process.tickets.encrypt(b"state").expect("there is always a key")));
            epochs.insert(process.ring.active().unwrap());
        }
        // A whole period of grace: a key may have been about to go when the ticket was made.
        for (made, ticket) in &tickets {
            for process in &world.processes {
                let opens = process.tickets.decrypt(ticket).is_some();
                assert!(opens || world.now > made + 6 * HOUR, "{} s old", (world.now - made) / 1_000);
            }
        }
        tickets.retain(|(made, _)| world.now <= made + 9 * HOUR);
    }
    assert!((11..=13).contains(&epochs.len()), "{epochs:?}");
    let (_, oldest) = &tickets[0];
    assert!(world.processes[0].tickets.decrypt(oldest).is_none(), "and not for ever");
    assert!(world.stored().len() <= OLD_MAX + 2, "{:?}", world.stored());
}

#[test]
fn nobody_makes_tickets_that_another_one_cannot_open() {
    let mut world = World::new(&["a", "b", "c"]);
    world.pass(HOUR - MINUTE);
    let before = world.epochs();
    // One that is heard is slow: the others wait for it, but not for ever.
    world.processes[2].away = true;
    world.pass(2 * MINUTE);
    assert_eq!(world.stored().len(), 2);
    assert!(world.stored()[1].1, "staged");
    assert_eq!(world.epochs(), before);
    world.pass(5 * MINUTE);
    assert!(world.epochs()[0] > before[0] && world.epochs()[0] == world.epochs()[1]);
    // The next time nobody waits for it.
    world.pass(HOUR - 5 * MINUTE);
    let staged = world.stored().last().unwrap().1;
    world.pass(3 * MINUTE);
    assert!(!staged || !world.stored().last().unwrap().1, "{:?}", world.stored());
    let third = world.epochs()[0];
    assert_eq!(world.stored().len(), 3);
    world.processes[2].away = false;
    world.step(0);
    assert_eq!(world.epochs(), [third; 3], "it has everything as soon as it is back");
}

#[test]
fn a_key_becomes_active_at_a_full_minute() {
    let mut world = World::new(&["a", "b"]);
    world.pass(3 * HOUR);
    let times = world.rows.values().filter_map(|(_, value)| KeyRow::decode(value)).filter_map(|row| row.active_at);
    let times: Vec<_> = times.collect();
    assert!(times.len() >= 3);
    assert!(times.iter().skip(1).all(|at| at % MINUTE == 0), "{times:?}");
}

#[test]
fn who_asks_for_a_new_key_gets_one_once() {
    let mut world = World::new(&["a", "b"]);
    world.pass(5 * MINUTE);
    let before = world.epochs()[0];
    world.processes[0].rotation.want();
    world.pass(3 * MINUTE);
    assert_eq!(world.epochs(), [before.map(|epoch| epoch + 1); 2]);
    world.pass(10 * MINUTE);
    assert_eq!(world.stored().len(), 2);
}

#[test]
fn after_a_purge_there_is_one_new_key_and_no_old_ticket_opens() {
    let mut world = World::new(&["a", "b", "c"]);
    world.pass(3 * HOUR + MINUTE);
    let tickets: Vec<_> = world.processes.iter().map(|process| process.tickets.encrypt(b"state").unwrap()).collect();
    let last = world.epochs()[0].unwrap();
    for (epoch, _) in world.stored() {
        let key = Policy::Normal.key_of(epoch);
        let expected = world.rows.get(&key).map(|(version, _)| *version);
        assert!(world.write(Write { key, expected, value: None }));
    }
    world.step(1_000);
    assert_eq!(world.stored().len(), 1);
    assert_eq!(world.epochs(), [Some(last + 1); 3]);
    for process in &world.processes {
        assert!(tickets.iter().all(|ticket| process.tickets.decrypt(ticket).is_none()));
        assert_eq!(process.ring.len(), 1);
    }
}

#[test]
fn one_clock_that_is_wrong_neither_stops_nor_hurries_the_others() {
    for ahead in [10 * MINUTE, 30 * 24 * HOUR] {
        let mut world = World::new(&["a", "b", "c"]);
        world.processes[1].ahead = ahead;
        world.pass(6 * HOUR);
        let epochs = world.stored().len();
        assert!((5..=8).contains(&epochs), "{ahead}: {epochs} in six hours");
        let ticket = world.processes[1].tickets.encrypt(b"state").unwrap();
        assert!(world.processes.iter().all(|process| process.tickets.decrypt(&ticket).is_some()));
    }
}

#[test]
fn without_the_store_keys_go_when_their_time_is_over() {
    let mut world = World::new(&["a"]);
    let ticket = world.processes[0].tickets.encrypt(b"state").unwrap();
    world.processes[0].rotation.lost();
    world.pass(7 * HOUR);
    assert!(world.processes[0].tickets.decrypt(&ticket).is_some());
    world.pass(HOUR);
    assert!(world.processes[0].tickets.decrypt(&ticket).is_none());
    assert!(world.processes[0].tickets.encrypt(b"state").is_none());
    assert_eq!(world.stored().len(), 1, "and nothing was written");
}

#[test]
fn members_that_are_gone_are_forgotten() {
    let mut world = World::new(&["a", "b"]);
    assert!(world.rows.contains_key("stek/ack/normal/b"));
    world.processes.truncate(1);
    world.pass(10 * HOUR);
    assert!(!world.rows.contains_key("stek/ack/normal/b") && world.rows.contains_key("stek/ack/normal/a"));
}

#[test]
fn a_row_that_cannot_be_opened_makes_no_key_and_stops_nobody() {
    let mut world = World::new(&["a"]);
    let epoch = world.epochs()[0].unwrap() + 1;
    let key = Policy::Normal.key_of(epoch);
    let row = KeyRow::new(STANDARD.encode(b"of another row"), world.now, Some(world.now));
    assert!(world.write(Write { key: key.clone(), expected: None, value: Some(row.encode()) }));
    world.step(1_000);
    assert_eq!(world.epochs(), [Some(epoch - 1)]);
    assert!(!world.processes[0].rotation.show(world.now)[0].opened);
    world.pass(2 * HOUR);
    assert!(world.epochs()[0] > Some(epoch), "the next one is made all the same");
    for nonsense in [&b"{}"[..], b"", b"{\"version\":2,\"sealed\":\"\",\"made_at\":1}"] {
        world.processes[0].rotation.put(&key, 1_000_000, nonsense, &Plain, world.now);
    }
}
