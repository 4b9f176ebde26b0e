//! Other regions whose sprites this machine serves, beside its own.

use crate::{Store, StoreEngine};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Most regions besides the own one (chosen: each has a table that a request for an unknown name is looked up in).
const REGIONS_MAX: usize = 15;

/// One `[[region]]`: a store that is followed and never written to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// What it is called here: in metrics, in `route explain`, in `data_dir/regions`. A DNS label.
    pub name: String,
    /// Its store, as in section `[store]`.
    pub store: Store,
}

/// Checks each region, and that no two have one name; `own` is that of the machine's own.
pub(crate) fn check_all(regions: &[Region], own: &str, in_fleet: bool) -> Result<(), (String, String)> {
    let mut names = BTreeSet::from([own]);
    for (index, region) in regions.iter().enumerate() {
        let wrong = |field: &str, message: String| Err((format!("region[{index}].{field}"), message));
        if !is_name(&region.name) {
            return wrong("name", "1 to 63 small letters, digits or -".into());
        }
        if !names.insert(&region.name) {
            return wrong("name", format!("{:?} stands here twice, or is fleet.region", region.name));
        }
        if index >= REGIONS_MAX {
            return wrong("name", format!("at most {REGIONS_MAX} besides the own one"));
        }
        if !in_fleet {
            return wrong("name", "other regions are for a machine of a fleet: fleet.name is empty".into());
        }
        if region.store.engine == StoreEngine::Embedded {
            return wrong(
                "store.engine",
                "\"embedded\" is a file of this process: \"primary\", \"nats\" or \"etcd\"".into(),
            );
        }
        if region.store.embedded.serve.is_some() || !region.store.embedded.operators.is_empty() {
            return wrong("store.embedded", "only the own store is served".into());
        }
        if region.store.nats.create {
            return wrong("store.nats.create", "another region's bucket is not made here".into());
        }
        region.store.check().map_err(|(key, message)| (format!("region[{index}].{key}"), message))?;
    }
    Ok(())
}

pub(crate) fn is_name(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.len() <= 63 && text.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use crate::Config;

    const FLEET: &str = "[fleet]\nname = \"e\"\nregion = \"fra\"\n[store.embedded]\nserve = \"127.0.0.1:1\"\n";

    fn checked(text: &str) -> Result<Config, String> {
        Config::parse(text, "f").map_err(|error| error.to_string())
    }

    fn nats(name: &str) -> String {
        format!(
            "[[region]]\nname = {name:?}\n[region.store]\nengine = \"nats\"\n[region.store.nats]\nservers = [\"tls://n.example:1\"]\n"
        )
    }

    #[test]
    fn a_machine_of_a_fleet_follows_other_regions_stores() {
        let config = checked(&format!("{FLEET}{}{}", nats("ams"), nats("lhr"))).unwrap();
        assert_eq!((config.fleet.region.as_str(), config.regions.len()), ("fra", 2));
        assert_eq!(config.regions[1].store.nats.servers, ["tls://n.example:1"]);
        assert_eq!(Config::parse(&config.to_toml(), "f").unwrap(), config);
        assert_eq!(Config::default().fleet.region, "own");
    }

    #[test]
    fn a_region_has_a_name_of_its_own_and_a_store_that_is_elsewhere() {
        let refused = |text: &str| checked(text).unwrap_err();
        assert!(refused(&nats("ams")).contains("fleet.name is empty"));
        for twice in [nats("fra"), format!("{0}{0}", nats("ams"))] {
            assert!(refused(&format!("{FLEET}{twice}")).contains("twice"));
        }
        assert!(refused(&format!("{FLEET}{}", nats("A"))).contains("small letters"));
        assert!(refused(&format!("{FLEET}{}create = true\n", nats("ams"))).contains("not made here"));
        let many: String = (0..16).map(|number| nats(&format!("r{number}"))).collect();
        assert!(refused(&format!("{FLEET}{many}")).contains("at most 15"));
        let region = |store: &str| format!("{FLEET}[[region]]\nname = \"ams\"\nstore = {store}\n");
        assert!(refused(&region("{}")).contains("is a file of this process"));
        let shown = refused(&region("{ engine = \"etcd\", etcd = { servers = [\"http://192.0.2.1:1\"] } }"));
        assert!(shown.contains("region.store.etcd.servers") && shown.contains("f:8:"), "{shown}");
        assert!(refused(&region("{ engine = \"etcd\", embedded = { serve = \"127.0.0.1:1\" } }")).contains("served"));
    }
}
