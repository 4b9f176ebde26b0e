//! What is counted. Each thread has counters of its own, so that none waits for another's; who reads adds them up.

use super::answer::Answer;
use super::codes::rcode;
use super::zone::COUNTED;
use std::sync::atomic::{AtomicU64, Ordering};

/// Response codes by the names they are counted by.
const CODES: [(u8, &str); 6] = [
    (rcode::NO_ERROR, "NOERROR"),
    (rcode::FORM_ERROR, "FORMERR"),
    (rcode::NX_DOMAIN, "NXDOMAIN"),
    (rcode::NOT_IMPLEMENTED, "NOTIMP"),
    (rcode::REFUSED, "REFUSED"),
    (rcode::BAD_VERSION, "BADVERS"),
];

/// What happened to an answer, a question or a connection besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// An answer did not fit a datagram.
    Truncated,
    /// An answer above the limit was cut down to "come by TCP".
    Cut,
    /// An answer above the limit was dropped.
    Dropped,
    /// The socket's buffer was full.
    Unsent,
    /// Others were asked for a challenge.
    Pulled,
    /// They were not, because too many were asked for already.
    PullRefused,
    /// A connection was taken.
    Connection,
    /// A connection was closed at once, because there were too many.
    ConnectionRefused,
}

const EVENTS: usize = Event::ConnectionRefused as usize + 1;

/// One thread's.
#[derive(Debug, Default)]
pub(super) struct Counters {
    kinds: [AtomicU64; COUNTED.len() + 1],
    codes: [AtomicU64; CODES.len()],
    events: [AtomicU64; EVENTS],
}

impl Counters {
    /// A question was answered, whether or not the answer leaves.
    pub(super) fn answered(&self, answer: &Answer) {
        let kind = COUNTED.iter().position(|(kind, _)| *kind == answer.kind).unwrap_or(COUNTED.len());
        add(&self.kinds[kind]);
        if let Some(code) = CODES.iter().position(|(code, _)| *code == answer.code) {
            add(&self.codes[code]);
        }
        if answer.truncated {
            self.count(Event::Truncated);
        }
    }

    pub(super) fn count(&self, event: Event) {
        add(&self.events[event as usize]);
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What all threads have counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Questions by type; "other" for most types.
    pub questions: Vec<(&'static str, u64)>,
    /// Answers by response code.
    pub codes: Vec<(&'static str, u64)>,
    /// Answers that did not fit a datagram.
    pub truncated: u64,
    /// Answers above a network's limit that were cut down to "come by TCP".
    pub cut: u64,
    /// Answers above a network's limit that were dropped.
    pub dropped: u64,
    /// Answers the socket had no room for.
    pub unsent: u64,
    /// Challenges that others were asked for.
    pub pulled: u64,
    /// Challenges they were not asked for, because too many were under way.
    pub pulls_refused: u64,
    /// Connections taken.
    pub connections: u64,
    /// Connections closed at once, because there were too many.
    pub connections_refused: u64,
}

impl Counts {
    pub(super) fn sum<'a>(all: impl Iterator<Item = &'a Counters> + Clone) -> Self {
        let sum = |of: &dyn Fn(&Counters) -> &AtomicU64| all.clone().map(|each| of(each).load(Ordering::Relaxed)).sum();
        let event = |event: Event| sum(&|each| &each.events[event as usize]);
        let names = COUNTED.iter().map(|(_, name)| *name).chain(["other"]);
        Self {
            questions: names.enumerate().map(|(at, name)| (name, sum(&|each| &each.kinds[at]))).collect(),
            codes: CODES.iter().enumerate().map(|(at, (_, name))| (*name, sum(&|each| &each.codes[at]))).collect(),
            truncated: event(Event::Truncated),
            cut: event(Event::Cut),
            dropped: event(Event::Dropped),
            unsent: event(Event::Unsent),
            pulled: event(Event::Pulled),
            pulls_refused: event(Event::PullRefused),
            connections: event(Event::Connection),
            connections_refused: event(Event::ConnectionRefused),
        }
    }
}
