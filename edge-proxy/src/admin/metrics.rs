//! `GET /metrics` on the admin socket: what this process counts, for Prometheus.

use super::api::{Admin, Answer};
use crate::tables::FollowedRegion;
use crate::worker::Edge;
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::Full;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::time::Duration;
use wakeup::owner::OwnerHandle;

/// The media type of the text format (OpenMetrics 1.0).
const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything, made anew for each question: it is asked every few seconds, and the counters
/// themselves are shared.
pub(super) fn answer(admin: &Admin) -> Answer {
    let mut registry = Registry::default();
    let (edge, owner) = (admin.edge.as_deref(), admin.owner.as_ref());
    if let Some(edge) = edge {
        edge.metrics.register(&mut registry);
    }
    if let Some(tls) = &admin.tls {
        tls.register(&mut registry);
    }
    if let Some(from_cas) = edge.and_then(Edge::challenged) {
        from_cas.register(&mut registry);
    }
    if let Some(owner) = owner {
        owner.metrics().register(&mut registry);
    }
    if let Some(dns) = &admin.dns {
        dns.register(&mut registry);
    }
    let gauge = |value: usize| {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        gauge
    };
    registry.register("holds", "Requests held at this moment", gauge(edge.map_or(0, |edge| edge.waker.held())));
    let mismatches =
        owner.map_or(0, OwnerHandle::lease_mismatches) + edge.map_or(0, |edge| edge.backhaul.lease_mismatches());
    let lost = "Claims on a run that had no stream under them";
    registry.register("lease_mismatch", lost, ConstCounter::new(mismatches));
    registry.register("client_connections", "Client connections", gauge(edge.map_or(0, Edge::connections)));
    registry.register("routes", "Routes in the table", gauge(admin.table.len()));
    by_region(admin, &mut registry);
    if let Some(seen) = &admin.watchdog {
        let seconds = |duration: Duration| usize::try_from(duration.as_secs()).unwrap_or(usize::MAX);
        let still = gauge(seen.still_for().map_or(0, seconds));
        registry.register("table_applier_still_seconds", "How long an applier of the table has stood still", still);
        let stalls = "Appliers of the table that were found to stand still";
        registry.register("table_applier_stalls", stalls, ConstCounter::new(seen.stalls()));
        let looked = gauge(seconds(seen.looked_ago()));
        registry.register("table_looked_up_seconds_ago", "When the watchdog last had an answer of the table", looked);
        let slow = "Looks of the watchdog with a lookup that took long";
        registry.register("table_slow_lookups", slow, ConstCounter::new(seen.slow_lookups()));
    }
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(KIND));
    response
}

/// What is counted for each region that is followed, the own one too.
fn by_region(admin: &Admin, registry: &mut Registry) {
    let mut family = |name: &str, help: &str, of: &dyn Fn(&FollowedRegion) -> u64| {
        let family = Family::<[(&'static str, String); 1], Gauge>::default();
        for region in &*admin.regions {
            let gauge = family.get_or_create(&[("region", region.name.to_string())]);
            gauge.set(i64::try_from(of(region)).unwrap_or(i64::MAX));
        }
        registry.register(name, help, family);
    };
    let stale = |region: &FollowedRegion| region.routes.followed().stale_for().map_or(0, |since| since.as_secs());
    family("region_stale_seconds", "For how long a region's store has not been heard", &stale);
    family("region_synced", "Whether a region's store has been read", &|region| region.is_synced().into());
    family("region_routes", "Routes of a region", &|region| region.routes.len() as u64);
    family("region_quarantined", "Rows of a region that were set aside", &FollowedRegion::quarantined);
    let held = "Rows a region's store no longer has and that are served on";
    family("region_held_removals", held, &|region| region.held_removals() as u64);
    let overruled = "Hosts of a region whose number, name or keys are another region's";
    family("region_overruled_hosts", overruled, &|region| admin.overruled(&region.name).len() as u64);
}
