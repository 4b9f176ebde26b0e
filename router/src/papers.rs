//! What makes the row of a machine believable: an operator has enrolled its signing key, and the row is
//! sealed by that key or by an operator.
//!
//! So a machine may correct its own row (its address, its pins, its WireGuard key) and nobody else's. A
//! machine that was let go leaves a row behind that says so, or its old papers would let it in again.

use crate::registry::RegistryRow;
use crate::rows::RowError;
use crate::signing::{Message, Operators, PublicKey, Seal, Signature, SigningKey};
use serde::{Deserialize, Serialize};

/// Most signing keys of one machine's row (chosen: two edge processes, each with the next beside the current).
pub const KEYS_MAX: usize = 4;

/// An operator's word about a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// The keys that may seal its row.
    pub keys: Vec<PublicKey>,
    /// When, in seconds since 1970, or one more than the enrolment before: a later one ends it.
    pub at: u64,
    /// It was let go: nobody speaks with it any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removed: bool,
    /// The operator's.
    pub signature: Signature,
}

/// What a row of the registry carries where operators sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Papers {
    /// Who it is.
    pub enrolment: Enrolment,
    /// Number of the row under this enrolment: an old one does not come back.
    pub serial: u64,
    /// Over the whole row.
    pub seal: Option<Seal>,
}

/// A row that has papers.
pub trait Enrolled: RegistryRow {
    /// Its key in the store.
    fn store_key(&self) -> String;
    /// The machine's name.
    fn machine(&self) -> &str;
    /// Its papers.
    fn papers(&self) -> Option<&Papers>;
    /// The same row with other papers.
    #[must_use]
    fn with_papers(self, papers: Option<Papers>) -> Self;
}

/// The row with papers that an operator makes and seals: for these keys, or for a machine that is let go.
/// `before` are the papers of the row it replaces.
#[must_use]
pub fn enrol<R: Enrolled>(
    row: R,
    keys: Vec<PublicKey>,
    removed: bool,
    before: Option<&Papers>,
    now: u64,
    by: &SigningKey,
) -> R {
    let at = before.map_or(now, |papers| now.max(papers.enrolment.at.saturating_add(1)));
    let signature = by.sign(&enrolment(&row, &keys, at, removed));
    let enrolment = Enrolment { keys, at, removed, signature };
    sealed(row.with_papers(Some(Papers { enrolment, serial: 0, seal: None })), by)
}

/// The row as the machine itself writes it: the next under its enrolment, sealed by its own key. A row
/// without papers stays without.
#[must_use]
pub fn renew<R: Enrolled>(row: R, by: &SigningKey) -> R {
    let Some(papers) = row.papers().cloned() else { return row };
    let serial = papers.serial + 1;
    sealed(row.with_papers(Some(Papers { serial, seal: None, ..papers })), by)
}

fn sealed<R: Enrolled>(row: R, by: &SigningKey) -> R {
    let seal = Seal::new(&row.store_key(), &row.encode(), by);
    let papers = row.papers().cloned().map(|papers| Papers { seal: Some(seal), ..papers });
    row.with_papers(papers)
}

fn enrolment<R: Enrolled>(row: &R, keys: &[PublicKey], at: u64, removed: bool) -> Vec<u8> {
    let mut message = Message::new("edge-proxy enrolment 1");
    message.part(row.store_key().as_bytes());
    message.part(row.machine().as_bytes());
    message.number(at);
    message.number(removed.into());
    for key in keys {
        message.part(key.bytes());
    }
    message.done()
}

/// Whether the lists of some papers are within their bounds.
pub(crate) fn are_bounded(papers: Option<&Papers>) -> bool {
    papers.is_none_or(|papers| papers.enrolment.keys.len() <= KEYS_MAX && papers.serial < u64::MAX)
}

/// Whether a machine was let go.
pub(crate) fn are_ended(papers: Option<&Papers>) -> bool {
    papers.is_some_and(|papers| papers.enrolment.removed)
}

