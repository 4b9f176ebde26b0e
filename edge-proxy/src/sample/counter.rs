//! Counts in memory and on disk: after a warm sleep both go on, after a cold one the disk.

use anyhow::Context;
use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::rc::Rc;

const FILE: &str = "count";

pub(super) async fn serve(port: u16) -> anyhow::Result<()> {
    let disk = match std::fs::read_to_string(FILE) {
        Ok(text) => text.trim().parse::<u64>().context("the file `count` holds no number")?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error).context("the file `count` cannot be read"),
    };
    let (memory, disk) = (Cell::new(0_u64), Rc::new(Cell::new(disk)));
    super::serve(
        port,
        || {},
        move |_| {
            memory.set(memory.get() + 1);
            let (now, disk) = (memory.get(), Rc::clone(&disk));
            async move {
                match save(disk.get() + 1) {
                    Ok(()) => {
                        disk.set(disk.get() + 1);
                        super::plain(format!("memory={now} disk={}\n", disk.get()))
                    }
                    Err(error) => super::text(500, "text/plain; charset=utf-8", format!("not saved: {error}\n")),
                }
            }
        },
    )
    .await
}

/// Replaces the file as a whole, and only after the new one is on disk.
fn save(count: u64) -> std::io::Result<()> {
    let mut file = File::create("count.next")?;
    writeln!(file, "{count}")?;
    file.sync_all()?;
    std::fs::rename("count.next", FILE)
}
