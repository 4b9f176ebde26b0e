//! When the DNS is to be asked about a domain, and what its answer changes: no clock, no socket.
//!
//! Times are seconds since 1970. A claim is looked at ever more rarely for a week. What was proved is proved
//! again every 30 days; a record that is missing then for 3 days suspends the domain. An answer
//! that could not be had changes nothing: our own resolver may be what is broken.

use super::row::{Claim, DomainRow, Holder};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// How long a proof is good for (`routing.md` §1).
pub const PROOF_LIFE: u64 = 30 * DAY;
/// How long the record may be missing after that (`routing.md` §1: three days).
pub const GRACE: u64 = 3 * DAY;
/// How long a claim is looked at (chosen: whoever sets a record does it in a week, or asks by hand).
pub const CLAIM_LIFE: u64 = 7 * DAY;
/// How long a suspended domain is looked at, for a record that comes back (chosen).
pub const SUSPENDED_LIFE: u64 = 30 * DAY;
/// Between looks at a new claim (chosen: a person waits), the first after as long.
const CLAIM_PAUSE_MIN: u64 = MINUTE;
/// Longest pause between looks at a claim (chosen).
const CLAIM_PAUSE_MAX: u64 = 6 * HOUR;
/// Between looks while the record is missing, and after an answer that could not be had (chosen:
/// twelve looks within the grace).
const MISSING_PAUSE: u64 = 6 * HOUR;
/// Between looks at a suspended domain (chosen).
const SUSPENDED_PAUSE: u64 = DAY;

/// What the DNS says of one claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The record is there and says what it should.
    Proof,
    /// There is none, or it says something else.
    Missing,
    /// No answer, or one that says nothing.
    Unavailable,
}

/// When `row` is to be looked at next, given when it was looked at last by this process (0 for
/// never); `None` when not at all.
#[must_use]
pub fn due(row: &DomainRow, looked_at: u64) -> Option<u64> {
    let claims = row.claims.iter().filter_map(|claim| claim_due(claim, looked_at));
    claims.chain(row.holder.as_ref().and_then(|holder| holder_due(holder, looked_at))).min()
}

fn claim_due(claim: &Claim, looked_at: u64) -> Option<u64> {
    let last = looked_at.max(claim.claimed_at);
    // As long again as it has waited so far: back-off without a counter to keep.
    let pause = (last - claim.claimed_at).clamp(CLAIM_PAUSE_MIN, CLAIM_PAUSE_MAX);
    Some(last.saturating_add(pause)).filter(|at| *at < claim.claimed_at.saturating_add(CLAIM_LIFE))
}

fn holder_due(holder: &Holder, looked_at: u64) -> Option<u64> {
    if let Some(since) = holder.suspended_at {
        return Some(looked_at.max(since).saturating_add(SUSPENDED_PAUSE))
            .filter(|at| *at < since.saturating_add(SUSPENDED_LIFE));
    }
    let end = holder.proved_at.saturating_add(PROOF_LIFE);
    Some(if looked_at < end { end } else { looked_at.saturating_add(MISSING_PAUSE) })
}

/// What the row is after the DNS was asked about it; `None` when nothing changes. `seen` answers for
/// each claim, and for the holder's.
///
/// The holder is judged before the claims, and the claims by age: two that are both proved at the
/// same look are served by who came first. A claim that is looked at no more can still be proved by hand.
#[must_use]
pub fn judge(row: &DomainRow, now: u64, seen: impl Fn(&Claim) -> Seen) -> Option<DomainRow> {
    let mut after = row.clone();
    if let Some(holder) = &mut after.holder {
        judge_holder(holder, now, seen(&holder.claim));
    }
    let tenant = after.held().map(|holder| holder.claim.tenant.clone());
    let may_hold = |claim: &Claim| tenant.as_ref().is_none_or(|tenant| *tenant == claim.tenant);
    let proved = after.claims.iter().position(|claim| may_hold(claim) && seen(claim) == Seen::Proof);
    if let Some(at) = proved {
        let claim = after.claims.remove(at);
        after.holder = Some(Holder { claim, proved_at: now, missing_since: None, suspended_at: None });
    }
    (after != *row).then_some(after)
}

