//! What a domain still needs: each step from a claim to a served request, and whether it is done.

use super::dns::NoAnswer;
use super::{Domains, DomainsError, delegation, record_name, record_value, seen};
use crate::from_cas::causes::Explained;
use router::domains::proof::{GRACE, PROOF_LIFE, Seen};
use router::domains::row::{Claim, Holder};
use router::domains::table::DomainLookup;
use router::domains::{DomainName, DomainRow};
use router::names::SpriteName;
use router::route::Route;
use serde::Serialize;
use serde_json::{Value, json};
use std::net::IpAddr;

/// One step.
#[derive(Debug, Serialize)]
pub struct Step {
    /// What it is about.
    pub step: &'static str,
    /// Whether it is done; none where it cannot be told.
    pub done: Option<bool>,
    /// What there is, or what is missing.
    pub detail: String,
}

impl Domains {
    /// A domain as `domain list` has it.
    #[must_use]
    pub fn shown(&self, name: &DomainName, row: &DomainRow) -> Value {
        let holder = row.holder.as_ref();
        let claim = row.claims.last().or_else(|| holder.map(|holder| &holder.claim));
        let state = match holder {
            Some(holder) if holder.suspended_at.is_some() => "suspended",
            Some(_) => "proved",
            None if claim.is_some() => "claimed",
            None => "gone",
        };
        json!({
            "domain": name,
            "state": state,
            "sprite": row.sprite().or_else(|| claim.map(|claim| &claim.sprite)),
            "tenant": row.held().map(|holder| &holder.claim).or(claim).map(|claim| &claim.tenant),
            "proved_unix_s": holder.map(|holder| holder.proved_at),
            "claims": row.claims.len(),
            "wildcard": row.held().map(|holder| &holder.claim).or(claim).is_some_and(|claim| claim.wildcard),
            "txt_name": record_name(name),
            "txt_value": claim.map(|claim| record_value(name, claim)),
            "acme_cname_name": self.delegated(row).map(|_| delegation::record_name(name)),
            "acme_cname_value": self.delegated(row),
        })
    }

    /// A domain of the config file in the same form.
    #[must_use]
    pub fn shown_fixed(name: &DomainName, sprite: &SpriteName) -> Value {
        json!({ "domain": name, "state": "config", "sprite": sprite, "claims": 0 })
    }

    /// Every step of a domain; `route` says where a sprite lives, `certificate` how its certificate is.
    ///
    /// # Errors
    /// [`DomainsError`]; a domain nobody claims is explained too.
    pub async fn explain(
        &self,
        name: &DomainName,
        certificate: Explained,
        route: impl Fn(&SpriteName) -> Option<Route>,
    ) -> Result<Value, DomainsError> {
        let row = self.stored(name).await?.map(|(_, row)| row);
        let fixed = self.table.fixed(name);
        let sprite = fixed.or_else(|| row.as_ref().and_then(DomainRow::sprite));
        let claimed = row.as_ref().and_then(|row| row.claims.last()).map(|claim| &claim.sprite);
        let mut steps = vec![self.claimed(name, row.as_ref())];
        if fixed.is_none()
            && let Some(row) = &row
        {
            steps.push(self.proved(name, row).await);
        }
        steps.push(self.points_here(name).await);
        if let Some(row) = &row
            && let Some(step) = self.delegates(name, row).await
        {
            steps.push(step);
        }
        let covered = self.certificates.covers(name);
        steps.push(Step { step: "certificate", done: Some(covered), detail: certificate.in_words() });
        if let Some(sprite) = sprite.or(claimed) {
            let exists = route(sprite).is_some();
            let is = if exists { "exists" } else { "does not exist; the domain answers as its own name does" };
            steps.push(Step { step: "sprite", done: Some(exists), detail: format!("{sprite} {is}") });
        }
        let serves = matches!(self.table.lookup(name.as_str()), DomainLookup::Sprite(_));
        let missing: Vec<_> = steps.iter().filter(|step| step.done != Some(true)).map(|step| step.step).collect();
        let certificate = certificate.to_json();
        Ok(json!({ "domain": name, "serves": serves, "missing": missing, "steps": steps, "certificate": certificate }))
    }

    fn claimed(&self, name: &DomainName, row: Option<&DomainRow>) -> Step {
        let (done, detail) = match row {
            _ if self.table.fixed(name).is_some() => (true, "stands in the config file".into()),
            _ if self.table.is_ours(name) => (false, "it is a name of ours, and cannot be added".into()),
            None => (false, format!("nobody claims it: edge-proxy domain add {name} SPRITE")),
            Some(row) => (true, format!("{} claims, {}", row.claims.len(), holder_in_words(row.holder.as_ref()))),
        };
        Step { step: "claim", done: Some(done), detail }
    }

