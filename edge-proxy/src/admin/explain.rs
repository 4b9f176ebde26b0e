//! What this process believes of a host name, and what it would do with a request for it. For
//! `route explain`: nothing is asked of anybody, and nothing is woken.

use super::api::{Admin, Problem};
use crate::resolve;
use crate::tables::FollowedRegion;
use crate::target;
use crate::worker::Edge;
use backhaul::SessionState;
use http::StatusCode;
use router::access::Access;
use router::names::{SpriteName, Target};
use router::route::{HostId, HostRow, Route};
use router::table::Lookup;
use router::wake::WakePolicy;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

impl Admin {
    /// Explains `host`, as it would stand in a request.
    pub(super) fn explain(&self, host: &str) -> Result<Value, Problem> {
        let edge = self.edge.as_deref();
        let edge =
            edge.ok_or_else(|| (StatusCode::CONFLICT, "this process is no edge: it routes nothing".to_owned()))?;
        let (target, by_domain) = match target::resolve(host, edge) {
            Ok(target) => target,
            Err(error) => {
                let verdict = error.verdict();
                let would =
                    format!("{} {}: no name under our suffixes, and no proved domain", verdict.status, verdict.code);
                return Ok(json!({ "host": host, "would": would }));
            }
        };
        let ((placed, region), found) = (self.table.explain(&target.name), resolve::lookup(edge, &target.name));
        let mut value = json!({
            "host": host,
            "sprite": target.name,
            "port": target.port,
            "custom_domain": by_domain,
            "store": self.store_status(),
            "would": self.would(edge, &target, &found),
        });
        if let Lookup::Found(route) = &placed {
            value["route"] = self.placement(route);
            value["route"]["region"] = region.map(|region| &*region.name).into();
            value["hint"] = self.hint(edge, &target, route);
        }
        if !self.table.is_alone() {
            value["regions"] = self.said(&target.name);
        }
        if let Lookup::Found(route) = &found {
            value["unheard"] = resolve::is_unheard(edge, &target.name, route.host).into();
            value["session"] = session(edge, route).into();
            value["run"] = edge.waker.view(&target.name, route.generation.0).into();
            value["waking"] = edge.waker.is_waking(&target.name).into();
        }
        Ok(value)
    }

    /// What each region says of a sprite, in the order in which they count.
    fn said(&self, name: &SpriteName) -> Value {
        let of = |region: &FollowedRegion| {
            let mut said = json!({
                "region": &*region.name,
                "synced": region.routes.followed().is_synced(),
                "stale_s": region.routes.followed().stale_for().map(|since| since.as_secs()),
            });
            if let Lookup::Found(route) = region.routes.lookup(name) {
                said["generation"] = route.generation.0.into();
                said["host"] = route.host.0.into();
                said["deleted"] = route.deleted.into();
            }
            said
        };
        self.regions.iter().map(of).collect::<Vec<_>>().into()
    }

    /// Where a host says that it is, which the table has not learnt yet; `null` when none does.
    fn hint(&self, edge: &Edge, target: &Target, route: &Route) -> Value {
        let now = Instant::now();
        let hint = edge.hints.of(now, &target.name, route);
        hint.map_or(Value::Null, |hint| {
            json!({
                "generation": hint.generation,
                "host": hint.host,
                "host_name": self.host_row(hint.host).map(|row| row.name.clone()),
                "for_s": hint.until.saturating_duration_since(now).as_secs(),
            })
        })
    }

    fn host_row(&self, host: HostId) -> Option<Arc<HostRow>> {
        self.hosts.as_ref().and_then(|hosts| hosts.all().lookup(host))
    }

    fn placement(&self, route: &Route) -> Value {
        let row = self.host_row(route.host);
        json!({
            "generation": route.generation,
            "host": route.host,
            "host_name": row.as_ref().map(|row| row.name.clone()),
            "endpoint": row.as_ref().map(|row| row.endpoint),
            "access": route.access.mode(),
            "wake": route.wake.as_deref().map_or(WakePolicy::Any, |rules| rules.policy),
            "ports": route.ports.to_vec(),
            "deleted": route.deleted,
        })
    }

    /// One sentence: the answer of a stranger's plain GET.
    fn would(&self, edge: &Edge, target: &Target, found: &Lookup) -> String {
        let route = match found {
            Lookup::NotReady => return "503 table_not_ready: no store has spoken yet, so absence means nothing".into(),
            Lookup::Unknown if edge.unknown_as_private => return "401: names that do not exist look private".into(),
            Lookup::Unknown => return "404 no_such_sprite: nobody has placed it".into(),
            Lookup::Found(route) => route,
        };
        if route.access != Access::Public {
            return "401 without a token or a share link; with one, as for a public sprite".into();
        }
        if route.deleted {
            return "410 gone: it was destroyed".into();
        }
        if target.port.is_some_and(|port| !route.ports.contains(&port)) {
            return "404: this port is not declared".into();
        }
        let hosts = self.hosts.as_ref();
        if hosts.is_some_and(|hosts| hosts.all().lookup(route.host).is_none()) {
            return format!("503 host_unreachable: there is no host {} in the registry", route.host.0);
        }
        let region = self.table.explain(&target.name).1.filter(|_| !self.table.is_alone());
        if let Some(region) =
            region.filter(|region| hosts.is_some_and(|hosts| !hosts.counts(&region.name, &route.host)))
        {
            let (name, host) = (&region.name, route.host.0);
            return format!(
                "ask host {host}, which is another machine than host {host} of {name}, and has never heard of it"
            );
        }
        if resolve::is_unheard(edge, &target.name, route.host) {
            return "wait for a second: its host has never heard of it; then ask again".into();
        }
        if let Some(run) = edge.waker.view(&target.name, route.generation.0) {
            return format!("forward at once to run {run}, which runs as far as is known here");
        }
        match route.wake.as_deref().map_or(WakePolicy::Any, |rules| rules.policy) {
            WakePolicy::Any => "hold the request, ask its host to wake it, and forward it then".into(),
            policy => format!("forward it if it runs; else wake it if the policy {policy:?} lets this request, or 503"),
        }
    }
}

fn session(edge: &Edge, route: &Route) -> &'static str {
    match edge.backhaul.session_state(route.host) {
        SessionState::Up => "up",
        SessionState::Down => "down: the last attempt failed",
        SessionState::Idle => "none yet: made when it is needed",
        SessionState::Direct => "direct: the owner is in this process",
    }
}
