//! What engine `corrosion` is tested against where no agent of Corrosion runs: an agent of our own with a table of
//! SQLite under the published API ([`agent`]), and recorded answers, good and bad ([`replay`]).

pub mod agent;
pub mod replay;
mod server;

pub use agent::Agent;
pub use replay::Replay;

use std::net::SocketAddr;
use std::path::PathBuf;

/// As `docs/stores.md` has it.
///
/// # Panics
/// When that page has no schema.
#[must_use]
pub fn schema(table: &str) -> String {
    let page = include_str!("../../docs/stores.md");
    let sql =
        page.split("```sql").nth(1).and_then(|rest| rest.split("```").next()).expect("docs/stores.md has the schema");
    sql.replace("TABLE routes", &format!("TABLE {table}"))
}

fn settings(address: SocketAddr) -> config::CorrosionStore {
    config::CorrosionStore {
        api: format!("http://{address}"),
        token_file: PathBuf::new(),
        ..config::CorrosionStore::default()
    }
}
