//! Says hello and since when it runs.

use std::cell::Cell;
use std::time::Instant;

pub(super) async fn serve(port: u16) -> anyhow::Result<()> {
    let started = Instant::now();
    let count = Cell::new(0_u64);
    super::serve(
        port,
        || {},
        move |_| {
            count.set(count.get() + 1);
            let text = format!(
                "Hello from a sprite.\nrequest {} since it was started {:.3} s ago\n",
                count.get(),
                started.elapsed().as_secs_f64()
            );
            async move { super::plain(text) }
        },
    )
    .await
}