/// Whether who wrote a row may have. `known` is the row it would replace.
///
/// # Errors
/// [`RowError::Forged`]: why not.
pub(crate) fn check<R: Enrolled>(row: &R, known: Option<&R>, operators: &Operators) -> Result<(), RowError> {
    let Some((papers, seal)) = row.papers().and_then(|papers| Some((papers, papers.seal.as_ref()?))) else {
        return Err(RowError::Forged("nobody has signed it"));
    };
    let Enrolment { keys, at, removed, signature } = &papers.enrolment;
    if let Some(known) = known.and_then(Enrolled::papers)
        && (*at, papers.serial) < (known.enrolment.at, known.serial)
    {
        return Err(RowError::Forged("it is older than what is known"));
    }
    if !operators.signed(&enrolment(row, keys, *at, *removed), signature) {
        return Err(RowError::Forged("no operator has enrolled it"));
    }
    if !(keys.contains(&seal.by) && !removed || operators.include(&seal.by)) {
        return Err(RowError::Forged("it is sealed by another machine"));
    }
    let unsealed = row.clone().with_papers(Some(Papers { seal: None, ..papers.clone() }));
    match seal.fits(&row.store_key(), &unsealed.encode()) {
        true => Ok(()),
        false => Err(RowError::Forged("its seal is not of this row")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::HostTable;
    use crate::route::{HostId, HostRow};
    use crate::signing::tests::key;
    use crate::store::{Cursor, Entry, FeedEvent};
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use std::collections::BTreeSet;

    const OPERATOR: u8 = 100;
    const CURSOR: Cursor = Cursor { epoch: 1, version: 1 };

    fn host(number: u8, papers: bool) -> HostRow {
        let row = HostRow {
            name: format!("host-{number}"),
            number: HostId(number.into()),
            wireguard_key: BASE64_STANDARD.encode([number; 32]),
            endpoint: ([192, 0, 2, number], 51820).into(),
            address: [0xfd00, 0, 0, 0, 0, 0, 0, number.into()].into(),
            spki_pins: vec!["0a".repeat(32)],
            papers: None,
        };
        match papers {
            true => enrol(row, vec![key(number).public()], false, None, 1_000, &key(OPERATOR)),
            false => row,
        }
    }

    struct World {
        hosts: HostTable,
        seen: BTreeSet<HostId>,
    }

    impl World {
        /// Hosts 1 and 2 are known.
        fn new() -> Self {
            let hosts = HostTable::trusting(Operators::new([key(OPERATOR).public()]));
            let mut world = Self { hosts, seen: BTreeSet::new() };
            assert!(world.takes(&host(1, true)) && world.takes(&host(2, true)));
            world
        }

        /// Whether the table holds a row after the store had it.
        fn takes(&mut self, row: &HostRow) -> bool {
            let entry = Entry { key: HostRow::key(row.number), value: row.encode(), version: 1 };
            self.hosts.handle(FeedEvent::Put(entry, CURSOR), &mut self.seen);
            self.hosts.lookup(row.number).as_deref() == Some(row)
        }
    }

    #[test]
    fn a_machine_corrects_its_own_row_and_an_old_one_does_not_come_back() {
        let mut world = World::new();
        let first = host(1, true);
        let moved = renew(HostRow { endpoint: ([192, 0, 2, 9], 1).into(), ..first.clone() }, &key(1));
        assert!(world.takes(&moved));
        assert!(!world.takes(&first), "a row from before");
        let pins = renew(HostRow { spki_pins: vec!["0b".repeat(32)], ..moved.clone() }, &key(1));
        assert!(world.takes(&pins));
        let again = enrol(
            host(1, false),
            vec![key(11).public()],
            false,
            pins.papers.as_ref(),
            // Clocks of operators differ.
            900,
            &key(OPERATOR),
        );
        assert!(world.takes(&again), "enrolled anew, with another key");
        assert!(!world.takes(&renew(pins, &key(1))), "the key from before");
    }

    #[test]
    fn nobody_writes_the_row_of_another_machine() {
        let mut world = World::new();
        let (known, stolen) = (host(1, true), vec!["0b".repeat(32)]);
        // As it is in a fleet whose operators do not sign; sealed by another host; with papers of its own making.
        assert!(!world.takes(&HostRow { spki_pins: stolen.clone(), ..host(1, false) }));
        assert!(!world.takes(&renew(HostRow { spki_pins: stolen.clone(), ..known.clone() }, &key(2))));
        let forged = HostRow { spki_pins: stolen.clone(), ..host(1, false) };
        assert!(!world.takes(&enrol(
            forged.clone(),
            vec![key(2).public()],
            false,
            known.papers.as_ref(),
            9_000,
            &key(2)
        )));
        // With papers of another: its number is signed, and so is its name.
        assert!(!world.takes(&renew(forged.with_papers(host(2, true).papers), &key(2))));
        let named = renew(HostRow { name: "host-1".into(), ..host(2, true) }, &key(2));
        assert!(!world.takes(&named));
        // Changed after it was sealed.
        assert!(!world.takes(&HostRow { spki_pins: stolen, ..known.clone() }));
        // In its own row, with the key or the address of another.
        for own in [
            HostRow { wireguard_key: known.wireguard_key.clone(), ..host(2, true) },
            HostRow { address: known.address, ..host(2, true) },
        ] {
            assert!(!world.takes(&renew(own, &key(2))));
        }
        assert_eq!(world.hosts.lookup(HostId(1)).as_deref(), Some(&known));
        assert_eq!(world.hosts.lookup(HostId(2)).as_deref(), Some(&host(2, true)));
    }

    #[test]
    fn a_machine_that_was_let_go_stays_away_and_a_row_that_vanishes_does_not_let_one_go() {
        let mut world = World::new();
        world.hosts.handle(FeedEvent::Delete("host/1".into(), CURSOR), &mut world.seen);
        world.hosts.handle(FeedEvent::SnapshotBegin { epoch: 1 }, &mut world.seen);
        let entry = Entry { key: "host/2".into(), value: host(2, true).encode(), version: 1 };
        world.hosts.handle(FeedEvent::Entry(entry), &mut world.seen);
        world.hosts.handle(FeedEvent::SnapshotEnd(CURSOR), &mut world.seen);
        assert_eq!(world.hosts.all().len(), 2);
        let present = host(2, true);
        let gone = enrol(present.clone(), vec![key(2).public()], true, present.papers.as_ref(), 2_000, &key(OPERATOR));
        world.takes(&gone);
        assert_eq!(world.hosts.all().len(), 1);
        for back in [present.clone(), renew(present, &key(2)), renew(gone, &key(2))] {
            assert!(!world.takes(&back));
        }
        assert_eq!(world.hosts.all().len(), 1);
    }
}
