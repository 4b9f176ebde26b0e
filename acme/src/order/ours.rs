//! What is never in an order: a name under one of our own suffixes. Orders are in public logs, and sprites' names are their
//! own business; a wildcard covers them.

use crate::ca::{Class, Problem};

/// Our own suffixes.
#[derive(Clone, Debug, Default)]
pub struct Ours(Vec<String>);

impl Ours {
    /// Of these suffixes.
    pub fn new(suffixes: impl IntoIterator<Item = String>) -> Self {
        Self(suffixes.into_iter().map(|suffix| normal(&suffix)).collect())
    }

    /// Whether this name may be ordered: a suffix, the wildcard of one, or a name that is under none.
    #[must_use]
    pub fn may_be_ordered(&self, name: &str) -> bool {
        let name = normal(name);
        let bare = name.strip_prefix("*.").unwrap_or(&name);
        let under = |suffix: &String| bare.strip_suffix(suffix.as_str()).is_some_and(|left| left.ends_with('.'));
        self.0.iter().any(|suffix| suffix == bare) || !self.0.iter().any(under)
    }

    /// Why names are not ordered, if they are not.
    pub(super) fn check(&self, names: &[String]) -> Option<Problem> {
        let refused = names.iter().find(|name| !self.may_be_ordered(name))?;
        Some(Problem::new(Class::Rejected, format!("{refused} is under a name of ours, and orders are public")))
    }
}

fn normal(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Kind;
    use crate::clock::Clock;
    use crate::order::OrderRow;
    use crate::order::sim::{SUFFIXES, World};
    use proptest::prelude::*;

    /// Names at, under and beside our suffixes, as careless as their writers are.
    fn names() -> impl Strategy<Value = String> {
        let ends = SUFFIXES.into_iter().chain(["shop.example", "example.org", "test", "notsprites.test"]);
        let end = prop::sample::select(ends.collect::<Vec<_>>());
        let label = prop::string::string_regex("[a-zA-Z0-9-]{1,8}|\\*").unwrap();
        (prop::collection::vec(label, 0..4), end, any::<bool>(), any::<bool>()).prop_map(
            |(mut labels, end, upper, dot)| {
                labels.push(end.to_owned());
                let name = labels.join(".");
                let name = if upper { name.to_ascii_uppercase() } else { name };
                if dot { format!("{name}.") } else { name }
            },
        )
    }

    /// Said another way: from the right, label by label.
    fn is_a_sprites(name: &str) -> bool {
        let labels = |name: &str| {
            let name = name.to_ascii_lowercase();
            name.split('.').rev().map(str::to_owned).filter(|label| !label.is_empty()).collect::<Vec<_>>()
        };
        let (name, suffixes) = (labels(name), SUFFIXES.map(labels));
        let below = |suffix: &Vec<String>| name.starts_with(suffix).then(|| &name[suffix.len()..]);
        let left: Vec<_> = suffixes.iter().filter_map(below).collect();
        !left.is_empty() && !left.iter().any(|left| left.is_empty() || *left == ["*"])
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn a_name_may_be_ordered_unless_it_is_a_sprites(name in names()) {
            let ours = Ours::new(SUFFIXES.map(str::to_owned));
            prop_assert_eq!(ours.may_be_ordered(&name), !is_a_sprites(&name), "{}", name);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn no_sprites_name_is_ever_in_an_order(all in prop::collection::vec(names(), 1..4)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let world = World::new(Clock::starting_at(1_800_000_000));
                let process = world.process().await;
                let row = OrderRow::new(all.clone(), "sim", Kind::Dns01, 1, 1_800_000_000);
                let mut order = process.begin("any", row).await.unwrap();
                let ca = world.ca("sim");
                // The key, then the order.
                for _ in 0..2 {
                    process.step(&mut order, &*ca, 1_800_000_000).await.unwrap();
                }
                let placed = ca.placed();
                assert!(!placed.iter().flatten().any(|name| is_a_sprites(name)), "{placed:?}");
                // The others are ordered all the same.
                assert_eq!(placed.is_empty(), all.iter().any(|name| is_a_sprites(name)), "{all:?}");
            });
        }
    }

    #[test]
    fn our_suffixes_and_their_wildcards_are_ordered_and_what_is_below_is_not() {
        let ours = Ours::new(["Sprites.test.".to_owned(), "fra.sprites.test".to_owned()]);
        for name in ["sprites.test", "*.sprites.test", "*.FRA.sprites.test.", "shop.example", "notsprites.test", "test"]
        {
            assert!(ours.may_be_ordered(name), "{name}");
        }
        for name in ["a.sprites.test", "A.Sprites.Test.", "*.a.sprites.test", "a.fra.sprites.test", "*.*.sprites.test"]
        {
            assert!(!ours.may_be_ordered(name), "{name}");
        }
    }
}
