//! Visitors at every edge, by HTTP/1.1 and HTTP/2, who ask for every sprite again and again.

use harness::client::{VERSIONS, Version, full, whole};
use harness::{Client, Demo, until};
use http::Method;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Pause of a visitor between two requests (chosen: all together are some hundred a second).
const PAUSE: Duration = Duration::from_millis(100);
/// Longest exchange: a hold, and what a busy machine adds.
const EXCHANGE: Duration = Duration::from_secs(60);
/// From a host's return until the last visitor is served (an edge's pause grows to 8 s).
const SERVED: Duration = Duration::from_secs(90);

/// What became of one request.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// Whose.
    pub sprite: String,
    /// Its body, like no other's.
    pub id: String,
    /// When it was sent.
    pub began: Instant,
    /// When its answer was there.
    pub ended: Instant,
    /// 0 when there was none.
    pub status: u16,
    /// The answer's content, or what went wrong.
    pub text: String,
}

/// What became of one visitor's requests so far.
type Outcomes = Arc<Mutex<Vec<Outcome>>>;

/// The visitors while they ask.
pub(super) struct Load {
    over: Arc<AtomicBool>,
    visitors: Vec<(Outcomes, JoinHandle<()>)>,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Load {
    /// Begins: one visitor for each edge, version and sprite.
    pub(super) fn start(edges: &[Arc<Demo>], sprites: &[&str]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut visitors = Vec::new();
        for edge in edges {
            for (version, sprite) in VERSIONS.into_iter().flat_map(|version| sprites.iter().map(move |s| (version, s)))
            {
                let outcomes = Outcomes::default();
                let visitor = Visitor {
                    version,
                    sprite: (*sprite).to_owned(),
                    edge: Arc::clone(edge),
                    over: Arc::clone(&over),
                    outcomes: Arc::clone(&outcomes),
                };
                visitors.push((outcomes, tokio::spawn(visitor.run())));
            }
        }
        Self { over, visitors }
    }

    /// Waits until each visitor has been served `times` more in a row; when that was.
    pub(super) async fn until_served(&self, times: usize) -> Instant {
        let asked = Instant::now();
        until("each visitor to be served", SERVED, async || {
            let served = self.visitors.iter().all(|(outcomes, _)| {
                let outcomes = outcomes.lock().unwrap();
                let last: Vec<_> = outcomes.iter().rev().take(times).collect();
                last.len() == times && last.iter().all(|outcome| outcome.status == 200 && outcome.began > asked)
            });
            served.then(Instant::now)
        })
        .await
    }

    /// Waits until a visitor's request has failed.
    pub(super) async fn until_failed(&self) {
        until("a request to fail", SERVED, async || {
            let failed = |(outcomes, _): &(Outcomes, _)| outcomes.lock().unwrap().iter().any(|one| one.status != 200);
            self.visitors.iter().any(failed).then_some(())
        })
        .await;
    }

    /// Ends; everything that was asked.
    pub(super) async fn stop(self) -> Vec<Outcome> {
        self.over.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for (outcomes, visitor) in self.visitors {
            visitor.await.expect("a visitor does not fail");
            all.append(&mut outcomes.lock().unwrap());
        }
        all
    }
}

struct Visitor {
    version: Version,
    sprite: String,
    edge: Arc<Demo>,
    over: Arc<AtomicBool>,
    outcomes: Outcomes,
}

impl Visitor {
    async fn run(self) {
        let mut client = self.edge.connect(self.version, &self.sprite).await;
        while !self.over.load(Ordering::Relaxed) {
            let (id, began) = (format!("r{}", NEXT.fetch_add(1, Ordering::Relaxed)), Instant::now());
            let exchanged = tokio::time::timeout(EXCHANGE, self.exchange(&mut client, &id)).await;
            let (status, text) = exchanged.unwrap_or_else(|_| (0, "no answer".into()));
            if status == 0 {
                // Written down, and gone on with.
                client = self.edge.connect(self.version, &self.sprite).await;
            }
            let sprite = self.sprite.clone();
            self.outcomes.lock().unwrap().push(Outcome { sprite, id, began, ended: Instant::now(), status, text });
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn exchange(&self, client: &mut Client, id: &str) -> (u16, String) {
        let request = self.edge.request(Method::POST, &self.sprite, "/").body(full(id.to_owned())).expect("a request");
        let answered = async { whole(client.try_send(request).await?).await };
        match answered.await {
            Ok(answer) => (answer.status, answer.text()),
            Err(error) => (0, format!("{error:?}")),
        }
    }
}
