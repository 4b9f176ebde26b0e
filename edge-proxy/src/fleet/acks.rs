//! Whether a change of a route is known at every PoP: `sprite create` waits for that, for a second.
//!
//! The store is not asked, and nothing is written to it. An edge that has applied a change tells the host the
//! route leads to, over their session, which its visitors need anyway: one message for each change and
//! edge. Rows for it in the store (a barrier by the host, or marks by the edges) would be a write to all copies of
//! the store, and a feed to every edge, for each of those messages.
//!
//! An edge is waited for as long as it speaks. One that was silent for a whole second is not waited for
//! again until it has been heard: a PoP that is away delays the first change and no other.

use backhaul::Backhaul;
use backhaul::wire::{self, EdgeMessage, ToOwner};
use router::applied::Applied;
use router::names::SpriteName;
use router::pops::{PopRow, PopTable};
use router::route::HostId;
use std::collections::{HashMap, VecDeque};
use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How long a change is waited for (`design.md`: made, and reachable from everywhere, in 1.5 s).
const PATIENCE: Duration = Duration::from_secs(1);
/// Last words kept of each edge (chosen: as many requests as the admin API takes at once). A word may come
/// before it is asked for, as the store tells edges sooner than whoever wrote.
const WORDS_MAX: usize = 64;

/// Tells hosts what is in effect at this edge, for as long as the table lives: those of whom `is_of_region` says that
/// they are of the region whose table it is. Another one's would take the number of the change for its own store's.
pub async fn tell_hosts(
    mut changes: mpsc::Receiver<Applied>,
    backhaul: Backhaul,
    is_of_region: impl Fn(HostId) -> bool + Send,
) {
    while let Some(Applied { name, host, version }) = changes.recv().await {
        if !is_of_region(host) {
            continue;
        }
        let applied = wire::Applied { sprite: name.as_str().into(), version };
        if backhaul.send(host, ToOwner { message: Some(EdgeMessage::Applied(applied)) }).is_err() {
            tracing::debug!(sprite = %name, host = host.0, "its host does not hear that its route is known here");
        }
    }
}

/// What the edges have said to this host.
pub struct Acks {
    pops: Arc<PopTable>,
    book: Mutex<Book>,
    words: watch::Sender<u64>,
}

impl Acks {
    /// Of the edges of these PoPs; nothing was said yet.
    #[must_use]
    pub fn new(pops: Arc<PopTable>) -> Self {
        Self { pops, book: Mutex::default(), words: watch::Sender::new(0) }
    }

    /// An edge, by its address in the tunnel, has applied a change.
    pub fn heard(&self, edge: Ipv6Addr, applied: &wire::Applied) {
        let Ok(name) = SpriteName::parse(&applied.sprite) else { return };
        self.book().heard(edge, name, applied.version);
        self.words.send_modify(|count| *count += 1);
    }

    /// Waits until every PoP goes by the change of a sprite's row with this number, 1 s at most; the PoPs
    /// that have not said so, by name.
    ///
    /// # Cancel safety
    /// Holds no state.
    pub async fn everywhere(&self, name: &SpriteName, version: u64) -> Vec<String> {
        let mut words = self.words.subscribe();
        let heard = async {
            while self.book().stands(&self.pops.all(), name, version).waits {
                // The sender lives in self.
                let _ = words.changed().await;
            }
        };
        // Late or not: what is missing is looked at once more.
        let _ = tokio::time::timeout(PATIENCE, heard).await;
        self.book().close(&self.pops.all(), name, version)
    }