fn judge_holder(holder: &mut Holder, now: u64, seen: Seen) {
    match seen {
        Seen::Proof => {
            (holder.missing_since, holder.suspended_at) = (None, None);
            holder.proved_at = now;
        }
        Seen::Unavailable => {}
        // A look by hand before the proof is due changes nothing: a record may be away for a moment.
        Seen::Missing if now < holder.proved_at.saturating_add(PROOF_LIFE) => {}
        Seen::Missing => {
            let since = *holder.missing_since.get_or_insert(now);
            if now >= since.saturating_add(GRACE) {
                holder.suspended_at.get_or_insert(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::tests::{claim, held};
    use super::*;

    /// Runs a row through `days` of virtual time, answered by `seen`; each look's time, and the row.
    fn live(mut row: DomainRow, from: u64, days: u64, seen: impl Fn(u64, &Claim) -> Seen) -> (Vec<u64>, DomainRow) {
        let (mut looks, mut looked_at) = (Vec::new(), 0);
        while let Some(at) = due(&row, looked_at).filter(|at| *at <= from + days * DAY) {
            assert!(at > looked_at, "time goes on: {at}");
            looked_at = at;
            looks.push(at);
            if let Some(after) = judge(&row, at, |claim| seen(at, claim)) {
                row = after;
            }
        }
        (looks, row)
    }

    #[test]
    fn a_claim_is_looked_at_ever_more_rarely_and_not_for_ever() {
        let row = DomainRow { claims: vec![claim("t", "a")], ..DomainRow::empty() };
        let (looks, after) = live(row.clone(), 1_000, 365, |_, _| Seen::Missing);
        assert_eq!(looks[0], 1_000 + MINUTE);
        assert!(looks.len() < 60, "{}", looks.len());
        assert!(looks.iter().all(|at| *at < 1_000 + CLAIM_LIFE));
        let pauses: Vec<_> = looks.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses.iter().all(|pause| (CLAIM_PAUSE_MIN..=CLAIM_PAUSE_MAX).contains(pause)), "{pauses:?}");
        assert_eq!(after, row);
        // Whenever the record comes, it is found within as long as that took, or six hours.
        for came in [1_000 + 30, 1_000 + HOUR, 1_000 + 3 * DAY] {
            let proof = |at, _: &Claim| if at < came { Seen::Missing } else { Seen::Proof };
            let (looks, after) = live(row.clone(), 1_000, 7, proof);
            let found = after.held().unwrap().proved_at;
            assert!(looks.contains(&found) && found - came <= (came - 1_000).clamp(MINUTE, CLAIM_PAUSE_MAX), "{found}");
            assert_eq!((after.sprite().unwrap().as_str(), after.claims.len()), ("a", 0));
        }
    }

    #[test]
    fn what_stays_proved_is_looked_at_every_thirty_days() {
        let (looks, after) = live(held("t", "a"), 1_000, 365, |_, _| Seen::Proof);
        assert_eq!(looks, (1..=12).map(|month| 1_000 + month * PROOF_LIFE).collect::<Vec<_>>());
        assert_eq!(after.held().unwrap().proved_at, *looks.last().unwrap());
    }

    #[test]
    fn three_days_without_the_record_suspend_and_its_return_within_a_month_serves_again() {
        let end = 1_000 + PROOF_LIFE;
        let (looks, after) = live(held("t", "a"), 1_000, 33, |_, _| Seen::Missing);
        assert_eq!(after.holder.as_ref().unwrap().suspended_at, Some(end + GRACE));
        assert_eq!(after.sprite(), None);
        assert_eq!(looks.len(), 13, "every six hours: {looks:?}");
        // Not a moment earlier.
        let (_, before) = live(held("t", "a"), 1_000, 32, |_, _| Seen::Missing);
        assert_eq!(before.sprite().unwrap().as_str(), "a");
        let back = end + GRACE + 10 * DAY;
        let (_, again) = live(after.clone(), 1_000, 60, |at, _| if at < back { Seen::Missing } else { Seen::Proof });
        assert!(again.held().is_some_and(|holder| holder.proved_at >= back && holder.missing_since.is_none()));
        let (looks, never) = live(after, 1_000, 3_650, |_, _| Seen::Missing);
        assert_eq!(never.sprite(), None);
        assert!(looks.len() <= 31, "{}", looks.len());
    }

    #[test]
    fn an_answer_that_cannot_be_had_suspends_nobody_and_a_gap_that_closes_begins_anew() {
        let (looks, after) = live(held("t", "a"), 1_000, 60, |_, _| Seen::Unavailable);
        assert_eq!(after, held("t", "a"));
        assert!(looks.len() <= 121, "{}", looks.len());
        let end = 1_000 + PROOF_LIFE;
        let gap = |at: u64, _: &Claim| if at < end + 2 * DAY { Seen::Missing } else { Seen::Proof };
        let (_, after) = live(held("t", "a"), 1_000, 34, gap);
        assert_eq!(after.held().unwrap().missing_since, None);
        // A look by hand long before the proof ends.
        assert_eq!(judge(&held("t", "a"), 2_000, |_| Seen::Missing), None);
    }

    #[test]
    fn the_first_proved_claim_wins_and_a_holder_keeps_others_out() {
        let mut row = DomainRow::empty();
        assert!(row.claim(claim("one", "a")) && row.claim(claim("two", "b")));
        let both = judge(&row, 2_000, |_| Seen::Proof).unwrap();
        assert_eq!(both.held().unwrap().claim.tenant, "one");
        // The other's record is there too, and changes nothing as long as the first's is.
        assert_eq!(judge(&both, 2_000, |_| Seen::Proof), None);
        let second = judge(&row, 2_000, |claim| if claim.tenant == "two" { Seen::Proof } else { Seen::Missing });
        assert_eq!(second.unwrap().held().unwrap().claim.tenant, "two");
        // Suspended, it is whose proof comes.
        let mut lost = held("one", "a");
        lost.holder.as_mut().unwrap().suspended_at = Some(1_500);
        assert!(lost.claim(claim("two", "b")));
        let only_two = |claim: &Claim| if claim.tenant == "two" { Seen::Proof } else { Seen::Missing };
        assert_eq!(judge(&lost, 2_000, only_two).unwrap().sprite().unwrap().as_str(), "b");
    }

    #[test]
    fn its_holder_leads_it_to_another_sprite_once_that_is_proved() {
        let mut row = held("t", "a");
        assert!(row.claim(claim("t", "b")));
        let a_only = |claim: &Claim| if claim.sprite.as_str() == "a" { Seen::Proof } else { Seen::Missing };
        assert_eq!(judge(&row, 2_000, a_only).unwrap().sprite().unwrap().as_str(), "a");
        let moved = judge(&row, 2_000, |claim| if claim.sprite.as_str() == "b" { Seen::Proof } else { Seen::Missing });
        assert_eq!(moved.unwrap().sprite().unwrap().as_str(), "b");
    }

    #[test]
    fn times_that_no_clock_says_do_not_overflow() {
        let mut row = held("t", "a");
        row.holder.as_mut().unwrap().proved_at = u64::MAX;
        row.claims.push(Claim { claimed_at: u64::MAX, ..claim("u", "a") });
        assert!(due(&row, u64::MAX / 2).is_some());
        assert_eq!(judge(&row, 0, |_| Seen::Missing), None);
    }
}
