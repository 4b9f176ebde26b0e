//! The other PoPs of the fleet, as this one asks them for challenges: who they are says the registry (`pop/`), which operators sign
//! where there are any; where they are they say themselves (`here/`), since a packet sent astray opens nowhere.

use super::challenge_rows::HereRow;
use super::pull::Table;
use crate::machine_keys::End;
use anyhow::Context;
use backhaul::session::{PopLink, PopOptions, PopPeer};
use config::Config;
use router::pops::{PopRow, PopTable};
use router::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;

/// The link to them, once it is open.
pub(super) struct Peers {
    pub(super) link: PopLink,
    pops: Arc<PopTable>,
    /// Our own WireGuard key, as our row in `here/` says it.
    pub(super) key: String,
    /// Where others reach us.
    pub(super) endpoint: SocketAddr,
}

impl Peers {
    /// Opens the link where the configuration says; nothing where it says nothing.
    ///
    /// # Errors
    /// The address cannot be had, or a key not be read.
    pub(super) fn open(config: &Config, pops: Option<Arc<PopTable>>, table: Table) -> anyhow::Result<Option<Self>> {
        let (Some(listen), Some(pops)) = (config.fleet.peers, pops) else { return Ok(None) };
        let End { key, identity, .. } = End::of_edge(config)?;
        let public = key.public();
        let options = PopOptions {
            listen,
            key,
            identity,
            address: public.derived_address(),
            inner_mtu: config.backhaul.inner_mtu,
            answers: Arc::new(table),
        };
        let link = PopLink::start(options).with_context(|| format!("fleet.peers {listen}"))?;
        let endpoint = config.fleet.peers_endpoint.unwrap_or_else(|| link.local_addr());
        Ok(Some(Self { link, pops, key: public.to_string(), endpoint }))
    }

    /// Tells the link who there is, at each change of either table; never returns.
    pub(super) async fn follow(&self, own: &str, here: &Registry<HereRow>) {
        let (mut pops, mut places) = (self.pops.changes(), here.changes());
        let mut known = Vec::new();
        loop {
            pops.mark_unchanged();
            places.mark_unchanged();
            let peers = peers(own, &self.pops.all(), &here.all());
            if peers != known {
                known.clone_from(&peers);
                self.link.set_peers(peers);
            }
            let changed = tokio::select! {
                changed = pops.changed() => changed,
                changed = places.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }
}

/// All processes of other PoPs, those first that come after us by name: so every PoP asks others, and all are asked alike.
fn peers(own: &str, pops: &[Arc<PopRow>], here: &[Arc<HereRow>]) -> Vec<PopPeer> {
    let mut others: Vec<_> = pops.iter().filter(|pop| pop.name != own).collect();
    others.sort_by(|one, two| (one.name.as_str() < own, &one.name).cmp(&(two.name.as_str() < own, &two.name)));
    let processes = others.into_iter().flat_map(|pop| pop.processes.iter().map(|process| (pop.name.as_str(), process)));
    let peer = |(pop, process): (&str, &router::pops::EdgeProcess)| {
        let said = here.iter().find(|row| row.pop == pop && row.key.as_deref() == Some(&process.wireguard_key));
        Some(PopPeer {
            key: process.wireguard_key.parse().ok()?,
            address: process.address,
            pins: process.spki_pins.clone(),
            endpoint: said.and_then(|row| row.endpoint),
        })
    };
    processes.filter_map(peer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use backhaul::keys::PrivateKey;
    use router::pops::EdgeProcess;
    use router::rows::ROW_VERSION;

    #[test]
    fn the_next_by_name_is_asked_first_and_where_it_is_it_says_itself() {
        let process = || {
            let key = PrivateKey::generate().unwrap().public();
            EdgeProcess {
                wireguard_key: key.to_string(),
                address: key.derived_address(),
                spki_pins: vec!["0a".repeat(32)],
            }
        };
        let pop = |name: &str| {
            let row = PopRow { version: ROW_VERSION, name: name.into(), processes: vec![process()], papers: None };
            Arc::new(row)
        };
        let pops = ["a", "b", "c", "d"].map(pop);
        let here = |at: usize, key: usize| {
            Arc::new(HereRow {
                pop: pops[at].name.clone(),
                process: String::new(),
                beat: 1,
                answers: Default::default(),
                serves: std::collections::BTreeMap::new(),
                https: None,
                key: Some(pops[key].processes[0].wireguard_key.clone()),
                endpoint: Some(([192, 0, 2, 1], 7000 + at as u16).into()),
                keks: Vec::new(),
            })
        };
        // "c" says it of a key that is not its own.
        let found = peers("b", &pops, &[here(0, 0), here(2, 0), here(3, 3)]);
        let said: Vec<_> = found.iter().map(|peer| (peer.address, peer.endpoint.map(|at| at.port()))).collect();
        let address = |at: usize| pops[at].processes[0].address;
        assert_eq!(said, [(address(2), None), (address(3), Some(7003)), (address(0), Some(7000))]);
    }
}
