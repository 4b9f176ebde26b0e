//! A route as the table keeps it: 24 bytes. What many routes have in common (who may ask, who may
//! wake, which ports) is kept once and pointed at; the defaults are not kept at all.

use crate::access::Access;
use crate::client_certificate::ClientCertificate;
use crate::route::{Generation, HostId, Ports, Route, Tenant};
use crate::wake::WakeRules;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The bit of the generation's word that says that it is a tombstone.
const TOMBSTONE: u64 = Generation::MAX.0 + 1;

#[derive(Clone, Debug)]
pub(super) struct Packed {
    /// The generation, and [`TOMBSTONE`].
    placement: u64,
    host: HostId,
    tenant: Tenant,
    /// None for a public sprite without rules or ports.
    policy: Option<Arc<Policy>>,
}

/// What routes may have in common.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Policy {
    access: Access,
    wake: Option<Arc<WakeRules>>,
    ports: Ports,
    client_certificate: Option<Arc<ClientCertificate>>,
}

impl Packed {
    pub(super) const fn generation(&self) -> Generation {
        Generation(self.placement & !TOMBSTONE)
    }

    pub(super) fn route(&self) -> Route {
        let policy = self.policy.as_deref();
        Route {
            generation: self.generation(),
            host: self.host,
            tenant: self.tenant,
            access: policy.map_or(Access::Public, |policy| policy.access.clone()),
            wake: policy.and_then(|policy| policy.wake.clone()),
            ports: policy.map(|policy| policy.ports.clone()).unwrap_or_default(),
            client_certificate: policy.and_then(|policy| policy.client_certificate.clone()),
            deleted: self.placement & TOMBSTONE != 0,
        }
    }
}

/// Policies of public sprites that are in use. Only writers come here.
#[derive(Debug, Default)]
pub(super) struct Policies(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    policies: HashSet<Arc<Policy>>,
    /// Size at which those that nothing uses any more are let go.
    sweep_at: usize,
}

/// Fewest policies before a sweep (chosen: small beside any table).
const SWEEP_MIN: usize = 1_024;

impl Policies {
    pub(super) fn pack(&self, route: Route) -> Packed {
        let Route { generation, host, tenant, access, wake, ports, client_certificate, deleted } = route;
        let placement = generation.min(Generation::MAX).0 | if deleted { TOMBSTONE } else { 0 };
        let plain = access == Access::Public && wake.is_none() && ports.is_empty() && client_certificate.is_none();
        let policy = (!plain).then(|| self.shared(Policy { access, wake, ports, client_certificate }));
        Packed { placement, host, tenant, policy }
    }

    fn shared(&self, policy: Policy) -> Arc<Policy> {
        // Each private sprite has keys of its own: there is nothing to share.
        if policy.access != Access::Public {
            return Arc::new(policy);
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = known.policies.get(&policy) {
            return Arc::clone(present);
        }
        if known.policies.len() >= known.sweep_at.max(SWEEP_MIN) {
            known.policies.retain(|policy| Arc::strong_count(policy) > 1);
            known.sweep_at = 2 * known.policies.len();
        }
        let policy = Arc::new(policy);
        known.policies.insert(Arc::clone(&policy));
        policy
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Private;
    use crate::client_certificate::ClientMode;

    fn route(access: Access, ports: &[u16]) -> Route {
        Route {
            generation: Generation(7),
            host: HostId(3),
            tenant: Tenant::from("t"),
            access,
            wake: None,
            ports: ports.into(),
            client_certificate: None,
            deleted: false,
        }
    }

    #[test]
    fn a_route_comes_out_as_it_went_in() {
        let policies = Policies::default();
        let pass = Arc::new(ClientCertificate { mode: ClientMode::Pass, ca_pem: String::new() });
        let rules = Some(Arc::new(WakeRules { edge_paths: false, ..WakeRules::default() }));
        for route in [
            route(Access::Public, &[]),
            route(Access::Public, &[80, 8080]),
            route(Access::Private(Arc::new(Private::default())), &[]),
            Route { deleted: true, ..route(Access::Public, &[]) },
            Route { client_certificate: Some(pass), ..route(Access::Public, &[]) },
            Route { wake: rules, deleted: true, generation: Generation::MAX, ..route(Access::Public, &[]) },
        ] {
            assert_eq!(policies.pack(route.clone()).route(), route);
        }
    }

    #[test]
    fn a_packed_route_has_24_bytes_and_equal_policies_are_one() {
        assert_eq!(size_of::<Packed>(), 24);
        let policies = Policies::default();
        assert!(policies.pack(route(Access::Public, &[])).policy.is_none());
        let (one, other) = (policies.pack(route(Access::Public, &[80])), policies.pack(route(Access::Public, &[80])));
        assert!(Arc::ptr_eq(one.policy.as_ref().unwrap(), other.policy.as_ref().unwrap()));
    }

    #[test]
    fn policies_nothing_uses_are_let_go() {
        let policies = Policies::default();
        for port in 1..=5_000 {
            drop(policies.pack(route(Access::Public, &[port])));
        }
        assert!(policies.0.lock().unwrap().policies.len() <= SWEEP_MIN);
    }
}
