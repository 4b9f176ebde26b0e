//! `GET /metrics` on the admin socket: what this process counts, for Prometheus.

use super::api::{Admin, Answer};
use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::Full;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The media type of the text format (OpenMetrics 1.0).
const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything, made anew for each question: it is asked every few seconds, and the counters
/// themselves are shared.
pub(super) fn answer(admin: &Admin) -> Answer {
    let mut registry = Registry::default();
    admin.edge.metrics.register(&mut registry);
    admin.owner.metrics().register(&mut registry);
    let gauge = |value: usize| {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        gauge
    };
    registry.register("holds", "Requests held at this moment", gauge(admin.edge.waker.held()));
    let mismatches = admin.owner.lease_mismatches() + admin.edge.backhaul.lease_mismatches();
    let lost = "Claims on a run that had no stream under them";
    registry.register("lease_mismatch", lost, ConstCounter::new(mismatches));
    registry.register("client_connections", "Client connections", gauge(admin.edge.connections()));
    registry.register("routes", "Routes in the table", gauge(admin.table.len()));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(KIND));
    response
}
