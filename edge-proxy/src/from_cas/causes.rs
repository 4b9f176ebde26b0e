//! Why a name has the certificate it has, or none: one cause that a program can read, what it was seen by, and what helps.
//! No clock, no store, no CA: what is known comes in.

#[cfg(test)]
mod tests;

use acme::ca::{Class, Kind, Problem};
use acme::certificate::CertRow;
use acme::order::{DAY, OrderRow, Step};
use serde::Serialize;
use serde_json::{Value, json};

/// A PoP that does not serve a new certificate after so long is one to look at, seconds (`tls-acme-dns.md` §3).
pub(crate) const UNACKNOWLEDGED: u64 = 60;
/// With less than this part of its life left something is wrong (chosen: half of what is left when it is due).
const SOON: u64 = 6;

/// The one thing that is most in the way. The names in JSON are for programs, and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It is served, and nothing is to be done.
    Served,
    /// No CA is configured.
    NoCa,
    /// Nobody wants a certificate for this name.
    NotWanted,
    /// Its domain was not proved to be its tenant's.
    NotProved,
    /// The key encryption key of this machine is not the fleet's, or its file is wrong.
    KeyMissing,
    /// The store has not said under which keys secrets lie.
    StoreAway,
    /// Nothing was begun yet.
    NotBegun,
    /// It is being ordered.
    OrderOnItsWay,
    /// Some PoP does not answer the challenge, so the CA was not told to look.
    BarrierNotPassed,
    /// The name's owner has not delegated its challenges to us, and nothing else proves it.
    NotDelegated,
    /// The CA did not find the answer to its challenge.
    ChallengeNotFound,
    /// The name's CAA records forbid this CA.
    CaaForbids,
    /// The name's DNS does not answer the CA.
    DnsFails,
    /// The CA does not answer, or is out of order.
    CaAway,
    /// The CA said that there was too much, and is asked nothing.
    GateClosed,
    /// A limit of our own, below the CA's, is reached, or one of the CA for these names.
    LimitReached,
    /// The CA does not take our account.
    AccountRefused,
    /// The CA will never issue this.
    Rejected,
    /// What the CA answered cannot be used.
    Unfit,
    /// It is there, and cannot be served by this PoP.
    NotServedHere,
    /// It is there, and some PoP does not serve it.
    NotServedEverywhere,
    /// It ends soon, and nothing new is on its way.
    ExpiringSoon,
    /// It has ended.
    Expired,
    /// Its key is somebody else's too.
    Compromised,
    /// Visitors trust its CA no more.
    Distrusted,
}

impl Cause {
    /// As in JSON.
    #[must_use]
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// A cause, and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// The cause.
    pub cause: Cause,
    /// What it was seen by.
    pub evidence: String,
    /// When something is done about it by itself, seconds since 1970; none when nothing is.
    pub next_try_unix_s: Option<u64>,
    /// The DNS record that would help.
    pub record: Option<String>,
    /// What a person can do; empty when there is nothing.
    pub todo: String,
}

/// Whether secrets in rows can be opened here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// They can.
    Open,
    /// The store has not said them, and why.
    Away(String),
    /// They are sealed under another key, and what is wrong.
    Wrong(String),
}

/// What a name's records are to say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records {
    /// How the name leads here: `CNAME x, or A y`; empty when the config does not say.
    pub points_here: String,
    /// What proves that the domain is its tenant's.
    pub proof: Option<String>,
    /// A CAA record that lets the CA issue.
    pub caa: String,
    /// What leads the CA's questions for a suffix to us.
    pub delegation: String,
}

