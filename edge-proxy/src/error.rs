//! Why a request was not answered by its sprite: one enum, classified once.
//!
//! Every failure on the path of a request becomes a [`RequestError`];
//! `respond.rs` turns it into an answer, and the same match gives the metric and
//! log label, so the two cannot drift apart.

use crate::jitter;
use crate::upstream::UpstreamError;
use backhaul::wire::Cause;
use std::time::Duration;
use wakeup::hold::HoldError;

/// What went wrong, as far as the visitor, the log and the operator need to know.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The host is under none of our suffixes, or its label is no sprite name.
    #[error("no such sprite")]
    NoSuchSprite,
    /// The name asks for a port that the sprite has not declared.
    #[error("no such port")]
    NoSuchPort,
    /// Nothing in the request opens this private sprite.
    #[error("no credentials for this sprite")]
    Unauthorized,
    /// The client's network has wasted as many wakes as it may.
    #[error("too many wasted wakes from this network")]
    WakeBudget {
        /// Until it may cause the next one.
        retry_after: Duration,
    },
    /// It fell asleep with this client's socket open, and the socket comes back by itself.
    #[error("a socket that reconnects does not wake the sprite")]
    AsleepIdle {
        /// When it may try again.
        retry_after: Duration,
    },
    /// It sleeps, and its wake policy does not let this request wake it.
    #[error("the wake policy does not let this request wake the sprite")]
    WakeNotAllowed,
    /// The sprite was destroyed.
    #[error("the sprite was destroyed")]
    Gone,
    /// `Host` or `:authority` names another site than the handshake did.
    #[error("the host does not match the name of the TLS connection")]
    Misdirected,
    /// The request line or its headers cannot be forwarded.
    #[error("malformed request: {0}")]
    BadRequest(&'static str),
    /// A method we do not proxy.
    #[error("method not implemented")]
    NotImplemented,
    /// The request went through this deployment too often.
    #[error("the request is going in circles")]
    Loop,
    /// The routing table has not been loaded yet.
    #[error("the routing table is not ready")]
    TableNotReady,
    /// The hold ended without a running sprite.
    #[error("the sprite could not be woken")]
    Hold(#[source] HoldError),
    /// The owner refused the stream.
    #[error("the owner refused: {cause:?}")]
    Refused {
        /// The owner's cause.
        cause: Cause,
        /// When another try makes sense; zero when unknown.
        retry_after: Duration,
        /// For the operator's log only.
        detail: String,
    },
    /// No session to the worker host.
    #[error("the worker host does not answer")]
    HostUnreachable,
    /// The sprite's answer broke off or made no sense before its head was complete.
    #[error("the sprite's answer failed")]
    Upstream(#[source] UpstreamError),
    /// The sprite moved or slept more often than the hop budget allows.
    #[error("the sprite moved more often than the hop budget allows")]
    HopBudget,
    /// The visitor left while the request was held; nobody reads the answer.
    #[error("the client left")]
    ClientGone,
}

/// Everything `respond.rs` needs to know about one failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// HTTP status.
    pub status: u16,
    /// Stable code: body, `Proxy-Status` detail, metric label.
    pub code: &'static str,
    /// RFC 9209 §2.3 error type.
    pub proxy_error: &'static str,
    /// Seconds for `Retry-After`, the least of them; 0 for none.
    pub retry_after: u64,
    /// The most of them. [`Verdict::for_request`] picks one.
    pub retry_after_max: u64,
    /// One sentence for a visitor. Names no host, address or generation.
    pub sentence: &'static str,
}

const fn verdict(
    status: u16,
    code: &'static str,
    proxy_error: &'static str,
    retry_after: u64,
    sentence: &'static str,
) -> Verdict {
    Verdict { status, code, proxy_error, retry_after, retry_after_max: retry_after, sentence }
}

impl Verdict {
    /// `Retry-After` is spread from what it is up to `most` seconds: many are refused at once,
    /// and must not come back at once.
    const fn up_to(mut self, most: u64) -> Self {
        self.retry_after_max = most;
        self
    }

    /// What one request is told, its `Retry-After` picked by its id.
    #[must_use]
    pub fn for_request(self, request_id: &str) -> Self {
        let retry_after = jitter::pick(self.retry_after..=self.retry_after_max, request_id);
        Self { retry_after, retry_after_max: retry_after, ..self }
    }
}

impl RequestError {
    /// The one table from reason to answer (`wake.md` §7). No wildcard: a new variant
    /// does not compile until it is classified.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::NoSuchSprite => {
                verdict(404, "no_such_sprite", "destination_not_found", 0, "There is no sprite by this name.")
            }
            Self::Unauthorized => verdict(
                401,
                "unauthorized",
                "http_request_denied",
                0,
                "This sprite is private. A token or a share link opens it.",
            ),
            Self::WakeBudget { retry_after } => verdict(
                429,
                "wake_budget",
                "http_request_denied",
                seconds_up(*retry_after),
                "This sprite sleeps, and your network has woken too many for nothing.",
            ),
            Self::AsleepIdle { retry_after } => verdict(
                503,
                "asleep_idle",
                "destination_unavailable",
                seconds_up(*retry_after),
                "This sprite fell asleep because nobody was there. Opening its page wakes it.",
            ),
            Self::WakeNotAllowed => verdict(
                503,
                "wake_not_allowed",
                "destination_unavailable",
                3600,
                "This sprite sleeps, and this kind of request does not wake it.",
            ),
            Self::NoSuchPort => cause_verdict(Cause::PortNotDeclared, 0),
            Self::Gone => verdict(410, "gone", "destination_not_found", 0, "This sprite was destroyed."),
            Self::Misdirected => verdict(
                421,
                "misdirected",
                "http_request_error",
                0,
                "This connection was opened for another name. Please open a new one.",
            ),
            Self::BadRequest(_) => verdict(400, "bad_request", "http_request_error", 0, "The request is malformed."),
            Self::NotImplemented => {
                verdict(501, "not_implemented", "http_request_denied", 0, "This method is not supported here.")
            }
            Self::Loop => verdict(508, "loop_detected", "proxy_loop_detected", 0, "The request is going in circles."),
            Self::TableNotReady => {
                verdict(503, "table_not_ready", "proxy_internal_error", 1, "This location is still starting.").up_to(2)
            }
            Self::Hold(error) => hold_verdict(error),
            Self::Refused { cause, retry_after, .. } => cause_verdict(*cause, seconds_up(*retry_after)),
            Self::HostUnreachable => host_unreachable(),
            Self::Upstream(_) => {
                verdict(502, "sprite_reset", "connection_terminated", 0, "The sprite broke off its answer.")
            }
            Self::HopBudget => verdict(503, "hop_budget", "destination_unavailable", 1, "The sprite is being moved."),
            Self::ClientGone => verdict(499, "client_gone", "http_request_error", 0, "The client left."),
        }
    }
}

