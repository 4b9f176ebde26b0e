//! The edge's end of the sessions to worker hosts.

use crate::machine_keys::End;
use anyhow::Context;
use backhaul::QuicEdge;
use backhaul::session::EdgeOptions;
use config::Config;
use router::hosts::HostTable;
use std::net::SocketAddr;
use std::sync::Arc;

/// Sessions to the hosts of a table, each made when it is first needed, on the current runtime.
///
/// # Errors
/// The WireGuard socket cannot be opened.
pub fn connect(config: &Config, own: End, hosts: Arc<HostTable>) -> anyhow::Result<QuicEdge> {
    let address = own.key.public().derived_address();
    let edge = QuicEdge::new(EdgeOptions {
        listen: SocketAddr::new(config.backhaul.listen.ip(), 0),
        key: own.key,
        identity: own.identity,
        address,
        inner_mtu: config.backhaul.inner_mtu,
        hosts: Arc::new(move |host| hosts.lookup(host).map(|row| (*row).clone())),
    });
    edge.context("the edge's WireGuard socket")
}