    /// Every PoP, by name: what to say when nobody can be waited for.
    #[must_use]
    pub fn nobody(&self) -> Vec<String> {
        self.pops.all().iter().map(|pop| pop.name.clone()).collect()
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a change stands.
#[derive(Debug, PartialEq, Eq)]
struct Stands {
    /// Somebody who speaks has not spoken of it.
    waits: bool,
    /// PoPs where it may not be in effect.
    missing: Vec<String>,
}

/// Who said what, without clock or task.
#[derive(Debug, Default)]
struct Book(HashMap<Ipv6Addr, Process>);

/// One edge process.
#[derive(Debug, Default)]
struct Process {
    words: VecDeque<(SpriteName, u64)>,
    /// It has not spoken of the last change it was waited for with, nor of another one since.
    silent: bool,
}

impl Book {
    fn heard(&mut self, edge: Ipv6Addr, name: SpriteName, version: u64) {
        let process = self.0.entry(edge).or_default();
        process.silent = false;
        if process.words.len() >= WORDS_MAX {
            process.words.pop_front();
        }
        process.words.push_back((name, version));
    }

    fn has(&self, edge: Ipv6Addr, name: &SpriteName, version: u64) -> bool {
        // A later change of the same row has this one in it.
        self.0.get(&edge).is_some_and(|process| process.words.iter().any(|(of, at)| of == name && *at >= version))
    }

    fn is_silent(&self, edge: Ipv6Addr) -> bool {
        self.0.get(&edge).is_some_and(|process| process.silent)
    }

    /// A PoP goes by it when all of its processes do but those that do not speak; one of two may be switched
    /// off.
    fn stands(&self, pops: &[Arc<PopRow>], name: &SpriteName, version: u64) -> Stands {
        let (mut waits, mut missing) = (false, Vec::new());
        for pop in pops {
            let edges = || pop.processes.iter().map(|process| process.address);
            let lacks = edges().any(|edge| !self.has(edge, name, version) && !self.is_silent(edge));
            waits |= lacks;
            if lacks || !edges().any(|edge| self.has(edge, name, version)) {
                missing.push(pop.name.clone());
            }
        }
        Stands { waits, missing }
    }

    /// The time is up: who has not spoken is not waited for the next time. The PoPs that are missing.
    fn close(&mut self, pops: &[Arc<PopRow>], name: &SpriteName, version: u64) -> Vec<String> {
        let Stands { waits, missing } = self.stands(pops, name, version);
        let edges = || pops.iter().flat_map(|pop| &pop.processes).map(|process| process.address);
        // Of edges that were removed nothing is kept.
        self.0.retain(|known, _| edges().any(|edge| edge == *known));
        if waits {
            for edge in edges() {
                if !self.has(edge, name, version) {
                    self.0.entry(edge).or_default().silent = true;
                }
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backhaul::owner::{Admitted, AnswerSink, BoxFuture, EdgeId, Owner};
    use router::pops::EdgeProcess;
    use router::rows::ROW_VERSION;

    fn edge(number: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number)
    }

    fn pop(name: &str, edges: &[u16]) -> Arc<PopRow> {
        let process =
            |number: &u16| EdgeProcess { wireguard_key: String::new(), address: edge(*number), spki_pins: Vec::new() };
        let processes = edges.iter().map(process).collect();
        Arc::new(PopRow { version: ROW_VERSION, name: name.into(), processes, papers: None })
    }

    fn name(text: &str) -> SpriteName {
        SpriteName::parse(text).unwrap()
    }

    fn missing(waits: bool, missing: &[&str]) -> Stands {
        Stands { waits, missing: missing.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn a_change_is_known_when_every_pop_has_it_or_a_later_one() {
        let (mut book, pops) = (Book::default(), [pop("a", &[1]), pop("b", &[2])]);
        assert_eq!(book.stands(&[], &name("s"), 5), missing(false, &[]));
        assert_eq!(book.stands(&pops, &name("s"), 5), missing(true, &["a", "b"]));
        book.heard(edge(1), name("s"), 5);
        book.heard(edge(2), name("s"), 4);
        book.heard(edge(2), name("other"), 9);
        assert_eq!(book.stands(&pops, &name("s"), 5), missing(true, &["b"]));
        book.heard(edge(2), name("s"), 6);
        assert_eq!(book.stands(&pops, &name("s"), 5), missing(false, &[]));
        // A stranger's word, and that of an edge that was removed, is nobody's.
        book.heard(edge(9), name("s"), 5);
        assert!(book.close(&pops, &name("s"), 5).is_empty());
        assert!(!book.0.contains_key(&edge(9)));
    }

    #[test]
    fn who_was_silent_is_named_each_time_and_waited_for_once_until_it_speaks() {
        let (mut book, pops) = (Book::default(), [pop("a", &[1]), pop("b", &[2])]);
        book.heard(edge(1), name("s"), 5);
        assert_eq!(book.close(&pops, &name("s"), 5), ["b"]);
        book.heard(edge(1), name("s"), 6);
        assert_eq!(book.stands(&pops, &name("s"), 6), missing(false, &["b"]));
        // Late is heard too.
        book.heard(edge(2), name("s"), 5);
        assert_eq!(book.stands(&pops, &name("s"), 6), missing(true, &["b"]));
        // Who was asked for nothing is not silent.
        book.heard(edge(2), name("s"), 6);
        assert!(book.close(&pops, &name("s"), 6).is_empty());
        assert_eq!(book.stands(&pops, &name("s"), 7), missing(true, &["a", "b"]));
    }

    #[test]
    fn of_two_processes_of_a_pop_one_may_be_switched_off() {
        let (mut book, pops) = (Book::default(), [pop("a", &[1, 2])]);
        book.heard(edge(1), name("s"), 5);
        assert_eq!(book.stands(&pops, &name("s"), 5), missing(true, &["a"]));
        assert_eq!(book.close(&pops, &name("s"), 5), ["a"]);
        book.heard(edge(1), name("s"), 6);
        assert_eq!(book.stands(&pops, &name("s"), 6), missing(false, &[]));
        // Both are off.
        assert_eq!(book.stands(&pops, &name("s"), 7), missing(true, &["a"]));
        assert_eq!(book.close(&pops, &name("s"), 7), ["a"]);
        assert_eq!(book.stands(&pops, &name("s"), 8), missing(false, &["a"]));
    }

    #[test]
    fn no_more_words_are_kept_than_may_be_asked_for() {
        let mut book = Book::default();
        for version in 0..1_000 {
            book.heard(edge(1), name("s"), version);
        }
        assert_eq!(book.0[&edge(1)].words.len(), WORDS_MAX);
        assert!(book.has(edge(1), &name("s"), 999) && !book.has(edge(1), &name("s"), 1_000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_word_ends_the_wait_and_a_second_does_when_none_comes() {
        let pops = Arc::new(PopTable::new());
        let acks = Arc::new(Acks::new(Arc::clone(&pops)));
        let began = tokio::time::Instant::now();
        assert!(acks.everywhere(&name("s"), 1).await.is_empty());
        pops.apply_put((*pop("a", &[1])).clone());
        let speaks = Arc::clone(&acks);
        tokio::spawn(async move {
            tokio::time::sleep(PATIENCE / 2).await;
            speaks.heard(edge(1), &wire::Applied { sprite: "s".into(), version: 1 });
        });
        assert!(acks.everywhere(&name("s"), 1).await.is_empty());
        assert_eq!(began.elapsed(), PATIENCE / 2);
        assert_eq!(acks.everywhere(&name("s"), 2).await, ["a"]);
        assert_eq!(began.elapsed(), PATIENCE / 2 + PATIENCE);
        // Known to be away: no second for it again.
        assert_eq!(acks.everywhere(&name("s"), 3).await, ["a"]);
        assert_eq!(began.elapsed(), PATIENCE / 2 + PATIENCE);
    }

    /// A host that writes down of which changes it was told.
    #[derive(Default)]
    struct Told(Mutex<Vec<u64>>);

    impl Owner for Told {
        fn control(&self, _: EdgeId, message: ToOwner, _: &AnswerSink) {
            if let Some(EdgeMessage::Applied(applied)) = message.message {
                self.0.lock().unwrap().push(applied.version);
            }
        }

        fn open(&self, _: EdgeId, _: wire::Open) -> BoxFuture<Result<Admitted, wire::Reply>> {
            Box::pin(std::future::ready(Err(wire::Reply::Asleep(wire::Asleep::default()))))
        }

        fn edge_gone(&self, _: EdgeId) {}

        fn guest_unreachable(&self, _: &str, _: u64) {}
    }

    #[tokio::test]
    async fn a_host_is_told_of_its_own_regions_changes_alone() {
        let host = Arc::new(Told::default());
        let (sender, changes) = mpsc::channel(2);
        for (number, version) in [(1, 7), (2, 8)] {
            let change = Applied { name: name("s"), host: HostId(number), version };
            sender.try_send(change).unwrap();
        }
        drop(sender);
        tell_hosts(changes, Backhaul::direct(Arc::clone(&host) as Arc<dyn Owner>), |host| host == HostId(2)).await;
        assert_eq!(*host.0.lock().unwrap(), [8]);
    }
}
