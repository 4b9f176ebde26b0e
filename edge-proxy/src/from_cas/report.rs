//! What is known of certificates, for people and programs: gathers the facts, and says them with their cause
//! (`causes.rs`).

use super::FromCas;
use super::causes::{Explained, Facts, Keys, explain};
use super::served::target;
use super::wishes::For;
use acme::certificate::CertRow;
use acme::lease::{LEASE_PREFIX, LeaseRow, shard};
use acme::limits::Forecast;
use acme::manager::Wishes as _;
use acme::order::issue::order_key;
use acme::order::{DAY, ORDER_PREFIX, OrderRow};
use acme::rows::{Row, Rows as _, RowsError};
use acme::unix_now;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What the store said of orders and gates just now; nothing, and why, when it is away.
#[derive(Default)]
struct Seen {
    orders: BTreeMap<String, OrderRow>,
    gates: BTreeMap<String, u64>,
    away: Option<String>,
}

const GATE_PREFIX: &str = "gate/";

impl Seen {
    fn take(&mut self, order: &Row) {
        if let (Some(id), Ok(row)) = (order.key.strip_prefix(ORDER_PREFIX), serde_json::from_slice(&order.value)) {
            self.orders.insert(id.to_owned(), row);
        }
    }

    fn take_gate(&mut self, gate: &Row) {
        let until = std::str::from_utf8(&gate.value).ok().and_then(|until| until.parse().ok());
        if let (Some(ca), Some(until)) = (gate.key.strip_prefix(GATE_PREFIX), until) {
            self.gates.insert(ca.to_owned(), until);
        }
    }
}

impl FromCas {
    async fn seen(&self, ids: Option<&[String]>) -> Seen {
        let mut seen = Seen::default();
        if let Err(error) = self.look(ids, &mut seen).await {
            seen.away = Some(error.to_string());
        }
        seen
    }

    async fn look(&self, ids: Option<&[String]>, seen: &mut Seen) -> Result<(), RowsError> {
        match ids {
            None => self.rows.scan(ORDER_PREFIX).await?.iter().for_each(|row| seen.take(row)),
            Some(ids) => {
                for id in ids {
                    self.rows.get(&order_key(id)).await?.iter().for_each(|row| seen.take(row));
                }
            }
        }
        self.rows.scan(GATE_PREFIX).await?.iter().for_each(|row| seen.take_gate(row));
        Ok(())
    }

    /// Who lives and does not serve this generation, as long as somebody may wait for it.
    pub(super) fn lacking(&self, wish: &str, row: &CertRow) -> Vec<String> {
        if !self.served.speaks_of(row, unix_now()) {
            return Vec::new();
        }
        let another_may = matches!(For::of(wish), Some(For::Suffix { .. })) && self.wishes.cas() > 1;
        let has = |serves: &Option<u64>| match serves {
            None => false,
            Some(0) => another_may,
            Some(generation) => row.generation <= *generation,
        };
        self.pops.serving(wish).into_iter().filter(|(_, serves)| !has(serves)).map(|(pop, _)| pop).collect()
    }