/// What is known of one certificate.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    /// Seconds since 1970.
    pub now: u64,
    /// Somebody wants it.
    pub wanted: bool,
    /// Somebody claims its domain, whether proved or not.
    pub claimed: bool,
    /// Its newest generation.
    pub newest: Option<&'a CertRow>,
    /// The generation of it this PoP answers with; 0: another certificate answers for its names.
    pub served: Option<u64>,
    /// Why this PoP cannot open the newest.
    pub not_opened: Option<String>,
    /// PoPs that live and do not serve the newest.
    pub lacking: Vec<String>,
    /// Its order.
    pub order: Option<&'a OrderRow>,
    /// Until when its CA is asked nothing.
    pub gate: Option<u64>,
    /// Why there is no open account at its CA.
    pub account: Option<Problem>,
    /// Visitors trust the CA of the newest no more.
    pub distrusted: bool,
    /// Its one CA is trusted no more, so nothing is done about it.
    pub set_aside: bool,
    /// Whether keys open.
    pub keys: &'a Keys,
    /// Which records help.
    pub records: &'a Records,
}

/// How far an order is, in words.
const fn step_in_words(step: Step) -> &'static str {
    match step {
        Step::Wanted => "wanted",
        Step::KeySealed => "its key is made",
        Step::Ordering => "the order is being placed",
        Step::Ordered => "the order is placed",
        Step::Publishing => "the answers to its challenges are being given to every PoP",
        Step::Asking => "the CA is looking for the answers",
        Step::Finalising => "the CA is issuing",
    }
}

impl Explained {
    fn new(cause: Cause, evidence: impl Into<String>, todo: &str) -> Self {
        Self { cause, evidence: evidence.into(), next_try_unix_s: None, record: None, todo: todo.to_owned() }
    }

    fn at(self, next: u64) -> Self {
        Self { next_try_unix_s: Some(next), ..self }
    }

    fn record(self, record: &str) -> Self {
        Self { record: (!record.is_empty()).then(|| record.to_owned()), ..self }
    }

    /// In one line.
    #[must_use]
    pub fn in_words(&self) -> String {
        let parts = [Some(self.evidence.clone()), self.record.as_ref().map(|record| format!("record: {record}"))];
        let todo = Some(self.todo.clone()).filter(|todo| !todo.is_empty());
        let said = parts.into_iter().flatten().chain(todo).collect::<Vec<_>>().join("; ");
        format!("{}: {said}", self.cause.name())
    }

    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!(self)
    }

    /// Of an edge that asks no CA: `covered` by the certificate it has, which it makes itself when it `issues`.
    #[must_use]
    pub fn without_cas(covered: bool, issues: bool) -> Self {
        match (covered, issues) {
            (true, true) => {
                Self::new(Cause::Served, "one of the local CA, which nobody trusts who was not told to", "")
            }
            (true, false) => Self::new(Cause::Served, "the one of tls.certificate", ""),
            (false, true) => {
                let todo = "the local CA issues one when the domain is proved";
                Self::new(Cause::NoCa, "there is none, and acme.directory names no CA", todo)
            }
            (false, false) => {
                let todo = "set acme.directory, or use a certificate that covers the name";
                Self::new(Cause::NoCa, "tls.certificate does not cover it, and acme.directory names no CA", todo)
            }
        }
    }
}

/// The cause.
pub(crate) fn explain(facts: &Facts<'_>) -> Explained {
    if let Keys::Wrong(why) = facts.keys {
        let todo = "put the fleet's key encryption key into acme.kek_file on this machine, and start again";
        return Explained::new(Cause::KeyMissing, why, todo);
    }
    if !facts.wanted && facts.newest.is_none() {
        return unwanted(facts);
    }
    if facts.set_aside {
        let todo = "the certificate of another CA answers; `cert distrust --undo` takes it back";
        return Explained::new(Cause::Distrusted, "visitors trust its CA no more, and nothing is ordered of it", todo);
    }
    let valid = facts.newest.filter(|newest| facts.now < newest.not_after);
    if let Some(newest) = valid {
        return with(facts, newest);
    }
    let trouble = trouble(facts).unwrap_or_else(|| on_its_way(facts));
    match facts.newest {
        Some(ended) if matches!(trouble.cause, Cause::NotBegun | Cause::OrderOnItsWay) => {
            let evidence = format!(
                "generation {} has ended {} ago; {}",
                ended.generation,
                days(facts.now - ended.not_after),
                trouble.evidence
            );
            Explained { cause: Cause::Expired, evidence, ..trouble }
        }
        _ => trouble,
    }
}