    async fn proved(&self, name: &DomainName, row: &DomainRow) -> Step {
        let records = self.records(name).await;
        let waiting: Vec<_> = row.claims.iter().filter(|claim| seen(&records, name, claim) == Seen::Missing).collect();
        let set = |claims: &[&Claim]| -> String {
            let set = claims.iter().map(|claim| format!("for {}: {}", claim.sprite, record_value(name, claim)));
            format!("set a TXT record {} ({})", record_name(name), set.collect::<Vec<_>>().join("; "))
        };
        let holder = row.held();
        let detail = match (&records, holder) {
            (Err(error), _) => error.to_string(),
            (Ok(_), Some(holder)) if seen(&records, name, &holder.claim) == Seen::Missing => {
                format!(
                    "proved, but the record is not there now: it is looked for every {} days, and {} days without it \
                     suspend the domain; {}",
                    PROOF_LIFE / 86_400,
                    GRACE / 86_400,
                    set(&[&holder.claim])
                )
            }
            (Ok(_), Some(_)) if waiting.is_empty() => "the record is there".into(),
            (Ok(_), None) if waiting.is_empty() && !row.claims.is_empty() => {
                format!("the record is there; it is taken up soon, or at once by edge-proxy domain check {name}")
            }
            (Ok(_), None) if row.claims.is_empty() => {
                set(&row.holder.iter().map(|holder| &holder.claim).collect::<Vec<_>>())
            }
            (Ok(_), _) => set(&waiting),
        };
        Step { step: "proof", done: Some(holder.is_some()), detail }
    }

    /// Whether its addresses are ours.
    async fn points_here(&self, name: &DomainName) -> Step {
        let ours = &self.config.addresses;
        let wanted = match (ours.is_empty(), self.config.cname.as_str()) {
            (true, "") => String::new(),
            (true, cname) => format!("CNAME {cname}"),
            (false, "") => in_words(ours),
            (false, cname) => format!("CNAME {cname}, or {}", in_words(ours)),
        };
        let (addresses, cname) = tokio::join!(self.dns.addresses(name.as_str()), self.dns.cname(name.as_str()));
        let (done, detail) = match (addresses, cname) {
            (_, Ok(Some(cname))) if cname.eq_ignore_ascii_case(&self.config.cname) => {
                (Some(true), format!("CNAME {cname}"))
            }
            (Err(NoAnswer(why)), _) => (None, format!("the DNS does not answer: {why}")),
            (Ok(found), _) if wanted.is_empty() => {
                (None, format!("{}; domains.addresses does not say which are ours", in_words(&found)))
            }
            (Ok(found), _) if found.is_empty() => (Some(false), format!("no address; set {wanted}")),
            (Ok(found), _) => match found.iter().all(|address| ours.contains(address)) {
                true => (Some(true), in_words(&found)),
                false => (Some(false), format!("{}; set {wanted}", in_words(&found))),
            },
        };
        Step { step: "address", done, detail }
    }

    /// How the certificate of a domain is on an edge that asks no CA.
    #[must_use]
    pub fn explain_own_certificate(&self, name: &DomainName) -> Explained {
        Explained::without_cas(self.certificates.covers(name), self.certificates.issues())
    }

    /// Where answers to a domain's challenges may be delegated to.
    fn delegated(&self, row: &DomainRow) -> Option<String> {
        delegation::target(row, self.zone.as_deref()?)
    }

    /// Whether they are: a wildcard is proved by nothing else.
    async fn delegates(&self, name: &DomainName, row: &DomainRow) -> Option<Step> {
        let target = self.delegated(row)?;
        let wildcard = row.is_wildcard() || row.claims.iter().any(|claim| claim.wildcard);
        let set = format!("CNAME {} {target}", delegation::record_name(name));
        let (done, detail) = match delegation::leads_to(&self.dns, name.as_str(), &target).await {
            Ok(Ok(())) => (Some(true), set),
            Ok(Err(astray)) if wildcard => {
                (Some(false), format!("{astray}; set {set}: a wildcard's certificate needs it"))
            }
            Ok(Err(astray)) => {
                let without = "the domain has its certificate without it as soon as it points here";
                (Some(true), format!("{astray}; {without}, and before that with {set}"))
            }
            Err(error) => (None, error.to_string()),
        };
        Some(Step { step: "delegation", done, detail })
    }
}

fn holder_in_words(holder: Option<&Holder>) -> String {
    match holder {
        None => "not proved yet".into(),
        Some(holder) if holder.suspended_at.is_some() => "suspended: its record was missing for too long".into(),
        Some(holder) => format!("proved for {}", holder.claim.sprite),
    }
}

fn in_words(addresses: &[IpAddr]) -> String {
    match addresses {
        [] => "no address".into(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}
