//! The regions this process follows, as `status` has them, and what an operator says to one of them.

use super::api::{Admin, Problem, optional};
use crate::tables::FollowedRegion;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

impl Admin {
    /// The region this machine writes to. There is always one.
    pub(super) fn own_region(&self) -> &FollowedRegion {
        &self.regions[0]
    }

    /// Who keeps the routes of the own region, and how well this process follows.
    pub(super) fn store_status(&self) -> Value {
        followed(self.own_region())
    }

    /// The same of every region, the own one first.
    pub(super) fn regions_status(&self) -> Value {
        let of = |region: &FollowedRegion| {
            let mut status = followed(region);
            status["name"] = (*region.name).into();
            status["synced"] = region.is_synced().into();
            status["routes"] = region.routes.len().into();
            status["domains"] = region.domains.len().into();
            status["overruled_hosts"] = self.overruled(&region.name).into();
            status
        };
        self.regions.iter().map(of).collect::<Vec<_>>().into()
    }

    /// The numbers of hosts a region claims and another one has.
    pub(super) fn overruled(&self, region: &str) -> Vec<u32> {
        let Some(hosts) = &self.hosts else { return Vec::new() };
        hosts.overruled().iter().filter(|row| *row.region == *region).map(|row| row.id.0).collect()
    }

    /// What vanished from one region's store is meant to be gone: the own one's when none is named.
    pub(super) fn accept_removals(&self, body: &[u8]) -> Result<Value, Problem> {
        #[derive(Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Asked {
            region: Option<String>,
        }
        let asked: Asked = optional(body, "the body says no region")?;
        let own = &*self.own_region().name;
        let name = asked.region.as_deref().unwrap_or(own);
        let region = self.regions.iter().find(|region| *region.name == *name);
        let region = region.ok_or_else(|| (StatusCode::NOT_FOUND, format!("region: {name} is not followed here")))?;
        Ok(json!({ "accepted": region.accept_removals(), "region": name }))
    }
}

fn followed(region: &FollowedRegion) -> Value {
    json!({
        "engine": region.engine,
        "stale_s": region.routes.followed().stale_for().map(|since| since.as_secs()),
        "quarantined": region.quarantined(),
        "delayed_changes": region.routes.followed().delayed_changes(),
        "held_removals": region.held_removals(),
    })
}
