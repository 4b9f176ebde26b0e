//! What the threads of the server share: the zones, the challenges, the bounds.

use super::answer::{Answer, Transport, answer};
use super::challenges::{Challenges, Pull, Pulled};
use super::counters::{Counters, Counts, Event};
use super::limit::Limiter;
use super::query;
use super::zone::ZoneView;
use arc_swap::ArcSwap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long others may take to say whether they know a challenge (design §3: "pull on miss").
const PULL: Duration = Duration::from_millis(250);
/// Questions that may wait for that at a time (chosen; each holds a task and its message).
const PULLS_MAX: usize = 64;

/// Answers for our zones.
pub struct Authority {
    view: ArcSwap<ZoneView>,
    challenges: Arc<dyn Challenges>,
    pull: Option<Arc<dyn Pull>>,
    pulls: Arc<Semaphore>,
    pub(super) limiter: Limiter,
    began: Instant,
    /// One of each thread that ever served.
    counters: Mutex<Vec<Arc<Counters>>>,
}

impl Authority {
    /// An authority for `view` that gives each network so many answers a second over UDP. Who is asked for challenges that
    /// `challenges` does not know: `pull`, or nobody.
    #[must_use]
    pub fn new(
        view: ZoneView,
        answers_per_second: u32,
        challenges: Arc<dyn Challenges>,
        pull: Option<Arc<dyn Pull>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            view: ArcSwap::from_pointee(view),
            challenges,
            pull,
            pulls: Arc::new(Semaphore::new(PULLS_MAX)),
            limiter: Limiter::new(answers_per_second),
            began: Instant::now(),
            counters: Mutex::default(),
        })
    }

    /// Answers from other zones from now on.
    pub fn replace(&self, view: ZoneView) {
        self.view.store(Arc::new(view));
    }

    pub(super) fn view(&self) -> arc_swap::Guard<Arc<ZoneView>> {
        self.view.load()
    }

    /// What was counted since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        Counts::sum(counters.iter().map(|each| &**each))
    }

    /// Counters for one more thread.
    pub(super) fn counters(&self) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        self.counters.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&counters));
        counters
    }

    /// The clock of the limiter.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Answers without asking anybody, as [`answer`] does.
    pub fn answer(&self, message: &[u8], transport: Transport, out: &mut Vec<u8>) -> Option<Answer> {
        answer(message, transport, &self.view(), &*self.challenges, out)
    }

    /// Who is to be asked for a challenge, and a place among those who ask.
    pub(super) fn pull(&self, answer: &Answer, counters: &Counters) -> Asking {
        let Some(pull) = self.pull.as_ref().filter(|_| answer.missing) else { return Asking::Nobody };
        match Arc::clone(&self.pulls).try_acquire_owned() {
            Ok(place) => {
                counters.count(Event::Pulled);
                Asking::Others(Arc::clone(pull), place)
            }
            Err(_) => {
                counters.count(Event::PullRefused);
                Asking::Full
            }
        }
    }

    /// Asks, and answers `message` by what was learned, within 250 ms or a little more. Cancel safe.
    pub(super) async fn ask(
        &self,
        pull: &dyn Pull,
        message: &[u8],
        transport: Transport,
        out: &mut Vec<u8>,
    ) -> Option<Answer> {
        let name = query::read(message).ok()?.name.text();
        let values = tokio::time::timeout(PULL, pull.pull(name)).await.unwrap_or_default();
        answer(message, transport, &self.view(), &Pulled(bounded(values).into()), out)
    }

    /// Over a connection: an answer that asked others if it had to. Cancel safe.
    pub(super) async fn answer_over_tcp(
        &self,
        message: &[u8],
        counters: &Counters,
        out: &mut Vec<u8>,
    ) -> Option<Answer> {
        let mut answer = self.answer(message, Transport::Tcp, out)?;
        if let Asking::Others(pull, _place) = self.pull(&answer, counters) {
            answer = self.ask(&*pull, message, Transport::Tcp, out).await?;
        }
        counters.answered(&answer);
        Some(answer)
    }
}

/// What others said, within what we would publish ourselves.
fn bounded(values: Vec<Box<str>>) -> Vec<Box<str>> {
    use super::challenges::{VALUE_BYTES_MAX, VALUES_MAX};
    values.into_iter().filter(|value| (1..=VALUE_BYTES_MAX).contains(&value.len())).take(VALUES_MAX).collect()
}

/// Whether others are asked for a challenge.
pub(super) enum Asking {
    /// There is nothing to ask for, or nobody to ask.
    Nobody,
    /// This one, as long as the place is held.
    Others(Arc<dyn Pull>, OwnedSemaphorePermit),
    /// Too many are asked already: no answer is better than a wrong one, since who asks will ask again.
    Full,
}

/// Places for connections: so many in all, and a quarter of them for each network.
#[derive(Debug)]
pub(super) struct Places {
    taken: Mutex<std::collections::HashMap<u64, usize>>,
    all: Arc<Semaphore>,
    of_network: usize,
}

impl Places {
    pub(super) fn new(connections: usize) -> Arc<Self> {
        let of_network = connections.div_ceil(4);
        Arc::new(Self { taken: Mutex::default(), all: Arc::new(Semaphore::new(connections)), of_network })
    }

    /// A place for a connection from `from`, or none when all or its network's are taken.
    pub(super) fn take(self: &Arc<Self>, from: IpAddr) -> Option<TakenPlace> {
        let one = Arc::clone(&self.all).try_acquire_owned().ok()?;
        let network = super::limit::network(from);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(network).or_default();
        if *count == self.of_network {
            return None;
        }
        *count += 1;
        drop(taken);
        Some(TakenPlace { places: Arc::clone(self), network, _one: one })
    }
}

/// One connection's; dropping it frees the place.
#[derive(Debug)]
pub(super) struct TakenPlace {
    places: Arc<Places>,
    network: u64,
    _one: OwnedSemaphorePermit,
}

impl Drop for TakenPlace {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_bounded_and_those_of_a_network_by_a_quarter() {
        let places = Places::new(8);
        let of = |third: u8| places.take(IpAddr::from([192, 0, third, 1]));
        let first = [of(0), of(0)];
        assert!(first.iter().all(Option::is_some) && of(0).is_none());
        let others: Vec<_> = [1, 1, 2, 2, 3, 3].into_iter().map(of).collect();
        assert!(others.iter().all(Option::is_some));
        assert!(of(4).is_none());
        drop(first);
        assert!(of(4).is_some());
        drop(others);
        assert!(places.taken.lock().unwrap().is_empty());
    }
}
