//! What keeps a sprite awake, told to its people: every claim there is, and when it ends.

use super::super::sprite::{Sprite, State};
use super::due::idle_at;
use super::{Activity, OwnerCore};
use crate::spec::{LeaseWhy, TaskWhy, Why};
use router::names::SpriteName;
use std::time::{Duration, Instant};

impl OwnerCore {
    /// What keeps it awake at `now`; nothing for one that is unknown.
    #[must_use]
    pub fn why(&self, now: Instant, name: &SpriteName, activity: &dyn Activity) -> Option<Why> {
        let sprite = self.sprites.get(name)?;
        let (open, last) = match sprite.state {
            State::Running { .. } => activity.activity(name, sprite.run),
            _ => (0, sprite.since),
        };
        let left = |until: Instant| ms(until.saturating_duration_since(now));
        let leases = sprite.leases.iter().filter(|(_, lease)| lease.until > now && lease.run == sprite.run);
        let leases = leases.map(|(edge, lease)| LeaseWhy {
            edge: edge.0,
            open: lease.open,
            sockets: lease.sockets,
            quiet_ms: ms(now.saturating_duration_since(lease.last_data)),
            ends_in_ms: left(lease.until),
        });
        let tasks = sprite.tasks.iter().filter(|(_, until)| **until > now);
        let tasks: Vec<_> = tasks.map(|(id, until)| TaskWhy { id: *id, ends_in_ms: left(*until) }).collect();
        let sleeps_at = match sprite.state {
            State::Running { since, .. } if open == 0 && !sprite.spec.always && sprite.held.is_none() => {
                let claims =
                    sprite.claimed_until(now, self.silence_of(sprite)).into_iter().chain(sprite.busy_until(now));
                Some(claims.fold(idle_at(sprite, &self.settings, since, last), Instant::max))
            }
            _ => None,
        };
        Some(Why {
            state: sprite.status(name, now).state,
            because: because(sprite, now, open, &tasks),
            open,
            leases: leases.collect(),
            tasks,
            waiting: sprite.waiters.len(),
            quiet_ms: ms(now.saturating_duration_since(last)),
            sleeps_in_ms: sleeps_at.map(left),
            over_budget: sprite.generous_until.is_some_and(|until| until > now),
        })
    }
}

/// The strongest reason, in one sentence.
fn because(sprite: &Sprite, now: Instant, open: u32, tasks: &[TaskWhy]) -> String {
    let leased = sprite.leased(now);
    match &sprite.state {
        State::Running { .. } | State::Stopping { .. } => {}
        State::Waking { .. } => return format!("it is being woken for {} who wait", sprite.waiters.len()),
        State::Asleep(_) | State::Failed { .. } => return "nothing: it is not awake".into(),
    }
    if sprite.spec.always {
        "it is a service that never sleeps".into()
    } else if sprite.held.is_some() {
        "it is held by order".into()
    } else if open > 0 || leased > 0 {
        format!("{} requests and sockets are open", open.max(leased))
    } else if !tasks.is_empty() {
        format!("its guest is busy with {} tasks", tasks.len())
    } else {
        "only its idle timeout, or its minimum run".into()
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
