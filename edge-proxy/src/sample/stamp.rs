//! For the load generator: says on the machine's own clock when it began to listen and
//! when it was last continued, so that nobody else's word is needed for how long a wake took.

use std::cell::Cell;
use std::rc::Rc;
use tokio::signal::unix::{SignalKind, signal};

pub(super) async fn serve(port: u16) -> anyhow::Result<()> {
    let (listening, continued) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let mut signals = signal(SignalKind::from_raw(libc::SIGCONT))?;
    let seen = Rc::clone(&continued);
    tokio::task::spawn_local(async move {
        while signals.recv().await.is_some() {
            seen.set(now_ns());
        }
    });
    let began = Rc::clone(&listening);
    super::serve(
        port,
        move || began.set(now_ns()),
        move |_| {
            let stamp = serde_json::json!({
                "listen_monotonic_ns": listening.get(),
                "continue_monotonic_ns": continued.get(),
                "now_monotonic_ns": now_ns(),
            });
            async move { super::text(200, "application/json", format!("{stamp}\n")) }
        },
    )
    .await
}

/// `CLOCK_MONOTONIC`, the same for every process of the machine.
fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
