//! What goes wrong, and where.

use super::reply::Reply;
use super::{Endpoint, Lost, Seen, locked};
use crate::within;
use http_body_util::Full;
use hyper::body::Bytes;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};
use tokio::sync::oneshot;

/// Where a fault is: at an endpoint, of an order for a name, or both.
#[derive(Clone, Debug, Default)]
pub struct At {
    endpoint: Option<Endpoint>,
    name: Option<String>,
}

impl At {
    /// At an endpoint, whatever it is about.
    #[must_use]
    pub const fn endpoint(endpoint: Endpoint) -> Self {
        Self { endpoint: Some(endpoint), name: None }
    }

    /// At every request for this name.
    #[must_use]
    pub fn name(name: &str) -> Self {
        Self { endpoint: None, name: Some(name.to_owned()) }
    }

    /// At requests for this name to an endpoint.
    #[must_use]
    pub fn both(endpoint: Endpoint, name: &str) -> Self {
        Self { endpoint: Some(endpoint), name: Some(name.to_owned()) }
    }

    fn is(&self, seen: &Seen) -> bool {
        self.endpoint.is_none_or(|endpoint| endpoint == seen.endpoint)
            && self.name.as_ref().is_none_or(|name| seen.is_for(name))
    }
}

/// What becomes of one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing special.
    Pass,
    /// The CA does not hear of it, and this is answered: a status, the last word of the error's type, and Retry-After as it
    /// stands in the head.
    Refuse(u16, &'static str, Option<String>),
    /// The same, with the date so much later as Retry-After.
    RefuseUntil(u16, &'static str, Duration),
    /// The CA does it, and the connection is closed before its answer.
    Lose,
    /// The CA does it, and its answer comes so much later.
    Slow(Duration),
}

/// On which side of the CA's deed a request is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The CA has not heard of it.
    Before,
    /// It is done, and its answer is on the way.
    After,
}

/// What becomes of one request, with what holds it.
pub(super) enum Then {
    Pass,
    Refuse(Refusal),
    Lose,
    Slow(Duration),
    Hold(When, Hold),
}

impl From<Fault> for Then {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Pass => Self::Pass,
            Fault::Refuse(status, kind, retry_after) => {
                Self::Refuse(Refusal { status, kind, retry_after, until: None })
            }
            Fault::RefuseUntil(status, kind, wait) => {
                Self::Refuse(Refusal { status, kind, retry_after: None, until: Some(wait) })
            }
            Fault::Lose => Self::Lose,
            Fault::Slow(wait) => Self::Slow(wait),
        }
    }
}

pub(super) struct Refusal {
    status: u16,
    kind: &'static str,
    retry_after: Option<String>,
    /// From the answer on.
    until: Option<Duration>,
}

impl From<Refusal> for http::Response<Full<Bytes>> {
    fn from(refusal: Refusal) -> Self {
        let kind = format!("urn:ietf:params:acme:error:{}", refusal.kind);
        let body = serde_json::json!({ "type": kind, "detail": "refused on purpose", "status": refusal.status });
        let mut response =
            http::Response::builder().status(refusal.status).header("content-type", "application/problem+json");
        let date = refusal.until.map(|wait| httpdate::fmt_http_date(SystemTime::now() + wait));
        if let Some(retry_after) = refusal.retry_after.or(date) {
            response = response.header("retry-after", retry_after);
        }
        response.body(Full::new(body.to_string().into())).unwrap()
    }
}

pub(super) struct Hold {
    arrived: oneshot::Sender<Seen>,
    release: oneshot::Receiver<()>,
}

impl Hold {
    /// Until it is released; lost when nobody is going to.
    pub(super) async fn wait(self, seen: &Seen) -> Result<(), Lost> {
        // A test that does not look at it may still release it.
        let _ = self.arrived.send(seen.clone());
        self.release.await.map_err(|_| Lost)
    }
}

/// A request that is held, or will be. Dropping it closes the connection without an answer; one that is held before the CA
/// is then never done.
pub struct Held {
    arrived: Option<oneshot::Receiver<Seen>>,
    release: oneshot::Sender<()>,
}

impl Held {
    /// Waits until it is there.
    ///
    /// # Panics
    /// After `limit`, or when it is waited for twice.
    pub async fn arrived(&mut self, what: &str, limit: Duration) -> Seen {
        let arrived = self.arrived.take().expect("it is waited for once");
        within(what, limit, arrived).await.expect("the proxy runs")
    }

    /// Lets it go on.
    pub fn release(self) {
        // Whoever asked may be gone.
        let _ = self.release.send(());
    }
}

/// All that is to go wrong.
#[derive(Default)]
pub(super) struct Plans(Mutex<Vec<(At, VecDeque<Then>)>>);

impl Plans {
    pub(super) fn add(&self, at: At, then: impl Iterator<Item = Then>) {
        locked(&self.0).push((at, then.collect()));
    }

    pub(super) fn hold(&self, at: At, passes: usize, when: When) -> Held {
        let (arrived, arrival) = oneshot::channel();
        let (release, released) = oneshot::channel();
        let hold = Then::Hold(when, Hold { arrived, release: released });
        self.add(at, std::iter::repeat_with(|| Then::Pass).take(passes).chain([hold]));
        Held { arrived: Some(arrival), release }
    }

    /// What becomes of this one: of the first plan that has something for it.
    pub(super) fn next(&self, seen: &Seen) -> Then {
        let mut plans = locked(&self.0);
        let plan = plans.iter_mut().find(|(at, then)| !then.is_empty() && at.is(seen));
        plan.and_then(|(_, then)| then.pop_front()).unwrap_or(Then::Pass)
    }
}

impl From<Reply> for http::Response<Full<Bytes>> {
    fn from(reply: Reply) -> Self {
        Self::from_parts(reply.parts, Full::new(reply.body))
    }
}
