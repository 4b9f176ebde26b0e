//! Who is started next: round-robin over tenants, first come first served within one.
//!
//! One tenant that wakes a thousand sprites at once waits for itself, not in front of the
//! others.

use router::names::SpriteName;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Sprites that wait for a start slot.
#[derive(Debug, Default)]
pub(super) struct StartQueue {
    tenants: BTreeMap<Arc<str>, VecDeque<SpriteName>>,
    /// Tenants with somebody in the queue, the next one first.
    turns: VecDeque<Arc<str>>,
    len: usize,
}

impl StartQueue {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, tenant: &Arc<str>, name: SpriteName) {
        let queue = self.tenants.entry(Arc::clone(tenant)).or_default();
        if queue.is_empty() {
            self.turns.push_back(Arc::clone(tenant));
        }
        queue.push_back(name);
        self.len += 1;
    }

    pub(super) fn pop(&mut self) -> Option<SpriteName> {
        let tenant = self.turns.pop_front()?;
        let queue = self.tenants.get_mut(&tenant)?;
        let name = queue.pop_front()?;
        self.len -= 1;
        if queue.is_empty() {
            self.tenants.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        Some(name)
    }

    pub(super) fn remove(&mut self, name: &SpriteName) {
        let holds = |queue: &VecDeque<SpriteName>| queue.contains(name);
        let Some(tenant) = self.tenants.iter().find(|(_, queue)| holds(queue)).map(|(tenant, _)| Arc::clone(tenant))
        else {
            return;
        };
        let Some(queue) = self.tenants.get_mut(&tenant) else { return };
        queue.retain(|queued| queued != name);
        self.len -= 1;
        if queue.is_empty() {
            self.tenants.remove(&tenant);
            self.turns.retain(|waiting| *waiting != tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_take_turns_and_within_one_the_first_comes_first() {
        let mut queue = StartQueue::default();
        let name = |text: &str| SpriteName::parse(text).unwrap();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        for text in ["a1", "a2", "a3"] {
            queue.push(&a, name(text));
        }
        queue.push(&b, name("b1"));
        queue.remove(&name("a2"));
        queue.remove(&name("a2"));
        assert_eq!(queue.len(), 3);
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|name| name.to_string()).collect();
        assert_eq!(order, ["a1", "b1", "a3"]);
        assert_eq!(queue.len(), 0);
        queue.push(&b, name("b2"));
        queue.remove(&name("b2"));
        assert!(queue.pop().is_none() && queue.turns.is_empty() && queue.tenants.is_empty());
    }
}
