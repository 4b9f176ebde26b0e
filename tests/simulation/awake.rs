//! Awake time twice: as the owner tells the ledger, and as the guests really ran.

use router::names::SpriteName;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use wakeup::owner::core::Action;

/// One account.
#[derive(Debug, Default, PartialEq, Eq)]
struct Account {
    open: Option<Instant>,
    total: Duration,
}

/// Both accounts of every sprite.
#[derive(Debug, Default)]
pub(crate) struct Awake {
    told: BTreeMap<SpriteName, Account>,
    true_: BTreeMap<SpriteName, Account>,
    runs: BTreeMap<SpriteName, u64>,
}

impl Awake {
    /// What the owner tells: runs begin and end in turn, with numbers that grow.
    pub(crate) fn told(&mut self, action: &Action) {
        match action {
            Action::RunBegan { name, run, at, .. } => {
                let last = self.runs.insert(name.clone(), *run).unwrap_or(0);
                assert!(*run > last, "run {run} of {name} is told after run {last}");
                begin(self.told.entry(name.clone()).or_default(), *at, name);
            }
            Action::RunEnded { name, run, since, at, .. } => {
                assert_eq!(self.runs.get(name), Some(run), "another run of {name} ends than began");
                let account = self.told.entry(name.clone()).or_default();
                assert_eq!(account.open, Some(*since), "run {run} of {name} is told from another moment on");
                end(account, *at);
            }
            _ => {}
        }
    }

    /// A guest runs.
    pub(crate) fn begins(&mut self, at: Instant, name: &SpriteName) {
        begin(self.true_.entry(name.clone()).or_default(), at, name);
    }

    /// A guest is frozen or no more; one that did not run is none.
    pub(crate) fn ends(&mut self, at: Instant, name: &SpriteName) {
        end(self.true_.entry(name.clone()).or_default(), at);
    }

    /// Once everything rests the accounts agree.
    pub(crate) fn finally(&self) {
        for (name, truth) in &self.true_ {
            assert_eq!(truth.open, None, "{name} was left running");
            let told = self.told.get(name).map_or(Duration::ZERO, |account| account.total);
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
