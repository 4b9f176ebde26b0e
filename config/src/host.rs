//! The worker host on this machine: it owns sprites, wakes them and puts them to sleep.

use crate::text::{all_at_least_one, all_positive};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Section `[host]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// A running sprite is frozen after this long without activity.
    #[serde(with = "crate::text")]
    pub idle_timeout: Duration,
    /// A frozen sprite is ended after this long.
    #[serde(with = "crate::text")]
    pub warm_for: Duration,
    /// A sprite runs at least this long after a wake, unless it is told to sleep.
    #[serde(with = "crate::text")]
    pub minimum_run: Duration,
    /// Anonymous wakes of one sprite in an hour; over it the sprite stays awake longer. 0 is no bound.
    pub wakes_per_hour: u32,
    /// How many of them may come at once.
    pub wake_burst: u32,
    /// Idle timeout of a sprite that is over it, for the rest of the hour.
    #[serde(with = "crate::text")]
    pub busy_idle_timeout: Duration,
    /// Sprites of one tenant that may run at the same time. 0 is no bound.
    pub running_per_tenant: usize,
    /// Idle timeout of a wake nobody waits for any more.
    #[serde(with = "crate::text")]
    pub abandoned_timeout: Duration,
    /// Open sockets (WebSocket, event streams, long answers) without data keep a sprite awake for this long.
    #[serde(with = "crate::text")]
    pub silent_sockets: Duration,
    /// How long a running guest's port may stay closed before waiters are told.
    #[serde(with = "crate::text")]
    pub port_wait: Duration,
    /// Guests that may be starting at once; four times as many may wait.
    pub start_slots: usize,
    /// From SIGTERM to SIGKILL when a guest is ended.
    #[serde(with = "crate::text")]
    pub stop_grace: Duration,
    /// First port given to a sprite as `$PORT`.
    pub first_port: u16,
    /// Last one.
    pub last_port: u16,
    /// Log of each sprite's output, bytes; one older file of the same size is kept.
    pub log_bytes: u64,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(30),
            warm_for: Duration::from_secs(600),
            minimum_run: Duration::from_secs(10),
            wakes_per_hour: 30,
            wake_burst: 20,
            busy_idle_timeout: Duration::from_secs(600),
            running_per_tenant: 0,
            abandoned_timeout: Duration::from_secs(5),
            silent_sockets: Duration::from_secs(900),
            port_wait: Duration::from_secs(10),
            start_slots: 16,
            stop_grace: Duration::from_secs(2),
            first_port: 20_000,
            last_port: 29_999,
            log_bytes: 1 << 20,
        }
    }
}

impl Host {
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.first_port < 1024 {
            return Err(("host.first_port", "from 1024 up".into()));
        }
        if self.last_port < self.first_port {
            return Err(("host.last_port", format!("not below first_port, which is {}", self.first_port)));
        }
        if self.idle_timeout < Duration::from_millis(100) {
            return Err(("host.idle_timeout", "at least 100ms".into()));
        }
        all_positive(&[("host.port_wait", self.port_wait)])?;
        all_at_least_one(&[("host.start_slots", self.start_slots)])?;
        if self.log_bytes < 4096 {
            return Err(("host.log_bytes", "at least 4096".into()));
        }
        Ok(())
    }
}
