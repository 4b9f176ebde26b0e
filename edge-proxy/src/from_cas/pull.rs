//! What this PoP has not heard of may be known to another one: a challenge that somebody looks for is asked for there before it is said
//! that there is none.
//!
//! Anybody can look for challenges, as often as he likes, under names that he makes up. So one name is asked for once at a time
//! and once a second, and few names at a time; and never for longer than whoever looks has patience.

use super::challenge_rows::ChallengeRow;
use acme::dns::{VALUE_BYTES_MAX, VALUES_MAX};
use backhaul::session::{Answers, PopLink};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use router::registry::Registry;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// For all that are asked together (`tls-acme-dns.md` §3).
const PATIENCE: Duration = Duration::from_millis(250);
/// Names that are asked for at a time (chosen; each is a task and a stream to two PoPs).
const NAMES_MAX: usize = 64;
/// A name that nobody knew is not asked for again so soon (chosen: a CA that comes again finds what has come meanwhile).
const MISSED: Duration = Duration::from_secs(1);
/// Names that is remembered of (chosen: some hundreds of KiB; what does not fit is asked for again).
const MISSED_MAX: usize = 4_096;
/// Longest name, bytes: a kind, and a domain name or a token (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 5 + 253;

/// Who can be asked.
pub(super) trait Ask: Send + Sync + 'static {
    /// The first answer of those who know one.
    fn ask(&self, question: Vec<u8>) -> BoxFuture<'static, Option<Vec<u8>>>;
}

impl Ask for PopLink {
    fn ask(&self, question: Vec<u8>) -> BoxFuture<'static, Option<Vec<u8>>> {
        let link = self.clone();
        async move { Self::ask(&link, &question).await }.boxed()
    }
}

/// Asks.
pub(super) struct Puller {
    others: Arc<dyn Ask>,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    asked: HashMap<String, Shared<BoxFuture<'static, Values>>>,
    missed: HashMap<String, Instant>,
}

/// The answers to the challenges of a name.
type Values = Arc<[String]>;

impl Puller {
    pub(super) fn new(others: Arc<dyn Ask>) -> Arc<Self> {
        Arc::new(Self { others, names: Mutex::default() })
    }

    fn names(&self) -> std::sync::MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What others answer at `KIND/NAME`; nothing when none of them does within 250 ms, or too much is asked already.
    ///
    /// # Cancel safety
    /// The question stays asked, for whoever comes next.
    pub(super) async fn pull(self: &Arc<Self>, at: String) -> Values {
        match self.begin(at) {
            Some(flight) => flight.await,
            None => Values::default(),
        }
    }

    fn begin(self: &Arc<Self>, at: String) -> Option<Shared<BoxFuture<'static, Values>>> {
        if at.len() > NAME_BYTES_MAX {
            return None;
        }
        let mut names = self.names();
        if let Some(flight) = names.asked.get(&at) {
            return Some(flight.clone());
        }
        if names.asked.len() >= NAMES_MAX || names.missed.get(&at).is_some_and(|since| since.elapsed() < MISSED) {
            return None;
        }
        let (this, name) = (Arc::clone(self), at.clone());
        // A task: whoever asks may go before the answer is there, and others have come since.
        let task = tokio::spawn(async move {
            let asked = tokio::time::timeout(PATIENCE, this.others.ask(name.clone().into_bytes())).await;
            let values = asked.ok().flatten().map_or_else(Values::default, |answer| decode(&answer));
            this.names().ended(name, values.is_empty());
            values
        });
        let flight = async move { task.await.unwrap_or_default() }.boxed().shared();
        names.asked.insert(at, flight.clone());
        Some(flight)
    }
}

impl Names {
    fn ended(&mut self, name: String, missed: bool) {
        self.asked.remove(&name);
        if !missed {
            return;
        }
        if self.missed.len() >= MISSED_MAX {
            self.missed.retain(|_, since| since.elapsed() < MISSED);
        }
        if self.missed.len() < MISSED_MAX {
            self.missed.insert(name, Instant::now());
        }
    }
}

/// Says what the table has, and no more than it has heard itself.
pub(super) struct Table(pub(super) Arc<Registry<ChallengeRow>>);

impl Answers for Table {
    fn answer(&self, question: &[u8]) -> Vec<u8> {
        let at = std::str::from_utf8(question).ok().filter(|at| at.len() <= NAME_BYTES_MAX);
        let Some(row) = at.and_then(|at| self.0.lookup(at.to_owned())) else { return Vec::new() };
        let values: Vec<_> = row.answers.iter().take(VALUES_MAX).map(|given| given.value.as_str()).collect();
        serde_json::to_vec(&values).unwrap_or_default()
    }
}

