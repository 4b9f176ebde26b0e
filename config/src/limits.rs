//! Bounds of client connections.

use crate::text::{all_at_least_one, all_positive};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Section `[limits]`. The starting values are Envoy's edge guide's unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Client connections per process.
    pub connections: usize,
    /// From the first byte to the end of an HTTP/1 request head; also how long an idle connection is kept.
    #[serde(with = "crate::text")]
    pub header_read_timeout: Duration,
    /// Read and write buffer of an HTTP/1 connection, bytes; bounds a request head too.
    pub http1_buffer_bytes: usize,
    /// Streams of one HTTP/2 connection at once.
    pub http2_streams: u32,
    /// Upload bytes in flight per HTTP/2 stream.
    pub http2_stream_window_bytes: u32,
    /// Upload bytes in flight per HTTP/2 connection.
    pub http2_connection_window_bytes: u32,
    /// Answer bytes buffered per HTTP/2 stream.
    pub http2_send_buffer_bytes: usize,
    /// Header list of an HTTP/2 request, bytes as RFC 9113 §6.5.2 counts them.
    pub http2_header_list_bytes: u32,
    /// Between HTTP/2 pings.
    #[serde(with = "crate::text")]
    pub http2_ping_interval: Duration,
    /// A connection whose ping is not answered for this long is closed.
    #[serde(with = "crate::text")]
    pub http2_ping_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            header_read_timeout: Duration::from_secs(60),
            http1_buffer_bytes: 64 * 1024,
            http2_streams: 100,
            http2_stream_window_bytes: 64 * 1024,
            http2_connection_window_bytes: 1024 * 1024,
            http2_send_buffer_bytes: 64 * 1024,
            http2_header_list_bytes: 16 * 1024,
            http2_ping_interval: Duration::from_secs(10),
            http2_ping_timeout: Duration::from_secs(20),
        }
    }
}

impl Limits {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        all_at_least_one(&[
            ("limits.connections", self.connections),
            ("limits.http2_streams", self.http2_streams as usize),
            ("limits.http2_send_buffer_bytes", self.http2_send_buffer_bytes),
            ("limits.http2_header_list_bytes", self.http2_header_list_bytes as usize),
        ])?;
        all_positive(&[
            ("limits.header_read_timeout", self.header_read_timeout),
            ("limits.http2_ping_interval", self.http2_ping_interval),
            ("limits.http2_ping_timeout", self.http2_ping_timeout),
        ])?;
        // hyper panics below its own minimum.
        if self.http1_buffer_bytes < 8192 {
            return Err(("limits.http1_buffer_bytes", "at least 8192".into()));
        }
        // RFC 9113 §6.9.1 and §6.9.2.
        let windows = [
            ("limits.http2_stream_window_bytes", self.http2_stream_window_bytes),
            ("limits.http2_connection_window_bytes", self.http2_connection_window_bytes),
        ];
        match windows.iter().find(|(_, window)| !(65_535..=0x7fff_ffff).contains(window)) {
            Some((key, _)) => Err((key, "between 65535 and 2147483647".into())),
            None => Ok(()),
        }
    }
}
