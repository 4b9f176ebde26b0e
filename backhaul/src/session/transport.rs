//! QUIC's figures for a session (`backhaul.md` §4), the same at both ends.

use super::STREAM_WINDOW_BYTES;
use super::alone::ALONE_MAX;
use crate::link::UserspaceLink;
use quinn::congestion::CubicConfig;
use quinn::{Endpoint, EndpointConfig, MtuDiscoveryConfig, ServerConfig, TokioRuntime, TransportConfig, VarInt};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Streams an edge may have open at a time on one host. Chosen: twice what an edge holds
/// (`hold.per_process`, 8,192). All of them may be let go to one host within a second, each
/// takes a stream, and one that gets none in time is answered as if the host were away.
const STREAMS_MAX: u32 = 16_384;
/// Sent but not acknowledged, bytes: 1 Gbit/s at 130 ms.
const SEND_WINDOW_BYTES: u64 = 16 * 1024 * 1024;
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// 30 s beyond the keep-alive.
const IDLE_TIMEOUT_MS: u32 = 40_000;
/// Every path carries this much, or it carries no QUIC (RFC 9000 §14).
const INITIAL_MTU: u16 = 1200;
/// Initial congestion window, bytes: 32 packets.
const INITIAL_WINDOW: u64 = 32 * INITIAL_MTU as u64;
/// Assumed until measured; decides when a lost handshake packet is repeated (chosen: above
/// any path between an edge and its region's hosts, and a third of QUIC's own).
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Questions of one PoP to another at a time (chosen: as many as a PoP's DNS waits for).
const QUESTIONS_MAX: u32 = 64;

pub(super) fn transport(link: &UserspaceLink) -> Arc<TransportConfig> {
    Arc::new(figures(link))
}

/// Between PoPs: questions of some bytes, and nothing else.
pub(super) fn questions(link: &UserspaceLink) -> Arc<TransportConfig> {
    let mut config = figures(link);
    config.max_concurrent_bidi_streams(QUESTIONS_MAX.into()).max_concurrent_uni_streams(0u32.into());
    Arc::new(config)
}

fn figures(link: &UserspaceLink) -> TransportConfig {
    let mut cubic = CubicConfig::default();
    cubic.initial_window(INITIAL_WINDOW);
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(link.payload_max());
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(ALONE_MAX.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        // The ledger bounds memory instead: a window for all streams together would let
        // clients that stop reading one sprite freeze its neighbours.
        .receive_window(VarInt::MAX)
        .send_window(SEND_WINDOW_BYTES)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        .initial_mtu(INITIAL_MTU)
        .mtu_discovery_config(Some(discovery))
        .initial_rtt(INITIAL_RTT)
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(cubic));
    config
}

/// QUIC on a link, which others may come to by `accepts`. Peers are where WireGuard says; QUIC has nothing to add.
pub(super) fn endpoint(link: &Arc<UserspaceLink>, accepts: Option<ServerConfig>) -> io::Result<Endpoint> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(link.payload_max()).map_err(io::Error::other)?;
    let accepts = accepts.map(|mut accepts| {
        accepts.migration(false);
        accepts
    });
    let socket = Arc::clone(link);
    Endpoint::new_with_abstract_socket(config, accepts, socket, Arc::new(TokioRuntime))
}
