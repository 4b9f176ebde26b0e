//! Waits with an end.

use std::time::{Duration, Instant};

/// Pause between two looks at a state that only polling can see: another process, `/proc`.
const STEP: Duration = Duration::from_millis(20);

/// Looks until `probe` gives something.
///
/// # Panics
/// After `limit`, saying what was waited for.
pub async fn until<T>(what: &str, limit: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain for: {what}");
        tokio::time::sleep(STEP).await;
    }
}

/// Awaits `future`.
///
/// # Panics
/// After `limit`, saying what was waited for.
pub async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("took longer than {limit:?}: {what}"),
    }
}
