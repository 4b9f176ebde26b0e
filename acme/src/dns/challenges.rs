//! Where the TXT records of challenges come from: what is known here, and who is asked on a miss.

use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

/// Most values of one name (chosen: each order of a name and of its wildcard has one, of each certification authority).
pub const VALUES_MAX: usize = 16;
/// Most names with challenges at a time (chosen: an order lasts minutes, a change copies the map).
const NAMES_MAX: usize = 10_000;
/// Longest value, bytes: one character string (RFC 1035 §3.3). A digest takes 43 (RFC 8555 §8.4).
pub const VALUE_BYTES_MAX: usize = 255;

/// Who knows which challenges are published.
pub trait Challenges: Send + Sync {
    /// The TXT values at `name` (lower case, no dot at its end); nothing when there are none. Called for names only that may
    /// have challenges. It does not wait.
    fn txt(&self, name: &str) -> Option<Values>;
}

/// Who is asked for a challenge that is not known here: other machines, which may have heard of it before.
pub trait Pull: Send + Sync {
    /// The values at `name`; none when nobody has them. Dropped when it takes longer than the asker waits.
    fn pull(&self, name: String) -> Pulling;
}

/// What [`Pull::pull`] returns.
pub type Pulling = Pin<Box<dyn Future<Output = Vec<Box<str>>> + Send>>;

/// Challenges in memory.
#[derive(Debug, Default)]
pub struct Published {
    names: ArcSwap<HashMap<Box<str>, Values>>,
}

/// The values of one name.
pub type Values = Arc<[Box<str>]>;

/// Why a challenge is not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No record could say it.
    #[error("a value has 1 to {VALUE_BYTES_MAX} bytes")]
    Value,
    /// More names have challenges than ever were ordered at a time.
    #[error("at most {NAMES_MAX} names have challenges at a time")]
    Names,
    /// The answer would grow without bound.
    #[error("a name has at most {VALUES_MAX} values")]
    Full,
}

impl Published {
    /// Adds a value to what is at `name` already; one that is there stays there once.
    ///
    /// # Errors
    /// [`PublishError`]: nothing has changed.
    pub fn add(&self, name: &str, value: &str) -> Result<(), PublishError> {
        if !(1..=VALUE_BYTES_MAX).contains(&value.len()) {
            return Err(PublishError::Value);
        }
        let name = key(name);
        let mut outcome = Ok(());
        self.names.rcu(|names| {
            let mut names = HashMap::clone(names);
            let mut values = names.get(&name).map_or_else(Vec::new, |values| values.to_vec());
            outcome = match values.iter().any(|known| **known == *value) {
                false if values.len() == VALUES_MAX => Err(PublishError::Full),
                false if values.is_empty() && names.len() == NAMES_MAX => Err(PublishError::Names),
                false => {
                    values.push(value.into());
                    names.insert(name.clone(), values.into());
                    Ok(())
                }
                true => Ok(()),
            };
            names
        });
        outcome
    }

    /// Takes a value away; whether it was there.
    pub fn remove(&self, name: &str, value: &str) -> bool {
        let name = key(name);
        let mut removed = false;
        self.names.rcu(|names| {
            let mut names = HashMap::clone(names);
            let had = names.get(&name).map_or_else(Vec::new, |values| values.to_vec());
            let left: Vec<_> = had.iter().filter(|known| ***known != *value).cloned().collect();
            removed = left.len() < had.len();
            match left.is_empty() {
                true => drop(names.remove(&name)),
                false => drop(names.insert(name.clone(), left.into())),
            }
            names
        });
        removed
    }
}

fn key(name: &str) -> Box<str> {
    name.trim_end_matches('.').to_ascii_lowercase().into()
}

impl Challenges for Published {
    fn txt(&self, name: &str) -> Option<Values> {
        self.names.load().get(name).cloned()
    }
}

/// What a pull brought, for the one name it was for.
pub(super) struct Pulled(pub(super) Values);

impl Challenges for Pulled {
    fn txt(&self, _: &str) -> Option<Values> {
        Some(Arc::clone(&self.0)).filter(|values| !values.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_a_name_come_and_go_one_by_one() {
        let published = Published::default();
        assert_eq!(published.add("_Acme-Challenge.sprites.dev.", "one"), Ok(()));
        assert_eq!(published.add("_acme-challenge.sprites.dev", "two"), Ok(()));
        assert_eq!(published.add("_acme-challenge.sprites.dev", "two"), Ok(()));
        let at = |name| published.txt(name).map(|values| values.join(" "));
        assert_eq!(at("_acme-challenge.sprites.dev").as_deref(), Some("one two"));
        assert!(published.remove("_acme-challenge.sprites.dev", "one"));
        assert!(!published.remove("_acme-challenge.sprites.dev", "one"));
        assert_eq!(at("_acme-challenge.sprites.dev").as_deref(), Some("two"));
        assert!(published.remove("_acme-challenge.sprites.dev", "two"));
        assert_eq!(at("_acme-challenge.sprites.dev"), None);
    }

    #[test]
    fn a_name_has_only_so_many_values_and_none_that_no_record_holds() {
        let published = Published::default();
        for number in 0..VALUES_MAX {
            assert_eq!(published.add("a", &number.to_string()), Ok(()));
        }
        assert_eq!(published.add("a", "more"), Err(PublishError::Full));
        assert_eq!(published.add("a", "3"), Ok(()));
        assert_eq!(published.add("b", ""), Err(PublishError::Value));
        assert_eq!(published.add("b", &"x".repeat(256)), Err(PublishError::Value));
    }
}