/// Within what we would answer with ourselves.
fn decode(answer: &[u8]) -> Values {
    let values: Vec<String> = serde_json::from_slice(answer).unwrap_or_default();
    values.into_iter().filter(|value| (1..=VALUE_BYTES_MAX).contains(&value.len())).take(VALUES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_cas::challenge_rows::Given;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Knows one name, and takes its time.
    struct Late {
        takes: Duration,
        asked: AtomicUsize,
    }

    impl Ask for Late {
        fn ask(&self, question: Vec<u8>) -> BoxFuture<'static, Option<Vec<u8>>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let takes = self.takes;
            async move {
                tokio::time::sleep(takes).await;
                (question == b"txt/known").then(|| b"[\"value\",\"\"]".to_vec())
            }
            .boxed()
        }
    }

    fn puller(takes: u64) -> (Arc<Late>, Arc<Puller>) {
        let late = Arc::new(Late { takes: Duration::from_millis(takes), asked: AtomicUsize::new(0) });
        (Arc::clone(&late), Puller::new(late))
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_at_the_same_time_shares_an_answer_and_none_waits_for_long() {
        let (late, pulls) = puller(200);
        let began = Instant::now();
        let both = tokio::join!(pulls.pull("txt/known".into()), pulls.pull("txt/known".into()));
        assert_eq!((&*both.0, &*both.1), (&["value".to_owned()][..], &["value".to_owned()][..]));
        assert_eq!((late.asked.load(Ordering::Relaxed), began.elapsed()), (1, Duration::from_millis(200)));
        assert!(pulls.names().asked.is_empty());

        let (late, pulls) = puller(300);
        let began = Instant::now();
        assert!(pulls.pull("txt/known".into()).await.is_empty());
        assert_eq!(began.elapsed(), PATIENCE);
        // Who comes at once after that is told the same at once; a second later others are asked again.
        assert!(pulls.pull("txt/known".into()).await.is_empty());
        assert_eq!((late.asked.load(Ordering::Relaxed), began.elapsed()), (1, PATIENCE));
        tokio::time::advance(MISSED).await;
        pulls.pull("txt/known".into()).await;
        assert_eq!(late.asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_early_leaves_nothing_behind() {
        let (_, pulls) = puller(200);
        let gone = tokio::time::timeout(Duration::from_millis(1), pulls.pull("txt/known".into())).await;
        assert!(gone.is_err() && pulls.names().asked.len() == 1);
        tokio::time::sleep(PATIENCE).await;
        assert!(pulls.names().asked.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_names_is_asked_for_up_to_a_bound() {
        let (late, pulls) = puller(100);
        let flood = (0..1000).map(|number| pulls.pull(format!("txt/{number}")));
        let began = Instant::now();
        let answers = futures_util::future::join_all(flood).await;
        assert!(answers.iter().all(|values| values.is_empty()));
        assert_eq!(late.asked.load(Ordering::Relaxed), NAMES_MAX);
        assert_eq!(began.elapsed(), Duration::from_millis(100));
        for number in 0..2 * MISSED_MAX {
            pulls.names().ended(format!("txt/more-{number}"), true);
        }
        assert_eq!(pulls.names().missed.len(), MISSED_MAX);
        assert!(pulls.pull("x".repeat(NAME_BYTES_MAX + 1)).await.is_empty());
        assert_eq!(late.asked.load(Ordering::Relaxed), NAMES_MAX);
    }

    #[test]
    fn what_is_asked_of_us_is_answered_from_what_we_have_heard() {
        let table = Arc::new(Registry::new());
        let given = |value: String| Given { value, id: "i".into(), until: 1 };
        let answers = (0..2 * VALUES_MAX).map(|number| given(number.to_string())).collect();
        table.apply_put(ChallengeRow { at: "txt/a".into(), answers });
        let table = Table(table);
        assert_eq!(decode(&table.answer(b"txt/a")).len(), VALUES_MAX);
        for unknown in [&b"txt/b"[..], b"", b"\xff", &[b'x'; 600]] {
            assert!(table.answer(unknown).is_empty());
        }
        for nonsense in [&b"{}"[..], b"", b"[1]", b"[\"\"]"] {
            assert!(decode(nonsense).is_empty());
        }
    }
}