fn unwanted(facts: &Facts<'_>) -> Explained {
    match facts.claimed {
        true => {
            let todo = "set the record; the edge finds it by itself, or at once with `domain check`";
            let not = Explained::new(Cause::NotProved, "the domain is claimed, and not proved yet", todo);
            not.record(facts.records.proof.as_deref().unwrap_or_default())
        }
        false => {
            let todo = "claim it: edge-proxy domain add NAME SPRITE";
            Explained::new(Cause::NotWanted, "it is under none of names.suffixes, and nobody claims it", todo)
        }
    }
}

/// One that has not ended is there.
fn with(facts: &Facts<'_>, newest: &CertRow) -> Explained {
    let age = facts.now.saturating_sub(newest.issued_at);
    let left = newest.not_after - facts.now;
    if facts.distrusted && !newest.compromised {
        // One of before may answer in its place.
        let trouble = trouble(facts).unwrap_or_else(|| on_its_way(facts));
        let evidence = format!("visitors trust {} no more; {}", newest.ca, trouble.evidence);
        return Explained { cause: Cause::Distrusted, evidence, ..trouble };
    }
    if facts.served.is_none() || (facts.served.is_some_and(|served| 0 < served && served < newest.generation)) {
        if let Some(why) = &facts.not_opened {
            let evidence = format!("generation {} cannot be opened here: {why}", newest.generation);
            let todo = "see that this machine has the fleet's acme.kek_file";
            return Explained::new(Cause::NotServedHere, evidence, todo);
        }
        if age >= UNACKNOWLEDGED {
            let evidence =
                format!("generation {} came {} s ago, and this PoP does not serve it", newest.generation, age);
            return Explained::new(Cause::NotServedHere, evidence, "see its log, and start it again");
        }
    }
    if newest.compromised {
        let trouble = trouble(facts).unwrap_or_else(|| on_its_way(facts));
        let evidence =
            format!("the key of generation {} is somebody else's too; {}", newest.generation, trouble.evidence);
        return Explained { cause: Cause::Compromised, evidence, ..trouble };
    }
    if let Some(trouble) = trouble(facts) {
        return Explained {
            evidence: format!("{}; the present one ends in {}", trouble.evidence, days(left)),
            ..trouble
        };
    }
    if !facts.lacking.is_empty() && age >= UNACKNOWLEDGED {
        let evidence = format!(
            "generation {} came {age} s ago, and is not served by {}",
            newest.generation,
            facts.lacking.join(", ")
        );
        return Explained::new(Cause::NotServedEverywhere, evidence, "see the log of those PoPs");
    }
    if left.saturating_mul(SOON) < newest.not_after.saturating_sub(newest.not_before) {
        let way = on_its_way(facts);
        let evidence = format!("it ends in {}; {}", days(left), way.evidence);
        return Explained { cause: Cause::ExpiringSoon, evidence, ..way };
    }
    if facts.order.is_some() {
        let way = on_its_way(facts);
        return Explained { evidence: format!("{}; the present one ends in {}", way.evidence, days(left)), ..way };
    }
    let evidence = format!("generation {} of {}, which ends in {}", newest.generation, newest.ca, days(left));
    Explained::new(Cause::Served, evidence, "")
}

