//! Which sprites this process believes to be running, so that a warm request asks nobody.
//!
//! A view is a guess with a short life: the owner checks it with every stream and answers
//! `asleep` when it is wrong. So any of them may be forgotten at any time, and whoever looks at
//! one takes no lock.

use papaya::{HashMap, Operation};
use router::names::SpriteName;
use std::time::{Duration, Instant};

/// How long a view is believed (`wake.md` §3).
const TTL: Duration = Duration::from_secs(60);
/// Views kept (chosen: about 10 MB).
const VIEWS_MAX: usize = 100_000;

#[derive(Clone, Copy)]
struct View {
    generation: u64,
    run: u64,
    at: Instant,
}

/// The views of one process.
#[derive(Default)]
pub(super) struct Views(HashMap<SpriteName, View>);

impl Views {
    /// The run believed to run at `now`. No lock, no allocation.
    pub(super) fn run(&self, now: Instant, name: &str, generation: u64) -> Option<u64> {
        let view = *self.0.pin().get(name)?;
        (view.generation == generation && now.saturating_duration_since(view.at) < TTL).then_some(view.run)
    }

    /// Learnt at `now` that a run runs. An older placement does not hide a newer one.
    pub(super) fn note(&self, now: Instant, name: &SpriteName, generation: u64, run: u64) {
        let views = self.0.pin();
        if views.len() >= VIEWS_MAX && !views.contains_key(name) {
            views.retain(|_, view| now.saturating_duration_since(view.at) < TTL);
            if views.len() >= VIEWS_MAX {
                // All are fresh. Starting over costs each sprite one question.
                views.clear();
            }
        }
        let new = View { generation, run, at: now };
        // Inserted first: `compute` alone does not see to it that a growing map stays fast (see router's table).
        if views.try_insert(name.clone(), new).is_ok() {
            return;
        }
        views.compute(name.clone(), |present| match present {
            Some((_, view)) if (generation, run) < (view.generation, view.run) => Operation::Abort(()),
            _ => Operation::Insert(new),
        });
    }

    /// That run does not run any more.
    pub(super) fn forget(&self, name: &str, run: u64) {
        // Another run has come: that one stays.
        let _ = self.0.pin().remove_if(name, |_, view| view.run == run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_believed_for_a_minute_and_only_for_its_placement_and_run() {
        let (views, now) = (Views::default(), Instant::now());
        let name = SpriteName::parse("a").unwrap();
        views.note(now, &name, 2, 7);
        views.note(now, &name, 1, 9);
        assert_eq!(views.run(now, "a", 2), Some(7), "an older placement came late");
        assert_eq!(views.run(now, "a", 1), None);
        views.forget("a", 6);
        assert_eq!(views.run(now + TTL - Duration::from_millis(1), "a", 2), Some(7));
        assert_eq!(views.run(now + TTL, "a", 2), None);
        views.forget("a", 7);
        assert_eq!(views.run(now, "a", 2), None);
    }

    #[test]
    fn views_stay_within_their_bound() {
        let (views, now) = (Views::default(), Instant::now());
        for n in 0..=VIEWS_MAX {
            views.note(now, &SpriteName::parse(&format!("s{n}")).unwrap(), 1, 1);
        }
        assert!(views.0.len() <= VIEWS_MAX);
        assert_eq!(views.run(now, &format!("s{VIEWS_MAX}"), 1), Some(1));
    }
}