    fn explained(&self, id: &str, seen: &Seen) -> (Explained, Option<std::sync::Arc<CertRow>>) {
        let now = unix_now();
        let newest = self.certificates.newest(id);
        let wish = self.wishes.find(id);
        // One that is done and whose row is still there is on no way.
        let is_done = |order: &OrderRow| newest.as_ref().is_some_and(|newest| newest.generation >= order.generation);
        let order = seen.orders.get(id).filter(|order| !is_done(order));
        let ca = order.map(|order| order.ca.clone());
        let ca = ca.or_else(|| wish.as_ref().and_then(|wish| wish.cas.first()).map(|(name, _)| name.clone()));
        let keys = match (&*self.sealed.keys(), &seen.away) {
            (Keys::Open, Some(why)) => Keys::Away(why.clone()),
            (keys, _) => keys.clone(),
        };
        let records = self.wishes.records(id);
        let explained = explain(&Facts {
            now,
            wanted: wish.is_some(),
            claimed: self.wishes.is_claimed(id),
            newest: newest.as_deref(),
            served: self.served.of_wish(&self.certificates, id),
            not_opened: newest.as_ref().and_then(|newest| self.served.not_opened(id, newest.generation)),
            lacking: newest.as_ref().map_or_else(Vec::new, |newest| self.lacking(id, newest)),
            order,
            gate: ca.as_ref().and_then(|ca| seen.gates.get(ca)).copied(),
            account: ca.as_ref().and_then(|ca| self.accounts.trouble(ca)),
            distrusted: newest.as_ref().is_some_and(|newest| self.distrusted.is(&newest.ca)),
            set_aside: self.wishes.is_set_aside(id),
            keys: &keys,
            records: &records,
        });
        (explained, newest)
    }

    /// Every certificate that is wanted or there, by id.
    pub(crate) async fn list(&self) -> Value {
        let seen = self.seen(None).await;
        let wanted = self.wishes.all(u64::MAX);
        let names: BTreeMap<_, _> = wanted.iter().map(|wish| (wish.id.clone(), wish.names.clone())).collect();
        let mut ids: BTreeSet<_> = names.keys().cloned().collect();
        ids.extend(self.certificates.all().into_iter().map(|found| found.wish.clone()));
        let shown = ids.iter().flat_map(|id| {
            let (explained, newest) = self.explained(id, &seen);
            let order = seen.orders.get(id);
            let mut shown = self.shown(id, newest.as_deref());
            if newest.is_none() {
                shown["names"] = json!(names.get(id));
                shown["ca"] = json!(order.map(|order| &order.ca));
            }
            shown["state"] = explained.cause.name().into();
            shown["next_try_unix_s"] = explained.next_try_unix_s.into();
            // Of those that were there before it, the ones that were compromised.
            let older = self
                .revocations(id)
                .into_iter()
                .filter(|(row, _)| Some(row.generation) != newest.as_ref().map(|newest| newest.generation));
            let older = older.map(|(row, revocation)| {
                let mut shown = self.shown(id, Some(&row));
                shown["state"] = revocation["step"].clone();
                shown["served_here"] = shown["served_here"].as_u64().filter(|served| *served == row.generation).into();
                shown
            });
            older.collect::<Vec<_>>().into_iter().chain([shown]).collect::<Vec<_>>()
        });
        shown.collect()
    }

    fn shown(&self, id: &str, row: Option<&CertRow>) -> Value {
        let now = unix_now();
        json!({
            "id": id,
            "names": row.map(|row| &row.names),
            "ca": row.map(|row| &row.ca),
            "generation": row.map(|row| row.generation),
            "not_after_unix_s": row.map(|row| row.not_after),
            "days_left": row.map(|row| row.not_after.saturating_sub(now) / DAY),
            "due_unix_s": row.map(|row| row.due(id)),
            "served_here": self.served.of_wish(&self.certificates, id).filter(|served| *served > 0),
        })
    }

    /// Why the certificate of a domain is as it is.
    pub(crate) async fn explain_domain(&self, name: &str) -> Explained {
        let id = self.wishes.ids_of(name).into_iter().next().unwrap_or_default();
        self.explain_id(&id).await
    }

    pub(super) async fn explain_id(&self, id: &str) -> Explained {
        let seen = self.seen(Some(&[id.to_owned()])).await;
        self.explained(id, &seen).0
    }

    /// The ids that are meant by an id or a name.
    pub(super) fn meant(&self, asked: &str) -> Vec<String> {
        let asked = asked.to_ascii_lowercase();
        let is_id = For::of(&asked).is_some()
            && (self.wishes.find(&asked).is_some() || self.certificates.newest_summary(&asked).is_some());
        if is_id { vec![asked] } else { self.wishes.ids_of(&asked) }
    }