/// What keeps its order from going on.
fn trouble(facts: &Facts<'_>) -> Option<Explained> {
    let until = facts.gate.filter(|until| facts.now < *until);
    if let (Keys::Away(why), None) = (facts.keys, facts.newest) {
        return Some(Explained::new(Cause::StoreAway, why, "see that the store is there"));
    }
    let order = facts.order?;
    let problem = order.last_problem.as_ref();
    if let Some(until) = until {
        let said = problem.map_or_else(String::new, |problem| format!(": {}", problem.detail));
        let evidence = format!("{} wants to be left alone for {}{said}", order.ca, days(until - facts.now));
        let todo = "wait; another CA can be configured (acme.fallback)";
        return Some(Explained::new(Cause::GateClosed, evidence, todo).at(until));
    }
    let waits = facts.now < order.next_try;
    if let Some(problem) = problem.filter(|_| waits) {
        return Some(of_problem(facts, order, problem).at(order.next_try));
    }
    let account = facts.account.as_ref()?;
    let cause =
        if matches!(account.class, Class::Unavailable | Class::Lost) { Cause::CaAway } else { Cause::AccountRefused };
    let todo = if cause == Cause::CaAway { "" } else { "see acme.eab_id and acme.contact, and what the CA says" };
    Some(Explained::new(cause, format!("the account at {} is not open: {}", order.ca, account.detail), todo))
}

fn of_problem(facts: &Facts<'_>, order: &OrderRow, problem: &Problem) -> Explained {
    let (ca, said) = (&order.ca, &problem.detail);
    let records = facts.records;
    match problem.class {
        Class::Undelegated => Explained::new(
            Cause::NotDelegated,
            said,
            "let the name's owner set that record; a wildcard is proved by nothing else",
        ),
        Class::Held => Explained::new(Cause::LimitReached, said, "wait; another CA can be configured (acme.fallback)"),
        Class::Unready => {
            Explained::new(Cause::BarrierNotPassed, said, "see why those PoPs do not follow the store, or end them")
        }
        Class::RateLimited => {
            let todo = "wait; another CA can be configured (acme.fallback)";
            Explained::new(Cause::LimitReached, format!("{ca}: {said}"), todo)
        }
        Class::Unavailable | Class::Lost | Class::BadNonce => {
            Explained::new(Cause::CaAway, format!("{ca}: {said}"), "")
        }
        Class::Unauthorized => {
            let found = Explained::new(Cause::ChallengeNotFound, format!("{ca}: {said}"), "");
            match order.kind {
                Kind::Dns01 => Explained {
                    todo: "let the name's DNS lead the CA's questions to this edge".into(),
                    ..found.record(&records.delegation)
                },
                Kind::Http01 | Kind::TlsAlpn01 => Explained {
                    todo: "let the name lead here, with no other address, and no proxy in between".into(),
                    ..found.record(&records.points_here)
                },
            }
        }
        Class::Caa => {
            let todo = "let the name's CAA records allow the CA, or remove them";
            Explained::new(Cause::CaaForbids, format!("{ca}: {said}"), todo).record(&records.caa)
        }
        Class::Dns => {
            let todo = "see why the name's DNS servers do not answer everywhere; broken DNSSEC is a common cause";
            Explained::new(Cause::DnsFails, format!("{ca}: {said}"), todo)
        }
        Class::Account => {
            let todo = "see acme.eab_id and acme.contact, and what the CA says";
            Explained::new(Cause::AccountRefused, format!("{ca}: {said}"), todo)
        }
        Class::Rejected => {
            Explained::new(Cause::Rejected, format!("{ca}: {said}"), "use another CA (acme.fallback), profile or name")
        }
        Class::Order | Class::Other => Explained::new(Cause::Unfit, format!("{ca}: {said}"), ""),
    }
}

fn on_its_way(facts: &Facts<'_>) -> Explained {
    let Some(order) = facts.order else {
        return Explained::new(Cause::NotBegun, "no order is on its way", "").at(facts.now + 1);
    };
    let failed = order.last_problem.as_ref().filter(|_| order.failures > 0);
    let failed = failed
        .map_or_else(String::new, |problem| format!("; it failed {} times, last: {}", order.failures, problem.detail));
    let evidence = format!("{} at {}{failed}", step_in_words(order.step), order.ca);
    Explained::new(Cause::OrderOnItsWay, evidence, "").at(order.next_try.max(facts.now))
}

/// A time to go, for people.
fn days(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / DAY),
    }
}