const fn host_unreachable() -> Verdict {
    verdict(
        503,
        "host_unreachable",
        "destination_unavailable",
        2,
        "The sprite's machine does not answer at the moment.",
    )
    .up_to(5)
}

fn hold_verdict(error: &HoldError) -> Verdict {
    match error {
        HoldError::HoldFull => {
            verdict(503, "hold_full", "destination_unavailable", 1, "Too many requests wait for this sprite.").up_to(3)
        }
        HoldError::ClientHoldFull => {
            verdict(429, "client_hold_full", "http_request_denied", 1, "Too many of your requests wait already.")
                .up_to(3)
        }
        HoldError::TenantHoldFull => verdict(
            503,
            "tenant_hold_full",
            "destination_unavailable",
            1,
            "Too many requests wait for sprites like this one.",
        )
        .up_to(3),
        HoldError::EdgeBusy => {
            verdict(503, "edge_busy", "proxy_internal_error", 1, "This location is too busy to hold more requests.")
                .up_to(3)
        }
        HoldError::Deadline { eta, .. } => verdict(
            504,
            "wake_deadline",
            "http_response_timeout",
            seconds_up(*eta).max(1),
            "The sprite did not wake in time.",
        ),
        HoldError::Refused { cause, retry_after_ms, .. } => {
            cause_verdict(*cause, seconds_up(Duration::from_millis(u64::from(*retry_after_ms))))
        }
        HoldError::Moved { .. } => verdict(503, "moved", "destination_unavailable", 1, "The sprite is being moved."),
        HoldError::Gone { .. } => RequestError::Gone.verdict(),
        HoldError::Unknown { .. } => {
            verdict(503, "host_unaware", "destination_unavailable", 1, "The sprite is being placed.")
        }
        HoldError::HostUnreachable => host_unreachable(),
        HoldError::Draining => {
            verdict(503, "edge_draining", "proxy_internal_error", 1, "This location is shutting down.")
        }
    }
}