    /// Which certificate answers for a name or an id here and why, and how each that may answer for it is.
    pub(crate) async fn explain(&self, asked: &str) -> Value {
        let ids = self.meant(asked);
        let seen = self.seen(Some(&ids)).await;
        let target = ids.first().and_then(|id| target(id));
        let answers = target.as_ref().and_then(|target| self.served.of(&self.certificates, target));
        let why = match (&answers, &target) {
            (None, _) => "none: a handshake for it is refused",
            (Some(_), Some((true, _))) if ids.len() > 1 || self.wishes.cas() > 1 => {
                "it covers the suffix; of several CAs' the one that lasts longest, unless its key is somebody else's or its CA is trusted no more"
            }
            (Some(_), Some((true, _))) => "it covers the suffix, the name itself and one label before it",
            (Some(_), _) => "it is the newest for this name",
        };
        let mut certificates = Vec::new();
        for id in &ids {
            certificates.push(self.one(id, &seen).await);
        }
        json!({
            "asked": asked,
            "answers": answers.map(|(id, generation)| json!({ "id": id, "generation": generation })),
            "why": why,
            "shown": target.as_ref().map(|target| self.seen_of(target)),
            "certificates": certificates,
            "limits": self.limits_about(asked).await,
        })
    }

    /// What is left of our own limits for this name and for all.
    async fn limits_about(&self, asked: &str) -> Value {
        let all = self.limits.forecast(&*self.rows, unix_now()).await.unwrap_or_default();
        let about = |bucket: &str| bucket.split_once('.').is_none_or(|(_, name)| asked.ends_with(name));
        let all = all.into_iter().filter(|(key, _)| key.rsplit('/').next().is_some_and(about));
        let told = |told: Forecast| json!({ "left": told.left, "one_unix_s": told.one_at, "full_unix_s": told.full_at, "empty_unix_s": told.empty_at });
        all.map(|(key, forecast)| (key, told(forecast))).collect::<serde_json::Map<_, _>>().into()
    }

    async fn one(&self, id: &str, seen: &Seen) -> Value {
        let (explained, newest) = self.explained(id, seen);
        let mut shown = self.shown(id, newest.as_deref());
        let order = seen.orders.get(id);
        let (challenges, lacking) = self.pops.challenges_of(id);
        shown["explained"] = explained.to_json();
        shown["order"] = order.map_or(Value::Null, |order| {
            json!({
                "ca": order.ca,
                "kind": order.kind,
                "step": order.step,
                "generation": order.generation,
                "failures": order.failures,
                "last_problem": order.last_problem.as_ref().map(ToString::to_string),
                "next_try_unix_s": order.next_try,
            })
        });
        let ca = order.map(|order| &order.ca).or_else(|| newest.as_ref().map(|newest| &newest.ca));
        shown["gate_closed_until_unix_s"] = json!(ca.and_then(|ca| seen.gates.get(ca)));
        let lease = self.rows.get(&format!("{LEASE_PREFIX}{}", shard(id))).await.ok().flatten();
        let lease = lease.and_then(|row| serde_json::from_slice::<LeaseRow>(&row.value).ok());
        shown["lease"] =
            json!(lease.map(|lease| json!({ "shard": shard(id), "holder": lease.holder, "fence": lease.fence })));
        let revocations: Vec<_> = self.revocations(id).into_iter().map(|(_, shown)| shown).collect();
        shown["revocations"] = json!(revocations);
        shown["challenges"] = json!(challenges);
        shown["challenges_not_answered_by"] = json!(lacking);
        shown["serving"] = self
            .pops
            .serving(id)
            .into_iter()
            .map(|(pop, serves)| (pop, json!(serves)))
            .collect::<serde_json::Map<_, _>>()
            .into();
        shown["not_served_by"] = json!(newest.as_ref().map(|newest| self.lacking(id, newest)));
        shown
    }
}
