//! Awake time twice: as the owner tells the ledger, and as the guests really ran.

use router::names::SpriteName;
use router::route::HostId;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use wakeup::owner::core::Action;

/// One account.
#[derive(Debug, Default, PartialEq, Eq)]
struct Account {
    open: Option<Instant>,
    total: Duration,
}

/// A sprite on one host.
type Key = (HostId, SpriteName);

/// Both accounts of every sprite.
#[derive(Debug, Default)]
pub(crate) struct Awake {
    told: BTreeMap<Key, Account>,
    true_: BTreeMap<Key, Account>,
    runs: BTreeMap<Key, (u64, u64)>,
}

impl Awake {
    /// What an owner tells: runs begin and end in turn, with numbers that grow.
    pub(crate) fn told(&mut self, host: HostId, action: &Action) {
        match action {
            Action::RunBegan { name, generation, run, at, .. } => {
                let key = (host, name.clone());
                let last = self.runs.insert(key.clone(), (*generation, *run)).unwrap_or_default();
                assert!((*generation, *run) > last, "run {run} of {name} ({generation}) is told after {last:?}");
                begin(self.told.entry(key).or_default(), *at, name);
            }
            Action::RunEnded { name, generation, run, since, at, .. } => {
                let key = (host, name.clone());
                assert_eq!(self.runs.get(&key), Some(&(*generation, *run)), "another run of {name} ends than began");
                let account = self.told.entry(key).or_default();
                assert_eq!(account.open, Some(*since), "run {run} of {name} is told from another moment on");
                end(account, *at);
            }
            _ => {}
        }
    }

    /// The run a ledger has open, and since when.
    pub(crate) fn open(&self, host: HostId, name: &SpriteName) -> Option<(u64, Instant)> {
        let key = (host, name.clone());
        Some((self.runs.get(&key)?.1, self.told.get(&key)?.open?))
    }

    /// Its owner died and its guest with it: whoever comes next closes the account.
    pub(crate) fn lost(&mut self, at: Instant, host: HostId, name: &SpriteName) {
        let key = (host, name.clone());
        end(self.told.entry(key.clone()).or_default(), at);
        end(self.true_.entry(key).or_default(), at);
    }

    /// A guest runs; one that ran already goes on.
    pub(crate) fn begins(&mut self, at: Instant, host: HostId, name: &SpriteName) {
        begin(self.true_.entry((host, name.clone())).or_default(), at, name);
    }

    pub(crate) fn runs(&self, host: HostId, name: &SpriteName) -> bool {
        self.true_.get(&(host, name.clone())).is_some_and(|account| account.open.is_some())
    }

    /// A guest is frozen or no more; one that did not run is none.
    pub(crate) fn ends(&mut self, at: Instant, host: HostId, name: &SpriteName) {
        end(self.true_.entry((host, name.clone())).or_default(), at);
    }

    /// Once everything rests the accounts agree.
    pub(crate) fn finally(&self) {
        for (key, truth) in &self.true_ {
            let (host, name) = key;
            assert_eq!(truth.open, None, "{name} was left running on {host:?}");
            let told = self.told.get(key).map_or(Duration::ZERO, |account| account.total);
            assert_eq!(told, truth.total, "the ledger's awake time of {name} and the real one");
        }
    }
}

fn begin(account: &mut Account, at: Instant, name: &SpriteName) {
    assert_eq!(account.open, None, "{name} begins to run while it runs");
    account.open = Some(at);
}

fn end(account: &mut Account, at: Instant) {
    if let Some(since) = account.open.take() {
        account.total += at.saturating_duration_since(since);
    }
}