fn cause_verdict(cause: Cause, retry_after: u64) -> Verdict {
    let unavailable = "destination_unavailable";
    match cause {
        Cause::HostBusy => {
            verdict(503, "host_busy", unavailable, retry_after.max(1), "The sprite's machine is starting others first.")
        }
        Cause::WakeFailed | Cause::GuestDied => verdict(
            503,
            "wake_failed",
            unavailable,
            retry_after.max(1),
            "The sprite did not start. It will be tried again.",
        ),
        Cause::WakeFailedPermanent => verdict(502, "wake_failed_permanent", unavailable, 0, "The sprite cannot start."),
        Cause::PortClosed => {
            verdict(502, "port_closed", "connection_refused", 2, "The sprite runs, but nothing listens on this port.")
        }
        Cause::PortNotDeclared => verdict(404, "no_such_port", "destination_not_found", 0, "This port is not open."),
        Cause::WakeDeadline => verdict(
            504,
            "wake_deadline",
            "http_response_timeout",
            retry_after.max(1),
            "The sprite did not wake in time.",
        ),
        Cause::ShuttingDown => {
            verdict(503, "host_draining", unavailable, retry_after.max(1), "The sprite's machine is shutting down.")
        }
        Cause::StoppedByOwner => {
            verdict(503, "stopped_by_owner", unavailable, 0, "The sprite has been stopped by its owner.")
        }
        Cause::AwakeBudget => verdict(
            503,
            "wake_budget",
            unavailable,
            retry_after.max(1),
            "The sprite has been awake for as long as its owner allows.",
        ),
        Cause::LossyWake => verdict(
            503,
            "wake_refused_lossy",
            unavailable,
            0,
            "The sprite lost what it had in memory. Its owner decides when it starts again.",
        ),
        Cause::TenantAtCapacity => verdict(
            503,
            "tenant_at_capacity",
            unavailable,
            retry_after.max(1),
            "The sprite cannot start at the moment. It will be tried again.",
        ),
        Cause::Version | Cause::Unspecified => {
            verdict(503, "host_incompatible", "proxy_internal_error", 5, "The sprite's machine speaks another version.")
        }
    }
}

/// Whole seconds, rounded up, as `Retry-After` wants them (RFC 9110 §10.2.3).
fn seconds_up(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_with_others_is_told_to_come_back_at_another_time() {
        let held = RequestError::Hold;
        for (error, least, most) in [
            (held(HoldError::HoldFull), 1, 3),
            (held(HoldError::ClientHoldFull), 1, 3),
            (held(HoldError::TenantHoldFull), 1, 3),
            (held(HoldError::EdgeBusy), 1, 3),
            (RequestError::TableNotReady, 1, 2),
            (RequestError::HostUnreachable, 2, 5),
            (held(HoldError::HostUnreachable), 2, 5),
            (held(HoldError::Draining), 1, 1),
            (RequestError::WakeNotAllowed, 3600, 3600),
            (RequestError::NoSuchSprite, 0, 0),
        ] {
            let told: std::collections::BTreeSet<_> =
                (0..100).map(|id| error.verdict().for_request(&format!("{id:032x}")).retry_after).collect();
            assert_eq!(told, (least..=most).collect(), "{error}");
        }
    }
}
