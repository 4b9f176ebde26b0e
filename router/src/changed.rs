//! Which keys of a table have changed, for those who look now and then and must not look at all of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What has changed since somebody looked last. At first: anything.
#[derive(Debug, Default)]
pub struct Changed {
    /// `None`: anything.
    keys: Mutex<Option<BTreeSet<Box<str>>>>,
}

impl Changed {
    /// The keys that have changed since this was asked; `None` when that may be any: whoever asks first looks at all.
    #[must_use]
    pub fn take(&self) -> Option<BTreeSet<Box<str>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).replace(BTreeSet::new())
    }

    fn note(&self, key: &str) {
        if let Some(keys) = &mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner)
            && !keys.contains(key)
        {
            keys.insert(key.into());
        }
    }
}

/// Those who look at a table; each is told of as many keys as the table has at most.
#[derive(Debug, Default)]
pub struct Lookers(Mutex<Vec<Weak<Changed>>>);

impl Lookers {
    /// Another one, for as long as he keeps it.
    #[must_use]
    pub fn follow(&self) -> Arc<Changed> {
        let changed = Arc::new(Changed::default());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&changed));
        changed
    }

    /// Tells all of them, once the table has the change.
    pub fn note(&self, key: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.upgrade().inspect(|one| one.note(key)).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_first_looks_at_all_and_then_at_what_has_changed() {
        let lookers = Lookers::default();
        let (one, other) = (lookers.follow(), lookers.follow());
        lookers.note("a");
        assert_eq!(one.take(), None);
        assert_eq!(one.take(), Some(BTreeSet::new()));
        ["b", "a", "b"].iter().for_each(|key| lookers.note(key));
        assert_eq!(one.take(), Some(["a", "b"].map(Box::from).into()));
        assert_eq!((other.take(), other.take()), (None, Some(BTreeSet::new())));
        drop(other);
        lookers.note("c");
        assert_eq!(lookers.0.lock().unwrap().len(), 1);
    }
}
